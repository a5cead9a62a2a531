"""What the report's page shows of each test item: everybody's answers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dss_jax.report.found_runs import FoundRuns
from dss_jax.report.tables import Table, share_of

Item = dict[str, Any]


def page_data(found: FoundRuns, tables: Sequence[Table], split: str, title: str) -> dict[str, Any]:
    """What `page.render` takes."""
    return {
        "title": title,
        "split": split,
        "tables": [asdict(table) for table in tables],
        "tasks": [_task(found, task, split) for task in found.tasks],
    }


def _task(found: FoundRuns, task: str, split: str) -> dict[str, Any]:
    cells = found.scored(task, split)
    given = [[p for run in cell.runs for p in run.predictions(split)] for cell in cells]
    answers = [_answers(predictions) for predictions in given]
    teacher = {}
    if task in found.teachers:
        teacher = {p["id"]: p for p in found.teachers[task].predictions(split)}
    rows: dict[str, Item] = dict(teacher)
    for predictions in given:
        rows = {p["id"]: p for p in predictions} | rows
    return {
        "task": task,
        "metric": found.metric(task, split),
        "methods": [
            {
                "name": f"{cell.method}, {cell.model}, {share_of(cell)}",
                "seeds": len(cell.scores(split)),
                "accuracy": sum(cell.scores(split)) / len(cell.scores(split)),
            }
            for cell in cells
        ],
        "items": [
            {
                "id": row["id"],
                "input": row["input"],
                "gold": row["target"],
                "teacher": _teacher(teacher.get(row["id"])),
                "answers": [one.get(row["id"]) for one in answers],
            }
            for row in rows.values()
        ],
    }


def _teacher(found: Item | None) -> Item | None:
    if found is None:
        return None
    return {
        "label": found["prediction"],
        "rationale": found.get("rationale") or "",
        "correct": bool(found["correct"]),
    }


def _answers(predictions: Sequence[Item]) -> dict[str, Item]:
    """Id -> the cell's answer: what most seeds say, and how many of them are right."""
    by_id: dict[str, list[Item]] = {}
    for prediction in predictions:
        by_id.setdefault(prediction["id"], []).append(prediction)
    found = {}
    for name, given in by_id.items():
        most = Counter(p["prediction"] for p in given).most_common(1)[0][0]
        first = next(p for p in given if p["prediction"] == most)
        found[name] = {
            "prediction": most,
            "correct": bool(first["correct"]),
            "right": sum(bool(p["correct"]) for p in given) / len(given),
            "rationale": first.get("rationale"),
        }
    return found
