"""Columns of other methods than two tasks: one target with label and rationale, a rationale as
input, one of several rationales drawn. Shape letters as in `columns`.
"""

import numpy as np

from dss_jax.data.beside import side_by_side
from dss_jax.data.columns import Pair, only
from dss_jax.data.ragged import Ragged, Slices
from dss_jax.data.store import SAMPLES, StoreSplit

ANSWER, BECAUSE = "Answer:", "Rationale:"
"""In a target that holds both, what comes before the label, or before the rationale."""


def unended(tokens: Slices) -> Slices:
    """A column without its end-of-sequences."""
    return Slices(tokens.values, tokens.starts, np.maximum(tokens.ends - 1, tokens.starts))


def endings(tokens: Slices) -> Slices:
    """The end-of-sequences of a column alone."""
    return Slices(tokens.values, np.maximum(tokens.ends - 1, tokens.starts), tokens.ends)


def label_inputs(split: StoreSplit, form: str) -> Slices:
    """What a label is predicted from: the input, for form "rationale_input" with the rationale."""
    inputs: Slices = split.tokens("label_inputs")
    if form != "rationale_input":
        return inputs
    return side_by_side([inputs, split.tokens("rationale_targets")])


def joint_pair(
    split: StoreSplit, form: str, inputs: Slices, labels: Slices, rationales: Slices
) -> Pair:
    """Inputs and targets of a form that is not two tasks."""
    if form == "rationale_input":
        return side_by_side([inputs, rationales]), labels
    return inputs, _joint_targets(split, form, labels, rationales)


def _joint_targets(split: StoreSplit, form: str, labels: Slices, rationales: Slices) -> Ragged:
    """Targets that hold rationale and label. A row without a rationale has its label alone, one
    without a label nothing.
    """
    labelled = labels.lengths() > 0
    explained = labelled & (rationales.lengths() > 0)
    first, second, mark = labels, only(rationales, explained), BECAUSE
    if form == "rationale_label":
        first, second, mark = second, first, ANSWER
    # What a tokenizer puts before each text is there once; and some join words without a space.
    begin = split.encode("")
    a, b = split.encode("a"), split.encode("b")[len(begin) :]
    gap = "" if split.encode("a b") == [*a, *b] else " "
    ids = np.array(split.encode(f"{gap}{mark}{gap}")[len(begin) :], np.int32)
    marks = Slices(ids, np.zeros(len(explained), np.int64), np.where(explained, len(ids), 0))
    after = Slices(second.values, second.starts + len(begin) * explained, second.ends)
    parts = [unended(first), marks, unended(after), endings(labels)]
    return side_by_side(parts)


def label_in(text: str, form: str) -> str:
    """The label in a predicted text; the whole text where it has no mark."""
    if form == "rationale_label":
        return text.rpartition(ANSWER)[2].strip()
    return text.partition(BECAUSE)[0].strip() if form == "label_rationale" else text


def rationale_in(text: str, form: str) -> str:
    """The rationale in a predicted text of a form that has both; "" where it has no mark."""
    found = text.rpartition(ANSWER)[0] if form == "rationale_label" else text.partition(BECAUSE)[2]
    return found.strip()


def drawn(split: StoreSplit) -> tuple[Slices, np.ndarray]:
    """All rationales of each row, as a column of n * D rows, row i's rationale number d at i + n *
    d (those of a row that has fewer come again); and how many each row has, at least 1: int64
    [n].
    """
    first, more = split.tokens("rationale_targets"), split.tokens(SAMPLES)
    ends = np.flatnonzero(np.asarray(more.values) == more.values[-1:]) + 1  # End-of-sequence.
    if not len(ends):
        return first, np.ones(len(first), np.int64)
    # The first of a row's rationales is the one that "rationale_targets" has, so that rows without
    # several need nothing else.
    values = np.concatenate([np.asarray(first.values), np.asarray(more.values)])
    shift, has = len(first.values), more.lengths() > 0
    before = np.searchsorted(ends, more.starts, side="right")
    counts = np.searchsorted(ends, more.ends, side="right") - before
    draws = np.arange(counts.max())[:, None] % np.maximum(counts, 1)
    at = np.minimum(before + draws, len(ends) - 1)
    own = np.where(has, np.concatenate([[0], ends])[at] + shift, first.starts)
    end = np.where(has, ends[at] + shift, first.ends)
    return Slices(values, own.ravel(), end.ravel()), np.maximum(counts, 1)
