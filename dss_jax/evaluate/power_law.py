"""Learning curves as power laws: error = a * share ** -b + c, with c at least 0 (Cortes et al.
1993; Hestness et al. 2017, arXiv 1712.00409), and how sure they are.

Shape letters: R a curve of means and its resamples, M sizes of the data, B exponents, N shares.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dss_jax.evaluate.statistics import Reached, interval

LEAST = 4
"""Sizes that a law needs. Without c it would miss those of curves that have one by far."""

RESAMPLES = 1000
EXPONENTS = np.geomspace(1e-3, 10, 200)
FARTHEST = 10.0
"""Shares above it are none: that far a law tells nothing."""


class Laws(NamedTuple):
    """Laws of a learning curve: of its means first, then of each resample of its sizes' seeds:
    float [R]; R is 1 where a size has one seed. Errors are in per cent; share 1 is all of the data.

    Attributes:
      rest: root mean square of what the first misses the means by, points.
      sizes: the shares that were run, ascending.
    """

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    rest: float
    sizes: tuple[float, ...]

    @property
    def least(self) -> float:
        return self.sizes[0]

    def errors(self, shares: np.ndarray) -> np.ndarray:
        """At shares of the data: float [N] -> [R, N]."""
        return self.a[:, None] * shares ** -self.b[:, None] + self.c[:, None]

    def shares(self, errors: np.ndarray) -> np.ndarray:
        """With which errors are reached: float [R] -> [R]; NaN where they are not, or above
        `FARTHEST`.
        """
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            found = (self.a / (errors - self.c)) ** (1 / self.b)
        return np.where((errors > self.c) & (found <= FARTHEST), found, np.nan)


def learning_curve(curve: Mapping[float, Sequence[float]]) -> Laws | None:
    """The laws of a curve, share of the data -> accuracy of each seed, per cent: by least squares
    over the means of its sizes. None where these are fewer than `LEAST`.
    """
    if len(curve) < LEAST:
        return None
    from scipy import optimize

    shares = np.array(sorted(curve))
    points = [100 - np.asarray(curve[share], float) for share in shares]
    rng = np.random.default_rng(0)
    drawn = RESAMPLES if all(len(p) > 1 for p in points) else 0
    errors_RxM = np.stack([_with_resamples(p, drawn, rng) for p in points], axis=1)
    a_RxB, c_RxB, rest_RxB = _given(EXPONENTS, shares, errors_RxM)
    every, best = np.arange(1 + drawn), rest_RxB.argmin(axis=1)
    a, b, c = a_RxB[every, best], EXPONENTS[best], c_RxB[every, best]
    # The resamples stay on the grid, whose steps are small beside their spread.
    ends = EXPONENTS[np.clip([best[0] - 1, best[0] + 1], 0, len(EXPONENTS) - 1)]

    def at(exponent: float) -> list[float]:
        return [float(x[0, 0]) for x in _given([exponent], shares, errors_RxM[:1])]

    options = {"xatol": 1e-9}
    found = optimize.minimize_scalar(
        lambda x: at(x)[2], bounds=tuple(ends), method="bounded", options=options
    )
    b[0] = found.x
    a[0], c[0], rest = at(found.x)
    return Laws(a, b, c, (rest / len(shares)) ** 0.5, tuple(map(float, shares)))


def reached(laws: Laws, target: Sequence[float], seed: int = 0) -> Reached:
    """With how much data a law reaches an accuracy, of which there is one of each seed: as
    `statistics.data_to_reach`, but beyond the largest size that was run too.
    """
    drawn = len(laws.a) - 1
    goal = 100 - np.asarray(target, float)
    # Other draws than those of the curve, whose seeds are others.
    goals = _with_resamples(goal, drawn, np.random.default_rng([seed, 1]))
    first, *others = np.maximum(laws.shares(goals), laws.least)
    there = [x for x in others if not np.isnan(x)]
    low, high = interval(there) if drawn and 2 * len(there) >= drawn else (None, None)
    never = 1 - len(there) / drawn if drawn else float(np.isnan(first))
    share, at_least = None if np.isnan(first) else float(first), bool(first == laws.least)
    return Reached(share, low, high, never, at_least)


def _with_resamples(values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """The mean of some values, and of resamples of them: float [1 + count]."""
    at = rng.integers(len(values), size=(count, len(values)))
    return np.concatenate([[values.mean()], values[at].mean(axis=1)])


def _given(
    exponents: Sequence[float] | np.ndarray, shares: np.ndarray, errors_RxM: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best a and c, at least 0, for each exponent, for which they are linear, and the sum of
    squares that is left: three of float [R, B].
    """
    b_B = np.asarray(exponents)
    # Of the smallest size, so that no column is large.
    x_BxM = (shares / shares[0]) ** -b_B[:, None]
    x_B, y_Rx1 = x_BxM.mean(axis=1), errors_RxM.mean(axis=1, keepdims=True)
    inner_BxM = x_BxM - x_B[:, None]
    a = np.maximum(0, errors_RxM @ inner_BxM.T / (inner_BxM**2).sum(axis=1))
    c = y_Rx1 - a * x_B
    without = c < 0
    a = np.where(without, errors_RxM @ x_BxM.T / (x_BxM**2).sum(axis=1), a)
    c[without] = 0
    pairs = zip(errors_RxM.T, x_BxM.T, strict=True)
    rest = sum((y_R[:, None] - a * own_B - c) ** 2 for y_R, own_B in pairs)
    return a * shares[0] ** b_B, c, np.asarray(rest)
