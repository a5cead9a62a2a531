"""Statistics of a comparison: errors, paired tests, and the data that a method needs.

Everything that is drawn is drawn from fixed seeds: the same runs give the same numbers.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 4000
LEVEL = 0.95
"""Of intervals."""

ROUNDING = 1e-6
"""Points: accuracies that differ by less are means of the same."""

CHUNK = 64
"""Resamples at once; bounds the memory."""


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    low, high = map(float, np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return low, high


class Mean(NamedTuple):
    """A mean over n seeds, and its standard error s / sqrt(n), with n - 1 in s; None for one."""

    value: float
    error: float | None
    n: int


def mean(values: Sequence[float]) -> Mean:
    """Mean and standard error; at least one value."""
    n = len(values)
    error = float(np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else None
    return Mean(float(np.mean(values)), error, n)


class Difference(NamedTuple):
    """One method against another on the same test items.

    Attributes:
      value, low, high, p: difference of the accuracies and its 95 % interval, percentage points,
        and two-sided p, of the bootstrap.
      mcnemar: exact two-sided p of McNemar's test, the discordant answers of all pairs of seeds
        put together; that takes the seeds' answers to one item for independent, which they are
        not, so it is too small where there are several seeds.
      pairs: p of McNemar's test of each pair of seeds by itself.
      paired: whether both methods have the same seeds.
    """

    value: float
    low: float
    high: float
    p: float
    mcnemar: float
    pairs: tuple[float, ...]
    paired: bool


def difference(right_a: np.ndarray, right_b: np.ndarray, paired: bool, seed: int = 0) -> Difference:
    """Compares two methods.

    The bootstrap is over seeds and test items (Efron and Tibshirani 1993): each resample draws
    seeds with replacement - the same for both methods where `paired`, for then the seeds share
    their order of the data - and then items, the same for both.

    `right_a`, `right_b`: bool [seeds, items]; with `paired` row i of both is the same seed.
    """
    rng = np.random.default_rng(seed)
    a, b = right_a.astype(float), right_b.astype(float)
    items = a.shape[1]
    value = float(a.mean() - b.mean())
    drawn = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, CHUNK):
        count = min(CHUNK, RESAMPLES - start)
        rows_a = rng.integers(len(a), size=(count, len(a)))
        rows_b = rows_a if paired else rng.integers(len(b), size=(count, len(b)))
        means = a[rows_a].mean(axis=1) - b[rows_b].mean(axis=1)
        at = rng.integers(items, size=(count, items))
        drawn[start : start + count] = np.take_along_axis(means, at, axis=1).mean(axis=1)
    low, high = interval(drawn)
    # Davison and Hinkley 1997: the observed value counts as a resample, so that p is never 0.
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum()) + 1
    p = min(1.0, 2.0 * float(tail) / (RESAMPLES + 1))
    # How many items only the one, and only the other, has right.
    both = zip(right_a, right_b, strict=False)
    only = [(int((x & ~y).sum()), int((y & ~x).sum())) for x, y in both]
    pooled = mcnemar(*map(sum, zip(*only, strict=True)))
    pairs = tuple(mcnemar(*one) for one in only)
    return Difference(100 * value, 100 * low, 100 * high, p, pooled, pairs, paired)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p of McNemar's test (1947): whether of the items that just one of two gets
    right, each has half.
    """
    if only_a + only_b == 0:
        return 1.0
    # Here, because `dss train --seeds` needs the means alone.
    from scipy import stats

    return float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's correction (1979) of several p values, in their order."""
    order = np.argsort(ps, kind="stable")
    steps = np.arange(len(ps), 0, -1) * np.asarray(ps, float)[order]
    adjusted = np.empty(len(ps))
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, steps))
    return adjusted.tolist()


class Reached(NamedTuple):
    """How much data a method needs to reach a target.

    Attributes:
      share: of the training data, in (0, 1], where the mean curve crosses the target, interpolated
        between the sizes that were run; None: it does not.
      low, high: 95 % interval over resampled seeds, of those resamples that reach it; None where
        fewer than half do.
      never: share of the resamples that do not reach it.
      at_least: whether the smallest size that was run reaches it already, so that less might do.
    """

    share: float | None
    low: float | None
    high: float | None
    never: float
    at_least: bool


def crossing(shares: Sequence[float], values: Sequence[float], target: float) -> float | None:
    """The first share at which a curve, linear between its points, is at `target` or above, but for
    rounding.
    """
    for i, (share, value) in enumerate(zip(shares, values, strict=True)):
        if value > target - ROUNDING:
            if i == 0:
                return share
            before, below = shares[i - 1], values[i - 1]
            return before + (share - before) * min(1.0, (target - below) / (value - below))
    return None


def data_to_reach(curve: Mapping[float, Sequence[float]], target: Sequence[float]) -> Reached:
    """How much data a method needs for another's accuracy; resamples draw the seeds of each point.

    Args:
      curve: share of the data -> accuracy of each seed.
      target: accuracy of each seed of what is to be reached; one value: a number without error.
    """
    shares = sorted(curve)
    points = [np.asarray(curve[share], float) for share in shares]
    goal = np.asarray(target, float)
    share = crossing(shares, [p.mean() for p in points], float(goal.mean()))
    rng = np.random.default_rng(0)

    def resampled(values: np.ndarray) -> float:
        return float(rng.choice(values, len(values)).mean())

    found = [
        crossing(shares, [resampled(p) for p in points], resampled(goal)) for _ in range(RESAMPLES)
    ]
    reached = [x for x in found if x is not None]
    low, high = interval(reached) if 2 * len(reached) >= RESAMPLES else (None, None)
    return Reached(share, low, high, 1 - len(reached) / RESAMPLES, bool(share == shares[0]))


class Beats(NamedTuple):
    """Whether a mean is above another, and by more than one standard error of the difference, where
    one is known.
    """

    above: bool
    clear: bool


def beats(one: Mean, target: Mean) -> Beats:
    """Compares a mean with a target's; a target without error counts as exact."""
    gap = one.value - target.value
    if one.error is None:
        return Beats(gap > ROUNDING, False)
    error = float(np.hypot(one.error, target.error or 0.0))
    return Beats(gap > ROUNDING, gap > max(error, ROUNDING))
