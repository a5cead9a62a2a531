"""Texts as bytes in one flat array. NumPy only."""

from collections.abc import Iterable, Sequence

import numpy as np

from dss_jax.core.texts import utf8
from dss_jax.data.ragged import Ragged


def text_column(texts: Iterable[str]) -> Ragged:
    """Texts as bytes of UTF-8, uint8: any text, see `core.texts.utf8`."""
    texts = [*texts]
    try:
        rows = [*map(str.encode, texts)]
    except UnicodeEncodeError:
        rows = [*map(utf8, texts)]
    return byte_rows(rows)


def byte_rows(rows: Sequence[bytes]) -> Ragged:
    """Bytes as uint8."""
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=offsets[1:])
    return Ragged(np.frombuffer(b"".join(rows), np.uint8), offsets)
