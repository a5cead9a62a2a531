"""What the report's page shows of each test item: everybody's answers."""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from dss_jax.report.found_runs import Found
from dss_jax.report.tables import Table, share_of

Item = dict[str, Any]


def page_data(found: Found, tables: Sequence[Table], split: str, title: str) -> dict[str, Any]:
    """What `page.write_page` takes."""
    return {
        "title": title,
        "split": split,
        "tables": [
            {"title": t.title, "header": list(t.header), "rows": [list(r) for r in t.rows],
             "note": t.note}
            for t in tables
        ],
        "tasks": [_task(found, task, split) for task in found.tasks],
    }  # fmt: skip


def _task(found: Found, task: str, split: str) -> dict[str, Any]:
    cells = [c for c in found.cells if c.task == task and c.scores(split)]
    given = [[run.predictions(split) for run in cell.runs] for cell in cells]
    answers = [_answers(of_runs) for of_runs in given]
    teacher = {}
    if task in found.teachers:
        teacher = {p["id"]: p for p in found.teachers[task].predictions(split)}
    rows: dict[str, Item] = dict(teacher)
    for predictions in itertools.chain.from_iterable(given):
        rows = {p["id"]: p for p in predictions} | rows
    return {
        "task": task,
        "metric": cells[0].metric if cells else found.teachers[task].results["metric"],
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


def _answers(of_runs: Sequence[Sequence[Item]]) -> dict[str, Item]:
    """Id -> the cell's answer: what most seeds say, and how many of them are right."""
    by_id: dict[str, list[Item]] = {}
    for prediction in itertools.chain.from_iterable(of_runs):
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
