"""Which rows to buy rationales of, or to train on, before all are paid for. `dss records select`;
docs/records.md.

Each way is a function of the rows and the seed, whatever order the rows are in. It gives ids in the
order of its choice: the first are what a smaller budget would have. Rows that are equal to it come
in an order drawn from the seed and the id.

Shape letters: n rows, m targets, V words.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse
from tqdm import tqdm

from dss_jax.core.errors import UsageError
from dss_jax.core.scoring import label_shares
from dss_jax.core.texts import utf8
from dss_jax.records.near import words

Texts = Mapping[str, str]
"""Id -> input."""

DECIMALS = 9
"""Of similarities, so that rounding decides nothing."""


def drawn(ids: Iterable[str], seed: int) -> list[str]:
    """Ids in an order that the seed and each id alone decide: more ids move none of the others."""

    def place(name: str) -> tuple[bytes, str]:
        return hashlib.blake2b(utf8(f"{seed}:{name}"), digest_size=8).digest(), name

    return sorted(ids, key=place)


def by_score(scores: Mapping[str, float], budget: int, seed: int) -> list[str]:
    """The ids with the highest scores."""
    return sorted(drawn(scores, seed), key=scores.__getitem__, reverse=True)[:budget]


def nearest(rows: Texts, targets: Iterable[str], budget: int, seed: int) -> list[str]:
    """The rows that are most like the targets' texts, by the cosine of their TF-IDF: the nearest of
    each target, then the second nearest of each, and so on; last those that are like none.
    """
    ids = drawn(rows, seed)
    wanted = sorted(set(targets))
    every_nxV = tf_idf([*(rows[i] for i in ids), *wanted])
    rows_nxV, targets_mxV = every_nxV[: len(ids)], every_nxV[len(ids) :]
    best = np.full(len(ids), budget)
    for target in tqdm(range(len(wanted)), desc="targets", unit="row", disable=None, leave=False):
        far = -_like(rows_nxV, targets_mxV[[target]])
        # Those that are as near as the last of the budget stay, so that the stable sort decides.
        near = np.flatnonzero(far <= np.partition(far, budget - 1)[budget - 1])
        near = near[far[near] < 0]  # A row with no word of it is no neighbour.
        order = near[np.argsort(far[near], kind="stable")[:budget]]
        best[order] = np.minimum(best[order], np.arange(len(order)))
    return [ids[i] for i in np.argsort(best, kind="stable")[:budget]]


def diverse(rows: Texts, budget: int, seed: int) -> list[str]:
    """Rows that leave no row far from all of them: greedy k-center (Gonzalez 1985; as a core-set,
    Sener and Savarese 2018, arXiv 1708.00489) by the cosine of their TF-IDF. The first is drawn,
    each further one is the farthest from those before it.
    """
    ids = drawn(rows, seed)
    rows_nxV = tf_idf([rows[i] for i in ids])
    far, chosen = np.full(len(ids), math.inf), list[int]()
    without = np.diff(rows_nxV.indptr) == 0  # No word: like each other, and like nothing else.
    for _ in tqdm(range(budget), desc="rows", unit="row", disable=None, leave=False):
        chosen.append(int(far.argmax()))
        like = without if without[chosen[-1]] else _like(rows_nxV, rows_nxV[chosen[-1:]])
        far = np.minimum(far, 1.0 - like)
        far[chosen[-1]] = -1
    return [ids[i] for i in chosen]


def _like(rows_nxV: Any, row_1xV: Any) -> np.ndarray:
    return (rows_nxV @ row_1xV.toarray()[0]).round(DECIMALS)


def tf_idf(texts: Sequence[str]) -> Any:
    """Rows of length 1, or 0 without words, sparse [n, V]: counts of words, times 1 + log((1 + n) /
    (1 + rows that have the word)), as scikit-learn's `TfidfVectorizer`.
    """
    numbers: dict[str, int] = {}
    counts = [Counter(words(text)) for text in texts]
    at = np.array([numbers.setdefault(w, len(numbers)) for own in counts for w in own], int)
    ends = np.cumsum([0, *map(len, counts)])
    idf = 1 + np.log((1 + len(texts)) / (1 + np.bincount(at, minlength=len(numbers))))
    values = np.fromiter((c for own in counts for c in own.values()), float, len(at)) * idf[at]
    rows = np.repeat(np.arange(len(texts)), np.diff(ends))
    lengths = np.sqrt(np.bincount(rows, values**2, minlength=len(texts)))
    shape = len(texts), max(1, len(numbers))
    return sparse.csr_array((values / lengths[rows], at, ends), shape=shape)


def difficulty(line: Mapping[str, Any]) -> float:
    """How hard a row is for a student, by a line of its predictions: 1 - the gold label's share of
    what the allowed ones have; without probabilities, whether it was wrong; without a gold label,
    1 - that of what was predicted (least confidence, Lewis and Gale 1994). Raises UsageError where
    the line has none of these, or a gold label that is not allowed.
    """
    log_probs, gold = line.get("label_log_probs"), line.get("target")
    found = log_probs if isinstance(log_probs, dict) else {}
    # JSON has null for what cannot be: -inf.
    known = {label: -math.inf if p is None else p for label, p in found.items()}
    if any(p is not None for p in found.values()) and all(map(_is_number, known.values())):
        if gold is not None and gold not in [*found]:
            raise UsageError(
                f"the target of {line.get('id')!r} is {gold!r}, which is not among the labels of "
                f"its label_log_probs: {', '.join(found)}."
            )
        own = label_shares(known)
        return 1 - (max(own.values()) if gold is None else own[gold])
    if isinstance(line.get("correct"), bool):
        return float(not line["correct"])
    if _is_number(line.get("probability")):
        return float(1 - line["probability"])
    raise UsageError(
        f"the prediction of {line.get('id')!r} has neither label_log_probs, correct nor "
        "probability. dss eval --split train --decode rank writes them."
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)
