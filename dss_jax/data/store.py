"""The token store: tokens and texts of a task as flat, memory-mapped arrays. NumPy only.

A store is a folder:

    manifest.json                     what it holds, what it was made from, checksums
    vocabulary.model, or vocabulary/  a copy, so that the folder can be moved alone
    <split>/<column>.values.npy       all rows of a column, one after another
    <split>/<column>.offsets.npy      int64 [rows + 1], where each row starts

Token columns hold ids uncut, end-of-sequence included; a row that has no such text (no gold label,
no rationale) has length 0 in its targets. Text columns hold UTF-8 bytes; `allowed_labels` is a
JSON list.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dss_jax.core.digest import file_digest
from dss_jax.core.errors import UsageError, unknown_name
from dss_jax.core.paths import check_name
from dss_jax.data.ragged import Ragged, joined
from dss_jax.data.tokenizer import Tokenizer

FORMAT = 2
"""Rises when the layout of the folder changes."""

TARGETS = {
    "label_targets": "label",
    "teacher_label_targets": "teacher_label",
    "rationale_targets": "rationale",
}
"""Token column -> the field of `Example` that it is made from."""

TOKEN_COLUMNS = (
    "label_inputs",
    "label_targets",
    "teacher_label_targets",
    "rationale_inputs",
    "rationale_targets",
)
SAMPLES = "rationale_samples"
"""A token column that is there where rows have several rationales: all of a row's, each ended by
end-of-sequence.
"""

TEXT_COLUMNS = ("id", "input", "label", "teacher_label", "rationale", "allowed_labels")
MANIFEST, VOCABULARY, TOKENIZER = "manifest.json", "vocabulary.model", "vocabulary"


class StoreDamaged(UsageError):  # noqa: N818
    """A store that is half-written, was changed, or has another format."""


class TextColumn:
    """Texts, decoded when asked for."""

    def __init__(self, utf8: Ragged) -> None:
        self.utf8 = utf8

    def __getitem__(self, row: int | slice) -> Any:
        """The text of a row, or a list of those of some."""
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self.utf8)))]
        return self.utf8[row].tobytes().decode("utf-8")


class StoreSplit:
    """One split of a store.

    Attributes:
      own: rows of the task itself: all, but in `extras.JoinedSplit`.
      encode: text -> ids by the store's vocabulary, without end-of-sequence.
    """

    def __init__(
        self, folder: Path, name: str, entry: Mapping[str, Any], encode: Callable[[str], list[int]]
    ) -> None:
        """`entry`: of the manifest."""
        self.name, self.encode, self.own = name, encode, int(entry["rows"])
        self._columns: dict[str, Ragged] = {}
        for column in entry["columns"]:
            file = f"{folder / name / column}"
            ragged = Ragged(_load(f"{file}.values.npy"), np.array(_load(f"{file}.offsets.npy")))
            if len(ragged) != self.own:
                raise StoreDamaged(f"{folder}: {name}/{column} has {len(ragged)} rows.")
            self._columns[column] = ragged

    def __len__(self) -> int:
        return self.own

    def has(self, column: str) -> bool:
        """Whether the split has a column."""
        return column in self._columns

    def tokens(self, column: str) -> Ragged:
        """A token column: ids with end-of-sequence, unsigned integers of the smallest type."""
        return self._column(column, (*TOKEN_COLUMNS, SAMPLES))

    def text(self, column: str) -> TextColumn:
        """A text column."""
        return TextColumn(self._column(column, TEXT_COLUMNS))

    def _column(self, column: str, kind: tuple[str, ...]) -> Ragged:
        known = [c for c in kind if c in self._columns]
        if column not in known:
            raise unknown_name("store column", column, known)
        return self._columns[column]


_OF_EXTRA = {"label_targets": "teacher_label_targets", "label": None}
"""What an extra row has in place of the gold label: it counts as unlabelled, whatever it has."""


class JoinedSplit(StoreSplit):
    """A task's rows, then others', their teacher's label for gold (as Hsieh et al. with ASDiv)."""

    def __init__(self, main: StoreSplit, extras: Sequence[StoreSplit]) -> None:
        """All have the same vocabulary."""
        self.name, self.encode, self.own = main.name, main.encode, len(main)
        self._main, self._extras = main, extras

    def __len__(self) -> int:
        return self.own + sum(map(len, self._extras))

    def has(self, column: str) -> bool:
        """Whether all have a column; of several rationales a row, any."""
        splits = [self._main, *self._extras]
        return (any if column == SAMPLES else all)(s.has(column) for s in splits)

    def _column(self, column: str, kind: tuple[str, ...]) -> Ragged:
        def of(split: StoreSplit, own: str | None) -> Ragged:
            if own is None or (own == SAMPLES and not split.has(own)):
                return Ragged(np.zeros(0, np.uint8), np.zeros(len(split) + 1, np.int64))
            return split._column(own, kind)

        theirs = [of(split, _OF_EXTRA.get(column, column)) for split in self._extras]
        return joined([of(self._main, column), *theirs])


class TokenStore:
    """A whole store, opened.

    Attributes:
      manifest: what it holds and was made from.
      splits: names of the splits it has.
      vocabulary_path: of its own copy of the vocabulary.
      extra_ids: sentinel ids above the pieces of a SentencePiece model.
      extras: stores of the tasks whose unlabelled rows are trained on, too.
    """

    extras: "tuple[TokenStore, ...]" = ()

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path, self.manifest = path, dict(manifest)
        self.splits = tuple(manifest["splits"])
        own = VOCABULARY if VOCABULARY in manifest["files"] else TOKENIZER
        self.vocabulary_path = path / own
        self.extra_ids = int(manifest["vocabulary"]["extra_ids"])
        self._splits = {
            s: StoreSplit(path, s, e, lambda text: self.vocabulary.encode(text))
            for s, e in manifest["splits"].items()
        }

    @cached_property
    def vocabulary(self) -> Tokenizer:
        """The store's vocabulary, opened."""
        from dss_jax.data.vocabulary import open_vocabulary

        return open_vocabulary(self.vocabulary_path, self.extra_ids)

    @property
    def key(self) -> str:
        """Digest of all that decides its content, that of the extra stores included."""
        return "+".join(str(store.manifest["key"]) for store in (self, *self.extras))

    def split(self, name: str) -> StoreSplit:
        """One split; UsageError: the store lacks it, with the reason where one was recorded."""
        if name in self._splits:
            return self._splits[name]
        reason = self.manifest.get("unavailable", {}).get(name, "")
        raise UsageError(
            f"the store {self.path} has no {name!r} split; it has: {', '.join(self.splits)}. "
            f"{reason}".strip()
        )

    def training_split(self) -> StoreSplit:
        """The training rows, and those of the extra stores after them."""
        own, others = self.split("train"), [extra.split("train") for extra in self.extras]
        return JoinedSplit(own, others) if others else own

    def lacking(self, need: Iterable[str]) -> list[str]:
        """Those of some splits that could not be had when the store was made."""
        return [s for s in need if s in self.manifest.get("unavailable", {})]

    def has(self, column: str) -> bool:
        """Whether every split has the column."""
        return all(s.has(column) for s in self._splits.values())


def open_store(path: str | Path) -> TokenStore:
    """Opens a store after checking format, size and SHA-256 of every file; StoreDamaged: it is not
    there, incomplete, changed, or of another format.
    """
    path = Path(path).expanduser().resolve()
    manifest = _read_manifest(path)
    columns = [f"{s}/{c}" for s, entry in manifest["splits"].items() for c in entry["columns"]]
    try:
        for name in (*columns, *manifest["files"]):
            check_name(name, path / MANIFEST)
    except UsageError as error:
        raise _damaged(path, str(error)) from error
    for name, entry in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise StoreDamaged(f"the token store {path} is incomplete: {name} is missing.")
        size = file.stat().st_size
        if size != entry["size"]:
            raise _damaged(path, f"{name} has {size} bytes, not {entry['size']}.")
        if file_digest(file) != entry["sha256"]:
            raise _damaged(path, f"{name} was changed.")
    return TokenStore(path, manifest)


def _damaged(path: Path, what: str) -> StoreDamaged:
    return StoreDamaged(f"the token store {path} is damaged: {what}")


def key_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of plain JSON, in hex, without its own digest, `sha256`."""
    content = {k: v for k, v in content.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not file.is_file():
        raise StoreDamaged(f"{path} is no token store: it has no {MANIFEST}.")
    try:
        manifest = json.loads(file.read_bytes())
        version, digest = manifest["format"], manifest["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"{MANIFEST} is unreadable.") from error
    if version != FORMAT:
        raise StoreDamaged(
            f"the token store {path} has format {version}, but this version of dss-jax reads "
            f"format {FORMAT}. Make it again with dss prepare."
        )
    if digest != key_of(manifest):
        raise _damaged(path, f"{MANIFEST} was changed.")
    return manifest


def _load(file: str) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except ValueError:
        # An empty array cannot be memory-mapped.
        return np.load(file, allow_pickle=False)
