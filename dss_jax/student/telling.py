"""Rationales cut to the words that tell a student most of the label: the control `telling` by the
student's own loss, as the attributions of arXiv 2406.14511. `dss records cut`; docs/methods.md.
"""

from collections.abc import Sequence
from dataclasses import replace

from tqdm import tqdm

from dss_jax.core.errors import UsageError
from dss_jax.data.tokenizer import SEPARATOR
from dss_jax.records.records import Record, RecordSample
from dss_jax.student.student import Student

AT_ONCE = 64
"""Rationales."""

Row = tuple[str, str, list[str]]
"""Input, label, and the words of a rationale."""


def cut_records(student: Student, records: Sequence[Record], count: int) -> list[Record]:
    """The records, with `count` words at most of each rationale that goes with its row's label. The
    label is the gold one; where there is none, the teacher's. Raises UsageError: see `telling`.
    """

    def is_cut(record: Record, sample: RecordSample) -> bool:
        return record.votes(sample) and len(sample.rationale.split()) > count

    rows = [
        (record.input, record.gold or record.teacher_label, sample.rationale.split())
        for record in records
        for sample in record.samples
        if is_cut(record, sample)
    ]
    kept = iter(telling(student, rows, count))
    return [
        replace(
            record,
            samples=tuple(
                replace(s, rationale=next(kept)) if is_cut(record, s) else s for s in record.samples
            ),
        )
        for record in records
    ]


def telling(student: Student, rows: Sequence[Row], count: int) -> list[str]:
    """The `count` words of each rationale, in their order, without each of which the student's loss
    of the label is the highest; the first of equals.

    Raises:
      UsageError: the student reads no rationale.
    """
    if student.card.form != "rationale_input":
        raise UsageError(
            f"{student.folder}: this student (method {student.card.method or 'unknown'}) reads no "
            "rationale, so none can tell it anything. Train one with --method pinto."
        )
    kept = []
    with tqdm(total=len(rows), desc="rationales", unit="row", disable=None, leave=False) as bar:
        for first in range(0, len(rows), AT_ONCE):
            part = rows[first : first + AT_ONCE]
            asked = [
                (f"{text}{SEPARATOR}{' '.join(words[:n] + words[n + 1 :])}", (label,))
                for text, label, words in part
                for n in range(len(words))
            ]
            texts, labels = zip(*asked, strict=True)
            log_probs = iter([p.log_prob for p in student.predict(texts, labels=labels)])
            for _, _, words in part:
                without = [next(log_probs) for _ in words]
                best = sorted(range(len(words)), key=without.__getitem__)[:count]
                kept.append(" ".join(words[n] for n in sorted(best)))
            bar.update(len(part))
    return kept
