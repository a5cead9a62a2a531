"""Method "teacher": a run folder with the teacher's own labels, scored. Nothing is trained."""

import logging
from typing import Any

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.types import Scorer
from dss_jax.data.store import StoreSplit, TokenStore
from dss_jax.evaluate.evaluator import write_predictions
from dss_jax.run import run_folder, trained_on

log = logging.getLogger(__name__)

SPLITS = ("validation", "test")


def answers(split: StoreSplit, scorer: Scorer) -> list[dict[str, Any]]:
    """The teacher's answers to the rows that have a gold label, as a student's are written."""
    columns = ("id", "input", "label", "teacher_label", "rationale")
    rows = zip(*(split.text(c)[:] for c in columns), strict=True)
    return [
        {
            "id": name,
            "input": text,
            "target": gold,
            "prediction": label,
            "correct": scorer.correct(gold, label),
            "rationale": rationale,
        }
        for name, text, gold, label, rationale in rows
        if gold
    ]


@run_folder.alone
def score(run: config.Run, store: TokenStore, scorer: Scorer) -> dict[str, Any]:
    """Scores the teacher on validation and test: what `results.json` holds, as of a student. Raises
    UsageError where there is no teacher text; see also `open_run_folder`.
    """
    if not store.has("teacher_label_targets"):
        raise UsageError(f"{run.task.shown_name} has no teacher text, so there is none to score.")
    folder = run_folder.open_run_folder(run, store.key)
    trained_on.write(folder, run, store)
    results: dict[str, Any] = {
        "metric": scorer.name,
        "best_step": 0,
        "steps": 0,
        "method": run.method.name,
        "task": run.task.shown_name,
        "seed": run.train.seed,
        "train_examples": 0,
        "train_total": len(store.split("train")) if "train" in store.splits else 0,
        "parameters": 0,
    }
    for name in SPLITS:
        if name not in store.splits:
            continue
        found = answers(store.split(name), scorer)
        if not any(p["prediction"] for p in found):
            log.info("no row of %s has both a gold label and teacher text: it is not scored", name)
            continue
        scores = scorer([p["target"] for p in found], [p["prediction"] for p in found])
        results[name] = {**scores, "examples": len(found), "teacher": scores[scorer.name]}
        write_predictions(folder / run_folder.PREDICTIONS / f"{name}-best.jsonl", found)
    if not any(name in results for name in SPLITS):
        raise UsageError(
            f"neither validation nor test of {run.task.shown_name} has rows with a gold label and "
            "teacher text. Extract it with dss extract, and give the records with --rationales."
        )
    run_folder.write_results(folder, results)
    return results
