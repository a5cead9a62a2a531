"""A student's answers to the rows of a table, a chunk at a time."""

import hashlib
import itertools
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dss_jax.core import locks
from dss_jax.core.errors import UsageError
from dss_jax.core.method_config import JOINT
from dss_jax.core.student_card import StudentCard, to_json
from dss_jax.core.table import input_of, shard_numbers
from dss_jax.core.types import DistillationTask
from dss_jax.data.rows import Located, example_of, parse_json
from dss_jax.data.tokenizer import SEPARATOR
from dss_jax.student.student import Prediction, Student
from dss_jax.student.tables import INPUT, STANDARD, Row, open_table, open_writer

log = logging.getLogger(__name__)

CHUNK = 1024
"""Rows that are in memory at once, and between two writes; sorted by length together."""

ALLOWED = "allowed_labels"
"""The column with a row's own labels: a list, or its JSON text."""

CLASH = "predicted_"
"""Before our columns, where one of the input has such a name."""

LINE_SECONDS = 30
"""Between two lines of progress, where there is no terminal."""


@dataclass(frozen=True, kw_only=True)
class PredictJob:
    """What is asked of a student.

    Attributes:
      input, out: names of tables; "-" is standard input and output.
      input_column: whose texts are asked about; None: see `_text_of`.
      task: makes the input and the allowed labels of a raw row, in place of columns.
      labels: the allowed labels of all rows; (): the row's, else the student's.
      explain: whether rationales are wanted.
      shard: "i/n": every n-th row from the i-th on; None: all.
      prefix: before the names of our columns; None: none, or `CLASH`.
    """

    input: str
    out: str
    input_column: str | None = None
    task: DistillationTask | None = None
    labels: tuple[str, ...] = ()
    explain: bool = False
    shard: str | None = None
    prefix: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the answers, but for the student."""
        names = ("input_column", "labels", "explain", "shard", "prefix")
        task = self.task.files if self.task else None
        return {name: getattr(self, name) for name in names} | {"task": task}


class AskedRow(NamedTuple):
    """A row, what the student reads of it, and its allowed labels; (): any text, or the card's."""

    row: Row
    text: str
    labels: tuple[str, ...]


def asked(located: Located, job: PredictJob, card: StudentCard) -> AskedRow:
    """What a student of this card is asked about a row; UsageError: with file and line."""
    if located.wrong:
        raise UsageError(located.wrong)
    row = dict(located.row)
    if job.task is not None:
        example = example_of(job.task, located)
        text, labels, rationale = example.input, example.allowed_labels, example.rationale
    else:
        text, labels = _text_of(located, job.input_column, card.columns), _labels_of(located)
        rationale = str(row.get("rationale") or "")
    beside = f"{SEPARATOR}{rationale}"
    if card.form == "rationale_input" and rationale and not text.endswith(beside):
        text = f"{text}{beside}"
    return AskedRow(row, text, job.labels or labels)


def _text_of(located: Located, asked_for: str | None, own: tuple[str, ...]) -> str:
    """Of the column that is asked for; else of the student's `own`, where a table has these and no
    column `INPUT` beside them; else of that.
    """
    column = asked_for or INPUT
    beside = asked_for is not None or (INPUT in located.row and INPUT not in own)
    if own and not beside and located.row.keys() >= {*own}:
        try:
            return input_of(located.row, own)
        except UsageError as error:
            raise UsageError(f"{located.where}: {error}") from error
    text = located.row.get(column)
    if isinstance(text, str):
        return text
    what = f"{located.where}: no text in column {column!r}"
    if column in located.row:
        raise UsageError(f"{what}, but {text!r}. Fill the row, or remove it.")
    columns = ", ".join(map(repr, located.row)) or "none"
    learned = f" The student was trained on {', '.join(map(repr, own))}." if own else ""
    raise UsageError(
        f"{what}. Columns: {columns}.{learned} Give --input_column NAME, or --task NAME for a "
        "task's raw rows."
    )


def _labels_of(located: Located) -> tuple[str, ...]:
    given = located.row.get(ALLOWED)
    if given is None or given == "":  # An empty cell.
        return ()
    found = parse_json(given, f"{located.where}, {ALLOWED}") if isinstance(given, str) else given
    if found is None:
        return ()
    if not isinstance(found, list) or not all(isinstance(one, str) and one for one in found):
        raise UsageError(
            f"{located.where}: {ALLOWED} must be a list of texts, none of them empty, not "
            f'{given!r}. In CSV it is JSON: ["yes", "no"].'
        )
    return tuple(found)


def answers(student: Student, rows: Sequence[AskedRow], explain: bool) -> Sequence[Prediction]:
    """A student's predictions for rows, in their order."""
    joint = student.card.form in JOINT
    labels = None if joint else [one.labels or student.card.labels for one in rows]
    return student.predict([one.text for one in rows], explain=explain, labels=labels)


def names_of(first: Mapping[str, Any], job: PredictJob) -> dict[str, str]:
    """What our columns are called -> the field of `Prediction`; UsageError: a column of the input
    has that name.
    """
    fields = ["label", "probability", *(["rationale"] if job.explain else [])]
    clash = any(field in first for field in fields)
    prefix = job.prefix if job.prefix is not None else CLASH if clash else ""
    names = {f"{prefix}{field}": field for field in fields}
    taken = [name for name in names if name in first]
    if taken:
        raise UsageError(
            f"--input {job.input} has a column {taken[0]!r}, which the answers would overwrite. "
            "Give --prefix TEXT, which goes before the names of the new columns."
        )
    return names


def predict_table(student: Student, job: PredictJob) -> int:
    """Answers the rows of a table, and goes on after those that are answered already; gives how
    many rows there are.

    Raises:
      UsageError: a row cannot be asked about, with file and line; what is written stays. Or input
        and output do not go together: see `open_table` and `open_writer`.
      locks.Taken: another process writes there.
    """
    if job.labels and student.card.form in JOINT:
        raise UsageError(
            f"--label: this student (method {student.card.method or 'unknown'}) writes label and "
            "rationale in one text, so its labels cannot be ranked. Leave --label out."
        )
    table = open_table(job.input)
    index, count = shard_numbers(job.shard)
    rows = itertools.islice(table.rows, index, None, count)
    first = next(rows, None)
    if first is None:
        of = f" for --shard {job.shard}" if job.shard else ""
        raise UsageError(f"--input {job.input} has no rows{of}.")
    names = names_of(first.row, job)
    if student.card.row_labels and not asked(first, job, student.card).labels:
        log.info("the first row has no allowed labels (column %s): any text may be one", ALLOWED)
    card = hashlib.sha256(to_json(student.card).encode()).hexdigest()
    whole = {"student": student.origin, "card": card} | job.settings
    kinds = {name: float if field == "probability" else str for name, field in names.items()}
    taken = f"--out {job.out} is being written by {{owner}}. Let it finish, or give another name."
    lock = Path(f"{job.out}.lock").expanduser()
    with nullcontext() if job.out == STANDARD else locks.held(lock, taken):
        writer = open_writer(job.out, whole, table.schema, kinds)
        left = _Counted(itertools.chain([first], rows))
        done = writer.state["rows"]
        if done:
            log.info("going on after %d rows", done)
            _pass_over(left, writer.state, job)
        total = None if table.total is None else max(0, table.total - index + count - 1) // count
        with closing(PredictProgress(total, done)) as progress:
            while chunk := [asked(one, job, student.card) for one in itertools.islice(left, CHUNK)]:
                writer.write(_answered(student, chunk, names, job), sha256=left.sha256)
                progress(len(chunk))
        writer.finish()
    return int(writer.state["rows"])


def _answered(
    student: Student, chunk: Sequence[AskedRow], names: Mapping[str, str], job: PredictJob
) -> list[Row]:
    for one in chunk:
        if taken := [name for name in names if name in one.row]:
            raise UsageError(
                f"--input {job.input}: a later row has a column {taken[0]!r}, which the first has "
                "not, and the answers would overwrite it. Give --prefix TEXT, which goes before "
                "the names of the new columns."
            )
    found = answers(student, chunk, job.explain)
    return [
        one.row | {name: getattr(prediction, field) for name, field in names.items()}
        for one, prediction in zip(chunk, found, strict=True)
    ]


def _pass_over(rows: "_Counted", state: Mapping[str, Any], job: PredictJob) -> None:
    """Passes over the rows that are answered; UsageError: they are not those of before."""
    passed = sum(1 for _ in itertools.islice(rows, state["rows"]))
    if passed < state["rows"] or rows.sha256 != state["sha256"]:
        raise UsageError(
            f"--input {job.input} has changed: its first {state['rows']} rows are not those that "
            f"{job.out}.partial has answers to. Remove {job.out}.partial and "
            f"{job.out}.partial.json, or give another --out."
        )


class _Counted(Iterator[Located]):
    """Rows as they come, and the digest of those that have come."""

    def __init__(self, rows: Iterator[Located]) -> None:
        self._rows, self._hash = rows, hashlib.sha256()

    def __next__(self) -> Located:
        located = next(self._rows)
        self._hash.update(json.dumps(located.row, default=str).encode())
        return located

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


class PredictProgress:
    """A bar on a terminal; elsewhere a line every half minute."""

    def __init__(self, total: int | None, done: int) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, initial=done, unit="row", dynamic_ncols=True, disable=None)
        self._rows, self._total, self._said = done, total, time.monotonic()
        self.close = self._bar.close

    def __call__(self, rows: int) -> None:
        """So many more are done."""
        self._rows += rows
        self._bar.update(rows)
        if self._bar.disable and time.monotonic() - self._said > LINE_SECONDS:
            self._said = time.monotonic()
            log.info("%d rows%s", self._rows, f" of {self._total}" if self._total else "")
