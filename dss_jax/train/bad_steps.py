"""Updates that were skipped because loss or gradient was not finite: said, kept, and the end of a
run that makes no others.

The step itself leaves parameters and optimiser as they are (`step.make_train_step`), so nothing
here is in a hurry.
"""

import logging
import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dss_jax.core import processes, storage, strict_json
from dss_jax.core.errors import Diverged
from dss_jax.core.paths import write_whole
from dss_jax.train.checkpoint import Checkpoints
from dss_jax.train.loop import Hook
from dss_jax.train.step import Metrics, TrainState

log = logging.getLogger(__name__)

LOG, REPLAY, STATES = "bad_steps.jsonl", "diverged.json", "diverged"
"""In the run's folder: a line a skipped batch; what `dss replay` reads; the state for it."""

SHOWN = 5
"""Ids of a batch that are said; all are written."""


@dataclass
class BadSteps(Hook):
    """Looks at the metrics of each step that is done.

    Attributes:
      folder: of the run.
      most: `Train.max_bad_steps`.
      ids_at: batch number -> ids of its rows.
    """

    folder: Path
    most: int
    ids_at: Callable[[int], list[str]]

    def done(self, step: int, metrics: Metrics, newest: TrainState) -> None:
        """Looks at one step. After `most` bad batches in a row the parameters of the newest state
        are still those before the first of them.

        Raises:
          Diverged: so many were skipped. The state is kept for `dss replay`.
        """
        in_a_row = int(metrics["bad_steps"])
        if not in_a_row:
            return
        numbers = {name: float(value) for name, value in metrics.items()}
        ids = self.ids_at(step - 1)
        log.warning(
            f"step {step}: {not_finite(numbers)}, so the update is skipped ({in_a_row} in a row). "
            f"Rows: {', '.join(ids[:SHOWN])}{', ...' if len(ids) > SHOWN else ''} (all: {LOG})"
        )
        self._write(step, numbers, ids)
        if in_a_row >= self.most:
            raise self._diverged(step - in_a_row, numbers, newest)

    def _write(self, step: int, numbers: dict[str, float], ids: list[str]) -> None:
        if processes.is_first():
            line = strict_json.dumps({"step": step, "numbers": numbers, "ids": ids}) + "\n"
            file = self.folder / LOG
            if storage.is_remote(self.folder):
                # Objects of a bucket do not grow.
                write_whole(file, (file.read_text() if file.exists() else "") + line)
            else:
                with file.open("a", encoding="utf-8") as out:
                    out.write(line)

    def _diverged(self, first: int, numbers: dict[str, float], state: TrainState) -> Diverged:
        """Keeps what `dss replay` needs; `first` is the number of the first bad batch."""
        kept = Checkpoints(self.folder / STATES)
        try:
            kept.save(state, int(state.step), None)
            kept.wait()
        finally:
            kept.close()
        file = self.folder / REPLAY
        content = {
            "step": first, "in_a_row": self.most, "state": int(state.step), "numbers": numbers,
            "ids": [self.ids_at(first + i) for i in range(self.most)],
        }  # fmt: skip
        if processes.is_first():
            write_whole(file, strict_json.dumps(content, indent=1) + "\n")
        return Diverged(
            f"the run has diverged: {self.most} updates in a row were skipped from step "
            f"{first + 1} on, the last because {not_finite(numbers)} (Train.max_bad_steps = "
            f"{self.most}). What is saved is the state before them. To repeat the step:\n"
            f"  dss replay {shlex.quote(str(file))}\n"
            "Usual causes: a learning rate that is too high (Optimizer.learning_rate, "
            "Optimizer.warmup_steps), a checkpoint to start from that is damaged."
        )


def not_finite(numbers: dict[str, float]) -> str:
    """ "the loss is nan (label/loss nan)" or, where that is finite, what the gradient is."""
    parts = [
        f"{name} {value}"
        for name, value in numbers.items()
        if name.endswith("/loss") and not math.isfinite(value)
    ]
    if not math.isfinite(numbers["loss"]):
        return f"the loss is {numbers['loss']}" + (f" ({', '.join(parts)})" if parts else "")
    if not math.isfinite(numbers["grad_norm"]):
        return f"the gradient's norm is {numbers['grad_norm']}"
    return "batches before it were not finite"


def bad_leaves(tree: Any) -> list[str]:
    """Names of arrays that hold a number that is not finite."""
    import jax

    found = jax.tree_util.tree_leaves_with_path(tree)
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in found
        if np.issubdtype(leaf.dtype, np.floating) and not bool(np.isfinite(np.asarray(leaf)).all())
    ]
