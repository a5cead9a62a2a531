"""The rows of a store that a method trains on: which columns, how long, their tokens and order.

An *item* is a row as one epoch sees it: the row's number, or, where an epoch draws one of several
rationales, that number plus the draw times the number of rows.

Shape letters: K roles of the method, n rows of a split, D draws, N items, M = K * N pairs of an
input and a target (those of the first role first).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from dss_jax.core import config
from dss_jax.core.flops import Work
from dss_jax.data.ragged import Slices, join_rows

Pair = tuple[Slices, Slices]
"""Inputs and targets of a role."""


def permutation(n: int, *key: int) -> np.ndarray:
    """A permutation of 0 ... n-1, int64 [n], from a key alone: one or two integers of at least 0.

    Sorts a Philox stream (Salmon et al. 2011). NumPy guarantees that raw stream for all time, which
    it does not for `Generator.permutation`; so a run can be repeated years later.
    """
    words = np.zeros(2, np.uint64)
    words[: len(key)] = key
    drawn = np.random.Philox(key=words).random_raw(n)
    order = np.argsort(drawn)  # Seven times as fast as a stable sort, which ties alone need.
    return order if np.diff(drawn[order]).all() else np.argsort(drawn, kind="stable")


def only(tokens: Slices, rows: np.ndarray) -> Slices:
    """A column that is empty but for some rows: bool [n]."""
    return Slices(tokens.values, tokens.starts, np.where(rows, tokens.ends, tokens.starts))


class Examples:
    """A method's view of a split: lengths and tokens of items in each of its K `roles`.

    `count` is n. An item of -1 is no example. An example that has no target in a role (no
    rationale) has length 0 there, its input too: it would be computed for nothing.
    """

    _draws: np.ndarray | None = None

    def __init__(
        self,
        columns: Mapping[int, Pair],
        data: config.Data,
        count: int,
        draws: np.ndarray | None = None,
    ) -> None:
        """Takes the columns of each role, cut to `data.input_length` and `data.target_length`.

        `draws`: int64 [n], how many rationales of each row an epoch draws one of; None: no draw.
        """
        self.roles, self.count, self._draws = tuple(columns), count, draws
        self._columns = inputs, targets = tuple(zip(*columns.values(), strict=True))

        def lengths(columns: Sequence[Slices], limit: int) -> np.ndarray:
            # The last column is that of item -1.
            cut = np.stack([np.minimum(c.lengths(), limit) for c in columns])
            return np.pad(cut, ((0, 0), (0, 1))).astype(np.int32)

        self._target_lengths = lengths(targets, data.target_length)
        cut = lengths(inputs, data.input_length)
        self._input_lengths = np.where(self._target_lengths > 0, cut, 0)

    def usable(self, rows: np.ndarray) -> np.ndarray:
        """Those of `rows` that have a target in the first role."""
        return rows[self._target_lengths[0, rows] > 0]

    def items(self, rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """The items that an epoch makes of rows, int [N] -> int [N]: with several rationales, one
        of each row is drawn, from (seed, epoch, row) alone.
        """
        if self._draws is None:
            return rows
        # The permutation of the epoch is counter 0 of the same key.
        words = np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=[0, 0, 0, 1])
        draws = words.random_raw(self.count)[rows] % self._draws[rows].astype(np.uint64)
        return rows + self.count * draws.astype(np.int64)

    def lengths(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lengths of inputs and targets: int [..., N] -> two int32 [K, ..., N]."""
        return self._input_lengths[:, items], self._target_lengths[:, items]

    def longest_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """In each role, of some rows, whatever rationale is drawn: two int32 [K]."""
        draws = 1 if self._draws is None else self._draws.max(initial=1)
        items = (rows + self.count * np.arange(draws)[:, None]).ravel()
        inputs, targets = self.lengths(items)
        return inputs.max(axis=1, initial=1), targets.max(axis=1, initial=1)

    def work(self, items: np.ndarray) -> Work:
        """The useful work of items in all roles: int [N]."""
        inputs, targets = (x.ravel().astype(np.int64) for x in self.lengths(items))
        tokens = int(targets.sum())
        pairs = ((inputs, inputs), (targets, targets), (inputs, targets))
        return Work(int(inputs.sum()), tokens, tokens, *(int(a @ b) for a, b in pairs))

    def longest(self, roles: slice = slice(None)) -> tuple[int, int]:
        """Of the whole split: the longest input and target, of some of the roles."""
        return int(self._input_lengths[roles].max()), int(self._target_lengths[roles].max())

    def inputs(self, items: np.ndarray) -> np.ndarray:
        """Inputs of all roles one after another: int [N] -> int32 [sum of lengths]."""
        return self._side(0, items)

    def targets(self, items: np.ndarray) -> np.ndarray:
        """Targets of all roles one after another: int [N] -> int32 [sum of lengths]."""
        return self._side(1, items)

    def _side(self, side: int, items: np.ndarray) -> np.ndarray:
        at = np.maximum(items, 0)  # Item -1 has length 0: nothing is read there.
        pairs = zip(self._columns[side], self.lengths(items)[side], strict=True)
        return np.concatenate([join_rows(column, at, own) for column, own in pairs])


def shift_joined(targets: np.ndarray, lengths: np.ndarray, start_id: int = 0) -> np.ndarray:
    """Decoder inputs of targets, int32 [sum of lengths], that lie one after another with these
    lengths, int [M]: shifted right, each starting with `start_id`.
    """
    shifted = np.zeros_like(targets)
    shifted[1:] = targets[:-1]
    starts = np.cumsum(lengths) - lengths
    shifted[starts[lengths > 0]] = start_id
    return shifted
