"""Layout `padded`: the reference. One block a role, each row an example. NumPy only.

Shape letters are those of `dss_jax.layouts.blocks`; N examples of a batch.
"""

import numpy as np

from dss_jax.core import config
from dss_jax.core.ids import NO_ROLE
from dss_jax.data.columns import Examples, join_rows
from dss_jax.data.store import Slices
from dss_jax.layouts.blocks import Batch, Block, BlockShape
from dss_jax.layouts.layout import Layout
from dss_jax.layouts.shapes import LayoutPlan, round_up


def pad_rows(tokens: Slices, rows: np.ndarray, length: int, limit: int | None = None) -> np.ndarray:
    """Rows of a column, int [R], as a rectangle: int32 [R, `length`], padded with 0. A row of -1 is
    empty, one longer than `limit` (None: than `length`) is cut and ends in EOS.
    """
    limit = length if limit is None else min(limit, length)
    lengths = np.where(rows < 0, 0, np.minimum(tokens.ends[rows] - tokens.starts[rows], limit))
    return _rectangle(join_rows(tokens, rows, lengths), lengths, length)


def shift_right(targets: np.ndarray) -> np.ndarray:
    """Decoder inputs of teacher forcing: [R, T] -> [R, T], starting with 0."""
    return np.pad(targets, ((0, 0), (1, 0)))[:, :-1]


class PaddedBlocks(Layout):
    """Builds padded batches of a method from a split; lengths are those of the longest rows.

    Attributes:
      lengths: (S, T) of each role's block.
    """

    def __init__(
        self, examples: Examples, rows: np.ndarray, data: config.Data, plan: LayoutPlan
    ) -> None:
        """Measures the lengths of `rows`, all that will be asked for."""
        super().__init__(examples, plan)
        n = data.batch_size
        inputs, targets = examples.longest_of(rows)
        self.lengths = [
            tuple(int(round_up(max(int(x), 1), data.length_multiple)) for x in (inputs.max(), t))
            for t in targets
        ]
        self._shapes = (tuple(BlockShape(n, n * s, s, n * t, t) for s, t in self.lengths),)
        self.shapes = 1

    def assign(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Batches' items, int [n, N] -> the same; shape numbers [n], all 0."""
        return items, np.zeros(len(items), np.int64)

    def build(self, items: np.ndarray, shape: int) -> Batch:
        """One batch: items, int [N] -> one `Block` a role, of this process's rows.

        An item of -1 is an empty example; it weighs nothing.
        """
        own = self._plan.own(len(items))
        numbers = np.arange(len(items), dtype=np.int32)[own, None]
        items = items[own]
        lengths = self._examples.lengths(items)  # [K, N] each
        tokens = self._examples.inputs(items), self._examples.targets(items)
        # Of each side, those of each role.
        sides = [
            np.split(of_all, np.cumsum(x.sum(axis=1))[:-1])
            for of_all, x in zip(tokens, lengths, strict=True)
        ]
        blocks = []
        for k, (role, sizes) in enumerate(zip(self._examples.roles, self.lengths, strict=True)):
            inputs, targets = (
                _rectangle(side[k], of_roles[k], length)
                for side, of_roles, length in zip(sides, lengths, sizes, strict=True)
            )
            roles = np.where(targets > 0, role, NO_ROLE).astype(np.int32)
            block = Block(inputs, shift_right(targets), targets, roles)
            if self._plan.numbered:
                block = block._replace(decoder_examples=np.broadcast_to(numbers, targets.shape))
            blocks.append(block)
        return tuple(blocks)


def _rectangle(joined: np.ndarray, lengths: np.ndarray, length: int) -> np.ndarray:
    """Rows that lie one after another -> int32 [R, length], padded with 0."""
    padded = np.zeros((len(lengths), length), np.int32)
    padded[np.arange(length) < lengths[:, None]] = joined
    return padded
