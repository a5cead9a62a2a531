"""Which static shapes a run compiles, chosen from what its batches need. NumPy only."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from dss_jax.core.errors import UsageError
from dss_jax.core.flops import forward_flops
from dss_jax.core.t5_config import T5Config
from dss_jax.layouts.blocks import BlockShape

Blocks = tuple[BlockShape, ...]
"""The shape of each block of a batch."""

Cost = Callable[[BlockShape], np.ndarray]
"""FLOPs of a block of some shape; element by element for arrays."""

MAX_SHAPES = 3
"""Each is compiled before the first step."""

WORTH = 0.02
"""Another shape has to save this share of the FLOPs."""

QUANTILES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)


def cost_of(model: T5Config) -> Cost:
    """FLOPs of a forward pass of a model, padding included."""
    return lambda block_shape: np.asarray(forward_flops(model, block_shape.work))


base_cost = cost_of(T5Config())
"""That of T5 v1.1 base, for callers that have no model at hand."""


@dataclass(frozen=True)
class LayoutPlan:
    """What a layout is made for.

    Attributes:
      batches: row numbers of all batches that will be asked for, in arrays int [n, N].
      shares: of a batch: data-parallel devices times microbatches, over all processes.
      process_index, process_count: this process, and how many there are.
      cost: FLOPs of a block.
      max_shapes: how many shapes at most.
      numbered: whether blocks have `decoder_examples`.
    """

    batches: Iterable[np.ndarray]
    shares: int = 1
    process_index: int = 0
    process_count: int = 1
    cost: Cost = base_cost
    max_shapes: int = MAX_SHAPES
    numbered: bool = False

    def __post_init__(self) -> None:
        if self.shares % self.process_count:
            raise UsageError(
                f"{self.shares} data-parallel devices x microbatches cannot be shared out evenly "
                f"over {self.process_count} processes. Give a larger Mesh.data or Mesh.fsdp."
            )

    def own(self, size: int) -> slice:
        """This process's part of `size` things that are shared out evenly."""
        each = size // self.process_count
        return slice(self.process_index * each, (self.process_index + 1) * each)

    def block_shapes(
        self, needed_by: Callable[[np.ndarray], Blocks], worth: float = WORTH
    ) -> tuple[Blocks, ...]:
        """The shapes that are compiled; `needed_by` says what batches need: see
        `choose_block_shapes`.
        """
        parts = [needed_by(rows) for rows in self.batches]
        needed = tuple(
            BlockShape(*(np.concatenate(x) for x in zip(*blocks, strict=True)))
            for blocks in zip(*parts, strict=True)
        )
        return choose_block_shapes(needed, self.cost, self.max_shapes, worth)


def round_up(numbers: np.ndarray | int, multiple: int) -> np.ndarray | int:
    """The next multiple."""
    return -(-numbers // multiple) * multiple


def choose_block_shapes(
    needed: Blocks, cost: Cost, max_shapes: int = MAX_SHAPES, worth: float = WORTH
) -> tuple[Blocks, ...]:
    """Few shapes of which each batch takes the first that has room for it, at the least cost.

    Args:
      needed: of each block of a batch, int arrays [n], already rounded up, one element a batch.
      cost: FLOPs of a block.
      max_shapes: how many at most.
      worth: another shape has to save this share of the cost.

    Returns:
      Ascending; the last has room for every batch.
    """

    def quantile(q: float) -> Blocks:
        return tuple(
            BlockShape(*(int(np.quantile(x, q, method="higher")) for x in block))
            for block in needed
        )

    def of_shape(blocks: Blocks) -> float:
        return sum(float(cost(block)) for block in blocks)

    def total(chosen: tuple[Blocks, ...]) -> float:
        at = first_that_fits(chosen, needed)
        counts = np.bincount(at, minlength=len(chosen))
        return sum(n * of_shape(s) for n, s in zip(counts, chosen, strict=True))

    largest = quantile(1.0)
    # A quantile of each number by itself, so a batch that needs little of one and much of
    # another may not fit; the count above says how many do.
    candidates = sorted({quantile(q) for q in QUANTILES} - {largest}, key=of_shape)
    best: tuple[Blocks, ...] = (largest,)
    least = total(best)
    for count in range(1, max_shapes):
        options = [(*c, largest) for c in combinations(candidates, count)]
        if not options:
            break
        found = min(options, key=total)
        if total(found) < (1 - worth) * least:
            best, least = found, total(found)
    return best


def first_that_fits(shapes: tuple[Blocks, ...], needed: Blocks) -> np.ndarray:
    """The number of the first shape that has room: int [n]; len(shapes) where none has."""

    def has_room(blocks: Blocks) -> np.ndarray:
        return np.logical_and.reduce([b.fits(n) for b, n in zip(blocks, needed, strict=True)])

    fits = np.stack([has_room(blocks) for blocks in shapes])
    return np.where(fits.any(axis=0), fits.argmax(axis=0), len(shapes))
