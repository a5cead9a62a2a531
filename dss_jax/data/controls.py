"""Rationales that are spoiled on purpose (`Method.control`): what a student then still gains does
not come from what was taken away. Of the kind of arXiv 2406.14511, which shuffles their tokens.

Each is a function of the store's rows and the seed alone. Rows without a rationale stay without.
Shape letters: n rows, T tokens of all rationales, ends left out.
"""

import numpy as np

from dss_jax.core.method_config import Method
from dss_jax.data.beside import side_by_side
from dss_jax.data.columns import only, permutation
from dss_jax.data.joint import endings, unended
from dss_jax.data.ragged import Ragged, Slices

DRAW = 2**32
"""Added to the seed, so that no order of the data comes from the same key."""


def controlled(
    method: Method, seed: int, inputs: Slices, labels: Slices, rationales: Slices, begin: int = 0
) -> Slices:
    """The rationales that `method.control` makes of a split's columns, n rows each, which end in
    end-of-sequence. `begin`: tokens that the tokenizer puts before each text.
    """
    if method.control == "none":
        return rationales
    has = rationales.lengths() > 0
    if method.control == "label":
        return only(labels, has)
    if method.control == "input":
        inputs = _without_inner_ends(only(_without_prefix(inputs), has))
        return side_by_side([_begin(rationales, begin), inputs])
    if method.control in ("other", "same_label"):
        groups = _groups(labels) if method.control == "same_label" else np.zeros(len(has), int)
        return _of_others(rationales, np.where(has, groups, -1), seed)
    starts = np.minimum(rationales.starts + begin, rationales.ends)
    begun = Slices(rationales.values, starts, rationales.ends)
    bodies = side_by_side([unended(begun)])
    rows_T = np.repeat(np.arange(len(has)), bodies.lengths())
    made = bodies
    if method.control == "shuffled":
        made = Ragged(bodies.values[np.lexsort((_draws(rows_T, seed), rows_T))], bodies.offsets)
    elif method.control == "random":
        at = _draws(rows_T, seed) % np.uint64(max(1, len(rows_T)))
        made = Ragged(bodies.values[at.astype(np.int64)], bodies.offsets)
    else:
        ranks_T = np.arange(len(rows_T)) - bodies.starts[rows_T]
        if method.control == "telling":
            order = np.lexsort((ranks_T, -_telling(bodies.values, _groups(labels)[rows_T]), rows_T))
            ranks_T = np.empty_like(ranks_T)
            ranks_T[order] = np.arange(len(rows_T)) - bodies.starts[rows_T]
        kept_T = ranks_T < method.control_tokens
        counts = np.bincount(rows_T[kept_T], minlength=len(has))
        made = Ragged(bodies.values[kept_T], np.concatenate([[0], np.cumsum(counts)]))
    return side_by_side([_begin(rationales, begin), made, endings(rationales)])


def _begin(tokens: Slices, count: int) -> Slices:
    return Slices(tokens.values, tokens.starts, np.minimum(tokens.starts + count, tokens.ends))


def _draws(rows_T: np.ndarray, seed: int) -> np.ndarray:
    """A word for each token, uint64 [T]."""
    return np.random.Philox(key=np.array([seed + DRAW, 0], np.uint64)).random_raw(len(rows_T))


def _groups(labels: Slices) -> np.ndarray:
    """The number of each row's label: int [n]."""
    known: dict[bytes, int] = {}
    return np.array(
        [known.setdefault(labels[i].tobytes(), len(known)) for i in range(len(labels))], int
    )


def _of_others(rationales: Slices, groups: np.ndarray, seed: int) -> Slices:
    """Each row's is that of another row of its group (-1: of none); one that is alone has none."""
    order = permutation(len(groups), seed + DRAW)
    order = order[np.argsort(groups[order], kind="stable")]
    own = groups[order]
    # The next one of the group, of the last one the first.
    first = np.searchsorted(own, own, side="left")
    last = np.searchsorted(own, own, side="right") - 1
    at = np.arange(len(order))
    source = np.empty_like(order)
    source[order] = order[np.where(at < last, at + 1, first)]
    alone = source == np.arange(len(groups))
    return only(rationales.take(source), (groups >= 0) & ~alone)


def _without_prefix(inputs: Slices) -> Slices:
    """Inputs without the tokens that all of them begin with: the prefix of the task, and words of
    its template, which tell nothing.
    """
    values, common = np.asarray(inputs.values), 0
    shortest = inputs.lengths().min() if len(inputs) else 0
    while common < shortest - 1 and len(np.unique(values[inputs.starts + common])) == 1:
        common += 1
    return Slices(inputs.values, inputs.starts + common, inputs.ends)


def _without_inner_ends(tokens: Slices) -> Slices:
    """A column without the end-of-sequences between an input's parts, which would end a target."""
    rows = side_by_side([tokens])
    last = rows.ends[rows.lengths() > 0] - 1
    keep_T = ~np.isin(rows.values, rows.values[last])
    keep_T[last] = True
    kept = np.concatenate([[0], np.cumsum(keep_T)])
    return Ragged(rows.values[keep_T], kept[rows.offsets])


def _telling(values_T: np.ndarray, groups_T: np.ndarray) -> np.ndarray:
    """How much a token tells of its row's label: p(token | label) log(p(token | label) / p(token)),
    its part of the Kullback-Leibler divergence; float [T]. Tf-idf asks whether a label has a token
    at all, and with many rows each has each.
    """
    pairs = np.stack([groups_T, values_T.astype(np.int64)])
    found, inverse, counts = np.unique(pairs, axis=1, return_inverse=True, return_counts=True)
    of_token = np.bincount(values_T)[found[1]] / max(1, len(values_T))
    given_label = counts / np.bincount(groups_T)[found[0]]
    return (given_label * np.log(given_label / of_token))[np.ravel(inverse)]
