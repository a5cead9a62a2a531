"""Finished run folders with results that are known, for tests of what reads them."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import toy

from dss_jax.core import config
from dss_jax.run import run_folder

TOTAL = 1000
METRIC = "text_accuracy"


def write_run(
    folder: Path,
    right: Sequence[bool],
    *,
    method: str = "dss",
    examples: int = TOTAL,
    seed: int = 0,
    task: str = "toy",
    parameters: int = 1_000_000,
    teacher: float | None = 60.0,
    task_config: config.Task | None = None,
    **sections: object,
) -> Path:
    """A finished run that answers item i as `right[i]` says, on validation and test."""
    run = toy.make_run(**sections)
    run = dataclasses.replace(run, task=task_config or run.task)
    train = dataclasses.replace(run.train, seed=seed, output_dir=str(folder))
    run = dataclasses.replace(run, train=train, data=dataclasses.replace(run.data, seed=seed))
    run_folder.open_run_folder(run, "toy")
    named = {"method": method, "task": task, "seed": seed, "train_examples": examples}
    return write_answers(folder, right, teacher, **named, parameters=parameters)


def write_answers(
    folder: Path, right: Sequence[bool], teacher: float | None = 60.0, **named: object
) -> Path:
    """Finishes the run in a folder: what its `results.json` and its predictions hold."""
    accuracy = 100 * sum(right) / len(right)
    scored = {METRIC: accuracy, "examples": len(right)}
    scored |= {} if teacher is None else {"teacher": teacher}
    results = {
        "metric": METRIC,
        "best_step": 4,
        "steps": 6,
        **named,
        "train_total": TOTAL,
        "validation": scored,
        "test": scored,
    }
    lines = [
        {
            "id": f"item-{i}",
            "input": f"input {i}",
            "target": "yes",
            "prediction": "yes" if good else "no",
            "correct": bool(good),
            "rationale": f"because {i}",
        }
        for i, good in enumerate(right)
    ]
    for split in ("validation", "test"):
        file = folder / run_folder.PREDICTIONS / f"{split}-best.jsonl"
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_folder.write_results(folder, results)
    return folder


def accuracy_of(percent: float, items: int = 200) -> list[bool]:
    """Answers of which so many per cent are right, the first ones."""
    count = round(items * percent / 100)
    return [i < count for i in range(items)]


TEACHER = config.Method(name="teacher", label="teacher", rationale=False, form="teacher")
