"""A label as a word of its own, whatever the script. Standard library only."""

import functools
import re

UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u9fff\ua960-\ua97f"
    "\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Characters of Thai, Lao, Tibetan, Burmese, Khmer, Chinese, Japanese and Korean, where a word may
go on in the next one or in a particle.
"""


@functools.lru_cache(maxsize=4096)
def own_word(word: str) -> re.Pattern[str]:
    """Matches a word that is no part of another; in scripts without spaces, wherever it stands."""
    before = "" if re.match(f"[{UNSPACED}]", word) else f"(?<![^\\W{UNSPACED}])"
    after = "" if re.match(f"[{UNSPACED}]", word[-1:]) else f"(?![^\\W{UNSPACED}])"
    return re.compile(f"{before}{re.escape(word)}{after}")


def word_in(word: str, text: str) -> bool:
    """Whether `word` stands in `text`, not as a part of other words."""
    # Most often it does not, and a pattern of each word would have to be made.
    return bool(word) and word in text and bool(own_word(word).search(text))
