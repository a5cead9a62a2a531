"""Which static shapes a run compiles, chosen from what its batches need. NumPy only."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from dss_jax.core.errors import UsageError
from dss_jax.core.flops import forward_flops
from dss_jax.core.t5_config import T5Config
from dss_jax.data.blocks import Extent

Cost = Callable[[Extent], np.ndarray]
"""FLOPs of a block of some extent; element by element for arrays."""

MAX_SHAPES = 3
"""Each is compiled before the first step."""

WORTH = 0.02
"""Another shape has to save this share of the FLOPs."""

QUANTILES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)


def cost_of(model: T5Config) -> Cost:
    """FLOPs of a forward pass of a model, padding included."""
    return lambda extent: np.asarray(forward_flops(model, extent.work))


base_cost = cost_of(T5Config())
"""That of T5 v1.1 base, for callers that have no model at hand."""


@dataclass(frozen=True)
class Share:
    """How a batch is shared out.

    Attributes:
      count: data-parallel devices times microbatches, over all processes.
      process_index, process_count: this process, and how many there are.
    """

    count: int = 1
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        if self.count % self.process_count:
            raise UsageError(
                f"{self.count} data-parallel devices x microbatches cannot be shared out evenly "
                f"over {self.process_count} processes. Give a larger Mesh.data or Mesh.fsdp."
            )

    def own(self, size: int) -> slice:
        """This process's part of `size` things that are shared out evenly."""
        each = size // self.process_count
        return slice(self.process_index * each, (self.process_index + 1) * each)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a layout is made for.

    Attributes:
      share: what this process builds.
      batches: row numbers of all batches that will be asked for, in arrays int [n, N].
      cost: FLOPs of an extent.
      max_shapes: how many shapes at most.
      numbered: whether blocks have `decoder_examples`.
    """

    share: Share
    batches: Iterable[np.ndarray]
    cost: Cost = base_cost
    max_shapes: int = MAX_SHAPES
    numbered: bool = False

    def extents(self, needed_by: Callable[[np.ndarray], Extent]) -> tuple[Extent, ...]:
        """The extents that are compiled; `needed_by` says what batches need: see
        `choose_extents`.
        """
        parts = [needed_by(rows) for rows in self.batches]
        needed = Extent(*(np.concatenate(x) for x in zip(*parts, strict=True)))
        return choose_extents(needed, self.cost, self.max_shapes)


def round_up(numbers: np.ndarray | int, multiple: int) -> np.ndarray | int:
    """The next multiple."""
    return -(-numbers // multiple) * multiple


def choose_extents(needed: Extent, cost: Cost, max_shapes: int = MAX_SHAPES) -> tuple[Extent, ...]:
    """Few extents of which each batch takes the first that has room for it, at the least cost.

    Args:
      needed: int arrays [n], already rounded up, one element a batch.
      cost: FLOPs of an extent.
      max_shapes: how many at most.

    Returns:
      Ascending; the last has room for every batch.
    """
    largest = Extent(*(int(np.max(x)) for x in needed))
    # A quantile of each number by itself, so a batch that needs little of one and much of
    # another may not fit; the count below says how many do.
    smaller = {
        Extent(*(int(np.quantile(x, q, method="higher")) for x in needed)) for q in QUANTILES
    }
    candidates = sorted(smaller - {largest}, key=lambda extent: float(cost(extent)))

    def total(chosen: tuple[Extent, ...]) -> float:
        at = first_that_fits(chosen, needed)
        counts = np.bincount(at, minlength=len(chosen))
        return float(sum(n * float(cost(e)) for n, e in zip(counts, chosen, strict=True)))

    best: tuple[Extent, ...] = (largest,)
    least = total(best)
    for count in range(1, max_shapes):
        options = [(*c, largest) for c in combinations(candidates, count)]
        if not options:
            break
        found = min(options, key=total)
        if total(found) < (1 - WORTH) * least:
            best, least = found, total(found)
    return best


def first_that_fits(extents: tuple[Extent, ...], needed: Extent) -> np.ndarray:
    """The number of the first extent that has room: int [n]; len(extents) where none has."""
    fits = np.stack([e.fits(needed) for e in extents])
    return np.where(fits.any(axis=0), fits.argmax(axis=0), len(extents))
