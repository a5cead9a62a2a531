"""Rationale records: what a teacher answered, row by row, as JSONL. `docs/records.md`.

The first line of a file is its header, each further line one row with all of its samples.
"""

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dss_jax.core.types import Example

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
    """What came back for one request, as it came."""

    text: str  # The completion; "" where none came.
    # As its server has it: "stop", "length", "MAX_TOKENS"; "" where not given; `GIVEN_UP`.
    finish_reason: str = ""
    refusal: str = ""  # The model's refusal, or the server's reason for the error; "" for neither.
    # As the server counted, those of attempts included that were paid for and could not be used;
    # with a model's thoughts.
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str = ""  # As the server gave it.
    thoughts: str = ""  # That came apart from the text.
    note: str = ""  # What is odd about it, for people.
    estimated: bool = False  # Whether the tokens are our estimate; the server did not say.

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
    """One completion of a row, taken apart."""

    status: str  # One of STATUSES.
    # Normalised to one of the task's allowed labels; "" unless it is one. Where any text is
    # allowed, the text.
    label: str
    # As `core.completions.parse_completion` reads it: the released code's rule, by which METHOD's
    # figures are counted.
    raw_label: str
    rationale: str
    text: str  # The raw completion.
    reason: str = ""  # Why, for "refused" and "error", and for some that have "no_answer".
    thoughts: str = ""  # What the model said to itself: no part of the rationale.
    flag: str = ""  # `LABEL_FIRST` where the label's words stand in the first sentence.


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One row: its input, all of its samples in order, and the label that they vote for."""

    id: str
    input: str
    gold: str  # The gold label; "" where there is none.
    teacher_label: str  # The label most "ok" samples have (the first of equals); "" without any.
    agreement: float  # Share of all samples that have that label.
    status: str  # Of the first sample with that label; of the first sample where there is none.
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

    Only "ok" samples vote; of labels with equally many votes the first seen wins. The agreement is
    a share of all samples, those without a vote included.

    Args:
      samples: one or more, in the order of their index.
      same: whether two labels are one vote, for example a task's `scorer.correct`: equations count
        by their value. Of labels that are the same, the first seen becomes the label of all;
        `raw_label` keeps what was written.
    """
    assert samples, f"row {example.id!r} has no sample"
    votes: Counter[str] = Counter()
    merged: list[RecordSample] = []
    for sample in samples:
        if sample.status == "ok":
            label = next((known for known in votes if same(known, sample.label)), sample.label)
            votes[label] += 1
            sample = replace(sample, label=label)
        merged.append(sample)
    # Of labels with equally many votes `max` takes the first.
    winner = max(votes, key=votes.__getitem__, default="")
    return Record(
        id=example.id,
        input=example.input,
        gold=example.label,
        teacher_label=winner,
        agreement=votes[winner] / len(samples),
        status="ok" if votes else samples[0].status,
        samples=tuple(merged),
    )


@dataclass(frozen=True, kw_only=True)
class Header:
    """Provenance of a record file."""

    # Whose rows.
    task: str
    split: str
    teacher: str  # The model asked for.
    endpoint: str = ""  # Host of the server, without path, query or key; "" for none.
    prompt_sha256: str = ""  # Of the prompt with an empty row (what all requests share).
    # The fields of `teacher.prompting.PromptOptions`; {}: not noted.
    prompt: dict[str, Any] = field(default_factory=dict)
    # Temperature, max_tokens, top_p, samples, ...
    sampling: dict[str, Any] = field(default_factory=dict)
    date: str = ""  # Day on which it was written, ISO 8601, UTC.
    terms: str = ""  # The user's note on the terms of use of the teacher's outputs.
    prices: str = ""  # By which the cost was counted, and where they are from; "" for none.
    # Rows, requests, prompt_tokens, completion_tokens, cost_usd, retries, seconds, and the number
    # of rows of each status.
    totals: dict[str, Any] = field(default_factory=dict)
    filters: tuple[dict[str, Any], ...] = ()  # What `dss records filter` left out, in order.
