"""Vocabularies that are the files of a Hugging Face tokenizer: `tokenizer.json`, or ByT5's bytes.

The ids of a text are those that `transformers` gives, `</s>` and added tokens in it included; so
are the tokens that a template puts before a text, CodeT5's `<s>` for one.
"""

import abc
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from dss_jax.core.errors import UsageError
from dss_jax.core.lfs import refuse_pointer
from dss_jax.core.texts import utf8, well_formed
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
)

MOST_WORDS, LONGEST_WORD = 2**19, 32
"""Words whose ids are remembered, and their longest."""

_SAME_ALONE = ("Precompiled", "NFC", "NFD", "NFKC", "NFKD", "Lowercase")
"""Normalizers that make the same of a word alone as in its text."""

_MARKS = "[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]"
"""Characters that may change together with the space before them."""

_SPACED_WORD = re.compile(r"\s*\S+|\s+")


def _at_spaces(text: str) -> list[str]:
    return text.split(" ")


def _at_single_spaces(text: str) -> list[str]:
    words = text.split(" ")
    return [text] if "" in words or "▁" in text else words


def _splitter(spec: Mapping[str, Any]) -> Callable[[str], list[str]] | None:
    """What cuts texts where a tokenizer itself does; None: nothing is known to. `spec`: the content
    of `tokenizer.json`.
    """

    def steps(name: str, parts: str) -> list[dict[str, Any]]:
        one = spec.get(name) or {"type": "Sequence", parts: []}
        return one[parts] if one["type"] == "Sequence" else [one]

    normal, before = steps("normalizer", "normalizers"), steps("pre_tokenizer", "pretokenizers")
    kinds = [one["type"] for one in before]
    metaspaces = [one["prepend_scheme"] for one in before if one["type"] == "Metaspace"]
    if kinds[:1] == ["WhitespaceSplit"] and {*metaspaces} <= {"always"}:  # T5.
        same = all(one["type"] in _SAME_ALONE for one in normal)
        return _at_spaces if same and {*kinds} <= {"WhitespaceSplit", "Metaspace"} else None
    if kinds == ["ByteLevel"]:  # GPT-2, RoBERTa, CodeT5.
        plain = before[0].get("use_regex", True) and not before[0]["add_prefix_space"]
        return _SPACED_WORD.findall if plain and not normal else None
    # Llama: a space begins a word, and no piece goes on over one.
    prepends = [n for n in normal if n == {"type": "Prepend", "prepend": "▁"}]
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    llama = not before and len(prepends) == 1 and normal == [*prepends, spaces]
    metaspace = kinds == ["Metaspace"] and metaspaces != ["never"] and not normal
    if spec["model"]["type"] != "BPE" or not (llama or metaspace):
        return None
    inside = any("▁" in piece.lstrip("▁") for piece in spec["model"]["vocab"])
    return None if inside else _at_single_spaces


class FileTokenizer(Tokenizer):
    """A tokenizer of Hugging Face's."""

    @abc.abstractmethod
    def names(self) -> list[str]:
        """A distinct name for each id."""

    def arrays(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of texts one after another, int32, and how many each has, int64."""
        rows = self.encode_all(texts)
        ids = np.fromiter(chain.from_iterable(rows), np.int32)
        return ids, np.fromiter(map(len, rows), np.int64, len(rows))


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
        try:
            self._backend: Any = tokenizers.Tokenizer.from_file(str(files[FAST]))
        except Exception as error:  # The library raises nothing narrower.
            refuse_pointer(files[FAST])
            raise UsageError(f"{files[FAST]} cannot be read as a tokenizer: {error}.") from error
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
        around = self._backend.encode("").ids
        self.begin = around[: around.index(self.eos_id)] if self.eos_id in around else around
        self._silent |= {*self.begin}
        self._words: dict[str, list[int]] = {}

    def names(self) -> list[str]:
        found = map(self._backend.id_to_token, range(self.vocab_size))
        return [f"<hole_{i}>" if name is None else name for i, name in enumerate(found)]

    def parts(self, text: str) -> list[str]:
        return [text] if self._whole else super().parts(text)

    def encode(self, text: str) -> list[int]:
        ids = self._backend.encode(well_formed(text), add_special_tokens=False).ids
        return [*self.begin, *ids]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        # The library takes three times as long as SentencePiece; most words come again.
        cut, words, begin = self._cut, self._words, self.begin
        rows = [cut(text) for text in map(well_formed, texts)]
        new = [*(set(chain.from_iterable(rows)) - words.keys())]
        every = self._backend.encode_batch_fast(new, add_special_tokens=False)
        words |= {word: one.ids for word, one in zip(new, every, strict=True)}
        found = [[*begin, *chain.from_iterable(map(words.__getitem__, row))] for row in rows]
        for word in new if len(words) < MOST_WORDS else [*words]:
            if len(word) > LONGEST_WORD or len(words) >= MOST_WORDS:
                del words[word]
        return found

    @cached_property
    def _cut(self) -> Callable[[str], list[str]]:
        """Cuts a text into words whose ids, each encoded alone, are together those of the text; or
        leaves it whole.
        """
        spec = json.loads(self._backend.to_str())
        split = _splitter(spec)
        if split is None:
            return lambda text: [text]
        tokens, words_apart = spec["added_tokens"], split is _at_spaces
        odd = "\x1c-\x1f" + "".join(
            re.escape(one["content"][0])
            for one in tokens
            if not words_apart
            or one["lstrip"]
            or one["rstrip"]
            or any(map(str.isspace, one["content"]))
        )
        whole = re.compile(f"[{odd}]| {_MARKS}").search
        return lambda text: [text] if whole(text) else split(text)

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

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        end = 0
        if self._may_hold(text):
            for match in self._added.finditer(text):
                ids += [byte + self.OFFSET for byte in utf8(text[end : match.start()])]
                name = match[0] if match[0] in self._ids else match[0].strip()
                ids.append(self._ids[name])
                end = match.end()
        ids += [byte + self.OFFSET for byte in utf8(text[end:])]
        # An end that is there already is not added, as in transformers.
        return ids[:-1] if ids[-1:] == [self.eos_id] else ids

    def arrays(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of texts one after another, int32, and how many each has, int64."""
        if any(map(self._may_hold, texts)):
            return super().arrays(texts)
        rows = [*map(utf8, texts)]
        ids = np.frombuffer(b"".join(rows), np.uint8).astype(np.int32) + self.OFFSET
        return ids, np.fromiter(map(len, rows), np.int64)

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
