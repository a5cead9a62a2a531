"""Several seeds of one configuration, trained at once, each in a run folder of its own.

OUTPUT_DIR/seed_<n>/   the folder of a single run with that seed: see `run_folder`
OUTPUT_DIR/seeds.json  scores of all seeds, their means and standard errors
OUTPUT_DIR/curves.png
"""

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

from dss_jax.core import checks, config, storage, strict_json
from dss_jax.core.errors import UsageError
from dss_jax.core.flops import Work
from dss_jax.core.paths import write_whole
from dss_jax.core.startup import StartClock
from dss_jax.core.types import Scorer
from dss_jax.data.store import TokenStore
from dss_jax.evaluate.statistics import mean
from dss_jax.layouts.batches import TrainBatches
from dss_jax.layouts.blocks import Batch
from dss_jax.layouts.shapes import cost_of
from dss_jax.run import run_folder, single
from dss_jax.run.curves import plot_curves
from dss_jax.run.facts import data_key
from dss_jax.run.score import close_folder, finish
from dss_jax.run.session import Session, open_session
from dss_jax.run.start import compile_threads, describe, first_state, report_start, training_rows
from dss_jax.train import hooks
from dss_jax.train.bad_steps import BadSteps
from dss_jax.train.checkpoint import Checkpoints
from dss_jax.train.compiled import Compiled
from dss_jax.train.loop import Hook, Part, fit, stop_on_signals
from dss_jax.train.metric_log import MetricLog, Progress
from dss_jax.train.prefetch import Prefetch
from dss_jax.train.seeds import stack_batches, stack_states, stacked_step, take_seed
from dss_jax.train.sharding import put_batch

log = logging.getLogger(__name__)

SUMMARY = "seeds.json"
SPLITS = ("validation", "test")


def seed_runs(run: config.Run, seeds: Sequence[int], same_order: bool = False) -> list[config.Run]:
    """The configurations of single runs, one a seed.

    Args:
      run: what they have in common, with the output folder of all.
      seeds: values of `Train.seed`, and of `Data.seed` unless `same_order`.
      same_order: all see the training examples in the order of the run's own `Data.seed`.

    Raises:
      UsageError: no output folder, a folder that holds a single run, or a mesh that cuts up
        parameters.
    """
    checks.whole_on_one_device(run.mesh)
    if run.train.output_dir is None:
        raise UsageError("no output folder: give --output_dir DIR.")
    folder = storage.place(run.train.output_dir)
    if (folder / run_folder.CONFIG).exists():
        raise UsageError(
            f"{folder} holds a single run. Give another --output_dir for several seeds: each gets "
            "a folder in it."
        )
    return [
        replace(
            run,
            data=run.data if same_order else replace(run.data, seed=seed),
            train=replace(run.train, seed=seed, output_dir=str(folder / f"seed_{seed}")),
        )
        for seed in seeds
    ]


def common_step(checkpoints: Sequence[Checkpoints], folders: Sequence[Path], every: int) -> int:
    """The latest step that all have saved; 0 where they start anew.

    Args:
      checkpoints: of each seed.
      folders: theirs, for the message.
      every: updates between checkpoints.

    Raises:
      UsageError: one is further ahead than a sweep that was killed leaves it.
    """
    saved = [set(c.steps()) for c in checkpoints]
    common = max(set.intersection(*saved), default=0)
    if max(max(s, default=0) for s in saved) - common > every:
        there = "\n".join(
            f"  {folder}: {', '.join(map(str, sorted(s))) or 'none'}"
            for folder, s in zip(folders, saved, strict=True)
        )
        raise UsageError(
            f"these runs are too far apart to go on at once; their checkpoints:\n{there}\n"
            "Go on with each by itself (--gin.Train.seed=N --gin.Data.seed=N and its folder as "
            "--output_dir) until it is done, or delete the folders that shall start anew."
        )
    return common


def _folder(run: config.Run) -> Path:
    assert run.train.output_dir is not None
    return storage.place(run.train.output_dir)


def _open(runs: Sequence[config.Run], store: TokenStore, scorer: Scorer) -> list[Session]:
    """Sessions that share one program and one evaluator, so that all is compiled once."""
    first = open_session(runs[0], _folder(runs[0]), store, scorer)
    sessions = []
    for run in runs:
        # What the first session has found out holds for all: they differ in seeds only.
        data = replace(run.data, layout=first.run.data.layout)
        own, prefix = replace(run, model=first.run.model, data=data), f"seed {run.train.seed}: "
        sessions.append(replace(first, run=own, folder=_folder(run), prefix=prefix))
        single.save_model_files(sessions[-1])
    return sessions


def batches_of(runs: Sequence[config.Run], store: TokenStore, scorer: Scorer) -> list[TrainBatches]:
    """The batches of each seed, all planned for the same shapes."""
    split, right = training_rows(runs[0], store, scorer)
    return [
        TrainBatches(
            split,
            run.task,
            run.data,
            run.method,
            right=right,
            steps=run.train.steps,
            shares=run.train.microbatches,  # A seed is on one device.
            cost=cost_of(run.model),
            plan_seeds=[r.data.seed for r in runs],
            numbered=bool(run.loss.mutual_information),
        )
        for run in runs
    ]


def stacked(order: Sequence[TrainBatches], step: int) -> Batch:
    """The batches of all seeds at a step, stacked."""
    # Larger shapes have room for all that smaller ones have.
    shape = max(one.shape_at(step) for one in order)
    return stack_batches([one(step, shape) for one in order])


def _train_open(
    runs: Sequence[config.Run], store: TokenStore, scorer: Scorer, clock: StartClock
) -> None:
    """Trains and scores runs of which none is finished."""
    sessions = _open(runs, store, scorer)
    first, count = sessions[0], len(sessions)
    order = batches_of([s.run for s in sessions], store, scorer)
    lowered = stacked_step(first.run, first.program, count)
    describe(first, order[0])
    log.info("%d seeds at once, on %d of the devices", count, lowered.mesh.size)
    step = Compiled.kept(f"train step of {count} seeds", first.run, lowered)
    clock.lap("model")
    train, evaluate = first.run.train, first.run.evaluate
    with ExitStack() as stack:
        checkpoints = []
        for session in sessions:
            # The one before the latest is kept too: a kill may leave some seeds without the latest.
            keep, place = max(2, train.keep_checkpoints), session.folder / run_folder.CHECKPOINTS
            checkpoints.append(Checkpoints(place, keep=keep))
            stack.callback(checkpoints[-1].close)
        folders = [s.folder for s in sessions]
        begun = common_step(checkpoints, folders, train.checkpoint_every or evaluate.every)
        pool = stack.enter_context(compile_threads())
        shapes = zip(*(o.shapes for o in order), strict=True)
        step.ahead(map(stack_batches, shapes), pool)
        first.evaluator.compile_ahead("validation", evaluate.validation_examples, pool)
        states = []
        for session, saved in zip(sessions, checkpoints, strict=True):
            saved.drop_after(begun)
            states.append(first_state(session, saved, begun))
        state = stack_states(states, lowered.mesh)
        clock.lap("state")
        step.wait()
        clock.lap("compile")
        logs = [MetricLog(folder, begun) for folder in folders]
        for one in logs:
            stack.callback(one.close)
        progress = Progress(train.steps, begun)
        stack.callback(progress.close)
        own = _hooks(stack, sessions, checkpoints, order, logs, progress)
        report = partial(report_start, first, clock, folders, begun)
        prefetch = Prefetch(
            lambda k: put_batch(stacked(order, k), lowered.mesh), begun, train.steps
        )
        fit(
            state,
            steps=train.steps,
            train_step=step,
            next_batch=stack.enter_context(prefetch),
            hooks=[hooks.FirstStep(begun, report), *own],
        )
        progress.close()
        for session, saved, one in zip(sessions, checkpoints, logs, strict=True):
            saved.wait()
            results = finish(session, saved, one)
            saved.keep_only(train.keep_checkpoints)
            close_folder(session, results)


def _hooks(
    stack: ExitStack,
    sessions: Sequence[Session],
    checkpoints: Sequence[Checkpoints],
    order: Sequence[TrainBatches],
    logs: Sequence[MetricLog],
    progress: Progress,
) -> list[Hook]:
    """Those of each seed, which see its part of the stacked arrays, in the order that a single run
    has: all are saved before the stop, and the clocks start anew when all are done.
    """
    stop = stack.enter_context(stop_on_signals())
    train, like = sessions[0].run.train, sessions[0].program.abstract_state
    savers: list[Hook] = []
    readers: list[Hook] = []
    for i, session in enumerate(sessions):

        def part(own: list[Hook], i: int = i) -> Part:
            return Part(
                own,
                lambda metrics: {name: values_N[i] for name, values_N in metrics.items()},
                lambda state: take_seed(state, i, like),
            )

        ids_at = order[i].ids_at
        savers.append(part([*single.saving(session, checkpoints[i], stop, logs[i])]))
        bad_steps = BadSteps(session.folder, train.max_bad_steps, ids_at)
        readers.append(part([single.reading(session, order[i], logs[i], None), bad_steps]))

    def wait() -> None:
        for one in checkpoints:
            one.wait()

    def work(step: int) -> Work:
        return reduce(Work.plus, (one.work_at(step) for one in order))

    shown = replace(
        single.reading(sessions[0], order[0], lambda *_: None, progress),
        work=work,
        examples=len(sessions) * sessions[0].run.data.batch_size,
    )
    mean_of = Part([shown], lambda metrics: {n: v.mean() for n, v in metrics.items()})
    return [*savers, hooks.Stop(train.steps, stop, wait), *readers, mean_of]


def train(
    runs: Sequence[config.Run], store: TokenStore, scorer: Scorer, clock: StartClock | None = None
) -> dict:
    """Trains, or goes on training, several seeds at once, and scores each one's best checkpoint.

    Runs that are finished are not trained again. The others go on from the latest step that all
    of them have saved.

    Args:
      runs: of `seed_runs`.
      store: of the task.
      scorer: judges labels.
      clock: of this start; None: it begins now.

    Returns:
      What `seeds.json` holds: see `summary`.

    Raises:
      UsageError: see `single.train` and `common_step`.
      loop.Interrupted: it was asked to stop; all states are saved.
    """
    left = []
    for run in runs:
        run_folder.open_run_folder(run, data_key(run, store))
        if run_folder.read_results(_folder(run)) is None:
            left.append(run)
        else:
            log.info("%s is finished", _folder(run))
    if left:
        _train_open(left, store, scorer, clock or StartClock(time.time()))
    results = {run.train.seed: run_folder.read_results(_folder(run)) or {} for run in runs}
    numbers = summary(results)
    folder = _folder(runs[0]).parent
    write_whole(folder / SUMMARY, strict_json.dumps(numbers, indent=2) + "\n")
    plot_curves(
        [(f"seed {run.train.seed}", _folder(run)) for run in runs],
        numbers["metric"],
        folder / run_folder.CURVES,
        title=f"{runs[0].task.shown_name}, {runs[0].method.name}, {len(runs)} seeds",
        teacher=results[runs[0].train.seed].get("validation", {}).get("teacher"),
    )
    return numbers


def mean_and_error(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and its standard error, s / sqrt(n) with n - 1 in s; None for a single value."""
    found = mean(values)
    return {"mean": found.value, "standard_error": found.error}


def summary(results: dict[int, dict]) -> dict[str, Any]:
    """Scores of all seeds.

    Args:
      results: seed -> what its `results.json` holds.

    Returns:
      `metric`, `method`, `steps`, `seeds` (seed -> its results), and for each split
      number -> `mean_and_error` over the seeds.
    """
    first = next(iter(results.values()))
    whole: dict[str, Any] = {name: first[name] for name in ("metric", "method", "steps")}
    whole["seeds"] = {str(seed): one for seed, one in results.items()}
    for split in SPLITS:
        if split in first:
            whole[split] = {
                name: mean_and_error([one[split][name] for one in results.values()])
                for name in first[split]
            }
    return whole
