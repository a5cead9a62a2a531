"""The batch at step k: a pure function of (store, seed, k). NumPy only.

Shape letters: N examples, R rows of a block, S input length, T target length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.data.store import Ragged, StoreSplit

EOS_ID = 1
NO_ROLE, LABEL, RATIONALE = 0, 1, 2
ROLES = ("label", "rationale")
"""Names of roles 1 and 2; role 0 is padding."""


class Block(NamedTuple):
    """Rows that are run through the model together.

    A layout turns a step's examples into a tuple of blocks; the loss only looks at the role of
    each target token, so it is the same for every layout.

    Attributes:
      encoder_input_tokens: int32 [R, S], padded with 0.
      decoder_input_tokens: int32 [R, T], the targets shifted right, starting with 0.
      decoder_target_tokens: int32 [R, T], padded with 0.
      decoder_roles: int32 [R, T]: the task that the target belongs to: 0 none (padding),
        1 label, 2 rationale.
    """

    encoder_input_tokens: np.ndarray
    decoder_input_tokens: np.ndarray
    decoder_target_tokens: np.ndarray
    decoder_roles: np.ndarray


Batch = tuple[Block, ...]


def permutation(n: int, *key: int) -> np.ndarray:
    """A permutation of 0 ... n-1 that depends on the key alone.

    Sorts a Philox stream (Salmon et al. 2011). NumPy guarantees that raw stream for all time,
    which it does not for `Generator.permutation`; so a run can be repeated years later.

    Args:
      n: number of items.
      *key: one or two non-negative integers, for example (seed, epoch).

    Returns:
      int64 [n].
    """
    words = np.zeros(2, np.uint64)
    words[: len(key)] = key
    return np.argsort(np.random.Philox(key=words).random_raw(n), kind="stable")


def pad_rows(tokens: Ragged, rows: np.ndarray, length: int) -> np.ndarray:
    """Gathers rows of a store into a rectangle; longer ones are cut and end in EOS.

    Args:
      tokens: a column of the store.
      rows: int [R], row numbers.
      length: L, columns of the result.

    Returns:
      int32 [R, L], padded with 0.
    """
    starts = tokens.offsets[rows]
    lengths = tokens.offsets[rows + 1] - starts
    columns = np.arange(length)
    real = columns < lengths[:, None]
    at = np.where(real, starts[:, None] + columns, 0)
    padded = np.where(real, tokens.values[at] if len(tokens.values) else 0, 0).astype(np.int32)
    padded[lengths > length, -1] = EOS_ID
    return padded


def shift_right(targets: np.ndarray) -> np.ndarray:
    """Decoder inputs of teacher forcing: [R, T] -> [R, T], starting with 0."""
    return np.pad(targets, ((0, 0), (1, 0)))[:, :-1]


def subset_rows(n: int, task: config.Task) -> np.ndarray:
    """The rows of the training split that are used, in ascending order.

    Subsets of one seed are nested: those of 12.5 % are among those of 25 %.

    Returns:
      int64 [m], m = task.train_count, or the rounded share of n, at least 1.

    Raises:
      UsageError: more rows are asked for than there are.
    """
    wanted = task.train_count or max(1, round(n * task.train_fraction))
    if wanted > n:
        raise UsageError(
            f"Task.train_count is {wanted}, but the training split has {n} examples. "
            f"Give at most {n}."
        )
    return np.sort(permutation(n, task.subset_seed)[:wanted])


def rounded_length(longest: int, limit: int, multiple: int) -> int:
    """The padded length: the longest row or the limit, rounded up."""
    return -(-min(longest, limit) // multiple) * multiple


@dataclass(frozen=True)
class RoleColumns:
    """Where a role's tokens are in the store."""

    role: int
    inputs: str
    targets: str


def role_columns(method: config.Method) -> tuple[RoleColumns, ...]:
    """The columns that a method trains on, label first."""
    targets = "label_targets" if method.label == "gold" else "teacher_label_targets"
    label = RoleColumns(LABEL, "label_inputs", targets)
    if not method.rationale:
        return (label,)
    return label, RoleColumns(RATIONALE, "rationale_inputs", "rationale_targets")


def usable_rows(split: StoreSplit, rows: np.ndarray, method: config.Method) -> np.ndarray:
    """Those of `rows` that have the label the method trains on."""
    label = role_columns(method)[0]
    return rows[split.tokens(label.targets).lengths()[rows] > 0]


def _lengths(split: StoreSplit, rows: np.ndarray, column: str, limit: int, multiple: int) -> int:
    longest = int(split.tokens(column).lengths()[rows].max(initial=1))
    return rounded_length(longest, limit, multiple)


class PaddedBlocks:
    """Layout `padded`: one block a role, each row an example, lengths from the data."""

    def __init__(
        self, split: StoreSplit, rows: np.ndarray, data: config.Data, method: config.Method
    ) -> None:
        self._split = split
        self._roles = role_columns(method)
        inputs = max(
            _lengths(split, rows, r.inputs, data.input_length, data.length_multiple)
            for r in self._roles
        )
        self.lengths = tuple(
            (inputs, _lengths(split, rows, r.targets, data.target_length, data.length_multiple))
            for r in self._roles
        )

    def __call__(self, rows: np.ndarray) -> Batch:
        """The blocks of some examples: int [N] -> one `Block` of R = N rows a role.

        A row of -1 is an empty example; it weighs nothing.
        """
        real = rows[:, None] >= 0
        blocks = []
        for role, (input_length, target_length) in zip(self._roles, self.lengths, strict=True):
            at = np.maximum(rows, 0)
            inputs = pad_rows(self._split.tokens(role.inputs), at, input_length) * real
            targets = pad_rows(self._split.tokens(role.targets), at, target_length) * real
            roles = np.where(targets > 0, role.role, NO_ROLE).astype(np.int32)
            blocks.append(Block(inputs, shift_right(targets), targets, roles))
        return tuple(blocks)


class TrainBatches:
    """Paired training batches: N examples a step, each in every role of the method."""

    def __init__(
        self,
        split: StoreSplit,
        task: config.Task,
        data: config.Data,
        method: config.Method,
        *,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        """Chooses the examples and the lengths.

        Args:
          split: the training split of a token store.
          task: which subset of it.
          data: batch size, lengths, seed.
          method: which columns.
          process_index, process_count: this host and how many there are; each makes its slice.

        Raises:
          UsageError: no example has the label that the method needs, or the batch cannot be
            shared out evenly.
        """
        subset = subset_rows(len(split), task)
        self.rows = usable_rows(split, subset, method)
        self.left_out = len(subset) - len(self.rows)
        if not len(self.rows):
            raise UsageError(
                f"none of the {len(subset)} training examples has a {method.label} label, which "
                f"--method {method.name} trains on."
            )
        if data.batch_size % process_count:
            raise UsageError(
                f"Data.batch_size ({data.batch_size}) must be a multiple of the number of "
                f"processes ({process_count})."
            )
        self._seed, self._global = data.seed, data.batch_size
        self._local = data.batch_size // process_count
        self._first = process_index * self._local
        self.layout = PaddedBlocks(split, self.rows, data, method)
        self._order = lru_cache(maxsize=2)(
            lambda epoch: self.rows[permutation(len(self.rows), self._seed, epoch)]
        )

    def rows_at(self, step: int) -> np.ndarray:
        """This process's row numbers at a step: int64 [N / process_count].

        Epochs follow one another without a gap: no example is dropped, and a batch may hold
        the end of one epoch and the start of the next.
        """
        at = step * self._global + self._first + np.arange(self._local)
        epochs, places = at // len(self.rows), at % len(self.rows)
        return np.array(
            [self._order(int(e))[p] for e, p in zip(epochs, places, strict=True)], np.int64
        )

    def __call__(self, step: int) -> Batch:
        """This process's part of the batch at a step (0 is the first)."""
        return self.layout(self.rows_at(step))


def eval_batches(rows: Sequence[int] | np.ndarray, size: int) -> list[np.ndarray]:
    """Cuts row numbers into batches of `size`; the last is filled up with -1."""
    rows = np.asarray(rows, np.int64)
    short = -len(rows) % size
    filled = np.concatenate([rows, np.full(short, -1, np.int64)])
    return list(filled.reshape(-1, size))
