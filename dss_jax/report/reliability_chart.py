"""Reliability diagrams and risk-coverage curves: a row a task and model, a line a method."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dss_jax.evaluate.reliability import BINS, COVERAGES, Drawn
from dss_jax.evaluate.statistics import interval
from dss_jax.report.reliability import CURVE, IN_BINS, MeasuredCell
from dss_jax.run import pictures
from dss_jax.run.pictures import PALETTE

FEW = 10
"""Answers below which a bin's marker is hollow."""


def draw(made: Sequence[MeasuredCell], file: Path) -> list[Path]:
    """No files where nobody's confidence is known."""
    there = [(m.cell, len(m.ids), drawn) for m in made if (drawn := m.confidence)]
    if not there:
        return []
    plt = pictures.pyplot()
    rows = list(dict.fromkeys((cell.task, cell.model) for cell, *_ in there))
    methods = dict.fromkeys(cell.method for cell, *_ in there)
    colours = {m: PALETTE[i % len(PALETTE)] for i, m in enumerate(methods)}
    size = (12, 4.6 * len(rows))
    figure, grid = plt.subplots(len(rows), 2, figsize=size, layout="constrained", squeeze=False)
    for (left, right), (task, model) in zip(grid, rows, strict=True):
        left.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="calibrated")
        for cell, items, drawn in there:
            if (cell.task, cell.model) == (task, model):
                _diagram(left, drawn, items, colours[cell.method], cell.method)
                _risks(right, drawn, colours[cell.method], cell.method)
        left.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
        right.set(xlabel="coverage: share answered, the surest first, %", xlim=(0, 100))
        right.set(ylabel="risk: errors among these, %", ylim=(0, None))
        for panel, what in ((left, "reliability"), (right, "risk by coverage")):
            panel.set_title(f"{task}, {model}: {what}", fontsize=10)
            pictures.finish(panel)
    return pictures.save_forms(figure, file)


def _diagram(panel: Any, drawn: Drawn, items: int, colour: str, name: str) -> None:
    """Accuracy by mean confidence of each bin that has answers, with 95 % intervals."""
    right, sure, count = drawn.value[IN_BINS:].reshape(3, BINS)
    resampled, _, counts = drawn.resampled[IN_BINS:].reshape(3, BINS, -1)
    there = np.flatnonzero(count)
    xs, ys = sure[there] / count[there], right[there] / count[there]
    own = [resampled[b][counts[b] > 0] / counts[b][counts[b] > 0] for b in there]
    ends = np.array([interval(x) for x in own])
    errors = np.maximum(0, [ys - ends[:, 0], ends[:, 1] - ys])
    panel.errorbar(xs, ys, yerr=errors, color=colour, linewidth=1.2, capsize=2, label=name)
    for x, y, n in zip(xs, ys, count[there], strict=True):
        face = colour if n >= FEW else "white"
        panel.plot([x], [y], "o", color=colour, markerfacecolor=face, markersize=4 + 8 * n / items)


def _risks(panel: Any, drawn: Drawn, colour: str, name: str) -> None:
    shown = [drawn.interval(CURVE + i, 0, 1) for i in range(len(COVERAGES))]
    values, low, high = (100 * np.array(column) for column in zip(*shown, strict=True))
    panel.plot(100 * COVERAGES, values, color=colour, linewidth=1.6, label=name)
    panel.fill_between(100 * COVERAGES, low, high, color=colour, alpha=0.15, linewidth=0)
