"""The rows of a store that a method trains on: which columns, how long, and their tokens.

An *item* is a row as one epoch sees it: the row's number, or, where an epoch draws one of several
rationales, that number plus the draw times the number of rows.

Shape letters: K roles of the method, n rows of a split, D draws, N items, M = K * N pairs of an
input and a target (those of the first role first).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.flops import Work
from dss_jax.core.ids import EOS_ID, LABEL, RATIONALE
from dss_jax.data.store import SAMPLES, Ragged, Slices, StoreSplit

ANSWER, BECAUSE = "Answer:", "Rationale:"
"""In a target that holds both, what comes before the label, or before the rationale."""


@dataclass(frozen=True)
class RoleColumns:
    """Where a role's tokens are in the store."""

    role: int
    inputs: str
    targets: str


def role_columns(method: config.Method) -> tuple[RoleColumns, ...]:
    """The columns that a method of form "tasks" trains on, label first."""
    label = RoleColumns(LABEL, "label_inputs", label_column(method))
    if not method.rationale:
        return (label,)
    return label, RoleColumns(RATIONALE, "rationale_inputs", "rationale_targets")


def label_column(method: config.Method) -> str:
    """The column of the label that a method trains on."""
    return "label_targets" if method.label == "gold" else "teacher_label_targets"


def join_rows(tokens: Slices, rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Rows of a column one after another, each cut to its length; cut ones end in EOS.

    Args:
      tokens: a column of the store.
      rows: int [R], row numbers.
      lengths: int [R], at most those of the rows.

    Returns:
      int32 [sum of lengths].
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


def label_inputs(split: StoreSplit, form: str, rationales: Slices | None = None) -> Slices:
    """What a label is predicted from: the input, for form "rationale_input" with the rationale.

    `rationales`: in place of the split's own.
    """
    inputs: Slices = split.tokens("label_inputs")
    if form != "rationale_input":
        return inputs
    return side_by_side([inputs, rationales or split.tokens("rationale_targets")])


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
    if form == "label_rationale":
        return text.partition(BECAUSE)[0].strip()
    return text


def rationale_in(text: str, form: str) -> str:
    """The rationale in a predicted text of a form that has both; "" where it has no mark."""
    if form == "rationale_label":
        return text.rpartition(ANSWER)[0].strip()
    return text.partition(BECAUSE)[2].strip()


def _drawn(split: StoreSplit) -> tuple[Slices, np.ndarray]:
    """All rationales of each row.

    Returns:
      A column of n * D rows, row i's rationale number d at i + n * d (those of a row that has
      fewer come again), and how many each row has, at least 1: int64 [n].
    """
    first, more = split.tokens("rationale_targets"), split.tokens(SAMPLES)
    has = more.lengths() > 0
    ends = np.flatnonzero(np.asarray(more.values) == EOS_ID) + 1
    before = np.searchsorted(ends, more.starts, side="right")
    counts = np.searchsorted(ends, more.ends, side="right") - before
    starts = np.concatenate([[0], ends])[:-1] if len(ends) else ends
    # The first of a row's rationales is the one that "rationale_targets" has, so that rows without
    # several need nothing else.
    values = np.concatenate([np.asarray(first.values), np.asarray(more.values)])
    parts = []
    for draw in range(max(1, int(counts.max(initial=0)))):
        at = np.minimum(before + draw % np.maximum(counts, 1), max(0, len(ends) - 1))
        own = starts[at] if len(ends) else np.zeros(len(first), np.int64)
        end = ends[at] if len(ends) else own
        shift = len(first.values)
        parts.append(
            (np.where(has, own + shift, first.starts), np.where(has, end + shift, first.ends))
        )
    starts, ends = (np.concatenate(x) for x in zip(*parts, strict=True))
    return Slices(values, starts, ends), np.maximum(counts, 1)


class Examples:
    """A method's view of a split: lengths and tokens of items in each role.

    An item of -1 is no example. An example that has no target in a role (no rationale) has
    length 0 there, its input too: it would be computed for nothing.

    Attributes:
      roles: K of them, as in `dss_jax.layouts.blocks`.
      count: n, rows of the split.
    """

    def __init__(
        self, roles: Sequence[int], columns: Sequence[tuple[Slices, Slices]], data: config.Data,
        count: int,
    ) -> None:  # fmt: skip
        """Cuts (inputs, targets) of each role to `data.input_length` and `data.target_length`."""
        self.roles, self.count = tuple(roles), count
        self._columns = columns
        targets = self._lengths([t for _, t in columns], data.target_length)
        inputs = self._lengths([i for i, _ in columns], data.input_length)
        self._input_lengths = np.where(targets > 0, inputs, 0)
        self._target_lengths = targets

    @staticmethod
    def _lengths(columns: Sequence[Slices], limit: int) -> np.ndarray:
        # The last column is that of item -1.
        cut = np.stack([np.minimum(c.lengths(), limit) for c in columns])
        return np.pad(cut, ((0, 0), (0, 1))).astype(np.int32)

    def usable(self, rows: np.ndarray) -> np.ndarray:
        """Those of `rows` that have a target in the first role."""
        return rows[self._target_lengths[0, rows] > 0]

    def items(self, rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """The items that an epoch makes of rows: int [N] -> int [N]."""
        del seed, epoch
        return rows

    def lengths(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lengths of inputs and targets: int [..., N] -> two int32 [K, ..., N]."""
        return self._input_lengths[:, items], self._target_lengths[:, items]

    def longest_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The longest input and target of some rows in each role: two int32 [K]."""
        inputs, targets = self.lengths(rows)
        return inputs.max(axis=1, initial=1), targets.max(axis=1, initial=1)

    def work(self, items: np.ndarray) -> Work:
        """The useful work of items in all roles: int [N]."""
        inputs, targets = (x.ravel().astype(np.int64) for x in self.lengths(items))
        tokens = int(targets.sum())
        return Work(
            encoder_tokens=int(inputs.sum()),
            decoder_tokens=tokens,
            logit_tokens=tokens,
            encoder_pairs=int(inputs @ inputs),
            decoder_pairs=int(targets @ targets),
            cross_pairs=int(inputs @ targets),
        )

    def longest(self, roles: slice = slice(None)) -> tuple[int, int]:
        """Of the whole split: the longest input and target, of some of the roles."""
        return int(self._input_lengths[roles].max()), int(self._target_lengths[roles].max())

    def inputs(self, items: np.ndarray) -> np.ndarray:
        """Inputs of all roles one after another: int [N] -> int32 [sum of lengths]."""
        return self._join(0, items, self._input_lengths)

    def targets(self, items: np.ndarray) -> np.ndarray:
        """Targets of all roles one after another: int [N] -> int32 [sum of lengths]."""
        return self._join(1, items, self._target_lengths)

    def _join(self, side: int, items: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        at = np.maximum(items, 0)  # Item -1 has length 0: nothing is read there.
        return np.concatenate(
            [
                join_rows(columns[side], at, lengths[k, items])
                for k, columns in enumerate(self._columns)
            ]
        )


class DrawnExamples(Examples):
    """Examples of which an epoch sees one of several rationales."""

    def __init__(
        self, roles: Sequence[int], columns: Sequence[tuple[Slices, Slices]], data: config.Data,
        counts: np.ndarray,
    ) -> None:  # fmt: skip
        """`counts`: int64 [n], rationales of each row."""
        super().__init__(roles, columns, data, len(counts))
        self._counts = counts

    def items(self, rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """A rationale of each row, drawn from (seed, epoch, row) alone."""
        # The permutation of the epoch is counter 0 of the same key.
        words = np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=[0, 0, 0, 1])
        draws = words.random_raw(self.count)[rows] % self._counts[rows].astype(np.uint64)
        return rows + self.count * draws.astype(np.int64)

    def longest_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """With whatever rationale is drawn."""
        draws = (self._input_lengths.shape[1] - 1) // self.count
        return super().longest_of((rows + self.count * np.arange(draws)[:, None]).ravel())


def examples_of(
    split: StoreSplit, data: config.Data, method: config.Method, right: np.ndarray | None = None
) -> Examples:
    """A method's view of a split of a store.

    Args:
      split: of a store.
      data: lengths.
      method: which columns.
      right: bool [n], rows where the teacher's label is not known to be wrong; only these have
        their rationale, and their teacher's label. None: all rows.
    """
    labels: Slices = split.tokens(label_column(method))
    if right is not None and method.label == "teacher":
        labels = _only(labels, right)
    if not method.uses_rationales:
        return Examples((LABEL,), [(split.tokens("label_inputs"), labels)], data, len(split))
    counts = None
    rationales: Slices = split.tokens("rationale_targets")
    explained: Slices | None = split.tokens("rationale_inputs") if method.rationale else None
    inputs: Slices = split.tokens("label_inputs")
    if method.rationales == "drawn":
        if not split.has(SAMPLES):
            raise UsageError(
                f'Method.rationales = "drawn" needs several rationales of a row, but '
                f"{split.name} has at most one of each. Extract with --samples, and give the "
                "records with --rationales."
            )
        rationales, counts = _drawn(split)
        every = np.tile(np.arange(len(split)), len(rationales) // len(split))
        labels, inputs = labels.take(every), inputs.take(every)
        explained = None if explained is None else explained.take(every)
        right = None if right is None else right[every]
    if right is not None:
        rationales = _only(rationales, right)
    roles: tuple[int, ...] = (LABEL,)
    if method.rationale:
        assert explained is not None
        roles = (LABEL, RATIONALE)
        columns = [(inputs, labels), (explained, rationales)]
    elif method.form == "rationale_input":
        columns = [(side_by_side([inputs, rationales]), labels)]
    else:
        columns = [(inputs, _joint_targets(split, method.form, labels, rationales))]
    if counts is None:
        return Examples(roles, columns, data, len(split))
    return DrawnExamples(roles, columns, data, counts)


def as_scored(method: config.Method) -> config.Method:
    """The method with the gold label and every row: by it a student is judged."""
    return replace(method, label="gold", only_correct=False, rationales="first")


def shift_joined(targets: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Decoder inputs of targets that lie one after another: shifted right, each starting with 0.

    Args:
      targets: int32 [sum of lengths].
      lengths: int [M].
    """
    shifted = np.zeros_like(targets)
    shifted[1:] = targets[:-1]
    starts = np.cumsum(lengths) - lengths
    shifted[starts[lengths > 0]] = 0
    return shifted
