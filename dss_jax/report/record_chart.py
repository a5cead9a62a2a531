"""A record file as a picture: statuses, agreement, accuracy and lengths."""

from pathlib import Path
from typing import Any

from dss_jax.records.records import STATUSES
from dss_jax.records.stats import RecordStats
from dss_jax.run import pictures
from dss_jax.run.pictures import PALETTE

BLUE, ORANGE, GREEN = PALETTE[:3]
BARS = 40
"""At most so many bars of lengths."""


def plot_records(stats: RecordStats, file: Path, *, title: str) -> None:
    """Draws statuses of rows, their agreement, accuracy by agreement, and lengths, into a PNG."""
    plt = pictures.pyplot()

    figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06, hspace=0.08)  # type: ignore[union-attr,call-arg]
    _statuses(axes[0, 0], stats)
    _agreement(axes[0, 1], stats)
    _accuracy(axes[1, 0], stats)
    _lengths(axes[1, 1], stats)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
        one.set_axisbelow(True)
    figure.suptitle(title, fontsize=11)
    pictures.save(figure, file)


def _statuses(axes: Any, stats: RecordStats) -> None:
    counts = [stats.row_statuses[s] for s in STATUSES]
    colours = [GREEN if s == "ok" else ORANGE for s in STATUSES]
    bars = axes.barh(STATUSES, counts, color=colours)
    labels = [f"{n:,}  ({n / max(1, stats.rows):.1%})" if n else "0" for n in counts]
    axes.bar_label(bars, labels, padding=4, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="rows", title="status", xlim=(0, 1.25 * max(1, *counts)))
    axes.grid(axis="x", alpha=0.25)


def _agreement(axes: Any, stats: RecordStats) -> None:
    counts = [stats.agreement[n] for n in range(11)]
    axes.bar([n / 10 for n in range(11)], counts, width=0.08, color=BLUE)
    axes.set(xlabel="share of a row's samples that have its label", ylabel="rows")
    axes.set(title="agreement, of rows with a vote", xlim=(-0.06, 1.06))
    axes.grid(axis="y", alpha=0.25)


def _accuracy(axes: Any, stats: RecordStats) -> None:
    axes.set(xlabel="agreement", ylabel="votes that are right, %")
    axes.set(title="accuracy against gold, by agreement", xlim=(-0.06, 1.06), ylim=(0, 109))
    axes.grid(axis="y", alpha=0.25)
    shares = {tenths / 10: a.per_cent for tenths, a in sorted(stats.right_by_agreement.items())}
    if not shares:
        axes.text(0.5, 50, "no row has a gold label and a vote", ha="center", color="0.4")
        return
    bars = axes.bar(list(shares), list(shares.values()), width=0.08, color=BLUE)
    axes.bar_label(bars, [f"{share:.0f}" for share in shares.values()], padding=2, fontsize=8)
    whole = stats.voted.per_cent
    label = f"all rows with a vote: {whole:.1f} %"
    axes.axhline(whole, color="0.4", linestyle="--", linewidth=1, label=label)
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _lengths(axes: Any, stats: RecordStats) -> None:
    lengths = stats.rationale_words
    axes.set(xlabel="words", ylabel="samples", title="length of rationales")
    axes.grid(axis="y", alpha=0.25)
    if not lengths:
        axes.text(0.5, 0.5, "no rationale", ha="center", color="0.4", transform=axes.transAxes)
        return
    longest = max(lengths)
    width = -(-longest // BARS)
    values, counts = zip(*lengths.items(), strict=True)
    axes.hist(values, bins=range(0, longest + width + 1, width), weights=counts, color=BLUE)
    for share, style in ((0.5, "--"), (0.99, ":")):
        place = lengths.percentile(share)
        label = f"p{100 * share:.0f}: {place}"
        axes.axvline(place, color="0.2", linestyle=style, linewidth=1, label=label)
    axes.legend(frameon=False, fontsize=8)
