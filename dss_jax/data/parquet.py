"""Parquet tables, read a row group at a time. pyarrow is imported when one is opened."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dss_jax.core.errors import UsageError
from dss_jax.core.fields import first_twice
from dss_jax.core.lfs import refuse_pointer

ROW_GROUP = 1024
"""Rows that are read at once."""


class ParquetTable(NamedTuple):
    """Rows as they are read, column -> value, the schema, and how many there are."""

    rows: Iterator[dict[str, Any]]
    schema: Any
    total: int


def read_parquet(file: Path) -> ParquetTable:
    """Opens a file; UsageError: it cannot be read, then or when a row is."""
    import pyarrow
    import pyarrow.parquet

    # ValueError: a text is not UTF-8; OverflowError: Python has no such date.
    unreadable = (pyarrow.ArrowException, OSError, ValueError, OverflowError)
    try:
        table = pyarrow.parquet.ParquetFile(file)
        total, schema = table.metadata.num_rows, table.schema_arrow
    except unreadable as error:
        refuse_pointer(file)
        raise UsageError(f"{file} cannot be read as Parquet: {error}") from error
    if (twice := first_twice(schema.names)) is not None:
        raise UsageError(f"{file}: two columns are called {twice!r}. Rename one.")

    def rows() -> Iterator[dict[str, Any]]:
        number = 0
        try:
            for batch in table.iter_batches(ROW_GROUP):
                for row in batch.to_pylist():
                    number += 1
                    yield row
        except unreadable as error:
            raise UsageError(f"{file} is damaged after row {number}: {error}") from error
        if number != total:
            raise UsageError(f"{file} is damaged: {number:,} rows, but it counts {total:,}.")

    return ParquetTable(rows(), schema, total)
