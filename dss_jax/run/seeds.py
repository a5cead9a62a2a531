"""Several seeds of one configuration, trained at once, each in a run folder of its own.

OUTPUT_DIR/seed_<n>/   the folder of a single run with that seed: see `run_folder`
OUTPUT_DIR/seeds.json  scores of all seeds, their means and standard errors
OUTPUT_DIR/curves.png
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np

from dss_jax.core import checks, config, storage, strict_json
from dss_jax.core.errors import UsageError
from dss_jax.core.flops import Work
from dss_jax.core.paths import write_whole
from dss_jax.core.startup import StartClock
from dss_jax.core.types import Scorer
from dss_jax.data.store import TokenStore
from dss_jax.evaluate.statistics import mean
from dss_jax.interop.model_files import ModelFiles, write_model_files
from dss_jax.layouts.batches import Batch, TrainBatches
from dss_jax.layouts.shapes import cost_of
from dss_jax.run import run_folder, single
from dss_jax.run.curves import plot_curves
from dss_jax.run.facts import data_key
from dss_jax.run.session import Session, open_session
from dss_jax.run.start import CompileAhead, compile_evaluation, describe, training_rows
from dss_jax.train import loop
from dss_jax.train.bad_steps import BadSteps
from dss_jax.train.checkpoint import Checkpoints
from dss_jax.train.metric_log import MetricLog, Progress
from dss_jax.train.saved_steps import saved_steps
from dss_jax.train.seeds import Seeds, build_seeds, numbered, stack_batches, stack_states, take_seed
from dss_jax.train.step import Metrics, TrainState

SUMMARY = "seeds.json"
SPLITS = ("validation", "test")
Say = Callable[[str], None]


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


@dataclass(frozen=True)
class _Member:
    """One seed's run, open."""

    session: Session
    checkpoints: Checkpoints
    log: MetricLog
    validate: Callable[[Any, int], float | None]
    bad_steps: BadSteps

    def close(self) -> None:
        self.log.close()
        self.checkpoints.close()


class _Members:
    """What the loop needs of one run, done for each of several."""

    def __init__(self, members: Sequence[_Member]) -> None:
        self._members = members
        self._scores: list[float | None] = []

    def evaluate(self, params: Any, step: int) -> float | None:
        """Scores each seed; the mean."""
        self._scores = []
        for i, member in enumerate(self._members):
            one = take_seed(params, i, member.session.program.abstract_state.params)
            self._scores.append(member.validate(one, step))
        scores = [s for s in self._scores if s is not None]
        return float(np.mean(scores)) if scores else None

    def save(self, state: TrainState, step: int, score: float | None) -> None:
        """Saves each seed's state, with its own score where they were just evaluated."""
        scores = self._scores if score is not None else [None] * len(self._members)
        for i, member in enumerate(self._members):
            member.checkpoints.save(self._state_of(state, i), step, scores[i])

    def watch(self, done: int, metrics: Metrics, state: TrainState) -> None:
        """Looks for batches of each seed that were skipped."""
        for i, member in enumerate(self._members):
            if int(metrics[numbered("bad_steps", i)]):
                own = {n: metrics[numbered(n, i)] for n in metrics if ":" not in n}
                member.bad_steps(done, own, self._state_of(state, i))

    def _state_of(self, state: TrainState, index: int) -> TrainState:
        like = self._members[index].session.program.abstract_state
        own: TrainState = take_seed(replace(state, step=None), index, replace(like, step=None))
        return replace(own, step=state.step)

    def wait(self) -> None:
        """Returns when all that was saved is on disk."""
        for member in self._members:
            member.checkpoints.wait()

    def log(self, step: int, group: str, numbers: loop.Numbers) -> None:
        """Each seed's numbers into its own log; of a rate, its share."""
        names = [name for name in numbers if ":" not in name]
        for i, member in enumerate(self._members):
            own = {}
            for name in names:
                share = len(self._members) if name.endswith("_per_second") else 1
                own[name] = numbers.get(numbered(name, i), numbers[name] / share)
            member.log(step, group, own)


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


def _open(
    runs: Sequence[config.Run], store: TokenStore, scorer: Scorer
) -> tuple[list[Session], Seeds]:
    """Sessions that share one program and one evaluator, so that all is compiled once."""
    first = open_session(runs[0], _folder(runs[0]), store, scorer)
    program = build_seeds(first.run, first.program, [run.train.seed for run in runs])
    sessions = []
    for run in runs:
        # What the first session has found out holds for all: they differ in seeds only.
        data = replace(run.data, layout=first.run.data.layout)
        run = replace(run, model=first.run.model, data=data)
        sessions.append(replace(first, run=run, folder=_folder(run)))
        files = ModelFiles(run.model, store.vocabulary_path, store.extra_ids)
        write_model_files(_folder(run), files)
    return sessions, program


def _folder(run: config.Run) -> Path:
    assert run.train.output_dir is not None
    return storage.place(run.train.output_dir)


def _named(session: Session, say: Say) -> Say:
    return lambda text: say(f"seed {session.run.train.seed}: {text}")


def batches_of(runs: Sequence[config.Run], store: TokenStore, scorer: Scorer) -> list[TrainBatches]:
    """The batches of each seed, all planned for the same shapes."""
    split, right = training_rows(runs[0], store, scorer)
    return [
        TrainBatches(
            split, run.task, run.data, run.method,
            right=right,
            steps=run.train.steps,
            shares=run.train.microbatches,  # A seed is on one device.
            cost=cost_of(run.model),
            plan_seeds=[r.data.seed for r in runs],
            numbered=bool(run.loss.mutual_information),
        )
        for run in runs
    ]  # fmt: skip


def stacked(order: Sequence[TrainBatches], step: int) -> Batch:
    """The batches of all seeds at a step, stacked."""
    # Larger shapes have room for all that smaller ones have.
    shape = max(one.shape_at(step) for one in order)
    return stack_batches([one(step, shape) for one in order])


def _train_open(
    runs: Sequence[config.Run], store: TokenStore, scorer: Scorer, say: Say, clock: StartClock
) -> None:
    """Trains and scores runs of which none is finished."""
    sessions, seeds = _open(runs, store, scorer)
    order = batches_of([s.run for s in sessions], store, scorer)
    describe(sessions[0], order[0], say)
    say(f"{len(runs)} seeds at once, on {seeds.mesh.size} of the devices")
    clock.lap("model")
    train = runs[0].train
    # The one before the latest is kept too: a kill may leave some seeds without the latest.
    checkpoints = [
        Checkpoints(s.folder / run_folder.CHECKPOINTS, keep=max(2, train.keep_checkpoints))
        for s in sessions
    ]
    every = train.checkpoint_every or runs[0].evaluate.every
    step = common_step(checkpoints, [s.folder for s in sessions], every)
    progress, members = Progress(train.steps, step), []
    try:
        name = f"train step of {len(runs)} seeds"
        saved_step = saved_steps(name, runs[0], seeds.mesh, seeds.abstract_state)
        with CompileAhead(seeds.lower, clock, saved_step) as ahead:
            shapes = [
                stack_batches(parts) for parts in zip(*(o.shapes for o in order), strict=True)
            ]
            ahead.begin(shapes, partial(compile_evaluation, sessions[0]))
            states = []
            for session, saved, own in zip(sessions, checkpoints, order, strict=True):
                saved.drop_after(step)
                states.append(single.start(session, saved, _named(session, say), step))
                log = MetricLog(session.folder, step)
                say_own = _named(session, progress.say)
                validate = single.validate(session, log, say_own)
                watch = single.bad_steps(session, own, say_own)
                members.append(_Member(session, saved, log, validate, watch))
            state = stack_states(states, seeds.mesh)
            clock.lap("state")
            ahead.wait()
            _fit(members, seeds, state, order, progress, ahead)
        progress.close()
        for member in members:
            _finish(member, say)
    finally:
        progress.close()
        for member in members:
            member.close()


def _fit(
    members: Sequence[_Member],
    seeds: Seeds,
    state: TrainState,
    order: Sequence[TrainBatches],
    progress: Progress,
    ahead: CompileAhead,
) -> None:
    session, each, first = members[0].session, _Members(members), int(state.step)
    program = replace(
        session.program, mesh=seeds.mesh, train_step=seeds.train_step, lower=seeds.lower
    )
    # The loop counts the examples of all seeds together.
    data = replace(session.run.data, batch_size=len(members) * session.run.data.batch_size)

    def work(step: int) -> Work:
        return reduce(Work.plus, (one.work_at(step) for one in order))

    with loop.stop_on_signals(progress.say) as stop:
        loop.fit(
            dataclasses.replace(session.run, data=data),
            program,
            state,
            partial(stacked, order),
            each,
            train_step=ahead.train_step,
            work=work,
            evaluate=each.evaluate,
            log=each.log,
            progress=progress,
            stop=stop,
            watch=each.watch,
            first_step_done=lambda: progress.say(
                ahead.report([m.session.folder for m in members], first, session.compile_cache)
            ),
        )


def _finish(member: _Member, say: Say) -> None:
    session = member.session
    results = single.finish(session, member.checkpoints, member.log, _named(session, say))
    member.checkpoints.keep_only(session.run.train.keep_checkpoints)
    single.draw(session, results)
    run_folder.write_results(session.folder, results)


@run_folder.alone
def train(
    runs: Sequence[config.Run],
    store: TokenStore,
    scorer: Scorer,
    say: Say = print,
    clock: StartClock | None = None,
) -> dict:
    """Trains, or goes on training, several seeds at once, and scores each one's best checkpoint.

    Runs that are finished are not trained again. The others go on from the latest step that all
    of them have saved.

    Args:
      runs: of `seed_runs`.
      store: of the task.
      scorer: judges labels.
      say: prints a line.
      clock: of this start; None: it begins now.

    Returns:
      What `seeds.json` holds: see `summary`.

    Raises:
      UsageError: see `single.train` and `common_step`.
      loop.Interrupted: it was asked to stop; all states are saved.
    """
    for run in runs:
        run_folder.open_run_folder(run, data_key(run, store))
    left = []
    for run in runs:
        if run_folder.read_results(_folder(run)) is None:
            left.append(run)
        else:
            say(f"{_folder(run)} is finished")
    if left:
        _train_open(left, store, scorer, say, clock or StartClock(time.time()))
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
