"""Which characters of texts a vocabulary lacks, or changes in silence; labels it cannot tell apart.

SentencePiece writes an unknown piece for a character that it lacks, which is decoded as ⁇, and its
rule `nmt_nfkc` makes 2 of ², nothing of U+200B. Each distinct character is looked at once.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from dss_jax.core.errors import UsageError
from dss_jax.core.scoring import normal_text
from dss_jax.core.types import DistillationTask, Example
from dss_jax.data.download import cached, web_address
from dss_jax.data.ragged import Ragged
from dss_jax.data.tokenizer import Tokenizer
from dss_jax.data.vocabulary import BYTES, resolve, wanted

CHUNK = 4096
"""Texts that are looked at at once."""

SHOWN = 20
"""Characters that are named, the most frequent."""

FEW_LABELS = 20
"""At most so many different gold labels are a set to choose from."""

REMEDY = (
    "Give a model and the --vocabulary of it that has their characters (mT5, umT5), or write other "
    "labels"
)

_KEPT, _LACKING, _CHANGED = 1, 2, 3


class Characters:
    """Counts of the texts of columns: rows and characters, lacking and changed."""

    def __init__(self, vocabulary: Tokenizer) -> None:
        self._vocabulary = vocabulary
        self._kinds = np.zeros(0x110000, np.int8)  # Of each code point; 0: not met yet.
        self._becomes: dict[int, str] = {}
        self._rows: dict[str, Counter[int]] = defaultdict(Counter)
        self._times: dict[str, Counter[int]] = defaultdict(Counter)

    def add(self, column: str, texts: Ragged) -> None:
        """Counts in texts of a column as UTF-8: uint8 [bytes]."""
        for first in range(0, len(texts), CHUNK):
            offsets = texts.offsets[first : first + CHUNK + 1]
            utf8 = np.asarray(texts.values[offsets[0] : offsets[-1]])
            self._add(column, utf8, offsets - offsets[0])

    def _add(self, column: str, utf8: np.ndarray, offsets: np.ndarray) -> None:
        codes = np.frombuffer(utf8.tobytes().decode("utf-8").encode("utf-32-le"), np.uint32)
        present = np.flatnonzero(np.bincount(codes))
        for code in present[self._kinds[present] == 0]:
            self._kinds[code] = self._kind(int(code))
        kinds = self._kinds[codes]
        odd = np.flatnonzero(kinds > _KEPT)
        if not len(odd):
            return
        # Bytes 10xxxxxx go on with a character.
        at = np.flatnonzero((utf8 & 0xC0) != 0x80)[odd]
        rows = np.searchsorted(offsets, at, side="right")
        for kind in (_LACKING, _CHANGED):
            self._rows[column][kind] += len(np.unique(rows[kinds[odd] == kind]))
        self._times[column].update(codes[odd].tolist())

    def _kind(self, code: int) -> int:
        text = chr(code)
        # White space becomes a space everywhere; a combining mark is met alone nowhere.
        if text.isspace() or unicodedata.combining(text):
            return _KEPT
        ids = self._vocabulary.encode(text)
        if self._vocabulary.unk_id in ids:
            return _LACKING
        decoded = self._vocabulary.decode(ids)
        self._becomes[code] = decoded
        return _KEPT if decoded == text else _CHANGED

    def found(self) -> dict[str, dict[str, Any]]:
        """What is odd, as JSON, of columns with something odd: `lacking_rows`, `changed_rows`, and
        of the most frequent characters `lacking`: character -> times, `changed`: character ->
        [times, text that it becomes].
        """
        return {column: self._of(column) for column in self._times}

    def _of(self, column: str) -> dict[str, Any]:
        times = self._times[column].most_common()
        lacking = {chr(code): n for code, n in times if self._kinds[code] == _LACKING}
        changed = {
            chr(code): [n, self._becomes[code]]
            for code, n in times
            if self._kinds[code] == _CHANGED
        }
        return {
            "lacking_rows": self._rows[column][_LACKING],
            "changed_rows": self._rows[column][_CHANGED],
            "lacking": dict(islice(lacking.items(), SHOWN)),
            "changed": dict(islice(changed.items(), SHOWN)),
        }


def vocabulary_at_hand(task: DistillationTask) -> Path | None:
    """What `vocabulary.resolve` gives, where that is on this machine; None: it would be fetched."""
    name = wanted(None, task)
    file = cached(web_address(name)) if "://" in name else Path(name).expanduser()
    return resolve(None, task) if name == BYTES or file.exists() else None


def check_labels(
    task: DistillationTask, examples: Iterable[Example], vocabulary: Tokenizer
) -> None:
    """Raises UsageError where two labels to choose from have the same ids, though they are neither
    the same text nor the same to the task's scorer: of the task, of a row, and the gold labels
    where they are few.
    """
    gold: dict[str, None] = {}
    choices = {task.labels: None}
    for example in examples:
        choices[example.allowed_labels] = None
        if example.label and len(gold) <= FEW_LABELS:
            gold[example.label] = None
    if len(gold) <= FEW_LABELS:
        choices[tuple(gold)] = None
    labels = [*dict.fromkeys(chain.from_iterable(choices))]
    ids = dict(zip(labels, map(tuple, vocabulary.encode_all(labels)), strict=True))
    clashes: dict[tuple[str, str], str] = {}
    for choice in choices:
        seen: dict[Sequence[int], str] = {}
        for label in choice:
            other = seen.setdefault(ids[label], label)
            alike = normal_text(other) == normal_text(label)
            if not (alike or task.scorer.correct(other, label)):
                clashes[other, label] = vocabulary.decode(ids[label])
    if clashes:
        listed = [f"{a!r} and {b!r} (both {text!r})" for (a, b), text in clashes.items()]
        more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
        raise UsageError(
            f"labels of task {task.name!r} that this vocabulary writes alike, so that no student "
            f"can tell them apart: {'; '.join(listed[:SHOWN])}{more}. {REMEDY}."
        )


def shown(found: Mapping[str, Any]) -> tuple[str, str]:
    """What of a column is lacking, and what is changed, for people."""
    lacking = [f"{_name(c)} ({times:,})" for c, times in found["lacking"].items()]
    changed = [
        f"{_name(c)} ({times:,}, becomes {text!r})" for c, (times, text) in found["changed"].items()
    ]
    return ", ".join(lacking), ", ".join(changed)


def lines(columns: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """A column's name, and a line about it, of `Characters.found`."""
    for column, found in columns.items():
        kinds = zip(("lacking", "changed"), ("the vocabulary lacks", "it changes"), strict=True)
        for (kind, what), named in zip(kinds, shown(found), strict=True):
            if named:
                count = found[f"{kind}_rows"]
                yield column, f"{column}: {count:,} rows with characters that {what}: {named}"


def _name(character: str) -> str:
    return character if character.isprintable() else f"U+{ord(character):04X}"
