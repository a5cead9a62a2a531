"""A row of a task as text, and a teacher's completion taken apart. Standard library only."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One row of a task as text, before prefixes.

    Attributes:
      id: unique within its split; "": the reader gives it the row's number.
      input: what the student reads.
      label: the gold label; "" where the row has none (it is then left out where the gold
        label is trained on or scored).
      teacher_label: the teacher's label; "" where it gave none.
      rationale: the teacher's rationale; "" where it gave none (such a row trains only the
        label task).
      rationales: all of the teacher's rationales for its label, where it gave several.
      allowed_labels: the labels that are valid answers here; () where any text may be.
    """

    id: str
    input: str
    label: str = ""
    teacher_label: str = ""
    rationale: str = ""
    rationales: tuple[str, ...] = ()
    allowed_labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A teacher's completion, taken apart. Either part is "" where it is missing."""

    rationale: str
    label: str
