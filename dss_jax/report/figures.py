"""Figures in the paper's manner: accuracy by share of the data, by size and by compute."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dss_jax.core.sweep_config import UNDISTILLED
from dss_jax.evaluate.power_law import Laws
from dss_jax.evaluate.statistics import mean
from dss_jax.report import laws, published
from dss_jax.report.found_runs import FoundCell, FoundRuns, View
from dss_jax.report.tables import Fitted
from dss_jax.run import pictures
from dss_jax.run.pictures import PALETTE

WIDE_RANGE = 6
"""Axes of the data that span more than this factor are logarithmic."""


class _Panel(NamedTuple):
    """What a panel shows: cells of a task, each at its `x`, and the paper's at `published`."""

    task: str
    title: str
    cells: Sequence[FoundCell]
    x: Callable[[FoundCell], float]
    published: float
    finish: Callable[[Any, Sequence[FoundCell]], None]
    laws: Mapping[str, Laws] = {}  # Of methods, where `x` is the share of the data.


def by_data(found: FoundRuns, file: Path, view: View, fits: Fitted) -> list[Path]:
    """Draws accuracy by share of the training data: a panel a task and model, a line a method. No
    files where no panel would have a line of two points.
    """
    panels = []
    for task, model in dict.fromkeys((c.task, c.model) for c in found.cells):
        cells = [c for c in found.cells if (c.task, c.model) == (task, model) and c.examples]
        if len({c.examples for c in cells if c.scores(view.split)}) > 1:
            own = {name: law for (*of, name), law in fits.items() if of == [task, model]}
            about = task, f"{task}, {model}", cells, lambda c: c.percent, 100.0, _data_axis
            panels.append(_Panel(*about, own))
    return _draw(panels, found, file, view)


def _data_axis(panel: Any, cells: Sequence[FoundCell]) -> None:
    shares = sorted({c.percent for c in cells})
    if shares[-1] > WIDE_RANGE * shares[0]:
        panel.set_xscale("log")
    panel.set_xticks(shares, [f"{share:.3g}" for share in shares])
    panel.set_xlabel(f"training data, % of {cells[0].total:,} examples")


def by_size(found: FoundRuns, file: Path, view: View) -> list[Path]:
    """Draws accuracy by number of parameters, each method on the most data that it was run with. No
    files where no task has two models.
    """
    return _across(found, file, view, lambda c: c.parameters, 220e6, _size_axis)


def by_compute(found: FoundRuns, file: Path, view: View) -> list[Path]:
    """Draws accuracy by what the training took, in the same way. No files where no task has two
    cells that took other than each other.
    """
    return _across(found, file, view, lambda c: c.flops or 0.0, math.nan, _compute_axis)


def _across(
    found: FoundRuns,
    file: Path,
    view: View,
    x: Callable[[FoundCell], float],
    of_published: float,
    finish: Callable[[Any, Sequence[FoundCell]], None],
) -> list[Path]:
    panels = []
    for task in found.tasks:
        cells = [c for c in found.scored(task, view.split) if c.examples]
        most = max((c.examples for c in cells), default=0)
        cells = [c for c in cells if c.examples == most and x(c)]
        if len(set(map(x, cells))) > 1:
            title = f"{task}, {max(c.percent for c in cells):g} % of the data"
            panels.append(_Panel(task, title, cells, x, of_published, finish))
    return _draw(panels, found, file, view)


def _compute_axis(panel: Any, cells: Sequence[FoundCell]) -> None:
    panel.set_xlabel("training, floating-point operations")
    flops = [c.flops for c in cells if c.flops]
    if max(flops) > WIDE_RANGE * min(flops):
        panel.set_xscale("log")


def _size_axis(panel: Any, cells: Sequence[FoundCell]) -> None:
    sizes = {c.parameters: f"{c.model}\n{c.parameters / 1e6:,.3g}M" for c in cells}
    panel.set_xscale("log")
    panel.set_xticks(list(sizes), list(sizes.values()), fontsize=8)
    panel.set_xlabel("model, parameters")


def _draw(panels: Sequence[_Panel], found: FoundRuns, file: Path, view: View) -> list[Path]:
    if not panels:
        return []
    plt = pictures.pyplot()
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    size = (6.4 * columns if columns > 1 else 7.2, 4.3 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for empty in list(grid.flat)[len(panels) :]:
        empty.set_visible(False)
    methods = dict.fromkeys(cell.method for cell in found.cells)
    colours = {m: PALETTE[i % len(PALETTE)] for i, m in enumerate(methods)}
    for panel, shown in zip(grid.flat, panels, strict=False):
        there = [c for c in shown.cells if c.scores(view.split)]
        for method in dict.fromkeys(c.method for c in there):
            own = [(shown.x(c), c) for c in there if c.method == method]
            _line(panel, own, view, colours[method])
            if law := shown.laws.get(method):
                laws.draw(panel, law, colours[method])
        if shown.laws:
            panel.plot([], [], ":", color="0.4", linewidth=1, label="power law, 95 %")
        teacher = found.teacher_score(shown.task, view.split)
        if teacher is not None:
            style = {"color": "0.4", "linestyle": "--", "linewidth": 1}
            panel.axhline(teacher, label="teacher's labels", **style)
        for cell in found.scored(shown.task, view.split):
            if not cell.examples and {c.model for c in shown.cells} == {cell.model}:
                score = mean(cell.scores(view.split)).value
                form = ":" if cell.method == UNDISTILLED else "-."
                panel.axhline(score, label=cell.method, color="0.4", linestyle=form, linewidth=1.2)
        if view.published and not math.isnan(shown.published):
            _published(panel, shown, colours)
        shown.finish(panel, shown.cells)
        panel.minorticks_off()
        panel.set_title(shown.title, fontsize=10)
        panel.set_ylabel(f"{shown.cells[0].metric.replace('_', ' ')}, {view.split}, %")
        pictures.finish(panel)
    return pictures.save_forms(figure, file)


def _line(panel: Any, cells: Sequence[tuple[float, FoundCell]], view: View, colour: str) -> None:
    """One method's line; hollow markers where there are too few seeds."""
    xs, means = zip(*((x, mean(cell.scores(view.split))) for x, cell in cells), strict=True)
    ys, errors = [m.value for m in means], [m.error or 0 for m in means]
    style = {"color": colour, "linewidth": 1.6, "capsize": 3}
    panel.errorbar(xs, ys, yerr=errors, label=cells[0][1].method, **style)
    for at, m in zip(xs, means, strict=True):
        face = colour if m.n >= view.min_seeds else "white"
        panel.plot([at], [m.value], "o", color=colour, markerfacecolor=face, markersize=6)


def _published(panel: Any, shown: _Panel, colours: dict[str, str]) -> None:
    for method, value in published.ACCURACY.get(shown.task, {}).items():
        style = {"color": colours.get(method, "0.5"), "markersize": 11, "markeredgecolor": "0.2"}
        label = f"{method}, {published.LABEL}"
        panel.plot([shown.published], [value], "*", label=label, **style)
