"""Texts as bytes in one flat array, and as Arrow's."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dss_jax.core.texts import well_formed
from dss_jax.data.ragged import Ragged


def arrow_texts(texts: Iterable[str]) -> Any:
    """Any texts as an array of Arrow's: see `core.texts.well_formed`."""
    import pyarrow

    texts = [*texts]
    try:
        return pyarrow.array(texts, pyarrow.large_string())
    except UnicodeEncodeError:
        return pyarrow.array([*map(well_formed, texts)], pyarrow.large_string())


def text_column(texts: Iterable[str]) -> Ragged:
    """Texts as bytes of UTF-8, uint8, read-only: any text, see `core.texts.well_formed`. By Arrow,
    which takes a quarter of the time of `str.encode` of each.
    """
    column = arrow_texts(texts)
    if not len(column):
        return byte_rows(())
    _, offsets, values = column.buffers()
    return Ragged(np.frombuffer(values or b"", np.uint8), np.frombuffer(offsets, np.int64))


def byte_rows(rows: Sequence[bytes]) -> Ragged:
    """Bytes as uint8."""
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=offsets[1:])
    return Ragged(np.frombuffer(b"".join(rows), np.uint8), offsets)
