"""Puts the records of `dss extract` in place of the teacher text that a task's own rows carry."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dss_jax.core.errors import UsageError
from dss_jax.core.types import DistillationTask, Example
from dss_jax.data import sources
from dss_jax.data.old_records import Ages, Place, some
from dss_jax.records.files import read_records
from dss_jax.records.records import Record

Splits = Mapping[str, list[Example]]
Given = dict[Place, str | Path]
"""The file that has a row's record."""


def records_digest(file: str | Path) -> str:
    """SHA-256, in hex, of a record file but for its header's date, totals and notes: the same
    records, written again on another day, are the same data.
    """
    header, _ = read_records(Path(file))
    digest = hashlib.sha256(json.dumps([header.task, header.split]).encode())
    with Path(file).open("rb") as stream:
        stream.readline()
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def join_records(
    task: DistillationTask,
    splits: Splits,
    files: Sequence[str | Path],
    data_dir: str | Path | None = None,
    old: list[str] | None = None,
) -> tuple[Splits, list[str]]:
    """Joins records to rows by id.

    Once there are record files, all teacher text comes from them, so that two teachers are never
    mixed: a row whose record is missing, not "ok" or old has none; so has a split without a file.

    Args:
      splits: split -> its rows; a file for a split that is not among them is passed over.
      files: record files, each of one split. Where validation is held out of train, a file of
        either serves both.
      old: gets a warning for each file that is older than rows of it.

    Returns:
      The rows with the records' labels and rationales (without files: as they were), and what to
      tell the user: how many rows have a record, missing and surplus ids.

    Raises:
      UsageError: a file is of another task or of other rows; an id comes twice.
    """
    if not files:
        return splits, []
    old = [] if old is None else old
    shared: tuple[str, ...] = ("train", "validation") if sources.held_out(task, data_dir) else ()
    joined = {
        s: [replace(e, teacher_label="", rationale="", rationales=()) for e in found]
        for s, found in splits.items()
    }
    given, unused, said = Given(), set[Place](), list[str]()
    for file in files:
        header, records = read_records(Path(file))
        if header.task != task.name:
            raise UsageError(
                f"{file} has records of task {header.task!r}, not of {task.name!r}. Give the "
                "records of that task with --rationales, or another --task."
            )
        names = shared if header.split in shared else (header.split,)
        own = {s: joined[s] for s in names if s in joined}
        if not own:
            said.append(f"{file} is not used: {task.name} has no {header.split} split here")
            continue
        ages = Ages(task, own, header)
        surplus = _fill(own, file, records, given, ages)
        if file not in given.values() and header.split in joined:
            theirs = f"its ids: {some(surplus)}" if surplus else "it is empty"
            raise UsageError(
                f"{file}: no record is for a row of {header.task} {header.split} ({theirs}; the "
                f"rows': {some([e.id for e in joined[header.split]])}). Give the data that the "
                "records were made from."
            )
        unused.update(ages.unused)
        old += ages.lines(file)
        if surplus:
            said.append(f"{file}: {len(surplus):,} records are for no row: {some(surplus)}")
    return joined, [*_counts(joined, given, unused), *said]


def _fill(
    splits: Mapping[str, list[Example]],
    file: str | Path,
    records: Iterable[Record],
    given: Given,
    ages: Ages,
) -> list[str]:
    """Puts a file's text into the rows, notes in `given` which have a record; surplus ids. Raises
    UsageError where no record has its row's text.
    """
    places = {e.id: (s, i) for s, found in splits.items() for i, e in enumerate(found)}
    surplus, fit = [], 0
    for record in records:
        if record.id not in places:
            surplus.append(record.id)
            continue
        split, at = places[record.id]
        row = splits[split][at]
        if (before := given.get((split, record.id))) is not None:
            raise UsageError(
                f"id {record.id!r} is in {before} and again in {file}. `dss records merge` makes "
                "one file of several."
            )
        given[split, record.id] = file
        if not ages.fits(split, row, record):
            continue
        fit += 1
        if record.status == "ok":
            theirs = (s.rationale for s in record.samples if record.votes(s) and s.rationale)
            several = tuple(dict.fromkeys(theirs))
            splits[split][at] = replace(
                row,
                teacher_label=record.teacher_label,
                rationale=record.rationale,
                rationales=several if len(several) > 1 else (),
            )
    if ages.texts and not fit:
        row_id, before, now = ages.texts
        raise UsageError(
            f"{file}: no record has the text of its row; the input of id {row_id!r} is not that of "
            f"the row: {before[:80]!r} and {now[:80]!r}. The records were made from other data; "
            "give that data with --data_dir, or extract again."
        )
    for place in ages.gone():
        split, at = places[place[1]]
        bare = replace(splits[split][at], teacher_label="", rationale="", rationales=())
        splits[split][at] = bare
    return surplus


def _counts(joined: Splits, given: Given, unused: Collection[Place]) -> Iterator[str]:
    for split, found in joined.items():
        with_label = sum(bool(e.teacher_label) for e in found)
        missing = [e.id for e in found if (split, e.id) not in given]
        older = sum((split, e.id) in unused for e in found)
        failed = len(found) - len(missing) - with_label - older
        counts = {"not ok": failed, "older than their rows": older}
        notes = [f"{what}: {count:,}" for what, count in counts.items() if count]
        if missing:
            ids = "" if len(missing) == len(found) else f": {some(missing)}"
            notes.append(f"no record: {len(missing):,}{ids}")
        note = f" ({'; '.join(notes)})" if notes else ""
        yield f"{split}: {with_label:,} of {len(found):,} rows have text of the records{note}"
