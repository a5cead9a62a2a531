"""Power laws of learning curves in a report: their table, and their lines in the figure by data."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dss_jax.evaluate import power_law
from dss_jax.evaluate.statistics import interval
from dss_jax.report.found_runs import FoundCell, FoundRuns, View
from dss_jax.report.tables import Table

POINTS = 100
"""Of a line."""


def of_cells(cells: Sequence[FoundCell], split: str) -> power_law.Laws | None:
    """Of the cells of a task, model and method; None where they are too few."""
    return power_law.learning_curve({c.fraction: c.scores(split) for c in cells})


def tables(found: FoundRuns, view: View) -> Iterator[Table]:
    """The laws of each task's methods and models that have any."""
    for task in found.tasks:
        cells = found.scored(task, view.split)
        rows = []
        for method, model in dict.fromkeys((c.method, c.model) for c in cells):
            own = [c for c in cells if (c.method, c.model) == (method, model)]
            if (law := of_cells(own, view.split)) is not None:
                numbers = map(_with_interval, (law.a, law.b, law.c))
                rows.append((method, model, str(len(own)), *numbers, f"{law.rest:.2f}"))
        note = (
            "Share 1 is all of the data: there the error is a + c, %. Least squares over the means "
            "of the sizes, c at least 0; in brackets 95 %, over resampled seeds. The last column "
            "is the root mean square of what is left, in points."
        )
        header = ("method", "model", "sizes", "a", "b", "c", "misses by")
        if rows:
            yield Table(f"{task}: power laws, error = a * share^-b + c", header, tuple(rows), note)


def _with_interval(values: np.ndarray) -> str:
    """Of the means; over the resamples."""
    text = f"{values[0]:.3g}"
    if len(values) == 1:
        return text
    low, high = interval(values[1:])
    return f"{text} [{low:.3g}, {high:.3g}]"


def draw(panel: Any, cells: Sequence[FoundCell], split: str, colour: str) -> bool:
    """A thin line over the sizes that were run, and its 95 %; whether there is one."""
    if (law := of_cells(cells, split)) is None:
        return False
    ends = sorted(c.fraction for c in cells)
    shares = np.geomspace(ends[0], ends[-1], POINTS)
    accuracies = 100 - law.errors(shares)
    panel.plot(100 * shares, accuracies[0], ":", color=colour, linewidth=1)
    if len(accuracies) > 1:
        band = np.array([interval(x) for x in accuracies[1:].T]).T
        panel.fill_between(100 * shares, *band, color=colour, alpha=0.12, linewidth=0)
    return True
