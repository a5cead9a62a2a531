"""Checkpoints of a run, written by Orbax while training goes on."""

import logging
import math
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


class Checkpoints:
    """`<folder>/<step>/` with two items: `params`, and `optimizer` (step and state).

    Kept are the latest n and the best on validation. An unfinished write is never read: Orbax
    renames a checkpoint into place when it is whole.
    """

    def __init__(self, folder: Path, keep: int = 1) -> None:
        """Opens the folder, which need not exist.

        Args:
          folder: of all checkpoints of the run.
          keep: how many of the latest are kept.
        """
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates every save.
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
        """Starts writing a checkpoint; training may go on at once.

        Args:
          state: of the run. Its arrays are copied before this returns, so they may be donated.
          step: updates done.
          score: validation score, the higher the better; None where it was not evaluated. One
            that is not finite counts as none.
        """
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                optimizer=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
            ),
            metrics=_metrics(score),
        )

    def save_params(self, params: Any, step: int, score: float | None) -> None:
        """Starts writing a checkpoint that can be scored and exported, but not trained on from.

        Args:
          params: of the plain model.
          step, score: as of `save`.
        """
        if step not in self._manager.all_steps():
            self._manager.save(
                step,
                args=ocp.args.Composite(params=ocp.args.StandardSave(params)),
                metrics=_metrics(score),
            )

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
        """The step that "best", "latest", or a step itself means.

        Raises:
          UsageError: there is no such checkpoint, or none at all.
        """
        if not self.steps():
            raise UsageError(f"{self._manager.directory} has no checkpoint yet.")
        found = {"best": self.best_step, "latest": self.latest_step}.get(str(name), lambda: None)()
        if found is None:
            if not str(name).isdigit():
                raise UsageError(f"the checkpoint must be best, latest or a step, not {name!r}.")
            found = int(name)
        self._check(found)
        return found

    def _check(self, step: int) -> None:
        if step not in self.steps():
            there = ", ".join(map(str, self.steps())) or "none"
            raise UsageError(f"there is no checkpoint of step {step}. There: {there}.")

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """Reads a state onto the shardings that `abstract` gives; what is not saved stays abstract:
        see `Program.seeded`.
        """
        self._check(step)
        optimizer = {"step": abstract.step, "opt_state": abstract.opt_state}
        read = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract.params),
                optimizer=ocp.args.StandardRestore(optimizer),
            ),
        )
        return replace(abstract, params=read.params, **read.optimizer)

    def restore_params(self, step: int, abstract_params: Any) -> Any:
        """Reads the parameters only."""
        self._check(step)
        read = self._manager.restore(
            step, args=ocp.args.Composite(params=ocp.args.StandardRestore(abstract_params))
        )
        return read.params

    def drop_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps."""
        for later in [s for s in self.steps() if s > step]:
            self._manager.delete(later)

    def keep_only(self, keep: int) -> None:
        """Deletes all but the best and the latest `keep`."""
        self.wait()
        for step in self.steps()[:-keep]:
            if step != self.best_step():
                self._manager.delete(step)

    def wait(self) -> None:
        """Returns when every checkpoint that was started is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and frees the threads."""
        self._manager.close()
