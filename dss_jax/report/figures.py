"""Figures in the paper's manner: accuracy by share of the data, and by size of the model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dss_jax.evaluate.statistics import mean
from dss_jax.report import published
from dss_jax.report.found_runs import Cell, Found
from dss_jax.run import pictures
from dss_jax.run.pictures import PALETTE

ENDINGS = ("png", "svg")
WIDE_RANGE = 6
"""Axes of the data that span more than this factor are logarithmic."""


def _axes(count: int) -> tuple[Any, list[Any]]:
    """A figure with so many panels, two beside each other."""
    plt = pictures.pyplot()
    columns = min(2, count)
    rows = -(-count // columns)
    size = (6.4 * columns if columns > 1 else 7.2, 4.3 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    panels = list(grid.flat)
    for panel in panels[count:]:
        panel.set_visible(False)
    return figure, panels[:count]


def _line(
    panel: Any, cells: Sequence[Cell], x: Callable[[Cell], float], split: str, min_seeds: int,
    colour: str,
) -> None:  # fmt: skip
    """One method's line; hollow markers where there are too few seeds."""
    there = [cell for cell in cells if cell.scores(split)]
    means = [mean(cell.scores(split)) for cell in there]
    xs, ys = [x(cell) for cell in there], [m.value for m in means]
    panel.errorbar(
        xs, ys, yerr=[m.error or 0.0 for m in means], color=colour, linewidth=1.6, capsize=3,
        label=there[0].method,
    )  # fmt: skip
    for at, value, m in zip(xs, ys, means, strict=True):
        face = colour if m.n >= min_seeds else "white"
        panel.plot([at], [value], "o", color=colour, markerfacecolor=face, markersize=6)


def _finish(panel: Any, title: str, metric: str, split: str) -> None:
    panel.set_title(title, fontsize=10)
    panel.set_ylabel(f"{metric.replace('_', ' ')}, {split}, %")
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8)


def _teacher(panel: Any, found: Found, task: str, split: str) -> None:
    score = found.teacher_score(task, split)
    if score is not None:
        panel.axhline(score, color="0.4", linestyle="--", linewidth=1, label="teacher's labels")


def _published(panel: Any, task: str, colours: dict[str, str], x: float) -> None:
    """The paper's numbers as stars."""
    for method, value in published.ACCURACY.get(task, {}).items():
        colour = colours.get(method, "0.5")
        panel.plot([x], [value], "*", color=colour, markersize=11, markeredgecolor="0.2",
                   label=f"{method}, {published.LABEL}")  # fmt: skip


def colours_of(found: Found) -> dict[str, str]:
    """Method -> colour, the same in each panel."""
    methods = list(dict.fromkeys(cell.method for cell in found.cells))
    return {m: PALETTE[i % len(PALETTE)] for i, m in enumerate(methods)}


def _write(figure: Any, file: Path) -> list[Path]:
    files = [file.with_suffix(f".{ending}") for ending in ENDINGS]
    pictures.save(figure, *files)
    return files


def by_data(
    found: Found, file: Path, split: str, min_seeds: int, with_published: bool
) -> list[Path]:
    """Draws accuracy by share of the training data: a panel a task and model, a line a method.

    Returns:
      The files; none where no panel would have a line of two points.
    """
    panels = [
        (task, model)
        for task, model in dict.fromkeys((c.task, c.model) for c in found.cells)
        if len({c.examples for c in _of(found, task, model) if c.scores(split)}) > 1
    ]
    if not panels:
        return []
    figure, axes = _axes(len(panels))
    colours = colours_of(found)
    for panel, (task, model) in zip(axes, panels, strict=True):
        cells = _of(found, task, model)
        for method in dict.fromkeys(c.method for c in cells if c.scores(split)):
            own = [c for c in cells if c.method == method]
            _line(panel, own, lambda c: 100 * c.fraction, split, min_seeds, colours[method])
        _teacher(panel, found, task, split)
        if with_published:
            _published(panel, task, colours, 100.0)
        shares = sorted({100 * c.fraction for c in cells})
        if shares[-1] > WIDE_RANGE * shares[0]:
            panel.set_xscale("log")
        panel.set_xticks(shares, [f"{share:.3g}" for share in shares])
        panel.minorticks_off()
        total = cells[0].runs[0].results["train_total"]
        panel.set_xlabel(f"training data, % of {total:,} examples")
        _finish(panel, f"{task}, {model}", cells[0].metric, split)
    return _write(figure, file)


def by_size(
    found: Found, file: Path, split: str, min_seeds: int, with_published: bool
) -> list[Path]:
    """Draws accuracy by number of parameters, each method on the most data that it was run with.

    Returns:
      The files; none where no task has two models.
    """
    chosen = {task: _largest(found, task, split) for task in found.tasks}
    panels = [t for t, cells in chosen.items() if len({c.parameters for c in cells}) > 1]
    if not panels:
        return []
    figure, axes = _axes(len(panels))
    colours = colours_of(found)
    for panel, task in zip(axes, panels, strict=True):
        cells = chosen[task]
        for method in dict.fromkeys(c.method for c in cells):
            own = [c for c in cells if c.method == method]
            _line(panel, own, lambda c: c.parameters, split, min_seeds, colours[method])
        _teacher(panel, found, task, split)
        if with_published:
            _published(panel, task, colours, 220e6)
        sizes = {c.parameters: c.model for c in cells}
        panel.set_xscale("log")
        panel.set_xticks(
            list(sizes), [f"{name}\n{n / 1e6:,.3g}M" for n, name in sizes.items()], fontsize=8
        )
        panel.minorticks_off()
        panel.set_xlabel("model, parameters")
        share = max(c.fraction for c in cells)
        _finish(panel, f"{task}, {100 * share:g} % of the data", cells[0].metric, split)
    return _write(figure, file)


def _of(found: Found, task: str, model: str) -> list[Cell]:
    return [c for c in found.cells if (c.task, c.model) == (task, model)]


def _largest(found: Found, task: str, split: str) -> list[Cell]:
    """The cells of a task with the most data."""
    cells = [c for c in found.cells if c.task == task and c.scores(split)]
    most = max((c.examples for c in cells), default=0)
    return [c for c in cells if c.examples == most]
