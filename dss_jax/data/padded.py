"""Layout `padded`: the reference. One block a role, each row an example. NumPy only.

Shape letters are those of `dss_jax.data.blocks`; N examples of a batch.
"""

import numpy as np

from dss_jax.core import config
from dss_jax.data.blocks import EOS_ID, NO_ROLE, Batch, Block, Extent
from dss_jax.data.columns import role_columns
from dss_jax.data.shapes import Share, round_up
from dss_jax.data.store import Ragged, StoreSplit


def pad_rows(tokens: Ragged, rows: np.ndarray, length: int, limit: int | None = None) -> np.ndarray:
    """Gathers rows of a store into a rectangle; longer ones are cut and end in EOS.

    Args:
      tokens: a column of the store.
      rows: int [R], row numbers.
      length: L, columns of the result.
      limit: longer rows are cut to so many tokens; None: to L.

    Returns:
      int32 [R, L], padded with 0.
    """
    starts = tokens.offsets[rows]
    lengths = tokens.offsets[rows + 1] - starts
    columns = np.arange(length)
    limit = length if limit is None else min(limit, length)
    real = columns < np.minimum(lengths, limit)[:, None]
    at = np.where(real, starts[:, None] + columns, 0)
    padded = np.where(real, tokens.values[at] if len(tokens.values) else 0, 0).astype(np.int32)
    padded[lengths > limit, limit - 1] = EOS_ID
    return padded


def shift_right(targets: np.ndarray) -> np.ndarray:
    """Decoder inputs of teacher forcing: [R, T] -> [R, T], starting with 0."""
    return np.pad(targets, ((0, 0), (1, 0)))[:, :-1]


def rounded_length(longest: int, limit: int, multiple: int) -> int:
    """The padded length: the longest row or the limit, rounded up."""
    return int(round_up(min(longest, limit), multiple))


def _lengths(split: StoreSplit, rows: np.ndarray, column: str, limit: int, multiple: int) -> int:
    longest = int(split.tokens(column).lengths()[rows].max(initial=1))
    return rounded_length(longest, limit, multiple)


class PaddedBlocks:
    """Builds padded batches of a method from a split; lengths are those of the longest rows.

    Attributes:
      lengths: (S, T) of each role's block.
    """

    def __init__(
        self,
        split: StoreSplit,
        rows: np.ndarray,
        data: config.Data,
        method: config.Method,
        share: Share = Share(),  # noqa: B008
    ) -> None:
        """Measures the lengths.

        Args:
          split, data, method: what is trained on.
          rows: all rows that will be asked for.
          share: what this process builds.
        """
        self._split, self._share = split, share
        self._roles = role_columns(method)
        inputs = max(
            _lengths(split, rows, r.inputs, data.input_length, data.length_multiple)
            for r in self._roles
        )
        self.lengths = tuple(
            (inputs, _lengths(split, rows, r.targets, data.target_length, data.length_multiple))
            for r in self._roles
        )
        self._size = data.batch_size
        self._limits = data.input_length, data.target_length

    shapes = 1

    def extents(self, shape: int) -> tuple[Extent, ...]:
        """What is executed of a whole batch, block by block."""
        n = self._size
        return tuple(Extent(n, n * s, s, n * t, t) for s, t in self.lengths)

    def assign(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Batches' row numbers, int [n, N] -> the same; shape numbers [n], all 0."""
        return rows, np.zeros(len(rows), np.int64)

    def build(self, rows: np.ndarray, shape: int) -> Batch:
        """One batch: row numbers, int [N] -> one `Block` a role, of this process's rows.

        A row of -1 is an empty example; it weighs nothing.
        """
        rows = rows[self._share.own(len(rows))]
        real = rows[:, None] >= 0
        blocks = []
        for role, (input_length, target_length) in zip(self._roles, self.lengths, strict=True):
            inputs, targets = (
                pad_rows(self._split.tokens(column), np.maximum(rows, 0), length, limit) * real
                for column, length, limit in (
                    (role.inputs, input_length, self._limits[0]),
                    (role.targets, target_length, self._limits[1]),
                )
            )
            roles = np.where(targets > 0, role.role, NO_ROLE).astype(np.int32)
            blocks.append(Block(inputs, shift_right(targets), targets, roles))
        return tuple(blocks)
