"""One run from its configuration to its scores: the wiring that `dss train` and the demo share."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from dss_jax.core import config, processes, storage
from dss_jax.core.startup import StartClock
from dss_jax.core.types import Scorer
from dss_jax.data.store import TokenStore
from dss_jax.evaluate.evaluator import write_predictions
from dss_jax.interop.model_files import ModelFiles, write_model_files
from dss_jax.layouts.batches import TrainBatches
from dss_jax.run import run_folder
from dss_jax.run.curves import plot_curves
from dss_jax.run.facts import about, data_key, teacher_accuracy
from dss_jax.run.hosts import Quiet, check_shared, describe_hosts
from dss_jax.run.init_from import start_from
from dss_jax.run.session import Session, open_session
from dss_jax.run.start import CompileAhead, compile_evaluation, describe, train_batches
from dss_jax.train import loop
from dss_jax.train.bad_steps import BadSteps
from dss_jax.train.checkpoint import Checkpoints
from dss_jax.train.metric_log import MetricLog, Progress
from dss_jax.train.profile import Profile
from dss_jax.train.saved_steps import saved_steps
from dss_jax.train.step import TrainState

Say = Callable[[str], None]


def own_metrics(session: Session, split_name: str, predictions: list[dict]) -> dict[str, float]:
    """What the metric functions of a user's own SeqIO task say; {} for a task file.

    They may need TensorFlow, so they run in a child process.
    """
    task = session.run.task
    if task.mixture_or_task_name is None:
        return {}
    from dss_jax.data import prepare_child

    request = {
        "module": task.mixture_or_task_module,
        "name": task.mixture_or_task_name,
        "split": split_name,
        "predictions": {p["id"]: p["prediction"] for p in predictions},
    }
    return prepare_child.run(request, "dss_jax.data.seqio_score")


def _score_split(
    session: Session, params: Any, name: str, file: str, rationales: bool, limit: int | None = None
) -> dict:
    """Scores a split, writes its predictions, and adds the teacher's accuracy if there is one."""
    result = session.evaluator(params, name, limit=limit, rationales=rationales)
    numbers = dict(result.numbers) | {"examples": result.examples}
    if not result.predictions:
        return numbers
    teacher = teacher_accuracy(session.store, name, session.evaluator.scorer, limit)
    if teacher is not None:
        numbers["teacher"] = teacher
    if not processes.is_first():
        return numbers
    write_predictions(session.folder / run_folder.PREDICTIONS / file, result.predictions)
    return numbers | own_metrics(session, name, result.predictions)


def start(
    session: Session, checkpoints: Checkpoints, say: Say, step: int | None = None
) -> TrainState:
    """Where a run starts or goes on.

    In this order: the run's own checkpoint, of `step` or the latest (0: none of them);
    `Train.init_from`; drawn from `Train.seed`.
    """
    latest = checkpoints.latest_step() if step is None else step
    seed = session.run.train.seed
    if latest:
        say(f"going on from the checkpoint of step {latest}")
        saved = checkpoints.restore(latest, session.program.abstract_state)
        return session.program.seeded(saved, seed)
    if session.run.train.init_from is not None:
        return start_from(session.run, session.program, session.store, say)
    say(f"starts from random parameters (Train.seed = {seed})")
    return session.program.init(seed)


def validate(
    session: Session, log: MetricLog | Quiet, say: Say
) -> Callable[[Any, int], float | None]:
    """(params, step) -> score on validation, which is also logged and said."""
    evaluate, run = session.run.evaluate, session.run

    def validate(params: Any, step: int) -> float | None:
        if "validation" not in session.store.splits:
            return None
        began = time.monotonic()
        result = session.evaluator(params, "validation", limit=evaluate.validation_examples)
        log(step, "validation", result.numbers)
        if processes.is_first() and result.predictions:
            file = session.folder / run_folder.PREDICTIONS / f"validation-{step}.jsonl"
            write_predictions(file, result.predictions)
        score = result.numbers[session.evaluator.metric]
        finite = all(map(math.isfinite, result.numbers.values()))
        first = run.method.tasks[0]
        say(
            f"step {step}/{run.train.steps}  validation {session.evaluator.metric} {score:.2f}  "
            f"{first} loss {result.numbers.get(f'{first}/loss', float('nan')):.4f}  "
            f"({result.examples} examples, {time.monotonic() - began:.1f} s)"
        )
        # Equal accuracies go to the later step: one without a finite loss shall not be the best.
        return score if finite else None

    return validate


def finish(session: Session, checkpoints: Checkpoints, log: MetricLog | Quiet, say: Say) -> dict:
    """Scores the test split once, with the best checkpoint on validation."""
    best = checkpoints.best_step()
    assert best is not None
    params = checkpoints.restore_params(best, session.program.abstract_state.params)
    evaluator, store = session.evaluator, session.store
    results: dict[str, Any] = {
        "metric": evaluator.metric,
        "best_step": best,
        "steps": session.run.train.steps,
        "method": session.run.method.name,
        **about(session.run, store, session.program),
    }
    for name in ("validation", "test"):
        if name not in store.splits:
            continue
        rationales = session.run.evaluate.rationales
        results[name] = _score_split(session, params, name, f"{name}-best.jsonl", rationales)
    if "test" in results:
        log(session.run.train.steps, "test", results["test"])
    else:
        say("there is no test split: only validation is scored")
    return results


def _train_and_score(
    session: Session,
    batches: TrainBatches,
    checkpoints: Checkpoints,
    say: Say,
    clock: StartClock,
    profile: tuple[int, int] | None,
) -> dict:
    run, folder = session.run, session.folder
    program = session.program
    saved = saved_steps("train step", run, program.mesh, program.abstract_state)
    with CompileAhead(program.lower, clock, saved) as ahead:
        ahead.begin(batches.shapes, partial(compile_evaluation, session))
        state = jax.block_until_ready(start(session, checkpoints, say))
        clock.lap("state")
        ahead.wait()
        first = int(state.step)
        log, progress = _outputs(run, folder, first)
        traces = Profile(folder / run_folder.TENSORBOARD, *(profile or (0, 0)), progress.say)
        train_step = ahead.train_step if profile is None else traces.watch(ahead.train_step, first)
        try:
            with loop.stop_on_signals(progress.say) as stop:
                loop.fit(
                    run,
                    session.program,
                    state,
                    batches,
                    checkpoints,
                    train_step=train_step,
                    work=batches.work_at,
                    evaluate=validate(session, log, progress.say),
                    log=log,
                    progress=progress,
                    stop=stop,
                    watch=bad_steps(session, batches, progress.say),
                    first_step_done=lambda: progress.say(
                        ahead.report([folder], first, session.compile_cache)
                    ),
                )
            progress.close()
            return finish(session, checkpoints, log, say)
        finally:
            traces.close()
            progress.close()
            log.close()


def bad_steps(session: Session, batches: TrainBatches, say: Say) -> BadSteps:
    """What looks for batches that were skipped."""
    return BadSteps(session.folder, session.run.train.max_bad_steps, batches.ids_at, say)


def train(
    run: config.Run,
    store: TokenStore,
    scorer: Scorer,
    say: Say = print,
    clock: StartClock | None = None,
    profile: tuple[int, int] | None = None,
    plan_subsets: Sequence[config.Task] = (),
) -> dict:
    """Trains, or goes on training, and scores the best checkpoint.

    Args:
      run: the configuration, with an output folder.
      store: of the task.
      scorer: judges labels.
      say: prints a line.
      clock: of this start; None: it begins now.
      profile: the steps that are traced, (first, last + 1); None: none.
      plan_subsets: the data of other runs that shall use the same compiled code.

    Returns:
      What `results.json` holds.

    Raises:
      UsageError: see `open_run_folder` and `step.build`.
      loop.Interrupted: the run was asked to stop; its state is saved.
      Diverged: see `BadSteps`.
    """
    clock = clock or StartClock(time.time())
    folder, finished = _open_folder(run, store)
    if finished is not None:
        say(f"{folder} is finished; these are its results")
        return finished
    session = open_session(run, folder, store, scorer)
    if processes.is_first():
        files = ModelFiles(session.run.model, store.vocabulary_path, store.extra_ids)
        write_model_files(folder, files)
    batches = train_batches(session, plan_subsets)
    describe(session, batches, say)
    describe_hosts(session.run, session.program.mesh, batches.longest, say)
    clock.lap("model")
    checkpoints = session.checkpoints()
    try:
        results = _train_and_score(session, batches, checkpoints, say, clock, profile)
    finally:
        checkpoints.close()
    if processes.is_first():
        draw(session, results)
        # Last, because it says that the run is finished.
        run_folder.write_results(folder, results)
    return results


def _open_folder(run: config.Run, store: TokenStore) -> tuple[Path, dict | None]:
    """The output folder, and the results where the run is finished. Process 0 looks, and writes
    the configuration.
    """

    def look() -> list:
        folder = run_folder.open_run_folder(run, data_key(run, store))
        return [str(folder), run_folder.read_results(folder)]

    name, finished = processes.broadcast_from_first(look)
    folder = storage.place(name)
    check_shared(folder / run_folder.CONFIG)
    return folder, finished


def _outputs(
    run: config.Run, folder: Path, step: int
) -> tuple[MetricLog | Quiet, Progress | Quiet]:
    if not processes.is_first():
        return Quiet(), Quiet()
    return MetricLog(folder, step), Progress(run.train.steps, step)


def draw(session: Session, results: dict) -> None:
    """Draws the run's curves."""
    plot_curves(
        [(session.run.method.name, session.folder)],
        session.evaluator.metric,
        session.folder / run_folder.CURVES,
        title=f"{session.run.task.shown_name}, {session.run.method.name}",
        teacher=results.get("validation", {}).get("teacher"),
    )


def score(
    session: Session,
    splits: Sequence[str],
    checkpoint: str = "best",
    rationales: bool = False,
    limit: int | None = None,
) -> tuple[int, dict[str, Any]]:
    """Scores splits with a checkpoint of a run, and writes the predictions.

    Args:
      session: of the run.
      splits: names.
      checkpoint: "best", "latest" or a step.
      rationales: generate rationales too.
      limit: score the first rows only.

    Returns:
      The step, and split -> numbers.

    Raises:
      UsageError: there is no such checkpoint or split.
    """
    checkpoints = session.checkpoints()
    try:
        step = checkpoints.find(checkpoint)
        params = checkpoints.restore_params(step, session.program.abstract_state.params)
    finally:
        checkpoints.close()
    scores: dict[str, Any] = {}
    for name in splits:
        scores[name] = _score_split(
            session,
            params,
            name,
            predictions_name(session.run, name, step, limit),
            rationales,
            limit,
        )
    return step, scores


def predictions_name(run: config.Run, split_name: str, step: int, limit: int | None) -> str:
    """File of the predictions; one of a part of a split, or decoded in another way, does not
    overwrite that of the whole.
    """
    how = "" if run.evaluate.decode == "greedy" else f"-{run.evaluate.decode}"
    part = "" if limit is None else f"-first{limit}"
    return f"{split_name}-{step}{how}{part}.jsonl"
