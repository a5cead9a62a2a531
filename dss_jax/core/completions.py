"""A teacher's raw completion, taken apart by rules. Nothing in it is ever executed.

The teachers of the paper were sampled without a stop sequence, so a completion runs on past its
answer into a question that the teacher made up. Each task file says where to cut, which words come
before the answer, and what the answer looks like; the rules are those of METHOD.md, "Reading the
teacher's text", and give its figures to the digit (`tests/test_completions.py`).
"""

import re
from dataclasses import dataclass

from dss_jax.core.example import Answer


@dataclass(frozen=True, kw_only=True)
class AnswerForm:
    """How a completion is read."""

    run_on: str  # Text with which a made-up next question begins; it and all after it is dropped.
    marker: str  # The words between rationale and answer. Their first occurrence counts, case too.
    # Regular expression searched for in what follows the marker; its first group, stripped, is the
    # label. No match: no label.
    label: str
    # What becomes of a completion without the marker, which is mostly one that was cut by the
    # length limit in the middle of its rationale: kept as a rationale without a label (as for
    # e-SNLI in the released code), or dropped whole (the others).
    keep_unanswered: bool = False

    def __post_init__(self) -> None:
        if not self.run_on or not self.marker:
            raise ValueError("AnswerForm.run_on and AnswerForm.marker must not be empty.")
        if re.compile(self.label).groups < 1:
            raise ValueError(f"AnswerForm.label needs a group for the label: {self.label!r}.")


UP_TO_FINAL_STOP = r"(?s)(.*?)\.?$"
"""`AnswerForm.label`: all that follows, without one full stop at its end."""


def parse_completion(completion: str | None, form: AnswerForm) -> Answer:
    """Takes the teacher's text as it came apart; None where there is none for the row.

    Rationale and label are stripped. The label is the teacher's text: it may be cut short or be no
    valid answer at all.
    """
    if completion is None:
        return Answer(rationale="", label="")
    text = completion.partition(form.run_on)[0].strip()
    rationale, marker, rest = text.partition(form.marker)
    if not marker:
        return Answer(rationale=text if form.keep_unanswered else "", label="")
    match = re.search(form.label, rest.strip())
    label = match.group(1).strip() if match else ""
    return Answer(rationale=rationale.strip(), label=label)
