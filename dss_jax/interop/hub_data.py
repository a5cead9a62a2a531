"""A data set of the Hugging Face hub as JSONL files; `datasets` is imported when asked for one."""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dss_jax.core import strict_json
from dss_jax.core.errors import UsageError, unknown_name
from dss_jax.core.paths import write_whole
from dss_jax.core.texts import utf8
from dss_jax.interop.hub import SCHEME

NAMES = {"valid": "validation", "val": "validation", "dev": "validation"}
"""Of splits, beside ours."""


def fetch(name: str, columns: Sequence[str], label: str, folder: Path) -> dict[str, Path]:
    """Downloads a data set and writes these columns of its splits; classes are written as their
    names, and those that are not known (-1) as null. Splits without a single label are left out.

    Args:
      name: as `datasets.load_dataset` takes it, after a colon the configuration:
        "hf:org/name", "hf:org/name:config".

    Returns:
      Our name of each split -> its file in `folder`.

    Raises:
      UsageError: `datasets` is not installed, the data set cannot be had, or lacks a column or a
        train split.
    """
    if find_spec("datasets") is None:
        raise UsageError(
            f"{name}: data sets of the hub need the library datasets, which is not installed: "
            'pip install "dss-jax[hub-data]".'
        )
    import datasets

    path, _, config = name.removeprefix(SCHEME).partition(":")
    try:
        found = datasets.load_dataset(path, config or None)
    except Exception as error:
        # Of many kinds: no network, no such name, a configuration is missing, access is denied.
        raise UsageError(f"{name} cannot be had: {type(error).__name__}: {error}") from error
    splits = {NAMES.get(split, split): rows for split, rows in found.items()}
    if "train" not in splits:
        raise UsageError(f"{name} has no train split. It has: {', '.join(splits)}.")
    files = {}
    for split in (s for s in ("train", "validation", "test") if s in splits):
        rows = splits[split]
        for column in columns:
            if column not in rows.features:
                raise unknown_name(f"column of {name}, {split},", column, rows.features)
        if any(row[label] not in (None, "") for row in _named(rows, [label])):
            files[split] = folder / f"{split}.jsonl"
            # Row by row: `datasets` maps its own file into memory.
            write_whole(files[split], map(_line, _named(rows, columns)))
        elif split == "train":
            raise UsageError(f"no row of train of {name} has a label in {label!r}.")
    return files


def _line(row: dict[str, Any]) -> bytes:
    return utf8(strict_json.dumps(row, ensure_ascii=False, default=str) + "\n")


def _named(rows: Any, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows with the names of their classes."""
    names = {c: getattr(rows.features[c], "names", None) for c in columns}
    for row in rows.select_columns([*columns]):
        for column, known in names.items():
            if known is not None and row[column] is not None:
                row[column] = known[row[column]] if row[column] >= 0 else None
        yield row
