"""What a record file holds, in numbers. `dss records stats`; docs/records.md."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from dss_jax.records.filters import Correct
from dss_jax.records.records import LABEL_FIRST, Record


@dataclass
class Accuracy:
    """How many of how many."""

    right: int = 0
    all: int = 0

    def add(self, right: bool) -> None:
        self.right += right
        self.all += 1

    @property
    def per_cent(self) -> float | None:
        """None of none."""
        return 100 * self.right / self.all if self.all else None


class Lengths(Counter[int]):
    """Length -> texts, in words, split at white space; empty texts do not count."""

    def add(self, text: str) -> None:
        if words := len(text.split()):
            self[words] += 1

    @property
    def mean(self) -> float | None:
        return sum(self.elements()) / self.total() if self else None

    def percentile(self, share: float) -> int | None:
        """The length at place `int(share * n)` of the sorted ones, as `dss tasks stats` has it."""
        return sorted(self.elements())[int(share * self.total())] if self else None


@dataclass
class RecordStats:
    """Counts over the records of a file."""

    rows: int = 0
    samples: int = 0
    # Status -> how many.
    row_statuses: Counter[str] = field(default_factory=Counter)
    sample_statuses: Counter[str] = field(default_factory=Counter)
    # Tenths, 0 to 10 -> rows; of rows with a vote.
    agreement: Counter[int] = field(default_factory=Counter)
    # Tenths -> how many of the votes are right; of rows with gold and a vote.
    right_by_agreement: dict[int, Accuracy] = field(default_factory=lambda: defaultdict(Accuracy))
    # Samples whose `raw_label` is right, of those of rows with a gold label. A label that is
    # missing is wrong, here and below: this is METHOD's teacher accuracy.
    as_written: Accuracy = field(default_factory=Accuracy)
    normalised: Accuracy = field(default_factory=Accuracy)  # The same of `label`.
    # Rows whose `teacher_label` is right, of those with a gold label.
    vote: Accuracy = field(default_factory=Accuracy)
    # The same, of those with a gold label and a vote.
    voted: Accuracy = field(default_factory=Accuracy)
    # Lengths of inputs, and of the rationales of all samples.
    input_words: Lengths = field(default_factory=Lengths)
    rationale_words: Lengths = field(default_factory=Lengths)
    labels: Counter[str] = field(default_factory=Counter)  # Label -> rows that have it.
    with_thoughts: int = 0  # Samples.
    label_first: int = 0  # Samples that name it at the rationale's start.

    @property
    def labels_once(self) -> int:
        """Labels that one row alone has: where labels are few, these are seldom right."""
        return sum(count == 1 for count in self.labels.values())


def record_stats(records: Iterable[Record], correct: Correct) -> RecordStats:
    """Counts in one pass, in bounded memory."""
    stats = RecordStats()
    for record in records:
        stats.rows += 1
        stats.samples += len(record.samples)
        stats.row_statuses[record.status] += 1
        stats.input_words.add(record.input)
        for sample in record.samples:
            stats.sample_statuses[sample.status] += 1
            stats.rationale_words.add(sample.rationale)
            stats.with_thoughts += bool(sample.thoughts)
            stats.label_first += sample.flag == LABEL_FIRST
            if record.gold:
                stats.as_written.add(correct(record.gold, sample.raw_label))
                stats.normalised.add(correct(record.gold, sample.label))
        tenths = int(10 * record.agreement + 0.5)
        if record.teacher_label:
            stats.labels[record.teacher_label] += 1
            stats.agreement[tenths] += 1
        if not record.gold:
            continue
        right = correct(record.gold, record.teacher_label)
        stats.vote.add(right)
        if record.teacher_label:
            stats.voted.add(right)
            stats.right_by_agreement[tenths].add(right)
    return stats
