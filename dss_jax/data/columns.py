"""The rows of a store that a method trains on: which columns, how long, and their tokens.

Shape letters: K roles of the method, N examples, M = K * N rows (those of the label role first).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dss_jax.core import config
from dss_jax.core.flops import Work
from dss_jax.data.blocks import EOS_ID, LABEL, RATIONALE
from dss_jax.data.store import Ragged, StoreSplit


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


def join_rows(tokens: Ragged, rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Rows of a column one after another, each cut to its length; cut ones end in EOS.

    Args:
      tokens: a column of the store.
      rows: int [R], row numbers.
      lengths: int [R], at most those of the rows.

    Returns:
      int32 [sum of lengths].
    """
    starts = tokens.offsets[rows]
    ends = np.cumsum(lengths)
    at = np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)
    joined = np.asarray(tokens.values)[at].astype(np.int32)
    cut = (lengths > 0) & (tokens.offsets[rows + 1] - starts > lengths)
    joined[ends[cut] - 1] = EOS_ID
    return joined


class Examples:
    """A method's view of a split: lengths and tokens of examples in each role.

    A row number of -1 is no example. An example that has no target in a role (no rationale) has
    length 0 there, its input too: it would be computed for nothing.

    Attributes:
      roles: the columns, K of them.
    """

    def __init__(self, split: StoreSplit, data: config.Data, method: config.Method) -> None:
        """Cuts to `data.input_length` and `data.target_length`."""
        self.roles = role_columns(method)
        self._columns = [(split.tokens(r.inputs), split.tokens(r.targets)) for r in self.roles]
        targets = self._lengths([t for _, t in self._columns], data.target_length)
        inputs = self._lengths([i for i, _ in self._columns], data.input_length)
        self._input_lengths = np.where(targets > 0, inputs, 0)
        self._target_lengths = targets

    @staticmethod
    def _lengths(columns: Sequence[Ragged], limit: int) -> np.ndarray:
        # The last column is that of row -1.
        cut = np.stack([np.minimum(c.lengths(), limit) for c in columns])
        return np.pad(cut, ((0, 0), (0, 1))).astype(np.int32)

    def lengths(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lengths of inputs and targets: int [..., N] -> two int32 [K, ..., N]."""
        return self._input_lengths[:, rows], self._target_lengths[:, rows]

    def work(self, rows: np.ndarray) -> Work:
        """The useful work of examples in all roles: int [N]."""
        inputs, targets = (x.ravel().astype(np.int64) for x in self.lengths(rows))
        tokens = int(targets.sum())
        return Work(
            encoder_tokens=int(inputs.sum()),
            decoder_tokens=tokens,
            logit_tokens=tokens,
            encoder_pairs=int(inputs @ inputs),
            decoder_pairs=int(targets @ targets),
            cross_pairs=int(inputs @ targets),
        )

    def longest(self) -> tuple[int, int]:
        """Of the whole split: the longest input and target."""
        return int(self._input_lengths.max()), int(self._target_lengths.max())

    def inputs(self, rows: np.ndarray) -> np.ndarray:
        """Inputs of all roles one after another: int [N] -> int32 [sum of lengths]."""
        return self._join(0, rows, self._input_lengths)

    def targets(self, rows: np.ndarray) -> np.ndarray:
        """Targets of all roles one after another: int [N] -> int32 [sum of lengths]."""
        return self._join(1, rows, self._target_lengths)

    def _join(self, side: int, rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        at = np.maximum(rows, 0)  # Row -1 has length 0: nothing is read there.
        return np.concatenate(
            [
                join_rows(columns[side], at, lengths[k, rows])
                for k, columns in enumerate(self._columns)
            ]
        )


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
