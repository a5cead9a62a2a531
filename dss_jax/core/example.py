"""A row of a task as text, and what is read from a teacher's completion. Standard library only."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One row of a task as text, before prefixes."""

    id: str  # Unique within its split; "": the reader gives it the row's number.
    input: str  # What the student reads.
    # The gold label; "" where the row has none (it is then left out where the gold label is trained
    # on or scored).
    label: str = ""
    teacher_label: str = ""  # The teacher's label; "" where it gave none.
    # The teacher's rationale; "" where it gave none (such a row trains only the label task).
    rationale: str = ""
    # All of the teacher's rationales for its label, where it gave several.
    rationales: tuple[str, ...] = ()
    # The labels that are valid answers here; () where any text may be.
    allowed_labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A teacher's completion, taken apart. Either part is "" where it is missing."""

    rationale: str
    label: str
