"""The mean of a table of seeds by test items, with an interval that holds for new seeds and items.

Both are draws: a seed draws initial weights, order and subset of the training data, and the test
items are some of many. With y[s, i] = mean + seed[s] + item[i] + rest[s, i], all three random, the
variance of the mean is

    of_seeds / S + of_items / I + of_rest / (S I)

whose components are those of the analysis of variance (Clark 1973, "The language-as-fixed-effect
fallacy"; Baayen, Davidson and Bates 2008): of a whole table the same as by REML, and 0 where it
would be negative. More seeds make the first and the last part smaller, more items the others.
"""

import bisect
import functools
import math
from dataclasses import dataclass, replace

import numpy as np

BOUND = 100.0
"""Per cent: no difference of two accuracies is larger, and no less is known from one seed."""

MOST = 100_000
"""Seeds or items that anybody would take."""

MANY = 100
"""Degrees of freedom from which on a few points of a chi-square distribution stand for it."""


@dataclass(frozen=True)
class Crossed:
    """A mean over seeds and items, and the components of its variance, in the square of its unit;
    all of these are 0 where nothing is known of its error.
    """

    value: float
    of_seeds: float
    of_items: float
    of_rest: float
    seeds: int
    items: int

    def error(self) -> float:
        """The standard error of the mean."""
        of_rest = self.of_rest / (self.seeds * self.items)
        return math.sqrt(self.of_seeds / self.seeds + self.of_items / self.items + of_rest)

    def interval(self, alpha: float) -> tuple[float, float]:
        """The two-sided interval that misses with probability `alpha`, within `BOUND`."""
        reach = self.reach(alpha)
        return max(-BOUND, self.value - reach), min(BOUND, self.value + reach)

    def reach(self, alpha: float) -> float:
        """How far the interval goes to each side, at most twice `BOUND`.

        It is the generalized interval (Weerahandi 1993): the error is normal, with a variance whose
        mean squares of seeds and of items are known as well as their degrees of freedom tell. Where
        one of them is all there is, that is Student's. Few seeds say little of their variance
        even where items have most of it, which Satterthwaite's degrees of freedom overlook.
        """
        if not self.error() or not alpha:
            return 2 * BOUND
        from scipy import optimize, special

        seeds = (self.of_rest + self.items * self.of_seeds) * _inverse(self.seeds - 1)[:, None]
        items = (self.of_rest + self.seeds * self.of_items) * _inverse(self.items - 1)
        both = np.maximum(seeds, self.of_rest) + np.maximum(items, self.of_rest) - self.of_rest
        scale = np.sqrt(2 * both / (self.seeds * self.items))
        weights = _weights(self.seeds - 1)[:, None] * _weights(self.items - 1)

        def too_often(reach: float) -> float:
            return float((weights * special.erfc(reach / scale)).sum()) - alpha

        most = 2 * BOUND
        return most if too_often(most) > 0 else float(optimize.brentq(too_often, 0, most))

    def needed(self, reach: float, alpha: float) -> tuple[int | None, int | None]:
        """How many seeds with these items, and how many items with these seeds, would make the
        interval reach only so far, were the components what they seem; None: more than `MOST`.
        """

        def count(side: str) -> int | None:
            def enough(n: int) -> bool:
                return replace(self, **{side: n}).reach(alpha) <= reach

            found = bisect.bisect_left(range(MOST), True, 2, key=enough)
            return found if found < MOST else None

        return count("seeds"), count("items")


@functools.cache
def _weights(freedom: int) -> np.ndarray:
    """Of parts of a distribution, from its lower end, where they are fine: that is where a variance
    is far larger than it looks.
    """
    if freedom >= MANY:
        return np.full(12, 1 / 12)
    return np.diff([0.0, *np.geomspace(1e-8, 0.4, 90), *np.linspace(0.43, 1.0, 20)])


@functools.cache
def _inverse(freedom: int) -> np.ndarray:
    """Degrees of freedom / chi-square, in the middle of each part."""
    from scipy import special

    weights = _weights(freedom)
    return freedom / special.chdtri(freedom, 1 - (np.cumsum(weights) - weights / 2))


def crossed(values: np.ndarray) -> Crossed:
    """The mean of values, float [seeds, items]. Nothing is known of its error with one seed or one
    item, nor where all values are equal.
    """
    y = np.asarray(values, float)
    seeds, items = y.shape
    mean = float(y.mean())
    if min(seeds, items) < 2 or np.ptp(y) == 0:
        return Crossed(mean, 0.0, 0.0, 0.0, seeds, items)
    of_seed, of_item = y.mean(axis=1, keepdims=True), y.mean(axis=0, keepdims=True)
    rest = ((y - of_seed - of_item + mean) ** 2).sum() / ((seeds - 1) * (items - 1))
    of_seeds = max(0.0, float(of_seed.var(ddof=1) - rest / items))
    of_items = max(0.0, float(of_item.var(ddof=1) - rest / seeds))
    return Crossed(mean, of_seeds, of_items, float(rest), seeds, items)
