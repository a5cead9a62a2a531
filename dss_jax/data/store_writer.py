"""Writes a token store: whole or not at all. NumPy only."""

import contextlib
import json
import os
import shutil
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dss_jax.core.digest import file_digest
from dss_jax.core.partial import beside
from dss_jax.core.paths import written
from dss_jax.core.texts import utf8
from dss_jax.data.ragged import Ragged, joined
from dss_jax.data.store import (
    FORMAT,
    MANIFEST,
    TOKENIZER,
    VOCABULARY,
    StoreDamaged,
    TokenStore,
    key_of,
    open_store,
)
from dss_jax.data.vocabulary import copy_vocabulary, is_tokenizer, vocabulary_digest
from dss_jax.records.files import as_json

Columns = Mapping[str, Ragged]
"""A split's columns by name, in the order of the manifest."""


class ColumnPart(Protocol):
    """Columns of a part of a split, perhaps read when they are asked for."""

    def __getitem__(self, column: str, /) -> Ragged: ...


class _Columns(Mapping[str, Ragged]):
    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class SplitBuilder(_Columns):
    """A split's columns, collected row by row."""

    def __init__(self, tokens: Sequence[str], texts: Sequence[str]) -> None:
        """Declares the columns, of `TOKEN_COLUMNS`, `SAMPLES` and `TEXT_COLUMNS`."""
        super().__init__((*tokens, *texts))
        self._values = {c: array("i") for c in tokens} | {c: array("B") for c in texts}
        self._offsets = {c: array("q", [0]) for c in self._values}

    def append(self, tokens: Mapping[str, Sequence[int]], texts: Mapping[str, str]) -> None:
        """Adds a row; it must fill every column."""
        assert {*tokens, *texts} == self._values.keys()
        for column, ids in tokens.items():
            self._values[column].extend(ids)
        for column, text in texts.items():
            self._values[column].frombytes(utf8(text))
        for column, offsets in self._offsets.items():
            offsets.append(len(self._values[column]))

    def __getitem__(self, column: str) -> Ragged:
        return Ragged(np.array(self._values[column]), np.array(self._offsets[column], np.int64))


class Joined(_Columns):
    """Columns of parts of a split, one after another; put together when they are asked for."""

    def __init__(self, names: Sequence[str], parts: Sequence[ColumnPart]) -> None:
        """`names`: the columns, which all parts have; there may be no part."""
        super().__init__(names)
        self._parts = parts

    def __getitem__(self, column: str) -> Ragged:
        parts = [part[column] for part in self._parts]
        return parts[0] if len(parts) == 1 else joined(parts)


def write_store(
    path: Path,
    splits: Mapping[str, Columns],
    vocabulary: Path,
    extra_ids: int,
    description: Mapping[str, Any],
    *,
    replace: bool = False,
) -> TokenStore:
    """Writes a store beside its place, moves it there when it is complete, and opens it. Raises
    UsageError: see `core.paths.written`. What a killed writer of it has left is removed.

    Args:
      path: where it shall be. A damaged store there is replaced; where another process has put a
        sound one meanwhile, that is kept.
      splits: split -> its columns, written with the smallest unsigned integers that hold them.
      vocabulary: copied into the store.
      extra_ids: sentinel ids above the pieces of a SentencePiece model.
      description: further fields of the manifest.
      replace: whether a sound store that is there is replaced too.
    """
    with written(path), beside(path) as partial:
        own = partial / (TOKENIZER if is_tokenizer(vocabulary) else VOCABULARY)
        copy_vocabulary(vocabulary, own)
        entries = {name: _write_split(partial / name, split) for name, split in splits.items()}
        fields = {"sha256": vocabulary_digest(own), "extra_ids": extra_ids}
        manifest = _manifest(partial, entries, fields, description)
        (partial / MANIFEST).write_bytes(as_json(manifest, indent=1) + b"\n")
        _sync(partial)
        _move(partial, path, replace)
    return open_store(path)


def _write_split(folder: Path, columns: Columns) -> dict[str, Any]:
    """Writes the files of a split; gives its entry in the manifest."""
    folder.mkdir()
    rows = 0
    for column, ragged in columns.items():
        if ragged.values.min(initial=0) < 0:
            raise ValueError("token ids must not be negative")
        dtype = np.min_scalar_type(int(ragged.values.max(initial=0)))
        np.save(folder / f"{column}.values.npy", ragged.values.astype(dtype))
        np.save(folder / f"{column}.offsets.npy", ragged.offsets)
        rows = len(ragged)
    return {"rows": rows, "columns": list(columns)}


def _manifest(
    folder: Path,
    splits: Mapping[str, Any],
    vocabulary: Mapping[str, Any],
    description: Mapping[str, Any],
) -> dict[str, Any]:
    files = {}
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        entry = {"size": file.stat().st_size, "sha256": file_digest(file)}
        files[file.relative_to(folder).as_posix()] = entry
    manifest: dict[str, Any] = {
        "format": FORMAT,
        **description,
        "vocabulary": vocabulary,
        "splits": splits,
        "files": files,
    }
    # As JSON gives it back, or tuples and integer keys would change the digest.
    manifest = json.loads(json.dumps(manifest))
    return {**manifest, "sha256": key_of(manifest)}


def _sync(folder: Path) -> None:
    """Forces everything in a folder to the disk, so that a power cut cannot tear it."""
    for entry in [*folder.rglob("*"), folder]:
        handle = os.open(entry, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):
                os.fsync(handle)
        finally:
            os.close(handle)


def _move(partial: Path, path: Path, replace: bool) -> None:
    """Puts a finished folder in its place.

    A folder can only be renamed onto nothing or an empty folder, so what is there is renamed away
    first; if another process wins the race with a sound store, that stays.
    """
    old = partial.with_name(f"{partial.name}-old")
    while True:
        if replace:
            with contextlib.suppress(FileNotFoundError):
                path.rename(old)
            shutil.rmtree(old, ignore_errors=True)
            with contextlib.suppress(OSError):  # Where it was a file.
                old.unlink()
        try:
            partial.rename(path)
            return
        except OSError:
            if not path.exists():
                raise
        try:
            open_store(path)
            return
        except StoreDamaged:
            replace = True
