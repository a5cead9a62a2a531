"""Rows of different lengths in one flat array. NumPy only."""

from collections.abc import Sequence

import numpy as np


class Slices:
    """Rows that lie in a flat array: row i is values[starts[i]:ends[i]], both int64 [rows]."""

    def __init__(self, values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
        self.values, self.starts, self.ends = values, starts, ends

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: int) -> np.ndarray:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self.values[self.starts[row] : self.ends[row]]

    def lengths(self) -> np.ndarray:
        """Length of each row: int64 [rows]."""
        return self.ends - self.starts

    def take(self, rows: np.ndarray) -> "Slices":
        """Some of the rows, in another order; nothing is copied."""
        return Slices(self.values, self.starts[rows], self.ends[rows])


class Ragged(Slices):
    """Rows one after another in a flat array: row i is values[offsets[i]:offsets[i + 1]], int64."""

    def __init__(self, values: np.ndarray, offsets: np.ndarray) -> None:
        assert offsets.ndim == values.ndim == 1
        assert offsets[0] == 0
        assert offsets[-1] == len(values)
        super().__init__(values, offsets[:-1], offsets[1:])
        self.offsets = offsets


def joined(parts: Sequence[Ragged]) -> Ragged:
    """The rows of some columns, one column after another; no part: no row."""
    lengths = np.concatenate([np.zeros(1, np.int64), *(part.lengths() for part in parts)])
    values = np.concatenate([np.zeros(0, np.uint8), *(part.values for part in parts)])
    return Ragged(values, np.cumsum(lengths))


def join_rows(tokens: Slices, rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Rows of a column, int [R], one after another, each cut to its length, int [R]: int32 [sum of
    lengths]; cut ones end with their own last, EOS.
    """
    starts = tokens.starts[rows]
    ends = np.cumsum(lengths)
    at = np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)
    values = np.asarray(tokens.values)
    joined = values[at].astype(np.int32)
    cut = (lengths > 0) & (tokens.ends[rows] - starts > lengths)
    joined[ends[cut] - 1] = values[tokens.ends[rows][cut] - 1]
    return joined
