"""Exact and near duplicates among texts. Standard library only.

Near: the Jaccard similarity of the sets of word triples. The search is exact, not MinHash: with
prefix filtering (Chaudhuri, Ganti, Kaushik 2006; Bayardo, Ma, Srikant 2007) it is a page of code,
needs no threshold on luck, and takes seconds for 50,000 texts (docs/records.md).
"""

import functools
import itertools
import math
import re
from array import array
from collections import defaultdict
from collections.abc import Sequence

from dss_jax.core.scoring import folded_text
from dss_jax.core.words import UNSPACED, marks

SHINGLE_WORDS = 3
ROUNDING = 1e-9
"""So that 0.8 * 5 is 4 and not a little more."""

_ASCII = re.compile(r"\w+")
"""Finds the same in most texts, three times as fast."""


@functools.cache
def _words() -> re.Pattern[str]:
    own, letters = marks(), rf"[^\W{UNSPACED}]"
    return re.compile(rf"(?=[{UNSPACED}])[\w{own}]|{letters}+(?:[{own}]+{letters}*)*")


def words(text: str) -> list[str]:
    """Of `folded_text`, without punctuation; in scripts without spaces, its characters. Vowel signs
    and accents are kept.
    """
    folded = folded_text(text)
    return (_ASCII if folded.isascii() else _words()).findall(folded)


def shingles(text: str) -> set[str]:
    """The runs of three words; a shorter text as a whole."""
    found = words(text)
    n = max(1, len(found) - SHINGLE_WORDS + 1)
    return {" ".join(found[i : i + SHINGLE_WORDS]) for i in range(n)}


def near_duplicates(texts: Sequence[str], threshold: float) -> list[int | None]:
    """For each text, the number of a kept text before it that is like it; None: the text is kept.
    The first of similar texts stays, and texts are compared to kept ones only. `threshold`:
    least Jaccard similarity of `shingles`, above 0 and at most 1.
    """
    # Numbers in arrays: half a million texts have millions of shingles.
    numbers: dict[str, int] = {}
    sets = [
        array("I", (numbers.setdefault(s, len(numbers)) for s in shingles(text))) for text in texts
    ]
    frequency = array("I", bytes(len(numbers) * array("I").itemsize))
    numbers.clear()
    for shingle in itertools.chain.from_iterable(sets):
        frequency[shingle] += 1
    # Rarest first: two sets that are alike share one of their first few, which few others have.
    order = array("I", frequency)
    for place, shingle in enumerate(sorted(range(len(order)), key=frequency.__getitem__)):
        order[shingle] = place
    for number, one in enumerate(sets):
        sets[number] = array("I", sorted(order[s] for s in one))
    index: defaultdict[int, list[int]] = defaultdict(list)
    found: list[int | None] = []
    for number, one in enumerate(sets):
        members = frozenset(one)
        prefix = one[: len(one) - math.ceil(threshold * len(one) - ROUNDING) + 1]
        candidates = sorted({c for shingle in prefix for c in index[shingle]})
        like = next((c for c in candidates if _alike(sets[c], members, threshold)), None)
        found.append(like)
        if like is None:
            for shingle in prefix:
                index[shingle].append(number)
    return found


def _alike(a: "array[int]", b: frozenset[int], threshold: float) -> bool:
    if min(len(a), len(b)) < threshold * max(len(a), len(b)) - ROUNDING:
        return False
    shared = len(b.intersection(a))
    return shared >= threshold * (len(a) + len(b) - shared) - ROUNDING
