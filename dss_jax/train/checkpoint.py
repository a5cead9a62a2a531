"""Checkpoints of a run, written by Orbax while training goes on."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from dss_jax.core import storage
from dss_jax.core.errors import UsageError
from dss_jax.train.step import TrainState

PARAMS, OPTIMIZER = "params", "optimizer"
"""Folders of a checkpoint's two items."""

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates what it does.

BEST_METRIC = "score"
"""Metric under which a checkpoint's validation score is kept; the highest is the best."""


def _metrics(score: float | None) -> dict[str, float] | None:
    return None if score is None or not math.isfinite(score) else {BEST_METRIC: score}


def _score(metrics: dict[str, float]) -> float:
    """The score for Orbax, whose sort NaN breaks, so that it deletes the best: a folder of an older
    version may hold one.
    """
    score = metrics[BEST_METRIC]
    return score if math.isfinite(score) else -math.inf


@contextmanager
def readable(path: Path | str) -> Iterator[None]:
    """Turns what Orbax and tensorstore say of a checkpoint that is cut short, or lacks a file, into
    a UsageError.
    """
    try:
        yield
    except (ValueError, OSError, KeyError) as error:
        if isinstance(error, UsageError):
            raise
        what = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"the checkpoint {path} cannot be read: {what[:300]}. A file of it may have been cut "
            "short: copy it again, or give another checkpoint."
        ) from error


class Checkpoints:
    """`<folder>/<step>/` with two items: `params`, and `optimizer` (step and state).

    Kept are the latest n and the best on validation. An unfinished write is never read: Orbax
    renames a checkpoint into place when it is whole.
    """

    def __init__(self, folder: Path, keep: int = 1) -> None:
        """Opens the folder, which need not exist; `keep`: how many of the latest are kept."""
        best = policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
        self._manager = ocp.CheckpointManager(
            storage.absolute(folder),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
                best_fn=_score,
                best_mode="max",
            ),
            item_names=(PARAMS, OPTIMIZER),
        )

    def save(self, state: TrainState, step: int, score: float | None) -> None:
        """Starts writing a checkpoint after `step` updates; training may go on at once.

        Its arrays are copied before this returns, so they may be donated. `score`: on validation,
        the higher the better; None where it was not evaluated. One that is not finite counts as
        none.
        """
        optimizer = {"step": state.step, "opt_state": state.opt_state}
        self._save(step, score, params=state.params, optimizer=optimizer)

    def save_params(self, params: Any, step: int, score: float | None) -> None:
        """The same of the plain model's parameters alone: they can be scored and exported, but not
        trained on from.
        """
        self._save(step, score, params=params)

    def _save(self, step: int, score: float | None, **items: Any) -> None:
        if step not in self._manager.all_steps():
            args = {name: ocp.args.StandardSave(item) for name, item in items.items()}
            self._manager.save(step, args=ocp.args.Composite(**args), metrics=_metrics(score))

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """The last step saved."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step with the best validation score; the latest where none was scored."""
        best = self._manager.best_step()
        return self.latest_step() if best is None else best

    def find(self, name: int | str) -> int:
        """The step that "best", "latest", or a step itself means. Raises UsageError: there is no
        such checkpoint, or none at all.
        """
        if not self.steps():
            raise UsageError(f"{self._manager.directory} has no checkpoint yet.")
        known = {"best": self.best_step(), "latest": self.latest_step()}
        found = str(known.get(str(name), name))
        if not found.isdigit():
            raise UsageError(f"the checkpoint must be best, latest or a step, not {name!r}.")
        self._check(int(found))
        return int(found)

    def _check(self, step: int) -> None:
        if step not in self.steps():
            there = ", ".join(map(str, self.steps())) or "none"
            raise UsageError(f"there is no checkpoint of step {step}. There: {there}.")

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """Reads a state onto the shardings that `abstract` gives; what is not saved stays abstract:
        see `Program.seeded`.
        """
        optimizer = {"step": abstract.step, "opt_state": abstract.opt_state}
        read = self._restore(step, params=abstract.params, optimizer=optimizer)
        return replace(abstract, params=read.params, **read.optimizer)

    def restore_params(self, step: int, abstract_params: Any) -> Any:
        """Reads the parameters only."""
        return self._restore(step, params=abstract_params).params

    def _restore(self, step: int, **items: Any) -> Any:
        self._check(step)
        args = {name: ocp.args.StandardRestore(item) for name, item in items.items()}
        with readable(f"{self._manager.directory}/{step}"):
            return self._manager.restore(step, args=ocp.args.Composite(**args))

    def wait(self) -> None:
        """Returns when every checkpoint that was started is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and frees the threads."""
        self._manager.close()
