"""Unlabelled rows of other tasks beside a task's own (Hsieh et al. 2023: ASDiv beside SVAMP)."""

from collections.abc import Sequence

import numpy as np

from dss_jax.data.store import SAMPLES, Ragged, StoreSplit, joined

_OF_EXTRA = {"label_targets": "teacher_label_targets", "label": None}
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

    def _column(self, column: str, kind: tuple[str, ...]) -> Ragged:
        def of(split: StoreSplit, own: str | None) -> Ragged:
            if own is None or (own == SAMPLES and not split.has(own)):
                return Ragged(np.zeros(0, np.uint8), np.zeros(len(split) + 1, np.int64))
            return split._column(own, kind)

        theirs = [of(split, _OF_EXTRA.get(column, column)) for split in self._extras]
        return joined([of(self._main, column), *theirs])
