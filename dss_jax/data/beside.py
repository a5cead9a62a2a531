"""Columns side by side. NumPy only."""

from collections.abc import Sequence

import numpy as np

from dss_jax.data.ragged import Ragged, Slices, join_rows


def side_by_side(parts: Sequence[Slices]) -> Ragged:
    """Columns joined row by row: row i is row i of each part, one after another."""
    lengths = np.stack([part.lengths() for part in parts])
    offsets = np.concatenate([[0], np.cumsum(lengths.sum(axis=0))])
    values = np.zeros(offsets[-1], np.int32)
    for part, own, before in zip(parts, lengths, np.cumsum(lengths, axis=0) - lengths, strict=True):
        at = np.repeat(offsets[:-1] + before - (np.cumsum(own) - own), own) + np.arange(own.sum())
        values[at] = join_rows(part, np.arange(len(part)), own)
    return Ragged(values, offsets)
