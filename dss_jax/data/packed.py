"""Layout `packed`: several examples in each row, told apart by segment ids, as in T5X.

All of a batch's examples are in its rows, so a batch has as many rows as they need; SeqIO's
packing has a number of rows instead, and a varying number of examples. A row has room for inputs
and for targets, and one of both is full first: that is most of what is executed in vain.

Shape letters are those of `dss_jax.data.blocks`; K roles, N examples of a batch, M = K * N pairs of
an input and a target.
"""

from collections.abc import Iterable
from itertools import chain

import numpy as np

from dss_jax.core import config
from dss_jax.data.blocks import Batch, Block, Extent
from dss_jax.data.columns import Examples, shift_joined
from dss_jax.data.shapes import MAX_SHAPES, Cost, choose_extents, first_that_fits, round_up
from dss_jax.data.store import StoreSplit

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
    """Builds packed batches of a method from a split.

    Attributes:
      shapes: how many shapes are compiled; they differ in rows only.
    """

    def __init__(
        self,
        split: StoreSplit,
        data: config.Data,
        method: config.Method,
        *,
        shares: int,
        own: slice,
        batches: Iterable[np.ndarray],
        cost: Cost,
        max_shapes: int = MAX_SHAPES,
    ) -> None:
        """Chooses the lengths of the rows and how many there are.

        Args:
          split, data, method: what is trained on.
          shares: the number of rows is a multiple of it: devices times microbatches.
          own: the shares that this process builds.
          batches: row numbers of all batches that will be asked for, in arrays int [n, N].
          cost: FLOPs of an extent.
          max_shapes: how many shapes at most.
        """
        self._examples = Examples(split, data, method)
        self._shares, self._own = shares, range(shares)[own]
        batches = iter(batches)
        first = next(batches)
        self._lengths = self._row_lengths(first[:SAMPLE], cost, data.length_multiple)
        parts = [self._needed(self._rows(part)) for part in chain((first,), batches)]
        needed = Extent(*(np.concatenate(x) for x in zip(*parts, strict=True)))
        self._extents = choose_extents(needed, cost, max_shapes)
        self.shapes = len(self._extents)

    def extents(self, shape: int) -> tuple[Extent, ...]:
        """What is executed of a whole batch, block by block."""
        return (self._extents[shape],)

    def _row_lengths(self, rows: np.ndarray, cost: Cost, multiple: int) -> tuple[int, int]:
        """S and T of a row: the pair that costs least on a sample."""
        shortest = [int(round_up(max(1, x), multiple)) for x in self._examples.longest()]
        inputs, targets = self._examples.lengths(rows)
        share = targets.sum() / max(1, inputs.sum())
        best: tuple[float, tuple[int, int]] | None = None
        for more in range(LENGTHS):
            length = int(round_up(shortest[0] + more * STEP, multiple))
            # Targets fill their rows when inputs do; a little more or less may pack better.
            for extra in (0.95, 1.05, 1.15):
                other = max(shortest[1], int(round_up(int(length * share * extra) + 1, multiple)))
                self._lengths = (length, other)
                total = float(np.sum(cost(self._needed(self._rows(rows)))))
                if best is None or total < best[0]:
                    best = total, self._lengths
        assert best is not None
        return best[1]

    def _rows(self, rows: np.ndarray) -> np.ndarray:
        """Rows of all pairs: int [n, N] -> [n, M]."""
        sizes = np.stack(self._examples.lengths(rows))  # [2, K, n, N]
        return first_fit(np.concatenate(list(sizes.swapaxes(0, 1)), axis=2), self._lengths)

    def _needed(self, placed: np.ndarray) -> Extent:
        count = round_up(np.maximum(placed.max(axis=1) + 1, 1), self._shares)
        s, t = self._lengths
        return Extent(count, count * s, np.full_like(count, s), count * t, np.full_like(count, t))

    def assign(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Batches' row numbers, int [n, N] -> with their places [n, N + M]; shape numbers [n]."""
        placed = self._rows(rows)
        shapes = first_that_fits(self._extents, self._needed(placed))
        return np.concatenate([rows, placed], axis=1), shapes

    def build(self, assigned: np.ndarray, shape: int) -> Batch:
        """One batch of this process: rows and places [N + M] -> a block."""
        size = len(assigned) // (1 + len(self._examples.roles))
        rows, placed = assigned[:size], assigned[size:]
        extent = self._extents[shape]
        inputs, targets = (x.reshape(-1) for x in self._examples.lengths(rows))
        order = np.argsort(placed, kind="stable")
        order = order[placed[order] >= 0]
        segments = _ranks(placed[order])
        joined = self._examples.targets(rows)
        roles = np.repeat([r.role for r in self._examples.roles], size)
        input_places = _Places(inputs, order, placed, extent.encoder_length)
        target_places = _Places(targets, order, placed, extent.decoder_length)
        share = extent.rows // self._shares
        own = slice(self._own.start * share, self._own.stop * share)

        def laid(places: "_Places", values: np.ndarray) -> np.ndarray:
            return places.lay(values, extent.rows)[own]

        return (
            Block(
                laid(input_places, self._examples.inputs(rows)),
                laid(target_places, shift_joined(joined, targets)),
                laid(target_places, joined),
                laid(target_places, np.repeat(roles, targets)),
                laid(input_places, input_places.each(segments)),
                laid(target_places, target_places.each(segments)),
            ),
        )


def _ranks(rows: np.ndarray) -> np.ndarray:
    """How many equal numbers stand before each, plus 1, in a sorted array."""
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    counts = np.diff(np.append(starts, len(rows)))
    return np.arange(len(rows)) - np.repeat(starts, counts) + 1


class _Places:
    """Where the tokens of one side go: rows that lie one after another -> rectangle."""

    def __init__(
        self, lengths: np.ndarray, order: np.ndarray, placed: np.ndarray, length: int
    ) -> None:
        """`order` are the pairs sorted by the row that each is placed in."""
        self._length, self._lengths, self._order = length, lengths, order
        sorted_lengths, rows = lengths[order], placed[order]
        before = np.cumsum(sorted_lengths) - sorted_lengths
        firsts = np.flatnonzero(np.diff(rows, prepend=-1))
        counts = np.diff(np.append(firsts, len(rows)))
        # Where a pair starts: behind those before it in its row.
        starts = rows * length + before - np.repeat(before[firsts], counts)
        start_of = np.zeros(len(lengths), np.int64)
        start_of[order] = starts
        joined_starts = np.cumsum(lengths) - lengths
        self._at = np.repeat(start_of - joined_starts, lengths) + np.arange(lengths.sum())

    def each(self, values: np.ndarray) -> np.ndarray:
        """One value a pair, in the sorted order -> one a token, in the joined order."""
        of = np.zeros(len(self._lengths), np.int64)
        of[self._order] = values
        return np.repeat(of, self._lengths)

    def lay(self, values: np.ndarray, rows: int) -> np.ndarray:
        """Joined values -> int32 [rows, length]."""
        laid = np.zeros(rows * self._length, np.int32)
        laid[self._at] = values
        return laid.reshape(rows, self._length)
