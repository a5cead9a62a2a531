"""What is in a labelled table: which labels there are, which of them are slips of the pen, how long
they are, and the seed by which its splits are most even. No TensorFlow.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dss_jax.core.errors import UsageError, nearest
from dss_jax.core.scoring import folded_text
from dss_jax.core.table import TableSource
from dss_jax.core.types import DistillationTask, Example
from dss_jax.data.old_records import some
from dss_jax.data.rows import table_rows
from dss_jax.data.vocabulary import open_vocabulary

NO_LABEL = ("n/a", "#n/a", "na", "nan", "null", "-", "--", "?")
"""What spreadsheets have where there is nothing, in lower case."""

MOST_LABELS, ROWS_OF_A_LABEL = 200, 3
"""Labels are a set to choose from where they are at most so many, with so many rows on average."""

SLIP_ROWS, SLIP_FACTOR, SLIP_LIKE = 3, 10, 0.8
"""A label of so few rows is a slip of one that has so many times as many and is so like it."""

SEEDS, KEYS = 500, 400_000
"""At most so many seeds are tried, on about so many keys all together."""


class Survey(NamedTuple):
    """Of the rows of a table: how many there are, the labels' counts, and the rows with a label, as
    (key, label): see `TableSource.key`. Rows that cannot be used are not in it.
    """

    rows: int
    labels: Counter[str]
    keys: list[tuple[str, str]]

    def without(self, marks: Collection[str]) -> "Survey":
        """The same, where these labels mean that there is none."""
        keys = [(key, label) for key, label in self.keys if label not in marks]
        return Survey(self.rows, Counter(label for _, label in keys), keys)


def survey(table: TableSource, file: Path) -> Survey:
    """Looks at all rows of a file."""
    count, keys = 0, []
    for located in table_rows(file):
        try:
            label = table.to_example(located.row).label
            key = table.key(located.row)
        except UsageError:
            continue  # Whoever reads the splits is told of it, with its line.
        count += bool(key)
        if label and key:
            keys.append((key, label))
    return Survey(count, Counter(label for _, label in keys), keys)


def closed_labels(counts: Mapping[str, int]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The labels to choose from, sorted; (): they are too many, so that any text may be one. And
    slip -> the label that is meant.
    """
    if (
        not counts
        or len(counts) > MOST_LABELS
        or sum(counts.values()) < ROWS_OF_A_LABEL * len(counts)
    ):
        return (), {}
    labels: dict[str, str] = {}
    slips = {}
    for label in sorted(counts, key=lambda one: -counts[one]):
        meant = labels.get(folded_text(label))
        if meant is None and counts[label] <= SLIP_ROWS:
            larger = [one for one in labels.values() if counts[one] >= SLIP_FACTOR * counts[label]]
            meant = nearest(label, larger, SLIP_LIKE)
        if meant is None:
            labels[folded_text(label)] = label
        else:
            slips[label] = meant
    return tuple(sorted(labels.values())), slips


def not_allowed(examples: Iterable[Example], known: Collection[str] = ()) -> Counter[str]:
    """Gold labels of rows that are none of the row's allowed ones, nor of the `known` where it has
    none of its own.
    """
    found = ((e.label, e.allowed_labels or known) for e in examples)
    return Counter(label for label, allowed in found if label and allowed and label not in allowed)


def renamed(outside: Mapping[str, int], unused: Collection[str]) -> str:
    """What is wrong where gold labels that are not allowed are no slips of the pen, for a label of
    the task is `unused`, no row's any more; "": nothing.
    """
    new = [f"{label!r} ({n:,})" for label, n in outside.items() if n > SLIP_ROWS]
    if not (new and unused):
        return ""
    return (
        f"rows have gold labels that the task does not name, {some(new)}, and none has its "
        f"{some(map(repr, unused))}: was a label renamed? Write it into the task file as the rows "
        "have it, in its labels and its prompt."
    )


def unused_labels(task: DistillationTask, examples: Iterable[Example]) -> list[str]:
    """Those of the task's labels that no row has."""
    gold = {e.label for e in examples}
    return [label for label in task.labels if label not in gold]


def evenest_seed(table: TableSource, keys: Sequence[tuple[str, str]]) -> int:
    """The seed by which the table's shares hold best for each label, of the first few: a hash
    knows no labels, but it can be chosen. Later rows fall where it puts them.
    """
    tried = range(max(1, min(SEEDS, KEYS // max(1, len(keys)))))
    return min(tried, key=lambda seed: _unevenness(replace(table, seed=seed), keys))


def _unevenness(table: TableSource, keys: Sequence[tuple[str, str]]) -> float:
    """Sum of (count - expected)^2 / expected over labels and splits, Pearson's chi-squared."""
    carved = {s: share for s, share in table.shares.items() if table.files.get(s) == table.file}
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for key, label in keys:
        found[label][table.side(key)] += 1
    return sum(
        (counts[split] - share * counts.total()) ** 2 / (share * counts.total())
        for counts in found.values()
        for split, share in carved.items()
        if share
    )


def longest_label(labels: Iterable[str], vocabulary: Path | None) -> int:
    """Tokens of the longest label, end-of-sequence included; without a vocabulary the most that it
    could have: a token a character, one for the space before it, and the end.
    """
    labels = list(labels)
    if vocabulary is None:
        return max(map(len, labels), default=0) + 2
    return max(map(len, open_vocabulary(vocabulary).encode_all(labels)), default=0) + 1
