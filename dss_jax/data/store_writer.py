"""Writes a token store: whole or not at all. NumPy only."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import socket
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dss_jax.data.store import (
    FORMAT,
    MANIFEST,
    SAMPLES,
    TEXT_COLUMNS,
    TOKEN_COLUMNS,
    VOCABULARY,
    StoreDamaged,
    TokenStore,
    manifest_digest,
    open_store,
)


class RaggedBuilder:
    """Collects rows of integers."""

    def __init__(self, typecode: str) -> None:
        self._values = array(typecode)
        self._offsets = array("q", [0])

    def append(self, row: Sequence[int] | bytes) -> None:
        """Adds a row."""
        if isinstance(row, bytes):
            self._values.frombytes(row)  # Several times as fast as one number after another.
        else:
            self._values.extend(row)
        self._offsets.append(len(self._values))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """(values in the smallest unsigned type that holds them, offsets int64 [rows + 1])."""
        values = np.array(self._values)
        if len(values) and values.min() < 0:
            raise ValueError("token ids must not be negative")
        dtype = np.min_scalar_type(int(values.max(initial=0)))
        return values.astype(dtype), np.array(self._offsets, np.int64)


class SplitBuilder:
    """Collects the rows of a split."""

    def __init__(self, tokens: Sequence[str], texts: Sequence[str]) -> None:
        """Declares the columns, of `TOKEN_COLUMNS`, `SAMPLES` and `TEXT_COLUMNS`."""
        assert set(tokens) <= {*TOKEN_COLUMNS, SAMPLES}
        assert set(texts) <= set(TEXT_COLUMNS)
        self._tokens = {c: RaggedBuilder("i") for c in tokens}
        self._texts = {c: RaggedBuilder("B") for c in texts}

    def append(self, tokens: Mapping[str, Sequence[int]], texts: Mapping[str, str]) -> None:
        """Adds a row; it must fill every column."""
        assert tokens.keys() == self._tokens.keys()
        assert texts.keys() == self._texts.keys()
        for column, ids in tokens.items():
            self._tokens[column].append(ids)
        for column, text in texts.items():
            self._texts[column].append(text.encode("utf-8"))

    def __len__(self) -> int:
        return len(next(iter((self._tokens | self._texts).values())))

    @property
    def names(self) -> list[str]:
        """The columns."""
        return [*self._tokens, *self._texts]

    def columns(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """(column, values, offsets)."""
        for column, builder in (self._tokens | self._texts).items():
            yield column, *builder.arrays()


def write_store(
    path: Path,
    splits: Mapping[str, SplitBuilder],
    vocabulary_file: Path,
    extra_ids: int,
    description: Mapping[str, Any],
    *,
    replace: bool = False,
) -> TokenStore:
    """Writes a store beside its place and moves it there when it is complete.

    Args:
      path: where it shall be. A damaged store there is replaced; where another process has put a
        sound one meanwhile, that is kept.
      splits: split -> rows.
      vocabulary_file: copied into the store.
      extra_ids: sentinel ids above the vocabulary's pieces.
      description: further fields of the manifest.
      replace: whether a sound store that is there is replaced too.

    Returns:
      The store, opened from `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f"{_partial_prefix(path)}{os.getpid()}-{secrets.token_hex(4)}"
    partial.mkdir()
    try:
        shutil.copyfile(vocabulary_file, partial / VOCABULARY)
        for name, split in splits.items():
            (partial / name).mkdir()
            for column, values, offsets in split.columns():
                np.save(partial / name / f"{column}.values.npy", values)
                np.save(partial / name / f"{column}.offsets.npy", offsets)
        manifest = _manifest(partial, splits, extra_ids, description)
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        (partial / MANIFEST).write_text(text, encoding="utf-8")
        _sync(partial)
        _move(partial, path, replace)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_store(path)


def remove_leftovers(path: Path) -> None:
    """Deletes what interrupted writers of this store left on this machine."""
    for folder in path.parent.glob(f"{_partial_prefix(path)}*"):
        pid = folder.name.removeprefix(_partial_prefix(path)).partition("-")[0]
        if not (pid.isdigit() and _alive(int(pid))):
            shutil.rmtree(folder, ignore_errors=True)


def _partial_prefix(path: Path) -> str:
    return f".partial-{path.name}-{socket.gethostname()}-"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _manifest(
    folder: Path, splits: Mapping[str, SplitBuilder], extra_ids: int, description: Mapping[str, Any]
) -> dict[str, Any]:
    files = {}
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        name = file.relative_to(folder).as_posix()
        files[name] = {"size": file.stat().st_size, "sha256": digest}
    manifest: dict[str, Any] = {
        "format": FORMAT,
        **description,
        "vocabulary": {"sha256": files[VOCABULARY]["sha256"], "extra_ids": extra_ids},
        "splits": {
            name: {"rows": len(split), "columns": split.names} for name, split in splits.items()
        },
        "files": files,
    }
    # As JSON gives it back, or tuples and integer keys would change the digest.
    manifest = json.loads(json.dumps(manifest))
    return {**manifest, "sha256": manifest_digest(manifest)}


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
    while True:
        if replace:
            _discard(path, partial)
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


def _discard(path: Path, partial: Path) -> None:
    old = partial.with_name(f"{partial.name}-old")
    with contextlib.suppress(FileNotFoundError):
        path.rename(old)
    if old.is_dir():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.unlink(missing_ok=True)
