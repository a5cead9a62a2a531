"""Self-consistency (Wang et al. 2023): the label that most samples of a row have."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from dss_jax.core.types import Example
from dss_jax.records.records import Record, Sample


def _equal(label: str, other: str) -> bool:
    return label == other


def record_of(
    example: Example, samples: Sequence[Sample], same: Callable[[str, str], bool] = _equal
) -> Record:
    """One row's record.

    Args:
      example: the row.
      samples: its samples, one or more, in the order of their index.
      same: whether two labels are one vote, for example a task's `scorer.correct`: equations count
        by their value. Of labels that are the same, the first seen becomes the label of all;
        `raw_label` keeps what was written.

    Returns:
      The record. Only "ok" samples vote; of labels with equally many votes the first seen wins.
      The agreement is a share of all samples, those without a vote included.
    """
    assert samples, f"row {example.id!r} has no sample"
    labels: list[str] = []
    votes: list[int] = []
    merged: list[Sample] = []
    for sample in samples:
        if sample.status == "ok":
            place = next((i for i, known in enumerate(labels) if same(known, sample.label)), None)
            if place is None:
                place = len(labels)
                labels.append(sample.label)
                votes.append(0)
            votes[place] += 1
            sample = replace(sample, label=labels[place])
        merged.append(sample)
    most = max(votes, default=0)
    label = labels[votes.index(most)] if votes else ""
    return Record(
        id=example.id,
        input=example.input,
        gold=example.label,
        teacher_label=label,
        agreement=most / len(samples),
        status="ok" if votes else samples[0].status,
        samples=tuple(merged),
    )
