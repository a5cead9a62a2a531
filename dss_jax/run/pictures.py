"""Learning curves, and what all pictures share: colours, a pyplot without a screen, files written
whole.

Matplotlib is imported when the first picture is drawn: it takes a second.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dss_jax.core.paths import write_whole
from dss_jax.run.run_folder import METRICS
from dss_jax.train.metric_log import read_metrics

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's colours, which colour-blind readers can tell apart."""


def pyplot() -> Any:
    """`matplotlib.pyplot`, drawing to files only."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # Text stays text in SVG; the ids in it do not depend on the time.
    plt.rcParams["svg.fonttype"] = "none"
    plt.rcParams["svg.hashsalt"] = "dss"
    return plt


def save(figure: Any, *files: Path) -> None:
    """Writes a figure as each file's ending says (PNG without one), and closes it.

    The same figure gives the same bytes.
    """
    for file in files:
        ending = file.suffix.removeprefix(".") or "png"
        picture = io.BytesIO()
        metadata = {"Date": None} if ending == "svg" else {}
        figure.savefig(picture, format=ending, dpi=130, metadata=metadata)
        write_whole(file, picture.getvalue())
    pyplot().close(figure)


ENDINGS = ("png", "svg")


def save_forms(figure: Any, file: Path) -> list[Path]:
    """Writes a figure as `file` with each of these endings, and closes it; gives the files."""
    files = [file.with_suffix(f".{ending}") for ending in ENDINGS]
    save(figure, *files)
    return files


def finish(axes: Any) -> None:
    """What all curves have: a pale grid, two spines, a small legend."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


WIDE = 4
"""Losses that span more than this factor are drawn on a logarithmic axis."""


def _series(folder: Path, group: str, name: str) -> tuple[list[int], list[float]]:
    lines = [m for m in read_metrics(folder / METRICS) if m["group"] == group]
    lines = [m for m in lines if m.get(name) is not None and math.isfinite(m[name])]
    return [m["step"] for m in lines], [m[name] for m in lines]


def plot_curves(
    runs: Sequence[tuple[str, Path]],
    metric: str,
    file: Path,
    *,
    title: str,
    teacher: float | None = None,
) -> None:
    """Draws validation accuracy and training losses by step into a PNG.

    Args:
      runs: (name in the legend, output folder).
      metric: name of the accuracy, in per cent.
      teacher: the teacher's own label accuracy on validation, in per cent; drawn as a line.
    """
    plt = pyplot()
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr,call-arg]
    for colour, (name, folder) in zip(PALETTE * len(runs), runs, strict=False):
        steps, values = _series(folder, "validation", metric)
        left.plot(steps, values, color=colour, marker="o", markersize=3, label=name)
        for task, style in (("label", "-"), ("rationale", ":"), ("spans", "-")):
            steps, values = _series(folder, "train", f"{task}/loss")
            if steps:
                right.plot(
                    steps, values, style, color=colour, linewidth=1.2, label=f"{name}: {task}"
                )
    if teacher is not None:
        left.axhline(teacher, color="0.4", linestyle="--", linewidth=1, label="teacher's labels")
    left.set(xlabel="step", ylabel=f"{metric.replace('_', ' ')}, validation, %", ylim=(-2, 102))
    right.set(xlabel="step", ylabel="training loss a token, nats")
    low, high = right.get_ylim()
    if high > WIDE * max(low, 1e-9):
        right.set_yscale("log")
        right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        right.yaxis.set_major_formatter("{x:g}")
        right.yaxis.set_minor_formatter(NullFormatter())
    for axes in (left, right):
        axes.set_xlim(left=0)
        finish(axes)
    figure.suptitle(title, fontsize=11)
    save(figure, file)
