"""The search for the smallest model and the least data that reach a target, in few runs.

It takes for granted that accuracy grows with the data and with the model: models are tried from the
smallest, each with its most data first, and where that reaches the target, the least data that does
is found by bisection. Of M models and F fractions it tries at most M + log2(F) cells, rounded up.

Where accuracy does not grow, the answer still reaches the target and the next smaller fraction that
was tried does not; that no smaller fraction would do is not known then. `Found.dips` names tried
cells that speak against it.
"""

import bisect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Oracle = Callable[[str, float], float]
"""(model, fraction) -> accuracy, per cent. Costs a training."""


class Tried(NamedTuple):
    """A cell that was looked at, in the order of the search.

    Attributes:
      model, fraction: which.
      accuracy: per cent.
      reached: whether that is the target or more.
      known: whether it was there before the search, and cost nothing.
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
        does; without a map, of the smallest such model only.
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
    tried: Callable[[Tried], None] = lambda _: None,
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
      tried: is told of each cell.
    """
    hunt = _Hunt(models, fractions, target, oracle, known or {}, tried)
    # Everything from here on is known to be reached by the models before.
    enough = len(fractions)
    for model in models:
        least = hunt.least_of(model, enough)
        if least is None:
            continue
        hunt.found.least[model] = fractions[least]
        if not whole_map or least == 0:
            break
        enough = least
    return hunt.found


class _Hunt:
    def __init__(
        self,
        models: Sequence[str],
        fractions: Sequence[float],
        target: float,
        oracle: Oracle,
        known: Mapping[tuple[str, float], float],
        tried: Callable[[Tried], None],
    ) -> None:
        self._fractions, self._target = list(fractions), target
        self._oracle, self._known, self._tried = oracle, known, tried
        self.found = Found()

    def _reaches(self, model: str, index: int) -> bool:
        fraction = self._fractions[index]
        before = next(
            (t for t in self.found.path if (t.model, t.fraction) == (model, fraction)), None
        )
        if before is not None:
            return before.reached
        saved = self._known.get((model, fraction))
        accuracy = self._oracle(model, fraction) if saved is None else saved
        one = Tried(model, fraction, accuracy, accuracy >= self._target, saved is not None)
        self.found.path.append(one)
        self._tried(one)
        return one.reached

    def least_of(self, model: str, below: int) -> int | None:
        """Index of the least data with which a model reaches the target, of those before `below`;
        None: it does not, as far as was tried.
        """
        saved = [i for i in range(below) if (model, self._fractions[i]) in self._known]
        high = next((i for i in saved if self._reaches(model, i)), None)
        if high is None:
            if not self._reaches(model, below - 1):
                return None
            high = below - 1
        # The most data that is known not to do; what is known lies below `high` only.
        low = max((i for i in saved if i < high), default=-1)
        return bisect.bisect_left(
            range(high), True, low + 1, high, key=lambda i: self._reaches(model, i)
        )
