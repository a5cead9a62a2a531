"""The start of a run: its batches, its first state, and where the time went."""

import contextlib
import datetime
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import jax
import numpy as np

from dss_jax.core import config, processes, strict_json
from dss_jax.core.startup import StartClock
from dss_jax.core.types import Scorer
from dss_jax.data.store import StoreSplit, TokenStore
from dss_jax.layouts.batches import TrainBatches
from dss_jax.layouts.layout import cost_of
from dss_jax.model import lora
from dss_jax.run import run_folder
from dss_jax.run.session import Session
from dss_jax.train.checkpoint import Checkpoints
from dss_jax.train.compile import COMPILE_CACHE, cache_counts
from dss_jax.train.sharding import data_parallelism, data_slice
from dss_jax.train.step import TrainState

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from dss_jax.data.spans import Pieces
MAX_THREADS = 4
"""At most three shapes of a training step, and one of the evaluation's."""


PLANNED = range(4)
"""Values of `Data.seed` for whose batches every run's shapes have room, too: the seeds of a sweep
then find each other's compiled steps, at 0.5 % more padding.
"""


@contextlib.contextmanager
def compile_threads() -> Iterator[ThreadPoolExecutor]:
    """Threads to compile in; what has not begun at the end is dropped."""
    pool = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="compile")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


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
        # To pack the batches of four orders takes seconds, at each start.
        plan_seeds=() if run.data.layout == "packed" else PLANNED,
        plan_subsets=plan_subsets,
        numbered=bool(run.loss.mutual_information),
    )


def first_state(session: Session, checkpoints: Checkpoints) -> TrainState:
    """Where a run starts or goes on.

    In this order: the run's own latest checkpoint; `Train.init_from`; drawn from `Train.seed`.
    """
    latest = checkpoints.latest_step()
    program, train = session.program, session.run.train
    if latest:
        log.info("going on from the checkpoint of step %d", latest)
        return program.seeded(checkpoints.restore(latest, program.abstract_state), train.seed)
    if train.init_from is not None:
        from dss_jax.run.init_from import start_from

        return start_from(session.run, program, session.store)
    log.info("starts from random parameters (Train.seed = %d)", train.seed)
    return program.init(train.seed)


def report_start(session: Session, clock: StartClock, step: int) -> None:
    """Says where the time went, when the first step has ended, and writes it to `startup.jsonl`.

    Args:
      session: of the run.
      clock: of this start.
      step: updates done before this start.
    """
    clock.lap("first step")
    counts, cache, before = cache_counts(), session.compile_cache, session.counted
    found, missing = counts.found - before[0], counts.missing - before[1]
    line = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "step": step,
        "total_seconds": round(clock.total, 3),
        "seconds": {name: round(s, 3) for name, s in clock.seconds.items()},
        "compile_cache": cache,
        "functions_found": found,
        "functions_compiled": missing,
    }
    if processes.is_first():
        with (session.folder / run_folder.STARTUP).open("a") as file:
            file.write(strict_json.dumps(line) + "\n")
    on_disk = f" ({found} compiled functions were on the disk, {missing} were not)"
    log.info("%s%s", clock, "" if cache is None else on_disk)


def describe(session: Session, batches: TrainBatches) -> None:
    """Says what is trained, on what."""
    run, program = session.run, session.program
    count = sum(x.size for x in jax.tree.leaves(program.abstract_state.params))
    mesh = " x ".join(f"{a} {n}" for a, n in program.mesh.shape.items())
    device = program.mesh.devices.flat[0]
    log.info(f"model: {count / 1e6:.1f}M parameters, {run.model.dtype} activations")
    if run.lora.rank:
        trained = sum(x.size for x in jax.tree.leaves(lora.split(program.abstract_state.params)[0]))
        log.info(f"LoRA of rank {run.lora.rank}: {trained / 1e6:.2f}M of them are trained")
    log.info(f"mesh: {mesh} on {device.device_kind} ({device.platform})")
    left_out = f" ({batches.left_out} left out: no {run.method.label} label)"
    rows = f"{len(batches.rows)} training examples{left_out if batches.left_out else ''}"
    log.info(f"data: {rows}")
    shapes = batches.layout.shapes
    log.info(
        f"layout: {run.data.layout}, {shapes} compiled shape{'s' if shapes > 1 else ''}; "
        f"{batches.padding_overhead():.2f} times the FLOPs of real tokens"
    )
    if session.compile_cache is not None:
        off = f"{COMPILE_CACHE}=off: it is not"
        log.info(f"compiled code is kept in {session.compile_cache} ({off})")
    if run.method.form == "spans":
        return
    log.info("exact match near 0 is normal in the first 250 to 750 steps of pre-trained T5 v1.1 at")
    log.info("batch 64: it has only seen span corruption. The losses show that it learns.")
