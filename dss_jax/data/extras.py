"""Unlabelled rows of other tasks beside a task's own (Hsieh et al. 2023: ASDiv beside SVAMP)."""

from collections.abc import Sequence

import numpy as np

from dss_jax.data.store import SAMPLES, Ragged, StoreSplit, TextColumn

_OF_EXTRA = {"label_targets": "teacher_label_targets"}
"""What an extra row has in place of the gold label: it counts as unlabelled, whatever it has."""


class JoinedSplit(StoreSplit):
    """A task's training rows, then those of others, which have the teacher's label for gold.

    Attributes:
      own: how many rows are the task's.
    """

    def __init__(self, main: StoreSplit, extras: Sequence[StoreSplit]) -> None:
        """All have the same vocabulary."""
        self.name, self.encode = main.name, main.encode
        self._main, self._extras = main, extras
        self._rows = len(main) + sum(map(len, extras))

    @property
    def own(self) -> int:
        """Rows of the task itself."""
        return len(self._main)

    def has(self, column: str) -> bool:
        """Whether all have a column; of several rationales a row, any."""
        splits = [self._main, *self._extras]
        return (any if column == SAMPLES else all)(s.has(column) for s in splits)

    def tokens(self, column: str) -> Ragged:
        """A token column of all rows."""
        parts = [_tokens(self._main, column)]
        parts += [_tokens(split, _OF_EXTRA.get(column, column)) for split in self._extras]
        return _joined(parts)

    def text(self, column: str) -> TextColumn:
        """A text column of all rows; extra rows have no gold label."""
        parts = [self._main.text(column).utf8]
        for split in self._extras:
            none = Ragged(np.zeros(0, np.uint8), np.zeros(len(split) + 1, np.int64))
            parts.append(none if column == "label" else split.text(column).utf8)
        return TextColumn(_joined(parts))


def _tokens(split: StoreSplit, column: str) -> Ragged:
    if column == SAMPLES and not split.has(column):
        return Ragged(np.zeros(0, np.uint16), np.zeros(len(split) + 1, np.int64))
    return split.tokens(column)


def _joined(parts: Sequence[Ragged]) -> Ragged:
    lengths = np.concatenate([part.lengths() for part in parts])
    values = np.concatenate([np.asarray(part.values) for part in parts])
    return Ragged(values, np.concatenate([[0], np.cumsum(lengths)]))
