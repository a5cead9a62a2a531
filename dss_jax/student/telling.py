"""Rationales cut to the words that tell a student most of the label: the control `telling` by the
student's own loss, as the attributions of arXiv 2406.14511. `dss records cut`; docs/methods.md.
"""

import json
import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from dss_jax.core import locks
from dss_jax.core.errors import UsageError
from dss_jax.data.rationales import records_digest
from dss_jax.data.tokenizer import SEPARATOR
from dss_jax.records.files import header_line, read_records, record_line, row_totals
from dss_jax.records.records import Record, RecordSample
from dss_jax.student.predict import PredictProgress
from dss_jax.student.student import Student
from dss_jax.student.tables import TextWriter

log = logging.getLogger(__name__)

AT_ONCE = 64
"""Records, between two writes."""

Row = tuple[str, str, list[str]]
"""Input, label, and the words of a rationale."""


def check_reads(student: Student) -> None:
    """Raises UsageError where a student reads no rationales."""
    if student.card.form != "rationale_input":
        raise UsageError(
            f"{student.folder}: this student (method {student.card.method or 'unknown'}) reads no "
            "rationale, so none can tell it anything. Train one with --method pinto."
        )


def cut_file(student: Student, file: Path, out: str, count: int) -> int:
    """Writes the records of a file, their rationales cut as by `cut_records`, and goes on after
    those that a job of before has written; gives how many there are.

    Raises:
      UsageError: see `check_reads`, `read_records` and `tables.FileWriter`.
      locks.Taken: another process writes there.
    """
    check_reads(student)
    header, lines = read_records(file)
    records = [*lines]
    counts = {"rows_left_out": 0, "samples_left_out": 0, "rows_kept": len(records)}
    entry = {"filter": "cut", "value": f"{count} words, by {student.folder.name}", **counts}
    totals = {**header.totals, **row_totals(records)}
    header = replace(header, filters=(*header.filters, entry), totals=totals)
    job = {"records": records_digest(file), "student": student.origin, "words": count}
    taken = f"--out {out} is being written by {{owner}}. Let it finish, or give another name."
    with locks.held(Path(f"{out}.lock"), taken):
        writer = TextWriter(out, job, "jsonl")
        if not writer.state["rows"]:
            writer.write([json.loads(header_line(header))])
        if done := writer.state["rows"] - 1:
            log.info("going on after %d records", done)
        with closing(PredictProgress(len(records), done)) as progress:
            for first in range(done, len(records), AT_ONCE):
                part = cut_records(student, records[first : first + AT_ONCE], count)
                writer.write([json.loads(record_line(record)) for record in part])
                progress(len(part))
        writer.finish()
    return len(records)


def cut_records(student: Student, records: Sequence[Record], count: int) -> list[Record]:
    """The records, with `count` words at most of each rationale that goes with its row's label. The
    label is the gold one; where there is none, the teacher's.
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
    of the label is the highest; the first of equals. Raises UsageError: see `check_reads`.
    """
    check_reads(student)
    texts = [
        f"{text}{SEPARATOR}{' '.join(words[:n] + words[n + 1 :])}"
        for text, _, words in rows
        for n in range(len(words))
    ]
    labels = [(label,) for _, label, words in rows for _ in words]
    asked = student.predict(texts, labels=labels) if texts else ()
    log_probs = iter([p.log_prob for p in asked])
    kept = []
    for _, _, words in rows:
        without = [next(log_probs) for _ in words]
        best = sorted(range(len(words)), key=without.__getitem__)[:count]
        kept.append(" ".join(words[n] for n in sorted(best)))
    return kept
