"""Checkpoints of a run, written by Orbax while training goes on."""

import asyncio
import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from dss_jax.core import storage, sums
from dss_jax.core.errors import UsageError
from dss_jax.train.step import TrainState

PARAMS, OPTIMIZER = "params", "optimizer"
"""Folders of a checkpoint's two items."""

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates what it does.

LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Files of a checkpoint that Orbax writes last, after the sums; nothing that is restored."""

SUMMED = b'"has_sums": true'
"""In the first of them, which is JSON, where there are sums too."""

OTHER = (MemoryError, RuntimeError, UsageError)
"""Raised where an array does not fit, and our own; files that Orbax cannot read raise
anything else."""

BEST_METRIC = "score"
"""Metric under which a checkpoint's validation score is kept; the highest is the best."""


def _metrics(score: float | None) -> dict[str, float] | None:
    return None if score is None or not math.isfinite(score) else {BEST_METRIC: score}


def _score(metrics: dict[str, float]) -> float:
    """The score for Orbax, whose sort NaN breaks, so that it deletes the best: a folder of an older
    version may hold one.
    """
    score = metrics.get(BEST_METRIC, -math.inf)
    return score if math.isfinite(score) else -math.inf


class _Summed(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """Sums are written when all processes have written, before the checkpoint gets its name."""

    async def finalize(self) -> None:
        if self.get_final().name.isdigit():  # Not one of its items.
            await asyncio.to_thread(sums.write_sums, Path(self.get()), LATER)
        await super().finalize()


def damage_of(checkpoint: Path, part: str = "") -> str | None:
    """What is wrong with the folder of one checkpoint; None: nothing that can be seen. Those of
    older versions and those in buckets, which have sums of their own, are looked at less closely.
    """
    if not (checkpoint / PARAMS).is_dir():
        return f"it has no {PARAMS}/"
    if storage.is_remote(checkpoint):
        return None
    if checkpoint.name.isdigit() and not (checkpoint / sums.FILE).is_file():
        last = checkpoint / LATER[0]  # Those of older versions have this one, and no sums.
        if not last.is_file() or SUMMED in last.read_bytes():
            return f"it has no {sums.FILE}: a part of it is missing"
    return sums.damage(checkpoint, part) or sums.damage(checkpoint / PARAMS, part)


@contextmanager
def readable(path: Path | str) -> Iterator[None]:
    """Turns what Orbax and tensorstore say of a checkpoint that is cut short, or lacks a file, into
    a UsageError.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OTHER):
            raise
        from dss_jax.train.checkpoint_errors import unreadable

        raise unreadable(path, error) from error


class Checkpoints:
    """`<folder>/<step>/` with two items: `params`, and `optimizer` (step and state).

    Kept are the latest n and the best on validation. An unfinished write is never read: Orbax
    renames a checkpoint into place when it is whole.
    """

    def __init__(self, folder: Path, keep: int = 1, whole: Iterable[int] = ()) -> None:
        """Opens the folder, which need not exist; `keep`: how many of the latest are kept; `whole`:
        steps of those that were just looked at, and need not be when they are restored first.
        """
        best = policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
        self._folder, self._damage, self._bytes = folder, dict[tuple[int, str], str | None](), 0
        self._whole_now = {*whole}
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            best_fn=_score,
            best_mode="max",
            # On buckets Orbax has another way to finish, and the bucket sums.
            temporary_path_class=None if storage.is_remote(folder) else _Summed,
        )
        at, items = storage.absolute(folder), (PARAMS, OPTIMIZER)
        with readable(folder):
            self._manager = ocp.CheckpointManager(at, options=options, item_names=items)

    def save(self, state: TrainState, step: int, score: float | None) -> None:
        """Starts writing a checkpoint after `step` updates; training may go on at once.

        Its arrays are copied before this returns, so they may be donated. `score`: on validation,
        the higher the better; None where it was not evaluated. One that is not finite counts as
        none.
        """
        optimizer = {"step": state.step, "opt_state": state.opt_state}
        self._save(step, score, params=state.params, optimizer=optimizer)

    def save_params(self, params: Any, step: int, score: float | None) -> None:
        """The same of the plain model's parameters alone: to score and export, not to train on."""
        self._save(step, score, params=params)

    def _save(self, step: int, score: float | None, **items: Any) -> None:
        if step not in self._manager.all_steps():
            self._check_there()  # Orbax would make it again.
            args = {name: ocp.args.StandardSave(item) for name, item in items.items()}
            self._bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(items))
            has_sums = {"has_sums": not storage.is_remote(self._folder)}
            given = {"metrics": _metrics(score), "custom_metadata": has_sums}
            with self._written():
                self._manager.save(step, args=ocp.args.Composite(**args), **given)

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Makes a failed write, of the last save too, one clear error."""
        try:
            yield
        except Exception as error:
            if isinstance(error, OTHER):
                raise
            self._check_there()
            from dss_jax.train.checkpoint_errors import unwritten

            raise unwritten(self._folder, self._bytes, self._whole(), error) from error

    def _check_there(self) -> None:
        from dss_jax.core.presence import check_there

        if not storage.is_remote(self._folder):  # A bucket has no folders.
            check_there(self._folder)

    def check(self) -> None:
        """Raises UsageError where a write has failed meanwhile; costs microseconds."""
        # Orbax's check_for_errors() takes the error from the thread that, without one, deletes the
        # checkpoints before.
        if not self._manager.is_saving_in_progress():
            self.wait()

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
        for step in self.steps() if name == "best" else ():
            self._check(step, "metrics/")  # Or another would be taken for the best.
        known = {"best": self.best_step(), "latest": self.latest_step()}
        found = str(known.get(str(name), name))
        if not found.isdigit():
            raise UsageError(f"the checkpoint must be best, latest or a step, not {name!r}.")
        self._check(int(found))
        return int(found)

    def _check(self, step: int, part: str = "") -> None:
        from dss_jax.train.checkpoint_errors import damaged, listed

        if step not in self.steps():
            there = listed(self.steps())
            raise UsageError(f"there is no checkpoint of step {step}. There: {there}.")
        if (step, part) not in self._damage:
            self._damage[step, part] = damage_of(self._folder / str(step), part)
        if (wrong := self._damage[step, part]) is not None:
            others = [other for other in self._whole() if other != step]
            raise damaged(self._folder / str(step), wrong, others)

    def _whole(self) -> list[int]:
        """Steps of those on the disk; after a failure the manager has forgotten some."""
        there = self._folder.iterdir() if self._folder.is_dir() else ()
        return sorted(int(f.name) for f in there if f.name.isdigit() and damage_of(f) is None)

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
        if step not in self._whole_now:
            self._check(step)
        self._whole_now.clear()  # Hours may pass until the next.
        args = {name: ocp.args.StandardRestore(item) for name, item in items.items()}
        with readable(self._folder / str(step)):
            return self._manager.restore(step, args=ocp.args.Composite(**args))

    def wait(self) -> None:
        """Returns when every checkpoint that was started is on disk; errors as `check`."""
        with self._written():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and frees the threads; errors as `check`."""
        with self._written():
            self._manager.close()
