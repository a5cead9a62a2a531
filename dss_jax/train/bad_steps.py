"""Updates that were skipped because loss or gradient was not finite, said and kept; and the end of
a run that makes no others. See `hooks.BadSteps`.
"""

import logging
import math
import re
import shlex
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dss_jax.core import processes, strict_json
from dss_jax.core.errors import Diverged
from dss_jax.core.paths import write_whole
from dss_jax.train.checkpoint import Checkpoints
from dss_jax.train.step import Metrics, TrainState

log = logging.getLogger(__name__)

LOG, REPLAY, STATES = "bad_steps.jsonl", "diverged.json", "diverged"
"""In the run's folder: a line a skipped batch; what `dss replay` reads; the state for it."""

SHOWN = 5
"""Ids of a batch that are said; all are written."""

IdsAt = Callable[[int], list[str]]
"""Number of a batch -> ids of its rows."""


def noted(
    step: int, metrics: Metrics, newest: TrainState, folder: Path, most: int, ids_at: IdsAt
) -> None:
    """Says and keeps one; raises Diverged where it is the last of `most` in a row."""
    in_a_row = int(metrics["bad_steps"])
    numbers = {name: float(value) for name, value in metrics.items()}
    ids = ids_at(step - 1)
    log.warning(
        f"step {step}: {not_finite(numbers)}, so the update is skipped ({in_a_row} in a row). "
        f"{rows_of(ids, LOG)}"
    )
    if processes.is_first():
        keep_line(folder / LOG, {"step": step, "numbers": numbers, "ids": ids})
    if in_a_row >= most:
        raise _diverged(step - in_a_row, numbers, newest, folder, most, ids_at)


def rows_of(ids: list[str], log_file: str) -> str:
    """How a message names the rows of a step, all of which are in a file of the run's folder."""
    more = ", ..." if len(ids) > SHOWN else ""
    return f"Rows: {', '.join(ids[:SHOWN])}{more} (all: {log_file})"


def keep_line(file: Path, line: dict[str, Any]) -> None:
    """Adds a line about a step. Those of this step and later ones go: a run that was killed wrote
    them after its last checkpoint.
    """
    lines = file.read_bytes().splitlines() if file.exists() else []
    steps = [int(x[1]) if (x := re.match(rb'{"step": (\d+)', text)) else 0 for text in lines]
    kept = [text for text, step in zip(lines, steps, strict=True) if step < line["step"]]
    # Whole, because objects of a bucket do not grow.
    write_whole(file, b"\n".join([*kept, strict_json.dumps(line).encode(), b""]))


def _diverged(
    first: int, numbers: dict[str, float], state: TrainState, folder: Path, most: int, ids_at: IdsAt
) -> Diverged:
    """Keeps what `dss replay` needs; `first` is the number of the first bad batch."""
    with closing(Checkpoints(folder / STATES)) as kept:
        kept.save(state, int(state.step), None)
    file = folder / REPLAY
    ids = [ids_at(first + i) for i in range(most)]
    content: dict[str, Any] = {"step": first, "in_a_row": most, "state": int(state.step)}
    content |= {"numbers": numbers, "ids": ids}
    if processes.is_first():
        write_whole(file, strict_json.dumps(content, indent=1) + "\n")
    return Diverged(
        f"the run has diverged: {most} updates in a row were skipped from step "
        f"{first + 1} on, the last because {not_finite(numbers)} (Train.max_bad_steps = "
        f"{most}). What is saved is the state before them. To repeat the step:\n"
        f"  dss replay {shlex.quote(str(file))}\n"
        "Usual causes: a learning rate that is too high (Optimizer.learning_rate, "
        "Optimizer.warmup_steps), a checkpoint to start from that is damaged."
    )


def not_finite(numbers: dict[str, float]) -> str:
    """ "the loss is nan (label/loss nan)" or, where that is finite, what the gradient is."""
    bad = {name: value for name, value in numbers.items() if not math.isfinite(value)}
    parts = [f"{name} {value}" for name, value in bad.items() if name.endswith("/loss")]
    if "loss" in bad:
        return f"the loss is {numbers['loss']}" + (f" ({', '.join(parts)})" if parts else "")
    if "grad_norm" in bad:
        return f"the gradient's norm is {numbers['grad_norm']}"
    return "batches before it were not finite"


def check_scores(step: int, split: str, numbers: dict[str, Any]) -> None:
    """Raises Diverged where a loss of a split is not finite with the checkpoint of this step."""
    losses = {name: value for name, value in numbers.items() if name.endswith("/loss")}
    if bad := [f"{name} {value}" for name, value in losses.items() if not math.isfinite(value)]:
        raise Diverged(
            f"the run has diverged: with the best checkpoint, of step {step}, {split} has "
            f"{', '.join(bad)}. There are no results. Train again in another folder, with a lower "
            "Optimizer.learning_rate or a longer Optimizer.warmup_steps."
        )


def bad_leaves(tree: Any) -> list[str]:
    """Names of arrays that hold a number that is not finite."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(np.asarray(leaf)).all():
            found.append(jax.tree_util.keystr(path, simple=True, separator="/"))
    return found
