"""Texts cut into words, of which most come again. Arrow cuts them, in a third of Python's time."""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dss_jax.data.text_rows import arrow_texts
from dss_jax.data.tokenizer import SEPARATOR

_SAME_ALONE = ("Precompiled", "NFC", "NFD", "NFKC", "NFKD", "Lowercase")
"""Normalizers that make the same of a word alone as in its text."""

_JOINS = r"[^\pL\pN\pP\pS\pZ\p{Cc}]|[\x{e33}\x{eb3}\x{ff9e}\x{ff9f}]"
"""Characters that may change together with the space before them (UAX 29: Extend, SpacingMark)."""

_SPACES = "\t\v-\r\x1c-\x1f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""White space that is neither the space nor a line's end."""


class _Cut(NamedTuple):
    """How texts are cut.

    Attributes:
      marked: what stands between two words -> what is put in its place before Arrow cuts.
      mark: where Arrow cuts.
      odd: pattern, for RE2 too, of texts that are not cut so.
      rest: what cuts those.
    """

    marked: Mapping[str, str] = {}
    mark: str = " "
    odd: str = ""
    rest: Callable[[str], list[str]] = lambda text: [text]


_T5 = _Cut(marked={"\n": " "}, odd="$^")
_SPACE_FIRST = _Cut(  # GPT-2, RoBERTa, CodeT5.
    marked={" ": "\0 ", "\n": "\0\n", "\n\0\n": "\n\n"},
    mark="\0",
    odd=f"^ | $|  | \n|\n |\n{{3}}|[ \n][{_SPACES}]|[{_SPACES}][ \n]|\0",
    rest=re.compile(r"\s*\S+|\s+").findall,
)
_NO_RUNS = _Cut(odd="^ | $|  |\u2581")
_LLAMA = _NO_RUNS._replace(
    rest=lambda t: [t] if "▁" in t or t != t.strip(" ") else re.split("(?<! ) ", t)
)


def _steps(part: Any, name: str) -> list[dict[str, Any]]:
    """What a normalizer or pre-tokenizer of the library does, as `tokenizer.json` has it."""
    one: dict[str, Any] = json.loads(part.__getstate__()) if part else {"type": None}
    found: list[dict[str, Any]] = one.get(name, [one] if part else [])
    return found


def _meets_space(token: Any, content: str) -> bool:
    """Whether an added token may take white space of a text."""
    return token.lstrip or token.rstrip or any(map(str.isspace, content))


def _cut_of(backend: Any, added: Collection[Any]) -> _Cut:
    """Where the tokenizer itself cuts texts; nowhere, where that is not known. `added`: its tokens
    that are no pieces.
    """
    normal = _steps(backend.normalizer, "normalizers")
    before = _steps(backend.pre_tokenizer, "pretokenizers")
    kinds = [one["type"] for one in before]
    metaspaces = [one for one in before if one["type"] == "Metaspace"]
    schemes = {one["prepend_scheme"] for one in metaspaces}
    if kinds[:1] == ["WhitespaceSplit"] and schemes <= {"always"}:  # T5.
        same = all(one["type"] in _SAME_ALONE for one in normal)
        same &= {*kinds} <= {"WhitespaceSplit", "Metaspace"}
        if normal:
            normalized = backend.normalizer.normalize_str
            same &= normalized("a\nb c").split() == ["a", "b", "c"]
            same &= not any(t.normalized and _meets_space(t, normalized(t.content)) for t in added)
        return _T5 if same else _Cut()
    if kinds == ["ByteLevel"]:
        plain = before[0].get("use_regex", True) and not before[0]["add_prefix_space"]
        return _SPACE_FIRST if plain and not normal else _Cut()
    # Llama: a space begins a word.
    prepends = [n for n in normal if n == {"type": "Prepend", "prepend": "▁"}]
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    llama = not before and len(prepends) == 1 and normal == [*prepends, spaces]
    llama &= not any(t.normalized and t.content[0] in " ▁" for t in added)
    metaspace = kinds == ["Metaspace"] and schemes != {"never"} and not normal
    metaspace &= all(one["replacement"] == "▁" for one in metaspaces)
    model = backend.model
    if type(model).__name__ != "BPE" or not (llama or metaspace):
        return _Cut()
    pieces = backend.get_vocab(with_added_tokens=False)
    # No piece goes on over a space, nor do unknown ones, and a word's ends are like its inside.
    within = "▁" not in pieces or any("▁" in piece.lstrip("▁") for piece in pieces)
    within |= bool(model.continuing_subword_prefix or model.end_of_word_suffix)
    return _Cut() if within else _LLAMA if llama else _NO_RUNS


def _own_word(added: Collection[Any]) -> str:
    """`SEPARATOR`, where it is a token by itself whatever stands beside it; else ""."""
    holding = [token for token in added if SEPARATOR in token.content]
    alone = [token.content for token in holding] == [SEPARATOR]
    alone = alone and not any(t.lstrip or t.rstrip or t.single_word for t in holding)
    return SEPARATOR if alone else ""


def cutter(backend: Any) -> Callable[[Sequence[str]], Any]:
    """What cuts texts for a tokenizer of the library into words whose ids, each encoded alone, are
    together those of the text: a list array of Arrow's, a row for each text.
    """
    import pyarrow
    from pyarrow import compute

    added = backend.get_added_tokens_decoder().values()
    cut = _cut_of(backend, added)
    firsts = {
        re.escape(one.content[0])
        for one in added
        if cut is not _T5 or _meets_space(one, one.content)
    }
    end = _own_word(added) if cut is _SPACE_FIRST else ""
    marked = {end: f"\0{end}\0"} | {**cut.marked} if end else cut.marked
    whole = f"[\x1c-\x1f{''.join(sorted(firsts))}]|[ \n](?:{_JOINS})"

    def words(texts: Sequence[str]) -> Any:
        column = arrow_texts(texts)
        # What stands beside it is as at a line's end.
        looked = compute.replace_substring(column, end, "\n") if end else column
        odd = compute.match_substring_regex(looked, f"{cut.odd}|{whole}")
        odd = odd.to_numpy(zero_copy_only=False)
        plain = column.filter(~odd)
        for space, mark in marked.items():
            plain = compute.replace_substring(plain, space, mark)
        found = compute.split_pattern(plain, cut.mark)
        if not odd.any():
            return found
        rest = column.filter(odd)
        uncut = compute.match_substring_regex(rest, whole).to_pylist()
        others = [
            [text] if is_whole else cut.rest(text)
            for text, is_whole in zip(rest.to_pylist(), uncut, strict=True)
        ]
        both = pyarrow.concat_arrays([found, pyarrow.array(others, found.type)])
        return both.take(np.argsort(np.argsort(odd, kind="stable")))

    return words
