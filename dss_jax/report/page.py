"""The report as one page: tables, curves, and every answer to every test item.

The page needs no network and no server. What data sets, teachers and students wrote is put into it
as JSON, and by its script as text, never as markup; a content security policy lets nothing run but
the script that is written here.
"""

import base64
import hashlib
import html
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dss_jax.core import strict_json
from dss_jax.report.found_runs import FoundRuns, closed_labels
from dss_jax.report.labels import named_other
from dss_jax.report.reliability import confidences, shares_of
from dss_jax.report.tables import Table, share_of
from dss_jax.run import trained_on

Item = dict[str, Any]

_HERE = Path(__file__).parent
_ESCAPES = {letter: f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}
_ACTIVE = re.compile(r"<\s*(script|foreignObject|iframe|image)\b|\son\w+\s*=|javascript:", re.I)


def as_json(value: Any) -> str:
    """JSON that nothing in a page's script element can end or begin."""
    text = strict_json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return "".join(_ESCAPES.get(letter, letter) for letter in text)


def _digest(text: str) -> str:
    """Of an inline script or style, as a content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _drawing(svg: str) -> str:
    """A figure of matplotlib's, without XML's heading."""
    markup = "".join(re.findall("<[^>]*>", svg))  # A method's name may be "one=1".
    assert not (found := _ACTIVE.search(markup)), f"a figure holds {found and found[0]!r}"
    return svg[svg.index("<svg") :]


def _table(table: dict[str, Any]) -> str:
    head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in table["header"])
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in table["rows"]
    )
    note = f"<p class=note>{html.escape(table['note'])}</p>" if table["note"] else ""
    title = html.escape(table["title"])
    return (
        f'<h3>{title}</h3><div class=scroll tabindex=0 role=region aria-label="{title}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}"
    )


def render(data: dict[str, Any], figures: Sequence[tuple[str, str]], headline: str = "") -> str:
    """The page of what `page_data` gives, with figures: (name, SVG text)."""
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    shell = (_HERE / "page.html").read_text(encoding="utf-8")
    # matplotlib styles its drawings in attributes and in one style element each.
    drawings = [_drawing(svg) for _, svg in figures]
    styles = {style, *re.findall(r"<style[^>]*>(.*?)</style>", "".join(drawings), re.S)}
    policy = (
        f"default-src 'none'; script-src {_digest(script)}; img-src data:; base-uri 'none'; "
        f"form-action 'none'; style-src-attr 'unsafe-inline'; "
        f"style-src-elem {' '.join(sorted(map(_digest, styles)))}"
    )
    parts = {
        "POLICY": policy,
        "TITLE": html.escape(data["title"]),
        "SPLIT": html.escape(data["split"]),
        "HEADLINE": f"<p id=headline>{html.escape(headline)}</p>" if headline else "",
        "STYLE": style,
        "FIGURES": "".join(
            f'<figure role="img" aria-label="{html.escape(name.replace("_", " "))}">{svg}</figure>'
            for (name, _), svg in zip(figures, drawings, strict=True)
        ),
        "TABLES": "".join(map(_table, data["tables"])),
        "DATA": as_json(data["tasks"]),
        "SCRIPT": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], shell)


def page_data(found: FoundRuns, tables: Sequence[Table], split: str, title: str) -> dict[str, Any]:
    return {
        "title": title,
        "split": split,
        "tables": [asdict(table) for table in tables],
        "tasks": [_task(found, task, split) for task in found.tasks],
    }


def _task(found: FoundRuns, task: str, split: str) -> dict[str, Any]:
    teacher = {p["id"]: p for p in _of_teacher(found, task, split)}
    rows, answers, methods, items = dict(teacher), [], [], []
    for cell in found.scored(task, split):
        predictions = [p for run in cell.runs for p in run.predictions(split)]
        rows = {p["id"]: p for p in predictions} | rows
        answers.append(_answers(predictions))
        name, scores = f"{cell.method}, {cell.model}, {share_of(cell)}", cell.scores(split)
        accuracy = sum(scores) / len(scores)
        methods.append({"name": name, "seeds": len(scores), "accuracy": accuracy})
    for key, row in rows.items():
        item = {"id": key, "input": row["input"], "gold": row["target"]}
        given = [one.get(key) for one in answers]
        items.append({**item, "teacher": _teacher(teacher.get(key)), "answers": given})
    metric = found.metric(task)
    return {"task": task, "metric": metric, "methods": methods, "items": items}


def _of_teacher(found: FoundRuns, task: str, split: str) -> Iterator[Item]:
    """The teacher's answers: of its run, else from the token store of a student's run."""
    if task in found.teachers:
        yield from found.teachers[task].predictions(split)
        return
    scorer = trained_on.SCORERS.get(found.metric(task))
    runs = (run for cell in found.cells if cell.task == task for run in cell.runs)
    stores = (trained_on.own_store(trained_on.read(run.folder)) for run in runs if scorer)
    store = next(filter(None, stores), None)
    if scorer and store and split in store.splits and store.has("teacher_label"):
        from dss_jax.run import teacher_run  # Which loads JAX.

        rows = teacher_run.answers(store.split(split), scorer)
        yield from (row for row in rows if row["prediction"] or row["rationale"])


def _teacher(found: Item | None) -> Item | None:
    if found is None:
        return None
    label, rationale = found["prediction"], found.get("rationale") or ""
    return {"label": label, "rationale": rationale, "correct": bool(found["correct"])}


MOST_SHARES = 5
"""Labels whose probability an answer shows, the most probable."""


def _answers(predictions: Sequence[Item]) -> dict[str, Item]:
    """Id -> the cell's answer: what most seeds say, how many of them are right, how sure those are
    that say so, the labels' mean probabilities, and which other label the rationale names.
    """
    labels, (_, sure) = [*closed_labels(predictions)], confidences(predictions) or ("", None)
    by_id: dict[str, list[Item]] = {}
    for n, prediction in enumerate(predictions):
        own = {} if sure is None else {"confidence": sure[n]}
        by_id.setdefault(prediction["id"], []).append(prediction | own)
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
        if sure is not None:
            same = [p["confidence"] for p in given if p["prediction"] == most]
            found[name]["confidence"] = round(sum(same) / len(same), 4)
        if all(shares := [shares_of(p) for p in given]):
            mean = {x: sum(s.get(x, 0.0) for s in shares) / len(shares) for x in shares[0]}
            shown = sorted(mean.items(), key=lambda pair: -pair[1])[:MOST_SHARES]
            found[name]["shares"] = [[label, round(share, 4)] for label, share in shown]
        if other := named_other(first.get("rationale"), most, [*(shares[0] or labels)]):
            found[name]["names"] = other
    return found
