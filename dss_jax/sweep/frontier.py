"""The search for the smallest model and the least data that reach a target, in few runs; and what
`dss frontier` writes of it into the sweep's folder: `frontier.json` and `frontier.png`.

It takes for granted that accuracy grows with the data and with the model: models are tried from the
smallest, each with its most data first, and where that reaches the target, the least data that does
is found by bisection. Of M models and F fractions it tries at most M + log2(F) cells, rounded up.

Where accuracy does not grow, the answer still reaches the target and the next smaller fraction that
was tried does not; that no smaller fraction would do is not known then. `Found.dips` names tried
cells that speak against it.
"""

import bisect
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dss_jax.core import strict_json
from dss_jax.core.paths import write_whole
from dss_jax.core.sweep_config import Cell
from dss_jax.evaluate.statistics import mean
from dss_jax.run import pictures, run_folder


class Tried(NamedTuple):
    """A cell that was looked at: its accuracy, per cent, whether that is the target or more, and
    whether it was there before the search, and cost nothing.
    """

    model: str
    fraction: float
    accuracy: float
    reached: bool
    known: bool


class Dip(NamedTuple):
    """Two tried cells of a model of which the one with more data is worse."""

    model: str
    less: float
    more: float
    fall: float
    """Points of accuracy."""


@dataclass
class Found:
    """What a search has found.

    Attributes:
      path: the cells, in the order in which they were looked at.
      least: model -> the smallest fraction that was found to reach the target, for each model that
        does, from the smallest; without a map, of the smallest such model only.
    """

    path: list[Tried] = field(default_factory=list)
    least: dict[str, float] = field(default_factory=dict)

    @property
    def dips(self) -> list[Dip]:
        """Where accuracy fell with more data, of neighbours among the tried cells."""
        found = []
        for model in dict.fromkeys(t.model for t in self.path):
            tried = sorted((t.fraction, t.accuracy) for t in self.path if t.model == model)
            for (less, before), (more, after) in itertools.pairwise(tried):
                if after < before:
                    found.append(Dip(model, less, more, before - after))
        return found


def search(
    models: Sequence[str],
    fractions: Sequence[float],
    target: float,
    oracle: Callable[[str, float], float],
    *,
    known: Mapping[tuple[str, float], float] | None = None,
    whole_map: bool = False,
    tried: Callable[[Found], None] = lambda _: None,
) -> Found:
    """Searches.

    Args:
      models: from the smallest.
      fractions: of the training data, ascending.
      target: accuracy to reach, per cent.
      oracle: (model, fraction) -> accuracy, per cent. Costs a training.
      known: cells that are trained already; they cost nothing, so they are looked at first.
      whole_map: also search larger models for how much less data they need. Each is tried only
        below the fraction that the smaller one needs.
      tried: is told of each cell: what is found so far.
    """
    found, saved = Found(), known or {}

    @functools.cache
    def reaches(model: str, fraction: float) -> bool:
        known = (model, fraction) in saved
        accuracy = saved[model, fraction] if known else oracle(model, fraction)
        one = Tried(model, fraction, accuracy, accuracy >= target, known)
        found.path.append(one)
        tried(found)
        return one.reached

    def least_of(model: str, below: Sequence[float]) -> int | None:
        """Index of the least data that are found to reach the target; None: none are."""
        there = [i for i, fraction in enumerate(below) if (model, fraction) in saved]
        high = next((i for i in there if reaches(model, below[i])), None)
        if high is None:
            high = len(below) - 1
            if not reaches(model, below[high]):
                return None
        # The most data that is known not to do; what is known lies below `high` only.
        low = max((i for i in there if i < high), default=-1)
        key = functools.partial(reaches, model)
        return bisect.bisect_left(below, True, low + 1, high, key=key)

    # What larger models are tried with is below what a smaller one needs.
    for model in models:
        least = least_of(model, fractions)
        if least is None:
            continue
        found.least[model] = fractions[least]
        fractions = fractions[:least]
        if not whole_map or not fractions:
            break
    return found


JSON, PICTURE = "frontier.json", "frontier.png"
FORMAT = 1


@dataclass(frozen=True)
class Question:
    """What is searched for.

    Attributes:
      models: from the smallest.
      fractions: of the training data, ascending.
      seeds: of each cell; their mean decides.
      split: on whose accuracy the search decides.
      target, target_name: accuracy to reach, per cent, and for people: "the teacher's labels".
    """

    task: str
    method: str
    models: tuple[str, ...]
    fractions: tuple[float, ...]
    seeds: tuple[int, ...]
    split: str
    target: float
    target_name: str
    metric: str = "accuracy"


def scores_of(folder: Path, cells: Sequence[Cell], split: str) -> list[float] | None:
    """The accuracy of each run on a split, per cent; None where one is not finished, or has no such
    split.
    """
    found = []
    for cell in cells:
        results = run_folder.read_results(folder / cell.folder)
        if results is None or split not in results:
            return None
        found.append(float(results[split][results["metric"]]))
    return found


def write_json(
    folder: Path, question: Question, found: Found, tests: Mapping[str, list[float]] | None = None
) -> None:
    """Writes the path and the answer so far; when the search has ended, with `tests`: model ->
    accuracies on test of its least data, one a seed.
    """
    least = []
    for model, fraction in found.least.items():
        scores = (tests or {}).get(model)
        value, error = mean(scores)[:2] if scores else (None, None)
        one = {"model": model, "fraction": fraction, "test": value, "test_standard_error": error}
        least.append(one)
    content: dict[str, Any] = {
        "format": FORMAT,
        **vars(question),
        "complete": tests is not None,
        "path": [tried._asdict() for tried in found.path],
        "dips": [dip._asdict() for dip in found.dips],
        "least": least,
        "best": least[0] if least else None,
    }
    write_whole(folder / JSON, strict_json.dumps(content, indent=1) + "\n")


def draw(folder: Path, question: Question, found: Found) -> Path:
    """Draws the cells, models by fractions: tried ones coloured by accuracy and numbered in the
    order of the search, the answer ringed.
    """
    plt = pictures.pyplot()
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.patches import Rectangle

    models, fractions = question.models, question.fractions
    width, height = 1.6 + 1.05 * len(fractions), 1.9 + 0.85 * len(models)
    figure, axes = plt.subplots(figsize=(max(5.5, width), height), layout="constrained")
    values = [t.accuracy for t in found.path] or [question.target]
    reach = max(1.0, *(abs(v - question.target) for v in values))
    norm = TwoSlopeNorm(question.target, question.target - reach, question.target + reach)
    colours = plt.get_cmap("PuOr_r")

    def box(x: int, y: int, **style: Any) -> None:
        axes.add_patch(Rectangle((x - 0.46, y - 0.42), 0.92, 0.84, **style))

    for y, x in itertools.product(range(len(models)), range(len(fractions))):
        box(x, y, facecolor="0.96", edgecolor="0.85")
    for number, tried in enumerate(found.path, 1):
        x, y = fractions.index(tried.fraction), models.index(tried.model)
        colour = red, green, blue, _ = colours(norm(tried.accuracy))
        best = found.least.get(tried.model) == tried.fraction
        edge, line = ("black", 2.6) if best else ("0.6", 0.8)
        box(x, y, facecolor=colour, edgecolor=edge, linewidth=line)
        ink = "white" if 0.3 * red + 0.6 * green + 0.1 * blue < 0.5 else "black"
        axes.text(x, y, f"{tried.accuracy:.1f}", ha="center", va="center", color=ink, fontsize=10)
        order = f"{number}*" if tried.known else str(number)
        axes.text(x - 0.42, y + 0.37, order, ha="left", va="top", color=ink, fontsize=7)
    axes.set(xlim=(-0.6, len(fractions) - 0.4), ylim=(-0.6, len(models) - 0.4))
    axes.set_xlabel("share of the training data, %")
    axes.set_xticks(range(len(fractions)), [f"{100 * f:g}" for f in fractions])
    axes.set_yticks(range(len(models)), models)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    mapped = plt.cm.ScalarMappable(norm, colours)
    label = f"{question.metric.replace('_', ' ')}, {question.split}, %"
    figure.colorbar(mapped, ax=axes, shrink=0.9).set_label(label, fontsize=8)
    seeds = f"{len(question.seeds)} seed{'s' if len(question.seeds) > 1 else ''}"
    known = "; * was there before" if any(t.known for t in found.path) else ""
    title = (
        f"{question.task}, {question.method}, {seeds}: {question.target_name}, "
        f"{question.target:.1f} %, is white\n"
        f"numbered in the order of the search{known}; framed: the least data of a model"
    )
    axes.set_title(title, fontsize=9, loc="left")
    pictures.save(figure, folder / PICTURE)
    return folder / PICTURE
