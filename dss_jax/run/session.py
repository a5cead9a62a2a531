"""A run with its program, its data and its scorer, ready to train or score; and its start: the
batches, the first state, and where the time went.
"""

import datetime
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from dss_jax.core import config, processes, strict_json
from dss_jax.core.errors import UsageError
from dss_jax.core.startup import StartClock
from dss_jax.core.types import Scorer
from dss_jax.data.store import StoreSplit, TokenStore
from dss_jax.evaluate.evaluator import Evaluator
from dss_jax.layouts.batches import TrainBatches
from dss_jax.layouts.layout import cost_of, with_layout
from dss_jax.run import run_folder
from dss_jax.train.checkpoint import Checkpoints
from dss_jax.train.compile import COMPILE_CACHE, cache_counts, keep_compiled_code
from dss_jax.train.sharding import data_parallelism, data_slice, make_mesh
from dss_jax.train.step import Program, TrainState, settings

if TYPE_CHECKING:
    from dss_jax.data.spans import Pieces

log = logging.getLogger(__name__)

PLANNED = range(4)
"""Values of `Data.seed` for whose batches every run's shapes have room, too: the seeds of a sweep
then find each other's compiled steps, at 0.5 % more padding.
"""


@dataclass(frozen=True)
class Session:
    """A run with its program, its store and its scorer.

    Attributes:
      compile_cache: where compiled code is kept; None: nowhere.
      counted: functions that were found there, and that were not, before this.
    """

    run: config.Run
    folder: Path
    store: TokenStore
    program: Program
    evaluator: Evaluator
    compile_cache: str | None
    counted: tuple[int, int]

    def checkpoints(self, whole: Sequence[int] = ()) -> Checkpoints:
        """The run's checkpoints, open, see there; with several processes, all must call this."""
        processes.barrier()  # Orbax connects them.
        folder = self.folder / run_folder.CHECKPOINTS
        return Checkpoints(folder, keep=self.run.train.keep_checkpoints, whole=whole)


def with_vocab_size(run: config.Run, store: TokenStore) -> config.Run:
    """Fills in T5Config.vocab_size where it is None: the vocabulary's, rounded up to 128s; and the
    vocabulary's ids, but where a checkpoint gives them. Raises UsageError where the model has fewer
    embeddings than the vocabulary has ids, or where there is no padding.
    """
    vocabulary = store.vocabulary
    ids: dict[str, Any] = {}
    needed, size = vocabulary.vocab_size, run.model.vocab_size
    if run.train.init_from is None:
        if (pad := vocabulary.pad_id) is None:
            raise UsageError(
                f"the tokenizer {vocabulary.path} has no padding, which a batch is filled up with. "
                'Name a token for it in tokenizer_config.json: "pad_token".'
            )
        begin = run.model.decoder_start_token_id  # Of a T5Gemma's, <bos>.
        kept = run.model.gemma is not None and 0 < begin < (size or needed)
        ids = {"pad_token_id": pad, "decoder_start_token_id": begin if kept else pad}
        ids["eos_token_id"] = vocabulary.eos_id
        for name, own in ids.items():
            if (given := getattr(run.model, name)) not in (own, getattr(config.T5Config, name)):
                raise UsageError(
                    f"T5Config.{name} is {given}, and the vocabulary {vocabulary.path} has {own}. "
                    "Leave the setting out."
                )
    if size is None:
        size = -(-needed // 128) * 128
    if size < needed:
        raise UsageError(
            f"T5Config.vocab_size is {size}, but the vocabulary has {needed} ids "
            f"({vocabulary.extra_ids} of them extra ids). Give at least {needed}, or None."
        )
    return replace(run, model=replace(run.model, vocab_size=size, **ids))


def open_session(
    run: config.Run, folder: Path, store: TokenStore, scorer: Scorer, devices: list | None = None
) -> Session:
    """Builds the model and its compiled functions for a run, on some devices or on all."""
    cache = keep_compiled_code()
    run, mesh = with_vocab_size(run, store), make_mesh(run.mesh, devices)
    run = replace(run, data=with_layout(run.data, mesh.devices.flat[0].platform))
    program, counted = Program(run, mesh), functions_counted()
    evaluator = Evaluator(run, program, store, scorer)
    return Session(run, folder, store, program, evaluator, cache, counted)


def functions_counted() -> tuple[int, int]:
    counts = cache_counts()
    return counts.found, counts.missing


Open = Callable[[config.Run, Path, TokenStore, Scorer], Session]


def _training_rows(session: Session) -> tuple["StoreSplit | Pieces", np.ndarray | None]:
    """What is trained on: a split, and which of its rows may have their teacher text (see
    `columns.examples_of`).
    """
    run, store = session.run, session.store
    if run.method.form == "spans":
        from dss_jax.data.spans import pieces_of

        return pieces_of(store, "train", run), None
    split = store.training_split()
    if not run.method.only_correct:
        return split, None
    from dss_jax.layouts.health import right_rows

    return split, right_rows(run, split, session.evaluator.scorer.correct)


def train_batches(session: Session, plan_subsets: Sequence[config.Task] = ()) -> TrainBatches:
    """This process's parts of the batches; with `plan_subsets`, in the shapes of runs on these."""
    run, mesh = session.run, session.program.mesh
    index, count = data_slice(mesh)
    # To pack the batches of four orders takes seconds, at each start.
    planned = () if run.data.layout == "packed" else PLANNED
    if run.task.fresh_subsets:
        own = dict.fromkeys((run.task, *plan_subsets))
        plan_subsets = [replace(task, subset_seed=seed) for seed in planned for task in own]
    split, right = _training_rows(session)
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
        plan_seeds=planned,
        plan_subsets=plan_subsets,
        numbered=bool(run.loss.mutual_information),
        ids=run.model.pad_and_start,
    )


def first_state(session: Session, checkpoints: Checkpoints) -> TrainState:
    """Where a run starts or goes on: its own latest checkpoint; else `Train.init_from`; else drawn
    from `Train.seed`.
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
    """Says where the time of a start after `step` updates went, when its first step has ended, and
    writes it to `startup.jsonl`.
    """
    clock.lap("first step")
    found, missing = (
        now - then for now, then in zip(functions_counted(), session.counted, strict=True)
    )
    line = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "step": step,
        "total_seconds": round(clock.total, 3),
        "seconds": {name: round(s, 3) for name, s in clock.seconds.items()},
        "compile_cache": session.compile_cache,
        "functions_found": found,
        "functions_compiled": missing,
    }
    if processes.is_first():
        with (session.folder / run_folder.STARTUP).open("a") as file:
            file.write(strict_json.dumps(line) + "\n")
    on_disk = f" ({found} compiled functions were on the disk, {missing} were not)"
    log.info("%s%s", clock, "" if session.compile_cache is None else on_disk)


def describe(session: Session, batches: TrainBatches) -> None:
    run, program = session.run, session.program
    device = program.mesh.devices.flat[0]
    count = sum(x.size for x in jax.tree.leaves(program.abstract_state.params))
    log.info(f"model: {count / 1e6:.1f}M parameters, {run.model.dtype} activations")
    if run.lora.rank:
        from dss_jax.model import lora

        trained = sum(x.size for x in jax.tree.leaves(lora.split(program.abstract_state.params)[0]))
        log.info(f"LoRA of rank {run.lora.rank}: {trained / 1e6:.2f}M of them are trained")
    chosen = settings(run)
    log.info(f"learning rate: {chosen.learning_rate:g}, {chosen.schedule} ({chosen.name})")
    mesh = " x ".join(f"{a} {n}" for a, n in program.mesh.shape.items())
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
        log.debug(f"compiled code is kept in {session.compile_cache} ({off})")
    if run.method.form == "spans" or run.train.init_from is None:
        return
    log.info("exact match near 0 is normal in the first 250 to 750 steps of pre-trained T5 v1.1 at")
    log.info("batch 64: it has only seen span corruption. The losses show that it learns.")
