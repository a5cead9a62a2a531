"""The rows of a store that a method trains on: which columns, how long, their tokens and order.

An *item* is a row as one epoch sees it: the row's number, or, where an epoch draws one of several
rationales, that number plus the draw times the number of rows.

Shape letters: K roles of the method, n rows of a split, D draws, N items, M = K * N pairs of an
input and a target (those of the first role first).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.flops import Work
from dss_jax.core.ids import EOS_ID, LABEL, RATIONALE
from dss_jax.data.store import SAMPLES, Ragged, Slices, StoreSplit

ANSWER, BECAUSE = "Answer:", "Rationale:"
"""In a target that holds both, what comes before the label, or before the rationale."""

Pair = tuple[Slices, Slices]
"""Inputs and targets of a role."""


def permutation(n: int, *key: int) -> np.ndarray:
    """A permutation of 0 ... n-1, int64 [n], from a key alone: one or two integers of at least 0.

    Sorts a Philox stream (Salmon et al. 2011). NumPy guarantees that raw stream for all time, which
    it does not for `Generator.permutation`; so a run can be repeated years later.
    """
    words = np.zeros(2, np.uint64)
    words[: len(key)] = key
    return np.argsort(np.random.Philox(key=words).random_raw(n), kind="stable")


def join_rows(tokens: Slices, rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Rows of a column, int [R], one after another, each cut to its length, int [R]: int32 [sum of
    lengths]; cut ones end in EOS.
    """
    starts = tokens.starts[rows]
    ends = np.cumsum(lengths)
    at = np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)
    joined = np.asarray(tokens.values)[at].astype(np.int32)
    cut = (lengths > 0) & (tokens.ends[rows] - starts > lengths)
    joined[ends[cut] - 1] = EOS_ID
    return joined


def side_by_side(parts: Sequence[Slices]) -> Ragged:
    """Columns joined row by row: row i is row i of each part, one after another."""
    lengths = np.stack([part.lengths() for part in parts])
    offsets = np.concatenate([[0], np.cumsum(lengths.sum(axis=0))])
    values = np.zeros(offsets[-1], np.int32)
    for part, own, before in zip(parts, lengths, np.cumsum(lengths, axis=0) - lengths, strict=True):
        at = np.repeat(offsets[:-1] + before - (np.cumsum(own) - own), own) + np.arange(own.sum())
        values[at] = join_rows(part, np.arange(len(part)), own)
    return Ragged(values, offsets)


def _only(tokens: Slices, rows: np.ndarray) -> Slices:
    """A column that is empty but for some rows: bool [n]."""
    return Slices(tokens.values, tokens.starts, np.where(rows, tokens.ends, tokens.starts))


def _unended(tokens: Slices) -> Slices:
    """A column without its end-of-sequences."""
    return Slices(tokens.values, tokens.starts, np.maximum(tokens.ends - 1, tokens.starts))


def _everywhere(ids: Sequence[int], rows: np.ndarray) -> Slices:
    """A column that has the same ids in some rows, bool [n], and nothing in the others."""
    starts = np.zeros(len(rows), np.int64)
    return Slices(np.asarray(ids, np.int32), starts, np.where(rows, len(ids), 0))


def label_inputs(split: StoreSplit, form: str) -> Slices:
    """What a label is predicted from: the input, for form "rationale_input" with the rationale."""
    inputs: Slices = split.tokens("label_inputs")
    if form != "rationale_input":
        return inputs
    return side_by_side([inputs, split.tokens("rationale_targets")])


def _joint_targets(split: StoreSplit, form: str, labels: Slices, rationales: Slices) -> Ragged:
    """Targets that hold rationale and label. A row without a rationale has its label alone, one
    without a label nothing.
    """
    labelled = labels.lengths() > 0
    explained = labelled & (rationales.lengths() > 0)
    label, rationale = _unended(labels), _unended(_only(rationales, explained))
    if form == "rationale_label":
        parts = [rationale, _everywhere(split.encode(ANSWER), explained), label]
    else:
        parts = [label, _everywhere(split.encode(BECAUSE), explained), rationale]
    return side_by_side([*parts, _everywhere([EOS_ID], labelled)])


def label_in(text: str, form: str) -> str:
    """The label in a predicted text; the whole text where it has no mark."""
    if form == "rationale_label":
        return text.rpartition(ANSWER)[2].strip()
    return text.partition(BECAUSE)[0].strip() if form == "label_rationale" else text


def rationale_in(text: str, form: str) -> str:
    """The rationale in a predicted text of a form that has both; "" where it has no mark."""
    found = text.rpartition(ANSWER)[0] if form == "rationale_label" else text.partition(BECAUSE)[2]
    return found.strip()


def _drawn(split: StoreSplit) -> tuple[Slices, np.ndarray]:
    """All rationales of each row, as a column of n * D rows, row i's rationale number d at i + n *
    d (those of a row that has fewer come again); and how many each row has, at least 1: int64
    [n].
    """
    first, more = split.tokens("rationale_targets"), split.tokens(SAMPLES)
    ends = np.flatnonzero(np.asarray(more.values) == EOS_ID) + 1
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


class Examples:
    """A method's view of a split: lengths and tokens of items in each of its K `roles`.

    `count` is n. An item of -1 is no example. An example that has no target in a role (no
    rationale) has length 0 there, its input too: it would be computed for nothing.
    """

    _draws: np.ndarray | None = None

    def __init__(
        self,
        columns: Mapping[int, Pair],
        data: config.Data,
        count: int,
        draws: np.ndarray | None = None,
    ) -> None:
        """Takes the columns of each role, cut to `data.input_length` and `data.target_length`.

        `draws`: int64 [n], how many rationales of each row an epoch draws one of; None: no draw.
        """
        self.roles, self.count, self._draws = tuple(columns), count, draws
        self._columns = inputs, targets = tuple(zip(*columns.values(), strict=True))

        def lengths(columns: Sequence[Slices], limit: int) -> np.ndarray:
            # The last column is that of item -1.
            cut = np.stack([np.minimum(c.lengths(), limit) for c in columns])
            return np.pad(cut, ((0, 0), (0, 1))).astype(np.int32)

        self._target_lengths = lengths(targets, data.target_length)
        cut = lengths(inputs, data.input_length)
        self._input_lengths = np.where(self._target_lengths > 0, cut, 0)

    def usable(self, rows: np.ndarray) -> np.ndarray:
        """Those of `rows` that have a target in the first role."""
        return rows[self._target_lengths[0, rows] > 0]

    def items(self, rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """The items that an epoch makes of rows, int [N] -> int [N]: with several rationales, one
        of each row is drawn, from (seed, epoch, row) alone.
        """
        if self._draws is None:
            return rows
        # The permutation of the epoch is counter 0 of the same key.
        words = np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=[0, 0, 0, 1])
        draws = words.random_raw(self.count)[rows] % self._draws[rows].astype(np.uint64)
        return rows + self.count * draws.astype(np.int64)

    def lengths(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lengths of inputs and targets: int [..., N] -> two int32 [K, ..., N]."""
        return self._input_lengths[:, items], self._target_lengths[:, items]

    def longest_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """In each role, of some rows, whatever rationale is drawn: two int32 [K]."""
        draws = 1 if self._draws is None else self._draws.max(initial=1)
        items = (rows + self.count * np.arange(draws)[:, None]).ravel()
        inputs, targets = self.lengths(items)
        return inputs.max(axis=1, initial=1), targets.max(axis=1, initial=1)

    def work(self, items: np.ndarray) -> Work:
        """The useful work of items in all roles: int [N]."""
        inputs, targets = (x.ravel().astype(np.int64) for x in self.lengths(items))
        tokens = int(targets.sum())
        pairs = ((inputs, inputs), (targets, targets), (inputs, targets))
        return Work(int(inputs.sum()), tokens, tokens, *(int(a @ b) for a, b in pairs))

    def longest(self, roles: slice = slice(None)) -> tuple[int, int]:
        """Of the whole split: the longest input and target, of some of the roles."""
        return int(self._input_lengths[roles].max()), int(self._target_lengths[roles].max())

    def inputs(self, items: np.ndarray) -> np.ndarray:
        """Inputs of all roles one after another: int [N] -> int32 [sum of lengths]."""
        return self._side(0, items)

    def targets(self, items: np.ndarray) -> np.ndarray:
        """Targets of all roles one after another: int [N] -> int32 [sum of lengths]."""
        return self._side(1, items)

    def _side(self, side: int, items: np.ndarray) -> np.ndarray:
        at = np.maximum(items, 0)  # Item -1 has length 0: nothing is read there.
        pairs = zip(self._columns[side], self.lengths(items)[side], strict=True)
        return np.concatenate([join_rows(column, at, own) for column, own in pairs])


def examples_of(
    split: StoreSplit, data: config.Data, method: config.Method, right: np.ndarray | None = None
) -> Examples:
    """A method's view of a split of a store.

    `right`: bool [n], rows where the teacher's label is not known to be wrong; only these have
    their rationale, and their teacher's label. None: all rows.
    """
    gold = method.label == "gold"
    labels: Slices = split.tokens("label_targets" if gold else "teacher_label_targets")
    inputs: Slices = split.tokens("label_inputs")
    if right is not None and not gold:
        labels = _only(labels, right)
    if not method.uses_rationales:
        return Examples({LABEL: (inputs, labels)}, data, len(split))
    every, draws = np.arange(len(split)), None
    rationales: Slices = split.tokens("rationale_targets")
    if method.rationales == "drawn":
        if not split.has(SAMPLES):
            raise UsageError(
                f'Method.rationales = "drawn" needs several rationales of a row, but '
                f"{split.name} has at most one of each. Extract with --samples, and give the "
                "records with --rationales."
            )
        rationales, draws = _drawn(split)
        every = np.tile(every, len(rationales) // len(split))
    labels, inputs = labels.take(every), inputs.take(every)
    if right is not None:
        rationales = _only(rationales, right[every])
    columns = {LABEL: (inputs, labels)}
    if method.rationale:
        columns[RATIONALE] = split.tokens("rationale_inputs").take(every), rationales
    elif method.form == "rationale_input":
        columns[LABEL] = side_by_side([inputs, rationales]), labels
    else:
        columns[LABEL] = inputs, _joint_targets(split, method.form, labels, rationales)
    return Examples(columns, data, len(split), draws)


def as_scored(method: config.Method) -> config.Method:
    """The method with the gold label and every row: by it a student is judged."""
    return replace(method, label="gold", only_correct=False, rationales="first")


def shift_joined(targets: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Decoder inputs of targets, int32 [sum of lengths], that lie one after another with these
    lengths, int [M]: shifted right, each starting with 0.
    """
    shifted = np.zeros_like(targets)
    shifted[1:] = targets[:-1]
    starts = np.cumsum(lengths) - lengths
    shifted[starts[lengths > 0]] = 0
    return shifted
