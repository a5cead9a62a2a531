"""Unlabelled rows of other tasks beside a task's own (Hsieh et al. 2023: ASDiv beside SVAMP)."""

from collections.abc import Sequence

import numpy as np

from dss_jax.data.store import SAMPLES, Ragged, StoreSplit, TextColumn, joined

_OF_EXTRA = {"label_targets": "teacher_label_targets"}
"""What an extra row has in place of the gold label: it counts as unlabelled, whatever it has."""


class JoinedSplit(StoreSplit):
    """A task's training rows, then those of others, which have the teacher's label for gold."""

    def __init__(self, main: StoreSplit, extras: Sequence[StoreSplit]) -> None:
        """All have the same vocabulary."""
        self.name, self.encode, self.own = main.name, main.encode, len(main)
        self._main, self._extras = main, extras

    def __len__(self) -> int:
        return self.own + sum(map(len, self._extras))

    def has(self, column: str) -> bool:
        """Whether all have a column; of several rationales a row, any."""
        splits = [self._main, *self._extras]
        return (any if column == SAMPLES else all)(s.has(column) for s in splits)

    def tokens(self, column: str) -> Ragged:
        """A token column of all rows."""
        theirs = [_tokens(split, _OF_EXTRA.get(column, column)) for split in self._extras]
        return joined([_tokens(self._main, column), *theirs])

    def text(self, column: str) -> TextColumn:
        """A text column of all rows; extra rows have no gold label."""
        parts = [self._main.text(column).utf8]
        for split in self._extras:
            parts.append(_nothing(split) if column == "label" else split.text(column).utf8)
        return TextColumn(joined(parts))


def _tokens(split: StoreSplit, column: str) -> Ragged:
    if column == SAMPLES and not split.has(column):
        return _nothing(split)
    return split.tokens(column)


def _nothing(split: StoreSplit) -> Ragged:
    return Ragged(np.zeros(0, np.uint8), np.zeros(len(split) + 1, np.int64))
