"""The start of a run: steps are compiled while the state is made, and the time is split."""

import datetime
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import jax
import numpy as np

from dss_jax.core import config, processes, strict_json
from dss_jax.core.startup import StartClock
from dss_jax.core.types import Scorer
from dss_jax.data.store import StoreSplit, TokenStore
from dss_jax.layouts.batches import TrainBatches
from dss_jax.layouts.blocks import Batch
from dss_jax.layouts.shapes import cost_of
from dss_jax.model import lora
from dss_jax.run import run_folder
from dss_jax.run.session import Session
from dss_jax.train.compile import COMPILE_CACHE, Compiled, cache_counts
from dss_jax.train.saved_steps import SavedSteps
from dss_jax.train.sharding import data_parallelism, data_slice

if TYPE_CHECKING:
    from dss_jax.data.spans import Pieces

Say = Callable[[str], None]
MAX_THREADS = 4
"""At most three shapes of a training step, and one of the evaluation's."""


class CompileAhead:
    """Compiles a run's steps in threads, from the moment when it is entered as a context.

    Attributes:
      train_step: (state, batch) -> (state, metrics); waits for the shape that it is called with.
    """

    def __init__(
        self,
        lower: Callable[[Batch], jax.stages.Lowered],
        clock: StartClock,
        saved: SavedSteps | None = None,
    ) -> None:
        """`lower`: of the training step, as in `Program`; `saved`: where it is kept."""
        self.train_step = Compiled(lower, saved)
        self._clock = clock
        counts = cache_counts()
        self._before = counts.found, counts.missing
        self._pool = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="compile")

    def begin(
        self, shapes: Iterable[Batch], evaluation: Callable[[ThreadPoolExecutor], None]
    ) -> None:
        """Begins with the training step's shapes; then the evaluation's, which may still be at
        work when the first step runs.
        """
        self.train_step.ahead(shapes, self._pool)
        evaluation(self._pool)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def wait(self) -> None:
        """Waits for all shapes of the training step; what else was compiled goes on."""
        self.train_step.wait()
        self._clock.lap("compile")

    def report(self, folders: Sequence[Path], step: int, cache: str | None) -> str:
        """To be called when the first step has ended: writes a line of `startup.jsonl`.

        Args:
          folders: of the run, or of each run that is trained at once.
          step: updates done before this start.
          cache: folder of compiled code.

        Returns:
          The line for people.
        """
        self._clock.lap("first step")
        found, missing = (
            now - before
            for now, before in zip(
                (cache_counts().found, cache_counts().missing), self._before, strict=True
            )
        )
        line = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "step": step,
            "total_seconds": round(self._clock.total, 3),
            "seconds": {name: round(s, 3) for name, s in self._clock.seconds.items()},
            "compile_cache": cache,
            "functions_found": found,
            "functions_compiled": missing,
        }
        for folder in folders if processes.is_first() else ():
            with (folder / run_folder.STARTUP).open("a") as file:
                file.write(strict_json.dumps(line) + "\n")
        if cache is None:
            return f"{self._clock}"
        return f"{self._clock} ({found} compiled functions were on the disk, {missing} were not)"


def compile_evaluation(session: Session, pool: ThreadPoolExecutor) -> None:
    """Begins to compile the step of evaluation on the validation split, in the pool."""
    session.evaluator.compile_ahead("validation", session.run.evaluate.validation_examples, pool)


def training_rows(
    run: config.Run, store: TokenStore, scorer: Scorer
) -> tuple["StoreSplit | Pieces", np.ndarray | None]:
    """What is trained on: a split, and which of its rows may have their teacher text (see
    `columns.examples_of`).
    """
    if run.method.form == "spans":
        from dss_jax.data.spans import pieces_of

        return pieces_of(store, "train", run), None
    split = store.split("train")
    if store.extras:
        from dss_jax.data.extras import JoinedSplit

        split = JoinedSplit(split, [extra.split("train") for extra in store.extras])
    if not run.method.only_correct:
        return split, None
    pairs = zip(split.text("label")[:], split.text("teacher_label")[:], strict=True)
    right = [not gold or scorer.correct(gold, teacher) for gold, teacher in pairs]
    return split, np.array(right, bool)


def train_batches(session: Session, plan_subsets: Sequence[config.Task] = ()) -> TrainBatches:
    """The batches of a run: this process's parts. With `plan_subsets`, in shapes that runs on these
    have too.
    """
    run, mesh = session.run, session.program.mesh
    index, count = data_slice(mesh)
    split, right = training_rows(run, session.store, session.evaluator.scorer)
    return TrainBatches(
        split,
        run.task,
        run.data,
        run.method,
        right=right,
        steps=run.train.steps,
        shares=data_parallelism(mesh) * run.train.microbatches,
        process_index=index,
        process_count=count,
        cost=cost_of(run.model),
        plan_subsets=plan_subsets,
        numbered=bool(run.loss.mutual_information),
    )


def describe(session: Session, batches: TrainBatches, say: Say) -> None:
    """Says what is trained, on what."""
    run, program = session.run, session.program
    count = sum(x.size for x in jax.tree.leaves(program.abstract_state.params))
    mesh = " x ".join(f"{a} {n}" for a, n in program.mesh.shape.items())
    device = program.mesh.devices.flat[0]
    say(f"model: {count / 1e6:.1f}M parameters, {run.model.dtype} activations")
    if run.lora.rank:
        trained = sum(x.size for x in jax.tree.leaves(lora.split(program.abstract_state.params)[0]))
        say(f"LoRA of rank {run.lora.rank}: {trained / 1e6:.2f}M of them are trained")
    say(f"mesh: {mesh} on {device.device_kind} ({device.platform})")
    say(
        f"data: {len(batches.rows)} training examples"
        + (
            f" ({batches.left_out} left out: no {run.method.label} label)"
            if batches.left_out
            else ""
        )
    )
    shapes = batches.layout.shapes
    say(
        f"layout: {run.data.layout}, {shapes} compiled shape{'s' if shapes > 1 else ''}; "
        f"{batches.padding_overhead():.2f} times the FLOPs of real tokens"
    )
    if session.compile_cache is not None:
        say(f"compiled code is kept in {session.compile_cache} ({COMPILE_CACHE}=off: it is not)")
    if run.method.form == "spans":
        return
    say("exact match near 0 is normal in the first 250 to 750 steps of pre-trained T5 v1.1 at")
    say("batch 64: it has only seen span corruption. The losses show that it learns.")
