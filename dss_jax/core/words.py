"""A label as a word of its own, whatever the script. Standard library only."""

import functools
import re
import unicodedata
from collections.abc import Iterator

UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u9fff\ua960-\ua97f"
    "\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Characters of Thai, Lao, Tibetan, Burmese, Khmer, Chinese, Japanese and Korean, where a word may
go on in the next one or in a particle.
"""

LAST_SCRIPT = 0x20000
"""Above it are Chinese characters alone."""

_LETTER = re.compile(f"[^\\W{UNSPACED}]")


@functools.lru_cache(maxsize=4096)
def _own_word(word: str) -> re.Pattern[str]:
    """Matches a word that is no part of another; in scripts without spaces, wherever it stands."""
    before = "" if re.match(f"[{UNSPACED}]", word) else f"(?<![^\\W{UNSPACED}])"
    after = "" if re.match(f"[{UNSPACED}]", word[-1:]) else f"(?![^\\W{UNSPACED}])"
    return re.compile(f"{before}{re.escape(word)}{after}")


def places(word: str, text: str) -> Iterator[int]:
    """Where: see `word_in`."""
    # Most often it does not, and a pattern of each word would have to be made.
    for found in _own_word(word).finditer(text) if word and word in text else ():
        start, end = found.span()
        before, after = text[max(0, start - 1) : start], text[end : end + 1]
        if not (_tied(text, start, before) or _tied(text, end, after)):
            yield start


def word_in(word: str, text: str) -> bool:
    """Whether `word` stands in `text`, not as a part of other words."""
    return next(places(word, text), None) is not None


def _tied(text: str, at: int, beside: str) -> bool:
    """Whether what is `beside` a place, a vowel sign of Hindi's or a joiner of Persian's, is of the
    word that goes on there. Python takes neither for a part of a word.
    """
    if beside.isascii() or not _is_mark(beside):
        return False
    while at and _is_mark(text[at - 1]):
        at -= 1
    return bool(at and _LETTER.match(text, at - 1))


@functools.cache
def marks() -> str:
    """All of these, for a class of a pattern."""
    return "".join(filter(_is_mark, map(chr, range(0x300, LAST_SCRIPT))))


def _is_mark(character: str) -> bool:
    return character in "\u200c\u200d" or unicodedata.category(character) in ("Mn", "Mc")
