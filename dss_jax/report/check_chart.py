"""What `dss tasks check` found, as a picture: labels by split, and lengths against their limits."""

from pathlib import Path
from typing import Any

import numpy as np

from dss_jax.data.check import TaskCheck
from dss_jax.run import pictures
from dss_jax.run.pictures import PALETTE

COLOURS = dict(zip(("train", "validation", "test"), PALETTE, strict=False))
MOST = 20
"""Labels that are drawn, the commonest of train."""


def plot_check(found: TaskCheck, file: Path, *, title: str) -> None:
    """Draws labels, and tokens of inputs, labels and rationales, as the file's ending says."""
    plt = pictures.pyplot()
    columns = [c for c in found.limits if any(c in own for own in found.tokens.values())]
    figure, axes = plt.subplots(
        1, 1 + len(columns), figsize=(4.4 * (1 + len(columns)), 4.2), layout="constrained"
    )
    every = list(np.atleast_1d(axes))
    _labels(every[0], found)
    for one, column in zip(every[1:], columns, strict=True):
        _lengths(one, found, column)
    for one in every:
        one.spines[["top", "right"]].set_visible(False)
        one.set_axisbelow(True)
    stops = f": {len(found.stops)} to stop for" if found.stops else ""
    figure.suptitle(f"{title}{stops}", fontsize=11)
    pictures.save(figure, file)


def _labels(axes: Any, found: TaskCheck) -> None:
    """Shares, so that splits of different sizes are comparable."""
    first = next(iter(found.labels.values()))
    names = [label for label, _ in first.most_common(MOST)]
    splits = [split for split, counts in found.labels.items() if counts]
    height = 0.8 / max(1, len(splits))
    for place, split in enumerate(splits):
        counts = found.labels[split]
        shares = [100 * counts[name] / counts.total() for name in names]
        at = np.arange(len(names)) + (place - (len(splits) - 1) / 2) * height
        axes.barh(at, shares, height, color=COLOURS[split], label=f"{split}, {counts.total():,}")
    axes.set_yticks(range(len(names)), [name[:30] for name in names], fontsize=8)
    axes.invert_yaxis()
    more = len(first) - len(names)
    axes.set(xlabel="rows, %", title="labels" + (f" ({more:,} more)" if more > 0 else ""))
    axes.grid(axis="x", alpha=0.25)
    axes.legend(frameon=False, fontsize=8)


def _lengths(axes: Any, found: TaskCheck, column: str) -> None:
    """Histograms, each of an area of 1, and the limit where it is near."""
    limit = found.limits[column]
    longest = max(int(own[column].max()) for own in found.tokens.values() if column in own)
    edges = np.unique(np.linspace(0.5, longest + 0.5, min(longest, 40) + 1))
    for split, own in found.tokens.items():
        if column in own:
            axes.hist(
                own[column], edges, density=True, histtype="step", color=COLOURS[split], label=split
            )
    if limit <= 2 * longest:
        axes.axvline(limit, color="0.2", linestyle="--", linewidth=1, label=f"limit {limit}")
    axes.set(xlabel="tokens", ylabel="share of rows a token", title=f"length of the {column}")
    axes.grid(axis="y", alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
