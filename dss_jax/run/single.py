"""One run from its configuration to its scores: the wiring that `dss train` and the demo share."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax

from dss_jax.core import config, processes, storage
from dss_jax.core.digest import file_digest
from dss_jax.core.errors import UsageError
from dss_jax.core.startup import StartClock
from dss_jax.core.types import Scorer
from dss_jax.data.store import TokenStore
from dss_jax.layouts.batches import TrainBatches
from dss_jax.run import run_folder
from dss_jax.run.score import Write, close_folder, finish, validate
from dss_jax.run.session import (
    Open,
    Session,
    describe,
    first_state,
    open_session,
    report_start,
    train_batches,
)
from dss_jax.train import hooks
from dss_jax.train.checkpoint import Checkpoints
from dss_jax.train.loop import Hook, Interrupted, fit, prefetch, stop_on_signals
from dss_jax.train.metric_log import MetricLog, Progress
from dss_jax.train.sharding import put_batch

log = logging.getLogger(__name__)

MAX_THREADS = 4
"""That compile: three shapes of a training step as a rule, and one of the evaluation's."""


@run_folder.alone
def train(
    run: config.Run,
    store: TokenStore,
    scorer: Scorer,
    clock: StartClock | None = None,
    profile: tuple[int, int] | None = None,
    plan_subsets: Sequence[config.Task] = (),
    opened: Open = open_session,
) -> dict[str, Any]:
    """Trains, or goes on training, and scores the best checkpoint: what `results.json` holds.

    Args:
      run: the configuration, with an output folder.
      store: of the task.
      scorer: judges labels.
      clock: of this start; None: it begins now.
      profile: the steps that are traced, (first, last + 1); None: none.
      plan_subsets: the data of other runs that shall use the same compiled code.
      opened: opens the run's session.

    Raises:
      UsageError: see `open_run_folder` and `step.Program`.
      Interrupted: the run was asked to stop; its state is saved.
      Diverged: see `BadSteps`.
    """
    clock = clock or StartClock(time.time())
    folder, finished, whole = _open_folder(run, store)
    if finished is not None:
        log.info("%s is finished; these are its results", folder)
        return finished
    if run.method.equal_compute:
        from dss_jax.run.compute import drawn_out

        run = drawn_out(run, store)
    session = opened(run, folder, store, scorer)
    if processes.is_first():
        from dss_jax.run.student_files import write_student_files

        write_student_files(session.run, folder, store, scorer.name)
    batches = train_batches(session, plan_subsets)
    describe(session, batches)
    if processes.count() > 1:
        from dss_jax.run.hosts import describe_hosts

        describe_hosts(session.run, session.program.mesh, batches.longest)
    clock.lap("model")
    with closing(session.checkpoints(whole)) as checkpoints:
        results = _train_and_score(session, batches, checkpoints, clock, profile)
    close_folder(session, results)
    return results


def data_key(run: config.Run, store: TokenStore) -> str:
    """Digest of all that is trained on: of the store, and of text files for pre-training."""
    texts = run.pretrain.text_files if run.method.form == "spans" else ()
    return "+".join([store.key, *(file_digest(storage.local_file(name)) for name in texts)])


def _open_folder(run: config.Run, store: TokenStore) -> tuple[Path, dict | None, list[int]]:
    """The output folder, the results where the run is finished, and the steps of checkpoints that
    are whole. Process 0 looks, and writes the configuration.
    """

    def look() -> list:
        try:
            folder = run_folder.open_run_folder(run, data_key(run, store))
        except UsageError:
            from dss_jax.run import trained_on

            with suppress(UsageError):  # Of a damaged data.json: the first error is the run's.
                trained_on.warn(storage.place(str(run.train.output_dir)), store)
            raise
        finished, whole = run_folder.read_results(folder), list[int]()
        if finished is None:
            from dss_jax.train.broken import set_broken_aside

            whole = set_broken_aside(folder / run_folder.CHECKPOINTS)
        return [str(folder), finished, whole]

    name, finished, whole = processes.broadcast_from_first(look)
    folder = storage.place(name)
    if processes.count() > 1:
        from dss_jax.run.hosts import check_shared

        check_shared(folder / run_folder.CONFIG)
    return folder, finished, whole


def _train_and_score(
    session: Session,
    batches: TrainBatches,
    checkpoints: Checkpoints,
    clock: StartClock,
    profile: tuple[int, int] | None,
) -> dict[str, Any]:
    from dss_jax.run.clock import clocked

    run, program = session.run, session.program
    with ExitStack() as stack, ExitStack() as told:
        pool = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="compile")
        stack.push(partial(_shut, pool))
        program.train_step.ahead(batches.shapes, pool)
        # The evaluation's may still be at work when the first step runs.
        session.evaluator.compile_ahead("validation", run.evaluate.validation_examples, pool)
        with clocked("compiling"):
            state = jax.block_until_ready(first_state(session, checkpoints))
            clock.lap("state")
            program.train_step.wait()
            clock.lap("compile")
        first = int(state.step)
        write, own = _outputs(stack, session, batches, profile, first)
        stop = told.enter_context(stop_on_signals())
        every, steps = run.evaluate.every, run.train.steps
        evaluate = hooks.Validate(every, steps, partial(validate, session, write))
        # DO NOT CHANGE THE ORDER: what is evaluated is saved, what is saved may be stopped after,
        # and the log's clock starts anew when all of them are done. A batch that was skipped is
        # logged before it may end the run.
        in_order = [
            hooks.FirstStep(first, partial(report_start, session, clock, first)),
            evaluate,
            hooks.Save(run.train.checkpoint_every or every, checkpoints, evaluate, stop),
            hooks.Stop(steps, stop, checkpoints.wait),
            *own,
            hooks.BadSteps(session.folder, run.train.max_bad_steps, batches.ids_at),
        ]
        made = prefetch(lambda k: put_batch(batches(k), program.mesh), first, steps)
        next_batch = stack.enter_context(made)
        train_step = program.train_step
        fit(state, steps=steps, train_step=train_step, next_batch=next_batch, hooks=in_order)
        checkpoints.wait()
        # Those who were told at the last steps, or since, stop before the scoring; from here on
        # they do at once.
        if stop.after(steps) or stop.after(steps + 1):
            raise Interrupted(steps, stop.number)
        told.close()
        from dss_jax.run.compute import spent

        took = {"trained_rows": len(batches.rows), "training_flops": spent(run, batches)}
        return finish(session, checkpoints, write) | took


def _shut(pool: ThreadPoolExecutor, kind: type[BaseException] | None, *_: object) -> None:
    """Whoever is told to end does not wait for the compiler."""
    now = kind is Interrupted or (kind is not None and not issubclass(kind, Exception))
    pool.shutdown(wait=not now, cancel_futures=True)


def _outputs(
    stack: ExitStack,
    session: Session,
    batches: TrainBatches,
    profile: tuple[int, int] | None,
    step: int,
) -> tuple[Write, list[Hook]]:
    """Where numbers go from `step` on, and the hooks that trace steps and log them."""
    run, own = session.run, list[Hook]()
    if profile is not None:
        from dss_jax.train.tracing import Profile

        tracing = Profile(session.folder / run_folder.TENSORBOARD, *profile, step)
        stack.callback(tracing.close)
        own.append(tracing)
    if not processes.is_first():
        return lambda step, group, numbers: None, own
    from dss_jax.train.watch import LossSpikes, say_missing

    write, progress = MetricLog(session.folder, step), Progress(run.train.steps, step)
    say_missing(write.before, step, run.train.log_every)
    stack.callback(write.close)
    stack.callback(progress.close)
    log_hook = hooks.Log(
        run.train.log_every,
        run.train.steps,
        LossSpikes(write, session.folder, batches.ids_at),
        batches.work_at,
        run.data.batch_size,
        run.model,
        hooks.peak_of(list(session.program.mesh.devices.flat)),
        progress,
    )
    return write, [*own, log_hook]
