"""Which records are older than the rows that they are for. Standard library only.

A record is older than its row where the row has another text now, or where it argues for what is
no label any more; its text stays out then, and that is said. Another gold label alone makes none
old: a teacher answers without it, unless it was shown (a hint).
"""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from dss_jax.core.types import DistillationTask, Example
from dss_jax.records.records import Header, Record

SHOWN = 5
"""How many ids or labels a message names."""

TEXT, LABEL, GOLD = "another text", "no such label now", "another gold label"
"""What of a row is another than in its record; with the last alone the record is used."""

Place = tuple[str, str]
"""(split, id)"""


class Ages:
    """Compares the records of a file with their rows, one after another.

    Attributes:
      found: what is another -> places of such rows.
      texts: of the first row with another text: its id, the record's input and the row's.
    """

    def __init__(
        self, task: DistillationTask, splits: Mapping[str, Sequence[Example]], header: Header
    ) -> None:
        """`splits`: the rows that the file is for."""
        self._task, self.header = task, header
        self._labels = {row.label for rows in splits.values() for row in rows}
        self._before: set[str] = set()
        self._doubtful: dict[Place, str] = {}
        self.found: dict[str, list[Place]] = {TEXT: [], LABEL: [], GOLD: []}
        self.texts: tuple[str, str, str] | None = None

    def fits(self, split: str, row: Example, record: Record) -> bool:
        """Whether the record may be used for its row, as far as is known before `gone`."""
        place = split, row.id
        self._before.add(record.gold)
        if record.input != row.input:
            self.found[TEXT].append(place)
            self.texts = self.texts or (row.id, record.input, row.input)
            return False
        if record.status != "ok":
            return True
        corrected = bool(record.gold and row.label) and not self._same(record.gold, row.label)
        allowed, label = row.allowed_labels or self._task.labels, record.teacher_label
        hinted = corrected and self.header.prompt.get("hint")
        if hinted or (allowed and not any(self._same(one, label) for one in allowed)):
            self.found[LABEL].append(place)
            return False
        if corrected:
            self.found[GOLD].append(place)
        # Labels of a row's own are no fewer when other rows lose theirs.
        if allowed in ((), self._task.labels) and label not in self._labels:
            self._doubtful[place] = label
        return True

    def _same(self, one: str, other: str) -> bool:
        return one == other or self._task.scorer.correct(one, other)

    def gone(self) -> list[Place]:
        """Of the rows whose records fit, but for those with allowed labels of their own: those that
        a teacher gave a label that rows had when they were asked, and none has now. To be called
        once, at the end.
        """
        gone = {place: None for place, label in self._doubtful.items() if label in self._before}
        self.found[LABEL] += gone
        self.found[GOLD] = [place for place in self.found[GOLD] if place not in gone]
        return [*gone]

    @property
    def unused(self) -> list[Place]:
        return [*self.found[TEXT], *self.found[LABEL]]

    def lines(self, file: str | Path) -> Iterator[str]:
        """What is said of the file, and what to run."""
        shown = {w: f"{w}: {len(p):,}: {some([i for _, i in p])}" for w, p in self.found.items()}
        if count := len(self.unused):
            why = "; ".join(shown[what] for what in (TEXT, LABEL) if self.found[what])
            prompt = (
                " in the task's prompt name the labels of now, then" if self.found[LABEL] else ""
            )
            yield (
                f"{file} is older than {count:,} of its rows ({why}), which have no rationale so. "
                f"To ask for these alone:{prompt} {again(self.header, file)}"
            )
        if self.found[GOLD]:
            yield (
                f"{file}: rows have {shown[GOLD]}. Their rationales, written without it, are used."
            )


def again(header: Header, file: str | Path) -> str:
    """The command that asks for the records of a file again; for those alone that its journal has
    no reply for.
    """
    words = ("--task", header.task, "--split", header.split, "--model", header.teacher)
    command = shlex.join(["dss", "extract", *words, "--out", str(file)])
    filtered = " Then filter as before." if header.filters else ""
    return f"{command}, with its other flags as before.{filtered}"


def some(texts: Iterable[str]) -> str:
    """The first of many."""
    first = [*islice(texts, SHOWN + 1)]
    return ", ".join([*first[:SHOWN], *(["..."] if len(first) > SHOWN else [])])
