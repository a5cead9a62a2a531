"""Layout `packed`: several examples in each row, told apart by segment ids, as in T5X.

All of a batch's examples are in its rows, so a batch has as many rows as they need; SeqIO's
packing has a number of rows instead, and a varying number of examples. A row has room for inputs
and for targets, and one of both is full first: that is most of what is executed in vain.

Shape letters are those of `dss_jax.data.blocks`; K roles, N examples of a batch, M = K * N pairs of
an input and a target.
"""

from dataclasses import replace
from itertools import chain

import numpy as np

from dss_jax.core import config
from dss_jax.data.blocks import Batch, Block, Extent
from dss_jax.data.columns import Examples, shift_joined
from dss_jax.data.shapes import Cost, Plan, first_that_fits, round_up

SAMPLE = 16
"""Batches on which row lengths are compared."""

STEP, LENGTHS = 16, 20
"""Input lengths of rows that are tried: the longest input, 16 tokens more, and so on."""


def first_fit(sizes: np.ndarray, capacities: tuple[int, int]) -> np.ndarray:
    """Puts pairs into rows, the largest first, each into the first row that has room for both.

    Args:
      sizes: int [2, n, M]: of inputs and of targets, for n batches at once; pairs of length 0 are
        left out.
      capacities: S and T of a row; no pair is larger.

    Returns:
      int [n, M], the row of each pair; -1 where it is left out.
    """
    _, n, pairs = sizes.shape
    largest_share = np.maximum(sizes[0] / capacities[0], sizes[1] / capacities[1])
    order = np.argsort(-largest_share, axis=1, kind="stable")
    left = np.empty((2, n, pairs), np.int64)
    left[0], left[1] = capacities
    rows = np.full((n, pairs), -1)
    batch = np.arange(n)
    for at in order.T:
        size = sizes[:, batch, at]  # [2, n]
        row = np.argmax((left >= size[:, :, None]).all(axis=0), axis=1)
        there = size[0] > 0
        left[:, batch[there], row[there]] -= size[:, there]
        rows[batch[there], at[there]] = row[there]
    return rows


class PackedRows:
    """Builds packed batches.

    Attributes:
      shapes: how many shapes are compiled; they differ in rows only.
    """

    def __init__(self, examples: Examples, data: config.Data, plan: Plan) -> None:
        """Chooses the lengths of the rows, and how many there are: a multiple of the shares."""
        self._examples, self._share, self._numbered = examples, plan.share, plan.numbered
        batches = iter(plan.batches)
        first = next(batches)
        self._lengths = self._row_lengths(first[:SAMPLE], plan.cost, data.length_multiple)
        plan = replace(plan, batches=chain((first,), batches))
        self._extents = plan.extents(lambda rows: self._needed(self._placed(rows), self._lengths))
        self.shapes = len(self._extents)

    def extents(self, shape: int) -> tuple[Extent, ...]:
        """What is executed of a whole batch, block by block."""
        return (self._extents[shape],)

    def _row_lengths(self, rows: np.ndarray, cost: Cost, multiple: int) -> tuple[int, int]:
        """S and T of a row: the pair that costs least on a sample."""
        shortest = [int(round_up(max(1, x), multiple)) for x in self._examples.longest()]
        sizes = self._sizes(rows)
        share = sizes[1].sum() / max(1, sizes[0].sum())
        tried = []
        for more in range(LENGTHS):
            length = int(round_up(shortest[0] + more * STEP, multiple))
            # Targets fill their rows when inputs do; a little more or less may pack better.
            for extra in (0.95, 1.05, 1.15):
                other = max(shortest[1], int(round_up(int(length * share * extra) + 1, multiple)))
                tried.append((length, other))

        def total(lengths: tuple[int, int]) -> float:
            return float(np.sum(cost(self._needed(first_fit(sizes, lengths), lengths))))

        return min(tried, key=total)

    def _sizes(self, rows: np.ndarray) -> np.ndarray:
        """Lengths of inputs and targets of all pairs: int [n, N] -> [2, n, M]."""
        sizes = np.stack(self._examples.lengths(rows))  # [2, K, n, N]
        return np.concatenate(list(sizes.swapaxes(0, 1)), axis=2)

    def _placed(self, rows: np.ndarray) -> np.ndarray:
        """Rows of all pairs: int [n, N] -> [n, M]."""
        return first_fit(self._sizes(rows), self._lengths)

    def _needed(self, placed: np.ndarray, lengths: tuple[int, int]) -> Extent:
        count = round_up(np.maximum(placed.max(axis=1) + 1, 1), self._share.count)
        s, t = lengths
        return Extent(count, count * s, np.full_like(count, s), count * t, np.full_like(count, t))

    def assign(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Batches' row numbers, int [n, N] -> with their places [n, N + M]; shape numbers [n]."""
        placed = self._placed(rows)
        shapes = first_that_fits(self._extents, self._needed(placed, self._lengths))
        return np.concatenate([rows, placed], axis=1), shapes

    def build(self, assigned: np.ndarray, shape: int) -> Batch:
        """One batch of this process: rows and places [N + M] -> a block."""
        size = len(assigned) // (1 + len(self._examples.roles))
        rows, placed = assigned[:size], assigned[size:]
        extent = self._extents[shape]
        own = self._share.own(extent.rows)
        inputs, targets = (x.reshape(-1) for x in self._examples.lengths(rows))
        joined = self._examples.targets(rows)
        roles = np.repeat(self._examples.roles, size)
        segments = before_in_row(np.ones(len(placed), np.int64), placed) + 1

        def lay(lengths: np.ndarray, length: int, *values: np.ndarray) -> list[np.ndarray]:
            """Values of tokens that lie one after another -> rectangles, int32 [R, length]."""
            # Where a pair starts, and where it did before.
            start = placed * length + before_in_row(lengths, placed)
            at = np.repeat(start - (np.cumsum(lengths) - lengths), lengths)
            at += np.arange(len(at))
            laid = [np.zeros(extent.rows * length, np.int32) for _ in values]
            for rectangle, tokens in zip(laid, values, strict=True):
                rectangle[at] = tokens
            return [rectangle.reshape(-1, length)[own] for rectangle in laid]

        tokens, input_segments = lay(
            inputs, extent.encoder_length,
            self._examples.inputs(rows), np.repeat(segments, inputs),
        )  # fmt: skip
        shifted, wanted, of_role, target_segments = lay(
            targets, extent.decoder_length,
            shift_joined(joined, targets), joined, np.repeat(roles, targets),
            np.repeat(segments, targets),
        )  # fmt: skip
        block = Block(tokens, shifted, wanted, of_role, input_segments, target_segments)
        if self._numbered:
            numbers = np.tile(np.arange(size), len(self._examples.roles))
            (of_token,) = lay(targets, extent.decoder_length, np.repeat(numbers, targets))
            block = block._replace(decoder_examples=of_token)
        return (block,)


def before_in_row(amounts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """How much stands before each of some things in its row.

    Args:
      amounts: int [M].
      rows: int [M], the row of each; those in one row stand in the order given.
    """
    order = np.argsort(rows, kind="stable")
    sums = np.cumsum(amounts[order]) - amounts[order]
    firsts = np.flatnonzero(np.diff(rows[order], prepend=-2))
    before = np.empty(len(rows), np.int64)
    before[order] = sums - np.repeat(sums[firsts], np.diff(np.append(firsts, len(rows))))
    return before
