"""Rationale records: what a teacher answered, row by row, as JSONL. `docs/records.md`.

The first line of a file is its header, each further line one row with all of its samples.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dss_jax.core.examples import Example

FORMAT = 1
"""Of the record files; the header has it as `dss_records`."""

STATUSES = (
    "ok",  # a rationale, and a label that is allowed
    "no_answer",  # no answer where the pattern wants one
    "invalid_label",  # an answer that is none of the allowed labels
    "ambiguous",  # several answers that differ, or one that is taken back
    "no_rationale",  # an answer, but nothing before it
    "truncated",  # cut by the length limit
    "refused",  # the model or the server declined
    "error",  # no answer came, after all attempts
)


GIVEN_UP = "error"
"""`Reply.finish_reason` of a request that was given up; a later run asks again."""


LABEL_FIRST = "label_first"
"""`RecordSample.flag`: the rationale names the label at once, so that it may explain nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What came back for one request, as it came.

    Attributes:
      text: the completion; "" where none came.
      finish_reason: as its server has it: "stop", "length", "MAX_TOKENS"; "" where not given;
        `GIVEN_UP`.
      refusal: the model's refusal, or the server's reason for the error; "" for neither.
      prompt_tokens, completion_tokens: as the server counted, those of attempts included that were
        paid for and could not be used; with a model's thoughts.
      model: the model's name as the server gave it.
      thoughts: that came apart from the text.
      note: what is odd about it, for people.
      estimated: whether the tokens are our estimate, because the server did not say.
    """

    text: str
    finish_reason: str = ""
    refusal: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str = ""
    thoughts: str = ""
    note: str = ""
    estimated: bool = False

    @classmethod
    def failure(cls, reason: str) -> "Reply":
        """Of a request that was given up."""
        return cls(text="", finish_reason=GIVEN_UP, refusal=reason)

    @property
    def failed(self) -> bool:
        """Whether the request was given up."""
        return self.finish_reason == GIVEN_UP


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordSample:
    """One completion of a row, taken apart.

    Attributes:
      status: one of STATUSES.
      label: the label, normalised to one of the task's allowed labels; "" unless it is one. Where
        any text is allowed, the text.
      raw_label: the label as `core.completions.parse_completion` reads it: the released code's
        rule, by which METHOD's figures are counted.
      rationale: "" where there is none.
      text: the raw completion.
      reason: why, for "refused" and "error", and for some that have "no_answer".
      thoughts: what the model said to itself: no part of the rationale.
      flag: `LABEL_FIRST` where the label's words stand in the rationale's first sentence.
    """

    status: str
    label: str
    raw_label: str
    rationale: str
    text: str
    reason: str = ""
    thoughts: str = ""
    flag: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One row: its input, all of its samples, and the label that they vote for.

    Attributes:
      id: of the row, as the task gives it.
      input: what the student reads.
      gold: the gold label; "" where there is none.
      teacher_label: the label most "ok" samples have (the first of equals); "" without any.
      agreement: share of all samples that have that label.
      status: of the first sample with that label; of the first sample where there is none.
      samples: in the order of their sample index.
    """

    id: str
    input: str
    gold: str
    teacher_label: str
    agreement: float
    status: str
    samples: tuple[RecordSample, ...]

    @property
    def rationale(self) -> str:
        """Of the first sample whose label is the vote; "" without a vote."""
        return next((s.rationale for s in self.samples if self.votes(s)), "")

    def votes(self, sample: RecordSample) -> bool:
        """Whether the sample stands for the row's label."""
        return sample.status == "ok" and sample.label == self.teacher_label


def record_of(
    example: Example,
    samples: Sequence[RecordSample],
    same: Callable[[str, str], bool] = operator.eq,
) -> Record:
    """One row's record, by self-consistency (Wang et al. 2023): its label is that of most samples.

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


@dataclass(frozen=True, kw_only=True)
class Header:
    """Provenance of a record file.

    Attributes:
      task, split: whose rows.
      teacher: the model asked for.
      endpoint: host of the server, without path, query or key; "" for none.
      prompt_sha256: of the prompt with an empty row (what all requests share).
      sampling: temperature, max_tokens, top_p, samples, ...
      date: day on which it was written, ISO 8601, UTC.
      terms: the user's note on the terms of use of the teacher's outputs.
      prices: by which the cost was counted, and where they are from; "" for none.
      totals: rows, requests, prompt_tokens, completion_tokens, cost_usd, retries, seconds, and the
        number of rows of each status.
      filters: what `dss records filter` left out, in order.
    """

    task: str
    split: str
    teacher: str
    endpoint: str = ""
    prompt_sha256: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)
    date: str = ""
    terms: str = ""
    prices: str = ""
    totals: dict[str, Any] = field(default_factory=dict)
    filters: tuple[dict[str, Any], ...] = ()
