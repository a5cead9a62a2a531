"""Whether somebody who reads a student's rationale would guess the student's label: simulatability,
as Hase et al. 2020 (arXiv 2010.04119) measure it, with a student of method pinto as the reader.
`dss eval --reader`; docs/report.md.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from dss_jax.core.errors import UsageError
from dss_jax.data.store import StoreSplit
from dss_jax.data.tokenizer import SEPARATOR
from dss_jax.evaluate.evaluator import write_predictions
from dss_jax.records.ids import lines_with_ids
from dss_jax.student.predict import CHUNK, PredictProgress
from dss_jax.student.student import Student

log = logging.getLogger(__name__)

Same = Callable[[str, str], bool]
"""Whether two labels are the same."""

WAYS = (
    lambda one: f"{one['input']}{SEPARATOR}{one['rationale']}",
    lambda one: one["input"],
    lambda one: f"{SEPARATOR}{one['rationale']}",
)
"""What is read of a prediction: the input and the rationale, the input, the rationale."""


def warn_of_task(reader: Student, task: str) -> None:
    """Says so where a reader was trained on another task than the rationales are of."""
    if reader.card.task not in ("", task):
        log.warning(
            f"{reader.folder}: this reader was trained on {reader.card.task}, and reads rationales "
            f"of {task}: what it says may be little more than chance"
        )


def read_file(reader: Student, file: Path, split: StoreSplit, same: Same) -> None:
    """Has the rationales in a file of predictions read (see `read`), writes it anew, and says what
    came of it. UsageError: it has none.
    """
    predictions = [*lines_with_ids(file)]
    labels = split.text("allowed_labels")[:] if split.has("allowed_labels") else ()
    allowed = dict(zip(split.text("id")[:], map(json.loads, labels), strict=False))
    there = read(reader, predictions, allowed, same)
    if not there:
        raise UsageError(f"{file}: this student has written no rationales that could be read.")
    write_predictions(file, predictions)
    rates = [100 * sum(one) / len(there) for one in zip(*there, strict=True)]
    log.info(
        f"{split.name}: from input and rationale the reader gives the student's label in "
        f"{rates[0]:.1f} % of {len(there):,}, from the input alone in {rates[1]:.1f} %"
    )


def read(
    reader: Student,
    predictions: Sequence[dict[str, Any]],
    allowed: Mapping[str, Sequence[str]],
    same: Same,
) -> list[list[bool]]:
    """Adds to each prediction that has a rationale what a reader says in the student's place:
    `reader`, its folder; `reader_labels`, in the `WAYS`; and `reader_agrees`, which of these are
    the student's, and what it gives for all of them.

    `allowed`: id -> the allowed labels; none: the reader's own, or any text.
    """
    there = [one for one in predictions if one.get("rationale") is not None]
    with closing(PredictProgress(len(there), 0)) as progress:
        for first in range(0, len(there), CHUNK):
            part = there[first : first + CHUNK]
            labels = [allowed.get(one["id"]) or reader.card.labels for one in part]
            ways = [reader.predict([*map(way, part)], labels=labels) for way in WAYS]
            for one, *answers in zip(part, *ways, strict=True):
                said, own = one["prediction"], [answer.label for answer in answers]
                one["reader"], one["reader_labels"] = str(reader.folder), own
                one["reader_agrees"] = [x == said or same(said, x) for x in own]
            progress(len(part))
    return [one["reader_agrees"] for one in there]
