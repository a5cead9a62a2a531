"""Scoring a run's student: while it trains and at the end; `rescore` does later."""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from dss_jax.core import config, processes
from dss_jax.evaluate.evaluator import Result, write_predictions
from dss_jax.layouts.batches import subset_rows
from dss_jax.run import run_folder
from dss_jax.run.session import Session
from dss_jax.train.checkpoint import Checkpoints

log = logging.getLogger(__name__)

Write = Callable[[int, str, dict], None]
"""(step, group, numbers), as `MetricLog`."""


def _check_there(folder: Path) -> None:
    from dss_jax.core.presence import check_there

    check_there(folder / run_folder.CONFIG)


def _teacher_accuracy(session: Session, split_name: str, limit: int | None) -> float | None:
    """The teacher's own label accuracy on a split, per cent, on the first `limit` rows that have a
    gold label; None where there is no teacher.
    """
    split, scorer = session.store.split(split_name), session.evaluator.scorer
    if not session.store.has("teacher_label_targets"):
        return None
    texts = zip(split.text("label")[:], split.text("teacher_label")[:], strict=True)
    pairs = [pair for pair in texts if pair[0]][:limit]
    if not any(teacher for _, teacher in pairs):
        return None
    return scorer([g for g, _ in pairs], [t for _, t in pairs])[scorer.name]


def score_split(
    session: Session, params: Any, name: str, file: str, rationales: bool, limit: int | None = None
) -> dict[str, Any]:
    """Predicts a split, writes the predictions, and scores them, with the teacher's accuracy if
    there is one. Where no row has a gold label there is no score among the numbers.
    """
    from dss_jax.run.clock import clocked

    with clocked(f"scoring {name}"):
        result = session.evaluator(params, name, limit=limit, rationales=rationales)
    numbers = dict(result.numbers) | {"examples": result.examples}
    _say_unlabelled(session, name, result)
    if not result.predictions:
        return numbers
    if (teacher := _teacher_accuracy(session, name, limit)) is not None:
        numbers["teacher"] = teacher
    if not processes.is_first():
        return numbers
    _check_there(session.folder)
    write_predictions(session.folder / run_folder.PREDICTIONS / file, result.predictions)
    own = session.run.task.mixture_or_task_name is not None
    if session.evaluator.metric not in numbers or not own:
        return numbers
    from dss_jax.run.own_metrics import own_metrics

    return numbers | own_metrics(session.run.task, name, result.predictions)


def _say_unlabelled(session: Session, name: str, result: Result) -> None:
    """Says which rows of a split are not scored, for they have no gold label."""
    if session.evaluator.metric not in result.numbers:
        log.info("no row of %s has a gold label: it is predicted, not scored", name)
    elif result.predictions:
        lengths = session.store.split(name).tokens("label_targets").lengths()
        if without := int((lengths == 0).sum()):
            log.info("%d of the %d rows of %s have no gold label", without, len(lengths), name)


def validate(session: Session, write: Write, params: Any, step: int) -> float | None:
    """Scores the validation split, writes the numbers and the predictions, and says them. Gives the
    score that the best checkpoint has most of; None without such a split or gold labels in it, and
    where a number is not finite.
    """
    _check_there(session.folder)
    run = session.run
    if "validation" not in session.store.splits:
        return None
    began = time.monotonic()
    limit = run.evaluate.validation_examples
    result = session.evaluator(params, "validation", limit=limit)
    write(step, "validation", result.numbers)
    if processes.is_first() and result.predictions:
        write_predictions(predictions_file(session, "validation", step, limit), result.predictions)
    metric, first = session.evaluator.metric, run.method.tasks[0]
    score = result.numbers.get(metric)
    shown = "not scored, without gold labels" if score is None else f"{metric} {score:.2f}"
    log.info(
        f"step {step}/{run.train.steps}  validation {shown}  "
        f"{first} loss {result.numbers.get(f'{first}/loss', math.nan):.4f}  "
        f"({result.examples} examples, {time.monotonic() - began:.1f} s)"
    )
    # Equal accuracies go to the later step: one without a finite loss shall not be the best.
    return score if all(map(math.isfinite, result.numbers.values())) else None


def finish(session: Session, checkpoints: Checkpoints, write: Write) -> dict[str, Any]:
    """What `results.json` holds: scores validation and, once, test with the best checkpoint. Raises
    Diverged where a loss of these is not finite.
    """
    _check_there(session.folder)
    best = checkpoints.best_step()
    assert best is not None
    params = checkpoints.restore_params(best, session.program.abstract_state.params)
    results = results_of(session, params, best)
    if "test" in results:
        write(session.run.train.steps, "test", results["test"])
    return results


def results_of(session: Session, params: Any, best: int) -> dict[str, Any]:
    """See `finish`; of the parameters of step `best`."""
    from dss_jax.train.bad_steps import check_scores

    run, store, program = session.run, session.store, session.program
    rows = len(store.split("train"))
    results: dict[str, Any] = {
        "metric": session.evaluator.metric,
        "best_step": best,
        "steps": run.train.steps,
        "method": run.method.name,
        "task": run.task.shown_name,
        "seed": run.train.seed,
        "train_examples": len(subset_rows(rows, run.task)),
        "train_total": rows,
        "extra_examples": sum(len(extra.split("train")) for extra in store.extras),
        "parameters": sum(x.size for x in jax.tree.leaves(program.abstract_params)),
    }
    for name in ("validation", "test"):
        if name in store.splits:
            file, rationales = f"{name}-best.jsonl", run.evaluate.generate_rationales
            numbers = score_split(session, params, name, file, rationales)
            check_scores(best, name, numbers)
            if session.evaluator.metric in numbers:
                results[name] = numbers
    if "test" not in store.splits:
        log.info("there is no test split: only validation is scored")
    return results


def close_folder(session: Session, results: dict[str, Any]) -> None:
    """Draws the curves of a run that is done, and writes `results.json`."""
    if not processes.is_first():
        return
    from dss_jax.run.pictures import plot_curves

    run, folder = session.run, session.folder
    _check_there(folder)
    plot_curves(
        [(run.method.name, folder)],
        session.evaluator.metric,
        folder / run_folder.CURVES,
        title=f"{run.task.shown_name}, {run.method.name}",
        teacher=results.get("validation", {}).get("teacher"),
    )
    # Last, because it says that the run is finished.
    run_folder.write_results(folder, results)


def predictions_name(
    run: config.Run, split_name: str, step: int, limit: int | None, other: Sequence[str] = ()
) -> str:
    """File of the predictions; one of a part of a split, decoded in another way, or of `other` data
    and settings than the run's own, does not overwrite that of the whole.
    """
    how = "" if run.evaluate.decode == "greedy" else f"-{run.evaluate.decode}"
    part = "" if limit is None else f"-first{limit}"
    digest = hashlib.sha256("\n".join(other).encode()).hexdigest()[:8]
    own = f"{run_folder.OTHER}{digest}" if other else ""
    return f"{split_name}-{step}{how}{part}{own}.jsonl"


def predictions_file(session: Session, split_name: str, step: int, limit: int | None) -> Path:
    """Where the predictions of a checkpoint are written: see `predictions_name`."""
    name = predictions_name(session.run, split_name, step, limit, other_than(session))
    return session.folder / run_folder.PREDICTIONS / name


def other_than(session: Session) -> list[str]:
    from dss_jax.run.changes import changes  # For `dss eval` only.

    return changes(session.run, session.folder, session.store.key)
