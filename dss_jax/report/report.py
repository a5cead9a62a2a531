"""The report of a folder with runs: tables, figures, CSV and, on request, a page to browse.

report.md, report.html        tables and figures; with the page, each answer to each test item
results.csv                   a line a cell: mean, standard error, seeds
runs.csv                      a line a run
by_data.png, .svg             accuracy by share of the training data
by_size.png, .svg             accuracy by size of the model
by_compute.png, .svg          accuracy by operations of the training
reliability.png, .svg         accuracy by confidence, and risk by coverage
"""

import csv
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dss_jax.core.errors import UsageError
from dss_jax.core.paths import write_whole
from dss_jax.core.texts import visible
from dss_jax.evaluate.statistics import mean
from dss_jax.report import figures as report_figures
from dss_jax.report import labels, laws, published, reliability, reliability_chart
from dss_jax.report import tables as report_tables
from dss_jax.report.found_runs import FoundCell, FoundRuns, View, find_runs
from dss_jax.report.tables import Table, as_markdown

log = logging.getLogger(__name__)

SHOWN = 5
"""How many runs that are left out are named."""

SPLITS = ("validation", "test")


@dataclass
class Report:
    """What was found and written: tables for people, the main one of each task first; files; and
    runs that are not finished.
    """

    tables: list[Table]
    files: list[Path] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def write(
    folder: Path,
    out: Path | None = None,
    view: View = View(),  # noqa: B008 - it cannot be changed
    html: bool = False,
    headline: str = "",
    first: Sequence[Table] = (),
) -> Report:
    """Writes the report of a folder, of a sweep or any with runs in it, to `out` (None: the folder
    `report` in it), and logs which runs are left out. A headline and tables of the caller's come
    `first`.

    Raises:
      UsageError: see `find_runs`; or no run was scored on the split.
    """
    found, split = find_runs(folder), view.split
    if not any(cell.scores(split) for cell in found.cells) and not found.teachers:
        other = next(s for s in SPLITS if s != split)
        raise UsageError(f"no run in {folder} was scored on {split}. Give --split {other}.")
    out = out or folder / "report"
    left = [*found.left, *_not_scored(found, split)]
    measured, fits = reliability.measure(found, view), laws.fitted(found, view)
    tables = [*report_tables.tables(found, view, fits), *laws.tables(fits)]
    tables += [*reliability.tables(measured, view), *labels.tables(found, view)]
    report = Report([*first, *tables], left=left)
    report.files += report_figures.by_data(found, out / "by_data", view, fits)
    for draw in (report_figures.by_size, report_figures.by_compute):
        report.files += draw(found, out / draw.__name__, view)
    report.files += reliability_chart.draw(measured, out / "reliability")
    # After the figures, which are shown in it.
    texts = {
        "report.md": _markdown(found, report, view, headline),
        "results.csv": _results_csv(found),
        "runs.csv": _runs_csv(found),
    }
    if html:
        from dss_jax.report.page import page_data, render

        drawings = [(f.stem, f.read_text()) for f in report.files if f.suffix == ".svg"]
        data = page_data(found, report.tables, split, title=folder.name)
        texts["report.html"] = render(data, drawings, headline)
    for name, text in texts.items():
        write_whole(out / name, text)
        report.files.append(out / name)
    for line in found.mixed:
        log.warning(line)
    for line in left[:SHOWN]:
        log.info("left out: %s", line)
    if len(left) > SHOWN:
        log.info("and %d more, listed in %s", len(left) - SHOWN, out / "report.md")
    return report


def _not_scored(found: FoundRuns, split: str) -> Iterator[str]:
    """A line for each run that has no score on the split."""
    runs = [run for cell in found.cells for run in cell.runs]
    for run in (r for r in [*runs, *found.teachers.values()] if not r.has(split)):
        there = ", ".join(filter(run.has, SPLITS)) or "none"
        name = run.folder.relative_to(found.folder).as_posix()
        yield f"{name}: no score on {split} ({there} has)"


def _markdown(found: FoundRuns, report: Report, view: View, headline: str) -> str:
    """The report before it has files other than pictures."""
    lines = [
        f"# {as_markdown(found.folder.resolve().name)}",
        "",
        *([f"**{as_markdown(headline)}**", ""] if headline else []),
        f"Accuracy on {view.split} in %, mean and standard error over seeds (number of seeds). "
        "Each run is scored once, with the checkpoint that was best on validation. "
        f"`*`: fewer than {view.min_seeds} seeds.",
        "",
    ]
    pictures = [file for file in report.files if file.suffix == ".png"]
    lines += [f"![{file.stem.replace('_', ' ')}]({file.name})\n" for file in pictures]
    for table in report.tables:
        lines += [f"## {as_markdown(table.title)}", "", *table.markdown(), ""]
        if table.note:
            lines += [table.note, ""]
    if view.published:
        lines += [f"Rows in parentheses: {published.LABEL}; not run here.", ""]
    if found.mixed:
        lines += ["## Different data", "", *(f"- {as_markdown(line)}" for line in found.mixed), ""]
    if report.left:
        lines += ["## Left out", "", *(f"- {as_markdown(line)}" for line in report.left), ""]
    return "\n".join(lines)


_FORMULA = ("=", "+", "-", "@", "\t")
"""With what a spreadsheet lets a formula begin."""

PLACE = ["task", "model", "parameters", "method", "train_examples", "train_fraction"]


def _place(cell: FoundCell) -> list:
    fraction = f"{cell.fraction:.6g}"
    return [cell.task, cell.model, cell.parameters, cell.method, cell.examples, fraction]


def _csv(header: Sequence[str], rows: list[list]) -> str:
    text = io.StringIO()
    shown = (map(_cell, row) for row in [[*PLACE, *header], *rows])
    csv.writer(text, lineterminator="\n").writerows(shown)
    return text.getvalue()


def _cell(value: object) -> str:
    """A cell of a table for people, who open it in a spreadsheet: a name that it would take for a
    formula has an apostrophe before it. Numbers stay what they are.
    """
    text = visible(str(value))
    try:
        float(text)
    except ValueError:
        return f"'{text}" if text.startswith(_FORMULA) else text
    return text


def _results_csv(found: FoundRuns) -> str:
    rows = []
    for cell in found.cells:
        for split in SPLITS:
            if scores := cell.scores(split):
                m = mean(scores)
                error = "" if m.error is None else f"{m.error:.6g}"
                rows.append([*_place(cell), split, cell.metric, f"{m.value:.6g}", error, m.n])
    for task, run in found.teachers.items():
        place = [task, "", "", "teacher", "", ""]
        for split in filter(run.has, SPLITS):
            score = f"{run.score(split):.6g}"
            rows.append([*place, split, run.results["metric"], score, "", 1])
    return _csv(["split", "metric", "mean", "standard_error", "seeds"], rows)


def _runs_csv(found: FoundRuns) -> str:
    rows = []
    for cell in found.cells:
        for run in cell.runs:
            scores = [f"{run.score(s):.6g}" if run.has(s) else "" for s in SPLITS]
            steps = run.results["best_step"], run.results["steps"]
            folder = run.folder.relative_to(found.folder).as_posix()
            trained = run.results.get("trained_rows", "")
            flops = run.results.get("training_flops", "")
            rows.append([*_place(cell), run.seed, *scores, *steps, trained, flops, folder])
    names = "best_step", "steps", "trained_rows", "training_flops", "folder"
    return _csv(["seed", *SPLITS, *names], rows)
