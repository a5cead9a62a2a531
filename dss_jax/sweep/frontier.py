"""The search for the smallest model and the least data that reach a target, in few runs.

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
from typing import NamedTuple

Oracle = Callable[[str, float], float]
"""(model, fraction) -> accuracy, per cent. Costs a training."""


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
    def best(self) -> tuple[str, float] | None:
        """The smallest model that reaches the target and its least data; None: none does."""
        return next(iter(self.least.items()), None)

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
    oracle: Oracle,
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
      oracle: trains a cell.
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
