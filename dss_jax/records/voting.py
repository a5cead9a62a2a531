"""Self-consistency (Wang et al. 2023): the label that most samples of a row have."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace

from dss_jax.core.types import Example
from dss_jax.records.records import Record, RecordSample


def record_of(
    example: Example,
    samples: Sequence[RecordSample],
    same: Callable[[str, str], bool] = operator.eq,
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
    merged: list[RecordSample] = []
    for sample in samples:
        if sample.status == "ok":
            known = (i for i, label in enumerate(labels) if same(label, sample.label))
            if (place := next(known, len(labels))) == len(labels):
                labels.append(sample.label)
                votes.append(0)
            votes[place] += 1
            sample = replace(sample, label=labels[place])
        merged.append(sample)
    most = max(votes, default=0)
    return Record(
        id=example.id,
        input=example.input,
        gold=example.label,
        teacher_label=labels[votes.index(most)] if votes else "",
        agreement=most / len(samples),
        status="ok" if votes else samples[0].status,
        samples=tuple(merged),
    )
