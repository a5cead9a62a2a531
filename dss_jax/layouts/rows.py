"""Layouts of rows: `padded`, the reference, has an example in each; `packed` has several, told
apart by segment ids, as in T5X.

In `packed` all of a batch's examples are in its rows, so a batch has as many rows as they need;
SeqIO's packing has a number of rows instead, and a varying number of examples. A row has room for
inputs and for targets, and one of both is full first: that is most of what is executed in vain.
Where targets of one role are much longer than those of another, each role has rows of its own.

Shape letters are those of `dss_jax.layouts.blocks`; K roles, N examples of a batch, M = K * N pairs
of an input and a target.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from dss_jax.core import config
from dss_jax.data.columns import Examples
from dss_jax.layouts.blocks import Batch, Block, BlockShape
from dss_jax.layouts.layout import Cost, Layout, LayoutPlan, filled, round_up, token_places

SAMPLE = 2048
"""Examples on whose batches row lengths are compared."""

TOGETHER = 256
"""Pairs that are packed together at most; those of larger batches are dealt to groups. The time for
each pair grows with their number, and more of them fill rows hardly better.
"""

STEP, LENGTHS = 16, 20
"""Input lengths of rows that are tried: the longest input, 16 tokens more, and so on."""

MORE_TARGETS = (0.95, 1.0, 1.05, 1.1, 1.15)
"""Targets fill their rows when inputs do; a little more or less may pack better."""

WORTH_A_SHAPE = 0.01
"""Another shape has to save this share of the FLOPs. Rows are coarse: one is 3 % of a batch."""

WORTH_A_BLOCK = 0.05
"""Another block a step has to save this share of the FLOPs: small ones fill a device less well."""


def packed_rows(sizes: np.ndarray, capacities: Sequence[int] | np.ndarray) -> np.ndarray:
    """As `balanced`, which does the work, for any number of pairs in groups of about equal size."""
    _, n, pairs = sizes.shape
    groups = max(1, int(round_up(pairs, TOGETHER)) // TOGETHER)
    capacities = np.broadcast_to(np.array(capacities).reshape(2, -1), (2, n))
    # Dealt out by turns, so that each group has pairs of every role.
    dealt = np.pad(sizes, ((0, 0), (0, 0), (0, -pairs % groups)))
    dealt = dealt.reshape(2, n, -1, groups).swapaxes(2, 3).reshape(2, n * groups, -1)
    rows = balanced(dealt, np.repeat(capacities, groups, axis=1)).reshape(n, groups, -1)
    counts = rows.max(axis=2) + 1
    before = (np.cumsum(counts, axis=1) - counts)[:, :, None]
    rows = np.where(rows >= 0, rows + before, -1)
    return rows.swapaxes(1, 2).reshape(n, -1)[:, :pairs]


def balanced(sizes: np.ndarray, capacities: Sequence[int] | np.ndarray) -> np.ndarray:
    """Puts pairs into few rows: the largest first, each into the row that stays emptiest.

    All rows are open from the start, as many as the sums need at least, so that inputs and targets
    fill up alike; a batch that has a pair left over is tried again with more rows. First fit, which
    fills row after row, leaves rows full of inputs with room for targets, and the other way round.

    Of sizes of inputs and of targets, for n batches at once, and S and T of a row, perhaps those of
    each batch: int [2, n, M], int [2] or [2, n] -> int [n, M], the row of each pair; -1 where it
    has length 0. No pair is larger than a row.
    """
    # Shares of a row over one denominator: whole numbers, so that all processes find the same.
    capacities = np.broadcast_to(np.array(capacities, np.int64).reshape(2, -1), sizes.shape[:2])
    room = capacities.prod(axis=0)
    shares = sizes * capacities[::-1, :, None]
    assert (shares <= room[:, None]).all(), "a pair does not fit into a row"
    order = np.argsort(-shares.sum(axis=0), axis=1, kind="stable")
    shares = np.take_along_axis(shares, order[None], axis=2)
    counts = _least_rows(shares, room)
    found = np.full(order.shape, -1)
    todo = np.arange(len(order))
    while len(todo):
        rows = _spread(shares[:, todo], counts[todo], room[todo])
        left_over = (rows < 0) & (shares[0, todo] > 0)
        done = ~left_over.any(axis=1)
        found[todo[done]] = rows[done]
        todo, left_over = todo[~done], left_over[~done]
        counts[todo] += _least_rows(shares[:, todo] * left_over, room[todo])
    rows = np.empty_like(found)
    np.put_along_axis(rows, order, found, axis=1)
    return rows


def _least_rows(shares: np.ndarray, room: np.ndarray) -> np.ndarray:
    """How many rows of room [n] sizes need at least, by their sums: int [2, n, M] -> [n]."""
    return -(-shares.sum(axis=2).max(axis=0) // room)


def _spread(shares: np.ndarray, counts: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Puts pairs, in their order, into `counts` rows of `room`, int [n] each: int [2, n, M] ->
    [n, M], -1 where there is no room.
    """
    _, n, pairs = shares.shape
    room = room[:, None]
    # Rows that a batch does not have are full.
    there = np.arange(counts.max(initial=1)) < counts[:, None]
    used = np.broadcast_to(np.where(there, 0, room), (2, *there.shape)).copy()
    rows, batch, no_room = np.full((n, pairs), -1), np.arange(n), np.iinfo(np.int64).max
    for pair in range(pairs):
        size = shares[:, :, pair]
        then = used + size[:, :, None]
        fullness = (then * then).sum(axis=0)
        fullness[(then > room).any(axis=0)] = no_room
        row = fullness.argmin(axis=1)
        placed = np.flatnonzero((fullness[batch, row] < no_room) & (size[0] > 0))
        row = row[placed]
        used[:, placed, row] = then[:, placed, row]
        rows[placed, pair] = row
    return rows


class SharedRows(NamedTuple):
    """Roles of the method whose pairs share rows, of lengths S and T: one block of the batch."""

    roles: slice
    lengths: tuple[int, int]


class RowLayout(Layout):
    """Builds a block for each of its parts. A batch is assigned its items, and the row of each pair
    in its block: int [N + M].
    """

    parts: tuple[SharedRows, ...]
    segmented: bool

    def build(self, assigned: np.ndarray, shape: int) -> Batch:
        items, *placed = assigned.reshape(1 + len(self._examples.roles), -1)
        lengths = dict(zip(("encoder", "decoder"), self._examples.lengths(items), strict=True))
        fields = self._tokens(items)
        blocks = []
        for part, block_shape in zip(self.parts, self._shapes[shape], strict=True):
            own, pairs = self._plan.own(block_shape.rows), np.concatenate(placed[part.roles])
            segments = _before_in_row(np.ones(len(pairs), np.int64), pairs) + 1
            laid: dict[str, Any] = {}
            for side, (tokens, length) in block_shape.sides.items():
                mine = lengths[side][part.roles].ravel()
                before = lengths[side][: part.roles.start].sum()
                places = token_places(pairs * length + _before_in_row(mine, pairs), mine)
                values = {k: v[before : before + len(places)] for k, v in fields[side].items()}
                if self.segmented:
                    values[f"{side}_segment_ids"] = np.repeat(segments, mine)
                for name, value in values.items():
                    line = filled(value, places, tokens, self._rest(name))
                    laid[name] = line.reshape(-1, length)[own]
            blocks.append(Block(**laid))
        return tuple(blocks)


class PaddedRows(RowLayout):
    """Layout `padded`: a block for each role, as long as the longest of the rows of the split that
    will be asked for.
    """

    segmented = False

    def __init__(
        self, examples: Examples, rows: np.ndarray, data: config.Data, plan: LayoutPlan
    ) -> None:
        super().__init__(examples, plan)
        n, multiple = data.batch_size, data.length_multiple
        inputs, targets = examples.longest_of(rows)
        s, *of_roles = (int(round_up(max(int(x), 1), multiple)) for x in (inputs.max(), *targets))
        self.parts = tuple(SharedRows(slice(k, k + 1), (s, t)) for k, t in enumerate(of_roles))
        self._shapes = (tuple(BlockShape(n, n * s, s, n * t, t) for t in of_roles),)

    def assign(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        places = np.tile(np.arange(rows.shape[1]), (len(rows), len(self.parts)))
        return np.concatenate([rows, places], axis=1), np.zeros(len(rows), np.int64)

    def build(self, assigned: np.ndarray, shape: int) -> Batch:
        def shifted(block: Block) -> Block:
            # Rows are shifted whole, as in the reference: EOS follows where a target has ended.
            inputs = np.roll(block.decoder_target_tokens, 1, axis=1)
            inputs[:, 0] = self._plan.start_id
            return block._replace(decoder_input_tokens=inputs)

        return tuple(map(shifted, super().build(assigned, shape)))


class PackedRows(RowLayout):
    """Layout `packed`, whose shapes differ in rows only, a multiple of the plan's shares. All roles
    are in one part, or each has one, whichever executes less.
    """

    segmented = True

    def __init__(self, examples: Examples, data: config.Data, plan: LayoutPlan) -> None:
        super().__init__(examples, plan)
        batches = iter(plan.batches)
        first = next(batches)
        sample = first[: max(1, SAMPLE // data.batch_size)]
        self.parts = self._cheapest(self._sizes(sample), plan.cost, data.length_multiple)
        self._choose_shapes(chain((first,), batches), WORTH_A_SHAPE)

    def _cheapest(self, sizes: np.ndarray, cost: Cost, multiple: int) -> tuple[SharedRows, ...]:
        """Which roles share rows, and the lengths of these, by a sample's sizes [2, n, K, N]."""

        def best(roles: slice) -> tuple[float, SharedRows]:
            pairs = _joined(sizes, roles)
            n = pairs.shape[1]
            tried = np.array([*_row_lengths(pairs, self._examples.longest(roles), multiple)])
            of_each = np.repeat(tried, n, axis=0).T
            placed = packed_rows(np.tile(pairs, (1, len(tried), 1)), of_each)
            costs = np.sum(cost(self._block_shape(placed, of_each)).reshape(-1, n), axis=1)
            at = int(np.argmin(costs))
            s, t = map(int, tried[at])
            return float(costs[at]), SharedRows(roles, (s, t))

        roles = len(self._examples.roles)
        together, part = best(slice(0, roles))
        apart = [best(slice(k, k + 1)) for k in range(roles)] if roles > 1 else []
        if apart and sum(c for c, _ in apart) < (1 - WORTH_A_BLOCK * (roles - 1)) * together:
            return tuple(part for _, part in apart)
        return (part,)

    def _sizes(self, rows: np.ndarray) -> np.ndarray:
        """Lengths of inputs and targets: int [n, N] -> [2, n, K, N]."""
        return np.stack(self._examples.lengths(rows)).swapaxes(1, 2)

    def _placed(self, rows: np.ndarray) -> np.ndarray:
        """With the row of each pair in its block: int [n, N] -> [n, N + M]."""
        sizes = self._sizes(rows)
        placed = [packed_rows(_joined(sizes, part.roles), part.lengths) for part in self.parts]
        return np.concatenate([rows, *placed], axis=1)

    def _needed(self, placed: np.ndarray) -> tuple[BlockShape, ...]:
        by_role = placed.reshape(len(placed), 1 + len(self._examples.roles), -1)[:, 1:]
        return tuple(self._block_shape(by_role[:, part.roles], part.lengths) for part in self.parts)

    def _block_shape(self, placed: np.ndarray, lengths: Sequence[int] | np.ndarray) -> BlockShape:
        """What batches need of a block: pairs' rows, int [n, ...], and S and T, numbers or int [n]
        each -> a shape of arrays [n].
        """
        most = placed.reshape(len(placed), -1).max(axis=1)
        count = np.asarray(round_up(np.maximum(most + 1, 1), self._plan.shares))
        s, t = (np.broadcast_to(x, count.shape) for x in lengths)
        return BlockShape(count, count * s, s, count * t, t)


def _joined(sizes: np.ndarray, roles: slice) -> np.ndarray:
    """The pairs of some roles: [2, n, K, N] -> [2, n, M]."""
    return sizes[:, :, roles].reshape(*sizes.shape[:2], -1)


def _row_lengths(
    sizes: np.ndarray, longest: tuple[int, int], multiple: int
) -> Iterator[tuple[int, int]]:
    """S and T of rows that may be good, by the sizes of a sample's pairs, int [2, n, M]."""
    shortest = [int(round_up(max(1, x), multiple)) for x in longest]
    ratio = sizes[1].sum() / max(1, sizes[0].sum())
    for more in range(LENGTHS):
        length = int(round_up(shortest[0] + more * STEP, multiple))
        for extra in MORE_TARGETS:
            targets = int(round_up(int(length * ratio * extra) + 1, multiple))
            yield length, max(shortest[1], targets)


def _before_in_row(amounts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """How much stands before each of some things in its row: amounts, int [M], and the row of each,
    int [M] -> int [M]. Those in one row stand in the order given.
    """
    order = np.argsort(rows, kind="stable")
    sums = np.cumsum(amounts[order]) - amounts[order]
    firsts = np.flatnonzero(np.diff(rows[order], prepend=-2))
    before = np.empty(len(rows), np.int64)
    before[order] = sums - np.repeat(sums[firsts], np.diff(np.append(firsts, len(rows))))
    return before
