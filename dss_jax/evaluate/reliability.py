"""How far the confidence of answers can be believed: calibration, and what is gained by leaving out
the least sure.

Each statistic is of items with weights, how often each is in a resample; the observed value is that
of weights of 1. So what is shown and what is resampled is one function.

Shape letters: N items, R resamples, K statistics, B bins.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dss_jax.evaluate.statistics import CHUNK, LEVEL

RESAMPLES = 1000
"""A resample here is work: 10,000 answers of four seeds are sorted out in seconds."""

BINS = 15
"""Of confidence, of equal width, as in Guo et al. 2017; each holds its upper edge."""

COVERAGES = np.arange(1, 21) / 20
"""At which the curve of risk by coverage is given."""

Statistics = Callable[[np.ndarray], np.ndarray]
"""Weights [R, N] -> float64 [K, R]."""


def mean_of(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of float [N], for each of [R, N]: float64 [R]. Of Brier's score, for one."""
    return weights @ values / weights.sum(axis=1)


def bins_of(confidence: np.ndarray) -> np.ndarray:
    """The bin of each confidence in [0, 1]: int [N]."""
    return np.digitize(confidence, np.linspace(0, 1, BINS + 1)[1:-1], right=True)


def in_bins(confidence: np.ndarray, *values: np.ndarray) -> np.ndarray:
    """Of each of the values, float [N], a column a bin, 0 where an item is in another: float64
    [N, values * B]. Weights times this are sums over the bins' items.
    """
    of_bins = np.zeros((len(confidence), len(values), BINS))
    of_bins[np.arange(len(confidence)), :, bins_of(confidence)] = np.stack(values, axis=1)
    return of_bins.reshape(len(confidence), -1)


def calibration_error(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599): the mean over the items of
    their bin's |accuracy - mean confidence|. In [0, 1]: float64 [R].
    """
    # A bin's share of the items cancels the number that its means are over.
    gaps = np.abs(weights @ in_bins(confidence, right - confidence))
    return np.asarray(gaps.sum(axis=1) / weights.sum(axis=1))


def error_by_chance(of_seeds: Sequence[np.ndarray], seed: int = 0) -> float:
    """The expected calibration error, mean over seeds, that students who are right with exactly
    their confidence, float [N] of each, stay below in 97.5 % of the draws (Broecker and Smith
    2007): one that is not above says nothing against them.
    """
    rng, errors = np.random.default_rng([seed, 2]), []
    for _ in range(0, RESAMPLES, CHUNK):
        found = []
        for sure in of_seeds:
            right = rng.random((CHUNK, len(sure))) < sure
            gaps = np.abs((right - sure) @ in_bins(sure, np.ones(len(sure))))
            found.append(gaps.sum(axis=1) / len(sure))
        errors.append(np.mean(found, axis=0))
    return float(np.quantile(np.concatenate(errors), (1 + LEVEL) / 2))


def risk_by_coverage(
    confidence: np.ndarray, right: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The area under the risk-coverage curve, float64 [R], and the curve at `COVERAGES`, float64
    [C, R].

    The risk of an item is the share of errors among all that are at least as sure; the area is the
    mean risk (AURC, Geifman and El-Yaniv 2017, arXiv 1705.08500, 2018, arXiv 1805.08206). Items of
    one confidence are answered together, so their order does not matter.
    """
    order = np.argsort(-confidence, kind="stable")
    less, own = -confidence[order], weights[:, order]
    ends = np.searchsorted(less, less, side="right") - 1
    kept, wrong = own.cumsum(axis=1), (own * ~right[order]).cumsum(axis=1)
    if np.any(np.diff(ends) == 0):
        kept, wrong = kept[:, ends], wrong[:, ends]
    risks = wrong / np.maximum(kept, 1)
    area = (own * risks).sum(axis=1) / own.sum(axis=1)
    # As sure as the last that is needed for the coverage.
    needed = np.round(COVERAGES * len(confidence), 9)
    at = np.stack([np.searchsorted(row, needed) for row in kept])
    return area, np.take_along_axis(risks, at, axis=1).T


class Drawn(NamedTuple):
    """Statistics over items and seeds: float64 [K], and of each resample: float64 [K, R]."""

    value: np.ndarray
    resampled: np.ndarray

    def minus(self, other: "Drawn") -> "Drawn":
        """The difference, of like resamples: those of the same seed draw the same items."""
        return Drawn(self.value - other.value, self.resampled - other.resampled)

    def interval(self, k: int, low: float, high: float) -> tuple[float, float, float]:
        """A statistic that lies between two bounds, and its 95 % interval: the basic bootstrap's
        (Davison and Hinkley 1997), which takes the resamples' own bias off. An error of calibration
        is above 0 by chance, and that of a resample once more.
        """
        below, above = np.nanquantile(self.resampled[k], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        value = float(self.value[k])
        ends = np.clip([2 * value - above, 2 * value - below], low, high)
        return value, float(ends[0]), float(ends[1])


def draws(items: int, seed: int) -> Iterator[np.ndarray]:
    """How often each item is in a resample, in chunks: float64 [r, N]."""
    rng = np.random.default_rng([seed, 0])
    for start in range(0, RESAMPLES, CHUNK):
        count = min(CHUNK, RESAMPLES - start)
        at = rng.integers(items, size=(count, items)) + items * np.arange(count)[:, None]
        counts = np.bincount(at.ravel(), minlength=count * items)
        yield counts.reshape(count, items).astype(float)


def bootstrap(of_seeds: Sequence[Statistics], items: int, seed: int = 0) -> Drawn:
    """The mean of statistics over seeds; a resample draws seeds and then items, as
    `statistics.difference`. Two calls for as many items, or seeds, draw the same ones.
    """
    rng = np.random.default_rng([seed, 1])
    value = np.mean([one(np.ones((1, items)))[:, 0] for one in of_seeds], axis=0)
    found = []
    for weights in draws(items, seed):
        chosen = rng.integers(len(of_seeds), size=(len(weights), len(of_seeds)))
        each = np.stack([one(weights) for one in of_seeds])
        found.append(each[chosen.T, :, np.arange(len(weights))].mean(axis=0).T)
    return Drawn(value, np.concatenate(found, axis=1))
