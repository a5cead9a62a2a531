"""Power laws of learning curves in a report: their table, and their lines in the figure by data."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from dss_jax.evaluate import power_law
from dss_jax.evaluate.statistics import interval
from dss_jax.report.found_runs import FoundRuns, View
from dss_jax.report.tables import Fitted, Table

POINTS = 100
"""Of a line."""


def fitted(found: FoundRuns, view: View) -> Fitted:
    """The laws of all curves that have sizes enough, in the order of their cells."""
    curves: dict[tuple[str, str, str], dict[float, list[float]]] = defaultdict(dict)
    for cell in found.cells:
        if scores := cell.scores(view.split):
            curves[cell.task, cell.model, cell.method][cell.fraction] = scores
    every = ((curve, power_law.learning_curve(points)) for curve, points in curves.items())
    return {curve: law for curve, law in every if law is not None}


def tables(fits: Fitted) -> Iterator[Table]:
    """A table a task."""
    for task in dict.fromkeys(task for task, _, _ in fits):
        rows = []
        for (_, model, method), law in ((c, law) for c, law in fits.items() if c[0] == task):
            numbers = map(_with_interval, (law.a, law.b, law.c))
            rows.append((method, model, str(len(law.sizes)), *numbers, f"{law.rest:.2f}"))
        note = (
            "Share 1 is all of the data: there the error is a + c, %. Least squares over the means "
            "of the sizes, c at least 0; in brackets 95 %, over resampled seeds. The last column "
            "is the root mean square of what is left, in points."
        )
        header = ("method", "model", "sizes", "a", "b", "c", "misses by")
        yield Table(f"{task}: power laws, error = a * share^-b + c", header, tuple(rows), note)


def _with_interval(values: np.ndarray) -> str:
    """Of the means; over the resamples."""
    text = f"{values[0]:.3g}"
    if len(values) == 1:
        return text
    low, high = interval(values[1:])
    return f"{text} [{low:.3g}, {high:.3g}]"


def draw(panel: Any, law: power_law.Laws, colour: str) -> None:
    """A thin line over the sizes that were run, and its 95 %."""
    shares = np.geomspace(law.sizes[0], law.sizes[-1], POINTS)
    accuracies = 100 - law.errors(shares)
    panel.plot(100 * shares, accuracies[0], ":", color=colour, linewidth=1)
    if len(accuracies) > 1:
        band = np.array([interval(x) for x in accuracies[1:].T]).T
        panel.fill_between(100 * shares, *band, color=colour, alpha=0.12, linewidth=0)
