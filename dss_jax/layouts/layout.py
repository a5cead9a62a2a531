"""What the layouts have in common: a few static shapes, chosen from what a run's batches need, and
tokens put at their places. NumPy only.

Shape letters are those of `dss_jax.layouts.blocks`; K roles, N examples of a batch, M = K * N pairs
of an input and a target, those of the first role first.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.flops import forward_flops
from dss_jax.core.t5_config import T5Config
from dss_jax.data.columns import Examples, shift_joined
from dss_jax.data.ragged import Slices, join_rows
from dss_jax.layouts.blocks import Batch, BlockShape

Blocks = tuple[BlockShape, ...]
"""The shape of each block of a batch."""

Cost = Callable[[BlockShape], np.ndarray]
"""FLOPs of a block of some shape; element by element for arrays."""

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
      numbered: whether blocks have `decoder_examples`.
      pad_id, start_id: tokens of padding, and before each target.
    """

    batches: Iterable[np.ndarray]
    shares: int = 1
    process_index: int = 0
    process_count: int = 1
    cost: Cost = base_cost
    max_shapes: int = config.Data.max_shapes
    numbered: bool = False
    pad_id: int = 0
    start_id: int = 0

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


class Layout:
    """Turns examples into batches of few static shapes.

    A subclass says where examples go (`_placed`), which shape that needs (`_needed`), and what the
    blocks then hold (`build`).
    """

    _shapes: tuple[Blocks, ...]

    def __init__(self, examples: Examples, plan: LayoutPlan) -> None:
        self._examples, self._plan = examples, plan

    def _choose_shapes(self, batches: Iterable[np.ndarray], worth: float = WORTH) -> None:
        parts = [self._needed(self._placed(rows)) for rows in batches]
        needed = tuple(
            BlockShape(*(np.concatenate(x) for x in zip(*blocks, strict=True)))
            for blocks in zip(*parts, strict=True)
        )
        plan = self._plan
        self._shapes = choose_block_shapes(needed, plan.cost, plan.max_shapes, worth)

    @property
    def shapes(self) -> int:
        """How many shapes are compiled."""
        return len(self._shapes)

    def block_shapes(self, shape: int) -> Blocks:
        """What is executed of a whole batch, block by block."""
        return self._shapes[shape]

    def assign(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Batches' row numbers, int [n, N] -> something a batch for `build`; shape numbers [n],
        `shapes` where none has room.
        """
        placed = self._placed(rows)
        return placed, first_that_fits(self._shapes, self._needed(placed))

    def _placed(self, rows: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _needed(self, placed: np.ndarray) -> Blocks:
        raise NotImplementedError

    def build(self, assigned: np.ndarray, shape: int) -> Batch:
        """One batch: this process's part of it. An item of -1 is an empty example."""
        raise NotImplementedError

    def _rest(self, field: str) -> int:
        """What fills a field where there is no token."""
        return self._plan.pad_id if field.endswith("_tokens") else 0

    def _tokens(self, items: np.ndarray, first: int = 0) -> dict[str, dict[str, np.ndarray]]:
        """What the blocks of items, int [N], have of each token, pair after pair: "encoder" and
        "decoder" -> field -> int [sum of lengths]. `first` is the number of the first item in the
        whole batch.
        """
        roles, n = np.array(self._examples.roles), len(items)
        targets = self._examples.targets(items)
        lengths = self._examples.lengths(items)[1].ravel()
        decoder = {
            "decoder_input_tokens": shift_joined(targets, lengths, self._plan.start_id),
            "decoder_target_tokens": targets,
            "decoder_roles": np.repeat(np.repeat(roles, n), lengths),
        }
        if self._plan.numbered:
            numbers = np.tile(first + np.arange(n), len(roles))
            decoder["decoder_examples"] = np.repeat(numbers, lengths)
        inputs = self._examples.inputs(items)
        return {"encoder": {"encoder_input_tokens": inputs}, "decoder": decoder}


def round_up(numbers: np.ndarray | int, multiple: int) -> np.ndarray | int:
    """The next multiple."""
    return -(-numbers // multiple) * multiple


def choose_block_shapes(
    needed: Blocks, cost: Cost, max_shapes: int = config.Data.max_shapes, worth: float = WORTH
) -> tuple[Blocks, ...]:
    """Few shapes of which each batch takes the first that has room for it, at the least cost.

    Args:
      needed: of each block of a batch, int arrays [n], already rounded up, one element a batch.
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
        counts = np.bincount(first_that_fits(chosen, needed), minlength=len(chosen))
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


def token_places(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The place of each token of pieces that begin at int [M] and have int [M] tokens: int [sum of
    lengths], piece after piece.
    """
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


def filled(tokens: np.ndarray, places: np.ndarray, size: int, rest: int = 0) -> np.ndarray:
    """int32 [size] with tokens at their places, else `rest`."""
    line = np.full(size, rest, np.int32)
    line[places] = tokens
    return line


def pad_rows(
    tokens: Slices, rows: np.ndarray, length: int, limit: int | None = None, pad_id: int = 0
) -> np.ndarray:
    """Rows of a column, int [R], as a rectangle: int32 [R, `length`], padded. A row of -1 is empty,
    one longer than `limit` (None: than `length`) is cut and ends in EOS.
    """
    limit = length if limit is None else min(limit, length)
    lengths = np.where(rows < 0, 0, np.minimum(tokens.ends[rows] - tokens.starts[rows], limit))
    places = token_places(np.arange(len(rows)) * length, lengths)
    joined = join_rows(tokens, rows, lengths)
    return filled(joined, places, len(rows) * length, pad_id).reshape(-1, length)


def with_layout(data: config.Data, platform: str) -> config.Data:
    """Turns "auto" into the layout of a platform ("cpu", "gpu" or "tpu")."""
    if data.layout != "auto":
        return data
    # A TPU has no quick gather, and its matrix unit wants whole tiles of rows.
    return replace(data, layout="packed" if platform == "tpu" else "flat")
