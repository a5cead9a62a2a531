"""Vocabularies that are the files of a Hugging Face tokenizer: `tokenizer.json`, or ByT5's bytes.

The ids of a text are those that `transformers` gives, `</s>` and added tokens in it included; so
are the tokens that a template puts before a text, CodeT5's `<s>` for one.
"""

import abc
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from dss_jax.core.errors import UsageError
from dss_jax.core.texts import utf8, well_formed
from dss_jax.data.beside import side_by_side
from dss_jax.data.ragged import Ragged, Slices, join_rows, joined
from dss_jax.data.text_rows import byte_rows, text_column
from dss_jax.data.tokenizer import SEPARATOR, Tokenizer
from dss_jax.data.tokenizer_files import (
    BYTE_CLASS,
    FAST,
    FLAGS,
    NAMES,
    PIECES,
    SETTINGS,
    SILENT,
    added_tokens,
    files_of,
    is_bytes,
    roles_of,
    settings_of,
    text_of,
)
from dss_jax.data.word_cuts import cutter

MOST_WORDS = 2**18
"""Whose ids are remembered."""

CHUNK = 256
"""Words in one text for the library."""

LONGEST_WORD = 32
"""Characters; a longer one hardly comes again, and is a whole text where nothing cuts."""

_MARK = b"\xff"
"""No text has it in UTF-8."""


def behind_each(
    arrays: Callable[[Sequence[str]], Ragged], prefixes: Sequence[str], texts: Sequence[str]
) -> list[Ragged]:
    """For each prefix what `arrays` gives for the texts behind it."""
    return [arrays([prefix + text for text in texts]) for prefix in prefixes]


class FileTokenizer(Tokenizer):
    """A tokenizer of Hugging Face's."""

    @abc.abstractmethod
    def names(self) -> list[str]:
        """A distinct name for each id."""

    @abc.abstractmethod
    def arrays(self, texts: Sequence[str]) -> Ragged:
        """Ids of each text, int32."""

    def behind(self, prefixes: Sequence[str], texts: Sequence[str]) -> list[Ragged]:
        """For each prefix the ids of each text behind it, as `arrays` has them."""
        return behind_each(self.arrays, prefixes, texts)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        found = self.arrays(texts)
        return [found[row].tolist() for row in range(len(found))]


def open_backend(text: str, origin: str) -> Any:
    """The library's tokenizer, of the text of a `tokenizer.json`; UsageError: it is none."""
    import tokenizers

    with _explained(f"{origin} cannot be read as a tokenizer"):
        return tokenizers.Tokenizer.from_str(text)


@contextmanager
def _explained(said: str) -> Iterator[None]:
    """Raises UsageError for whatever the library raises."""
    try:
        yield
    except BaseException as error:  # What Rust panics with is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UsageError(f"{said}: {error}.") from error


class _Words(dict[str, int]):
    """Numbers of words; the ids of word n are `flat[ends[n] : ends[n + 1]]`. Both arrays have
    room behind what is remembered, where those of long words lie for one call.
    """

    def __init__(self) -> None:
        self.flat, self.ends = np.zeros(1, np.int32), np.zeros(1, np.int64)

    def ids(
        self, words: list[str], places: np.ndarray, encoded: Callable[[list[str]], Ragged]
    ) -> tuple[Any, Any]:
        """Of words at these places of `words`, which are distinct, one after another, and how many
        each has. What it takes hangs on these words alone, not on how many are remembered.
        """
        known = len(self)
        new = [word for word in words if word not in self]
        long = {word for word in new if len(word) > LONGEST_WORD}
        if new:
            new.sort(key=long.__contains__)
            found = encoded(new)
            end = self.ends[known]
            self.flat = _behind(self.flat, end, found.values)
            self.ends = _behind(self.ends, known + 1, end + found.ends)
            self.update(zip(new, range(known, known + len(new)), strict=True))
        at = np.fromiter(map(self.__getitem__, words), np.int64, len(words))[places]
        for word in long:
            del self[word]
        starts, ends = self.ends[:-1], self.ends[1:]
        lengths = ends[at] - starts[at]
        return join_rows(Slices(self.flat, starts, ends), at, lengths), lengths


def _behind(held: np.ndarray, used: int, more: np.ndarray) -> np.ndarray:
    """`held` with `more` after its first `used`; where that needs room, it gets twice as much."""
    if (end := used + len(more)) > len(held):
        held = np.concatenate([held[:used], np.zeros(end, held.dtype)])
    held[used:end] = more
    return held


class FastTokenizer(FileTokenizer):
    """A `tokenizer.json`, by the `tokenizers` library.

    Attributes:
      begin: ids that its template puts before each text.
    """

    def __init__(self, path: Path, files: Mapping[str, Path]) -> None:
        """Opens it. UsageError: it cannot be read, has no end-of-sequence, or tokens that its other
        files add would have other ids.
        """
        import tokenizers

        self.path = path
        self._backend = open_backend(text_of(files[FAST]), str(files[FAST]))
        # It would cut texts, or fill them up.
        self._backend.no_truncation()
        self._backend.no_padding()
        beside = {name: file for name, file in files.items() if name != FAST}
        added = sorted(added_tokens(beside).items())
        for number, token in added:
            name = str(token["content"])
            if self._backend.token_to_id(name) is None:
                flags = {flag: token[flag] for flag in FLAGS if flag in token}
                self._backend.add_tokens([tokenizers.AddedToken(name, **flags)])
            if (there := self._backend.token_to_id(name)) != number:
                raise UsageError(
                    f"{path}: the added token {name!r} has the id {number} in one file and {there} "
                    f"in {FAST}. Save the tokenizer again with transformers."
                )
        names = roles_of(settings_of(files))
        ids = {role: self._backend.token_to_id(name) for role, name in names.items()}
        if ids["eos_token"] is None:
            raise UsageError(
                f"{path}: the tokenizer has no end-of-sequence {names['eos_token']!r}, which T5 "
                f'needs. Name it in {SETTINGS}: "eos_token".'
            )
        self.pad_id, self.eos_id, self.unk_id = ids["pad_token"], ids["eos_token"], ids["unk_token"]
        self._silent = {ids[role] for role in SILENT if role in ids}
        self._whole = self._backend.token_to_id(SEPARATOR) == self.eos_id
        ids_in_use = self._backend.get_vocab(with_added_tokens=True).values()
        self.vocab_size = max(ids_in_use) + 1  # Some leave ids out.
        found = (self._backend.token_to_id(f"<extra_id_{n}>") for n in range(self.vocab_size))
        self.sentinels = [*iter(lambda: next(found, None), None)]
        self.extra_ids = len(self.sentinels)
        with _explained(f"{files[FAST]} cannot be read as a tokenizer"):
            around = self._backend.encode("a")
        of_text = [place for place, one in enumerate(around.special_tokens_mask) if not one]
        of_text = of_text or [[*around.ids, self.eos_id].index(self.eos_id)]  # "a" has no ids.
        self.begin, end = around.ids[: of_text[0]], around.ids[of_text[-1] + 1 :]
        if self.eos_id in self.begin or end not in ([], [self.eos_id]):
            before, behind = ([*map(self._backend.id_to_token, x)] for x in (self.begin, end))
            raise UsageError(
                f"{path}: its template puts {before} before a text and {behind} behind it; "
                f"end-of-sequence is {names['eos_token']!r}, which alone may stand behind it. Name "
                f'the token that ends a text in {SETTINGS}: "eos_token".'
            )
        self._silent |= {*self.begin}
        self._lock = threading.Lock()
        self._words = _Words()

    @cached_property
    def _cut(self) -> Callable[[Sequence[str]], Any]:
        return cutter(self._backend)

    def names(self) -> list[str]:
        found = map(self._backend.id_to_token, range(self.vocab_size))
        return [f"<hole_{i}>" if name is None else name for i, name in enumerate(found)]

    def parts(self, text: str) -> list[str]:
        return [text] if self._whole else super().parts(text)

    def _encoded(self, texts: list[str]) -> Ragged:
        """Ids of texts, each by itself."""
        parts = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
        with _explained(f"{self.path}: {FAST} has no ids for a text"):
            # As words of a few texts: what the library makes for a text takes longer than ids.
            found = self._backend.encode_batch(
                parts, is_pretokenized=True, add_special_tokens=False
            )
        ids = np.fromiter(chain.from_iterable(one.ids for one in found), np.int32)
        counts = [
            np.bincount(np.array(one.word_ids, np.int64), minlength=len(part))
            for one, part in zip(found, parts, strict=True)
        ]
        return Ragged(ids, np.cumsum(np.concatenate([[0], *counts])))

    def encode(self, text: str) -> list[int]:
        return [*self.begin, *self._encoded([well_formed(text)])[0].tolist()]

    def arrays(self, texts: Sequence[str]) -> Ragged:
        # The library takes three times as long as SentencePiece; most words come again.
        return self._of_words(self._cut(texts))

    def _of_words(self, words: Any) -> Ragged:
        """Ids of each row of words, a list array of Arrow's."""
        places = words.flatten().dictionary_encode()
        with self._lock:
            known = self._words
            self._words = _Words()  # Of a text that has no ids nothing stays.
            ids, lengths = known.ids(
                places.dictionary.to_pylist(), places.indices.to_numpy(), self._encoded
            )
            if len(known) <= MOST_WORDS:
                self._words = known
        ends = np.concatenate([[0], np.cumsum(lengths)])[words.offsets.to_numpy()]
        if self.begin:
            ids = np.insert(ids, np.repeat(ends[:-1], len(self.begin)), self.begin * len(words))
        return Ragged(ids, ends + len(self.begin) * np.arange(len(ends)))

    def behind(self, prefixes: Sequence[str], texts: Sequence[str]) -> list[Ragged]:
        # Texts are cut and looked up behind one of them: where the others end as it does, what
        # follows is the same, but in texts that are not cut at all.
        first, *others = prefixes
        words = self._cut([first + text for text in texts])
        found = self._of_words(words)
        heads = self._cut([prefix + "a" for prefix in prefixes]).to_pylist()
        if len({row.pop() for row in heads}) > 1 or not all(heads):
            return [found, *super().behind(others, texts)]
        cut = np.diff(words.offsets.to_numpy()) > len(heads[0])
        uncut = [text for text, is_cut in zip(texts, cut, strict=True) if not is_cut]
        order = np.argsort(np.argsort(~cut, kind="stable"))
        ids = [self.begin + self._encoded(head).values.tolist() for head in heads]
        tails = Slices(found.values, found.starts + len(ids[0]), found.ends).take(cut)
        tails = side_by_side([tails])

        def column(prefix: str, head: list[int]) -> Ragged:
            values = np.insert(tails.values, np.repeat(tails.starts, len(head)), head * len(tails))
            made = Ragged(values, tails.offsets + len(head) * np.arange(len(tails.offsets)))
            if not uncut:
                return made
            both = joined([made, self.arrays([prefix + text for text in uncut])])
            return side_by_side([both.take(order)])

        return [found, *map(column, others, ids[1:])]

    def decode(self, ids: Iterable[int]) -> str:
        known = [int(i) for i in ids]
        if self.eos_id in known:
            known = known[: known.index(self.eos_id)]
        kept = [i for i in known if i not in self._silent]
        return str(self._backend.decode(kept, skip_special_tokens=False))


class ByteTokenizer(FileTokenizer):
    """ByT5's: the bytes of UTF-8, from 3 on, and tokens that were added.

    Its sentinels, of which T5's task of span corruption makes use, are ids of bytes that UTF-8 has
    not, from the highest down, as ByT5 was pre-trained (Xue et al. 2022, arXiv 2105.13626).
    """

    OFFSET, END = 3, 259

    def __init__(self, path: Path, files: Mapping[str, Path]) -> None:
        """`files`: of the folder `path`."""
        self.path, self.extra_ids = path, 100
        self.sentinels = range(self.END - 1, self.END - 1 - self.extra_ids, -1)
        settings = settings_of(files)
        extra = range(settings.get("extra_ids", 125))
        strip = {"lstrip": True, "rstrip": True}
        tokens: dict[int, dict[str, Any]] = {
            i: {"content": name, **strip} for i, name in enumerate(NAMES.values())
        }
        tokens |= {self.END + n: {"content": f"<extra_id_{n}>"} for n in extra}
        tokens |= added_tokens(files)
        self._ids = {str(token["content"]): i for i, token in tokens.items()}
        self._texts = {i: str(token["content"]).encode() for i, token in tokens.items() if i > 2}
        self.vocab_size = max(self.END - 1, *tokens) + 1
        # The longest first, as in transformers.
        listed = sorted(tokens.values(), key=lambda token: -len(str(token["content"])))
        self._added = re.compile(
            "|".join(
                r"\s*" * bool(one.get("lstrip"))
                + f"(?:{re.escape(str(one['content']))})"
                + r"\s*" * bool(one.get("rstrip"))
                for one in listed
            )
        )
        first = "".join(sorted({re.escape(str(one["content"])[0]) for one in listed}))
        self._may_hold = re.compile(f"[{first}]").search

    def names(self) -> list[str]:
        known = {i: name for name, i in self._ids.items()}
        known |= {i: f"<0x{i - self.OFFSET:02X}>" for i in range(self.OFFSET, self.END)}
        return [known.get(i, f"<hole_{i}>") for i in range(self.vocab_size)]

    def identity(self) -> str:
        """What makes it give other ids than another such tokenizer."""
        return f"{self.names()} {self._added.pattern}"

    def parts(self, text: str) -> list[str]:
        return [text]

    def arrays(self, texts: Sequence[str]) -> Ragged:
        added: list[int] = []
        if any(map(self._may_hold, texts)):
            found = byte_rows([self._marked(text, added) for text in texts])
        else:
            found = text_column(texts)
        ids = np.add(found.values, self.OFFSET, dtype=np.int32)
        if added:
            ids[found.values == _MARK[0]] = added
        return Ragged(ids, found.offsets)

    def _marked(self, text: str, added: list[int]) -> bytes:
        """A text's bytes with `_MARK` for each token that was added, whose ids go to `added`."""
        if not self._may_hold(text):
            return utf8(text)
        row, end = bytearray(), 0
        for match in self._added.finditer(text):
            row += utf8(text[end : match.start()]) + _MARK
            name = match[0] if match[0] in self._ids else match[0].strip()
            added.append(self._ids[name])
            end = match.end()
        row += utf8(text[end:])
        # An end that is there already is not added, as in transformers.
        if row[-1:] == _MARK and added[-1] == self.eos_id:
            del row[-1], added[-1]
        return bytes(row)

    def decode(self, ids: Iterable[int]) -> str:
        found = bytearray()
        for i in map(int, ids):
            if i == self.eos_id:
                break
            if i in self._texts:
                found += self._texts[i]
            elif self.OFFSET <= i < self.END:
                found.append(i - self.OFFSET)
        return found.decode("utf-8", errors="ignore")


def open_tokenizer(path: Path) -> FileTokenizer:
    """Opens a tokenizer's folder, or one `tokenizer.json`. UsageError: it holds none that is known
    here, or one without an end-of-sequence.
    """
    files = files_of(path)
    if FAST in files:
        return FastTokenizer(path, files)
    if is_bytes(files):
        return ByteTokenizer(path, files)
    raise UsageError(
        f"{path} holds no vocabulary: neither {PIECES}, {FAST}, nor a {SETTINGS} of {BYTE_CLASS}. "
        "With transformers, AutoTokenizer.from_pretrained(...).save_pretrained(...) writes one."
    )
