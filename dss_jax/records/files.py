"""Record files: reads, writes and merges the JSONL of `docs/records.md`. Standard library only."""

import functools
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dss_jax.core import strict_json
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import write_whole
from dss_jax.records.records import FORMAT, STATUSES, Header, Record, RecordSample

SHOWN_IDS = 10
"""At most so many ids in a message."""

_SAME = ("task", "split", "teacher", "prompt_sha256", "sampling")
"""Fields of the headers that must agree."""

_HEADER = tuple(f.name for f in fields(Header))
_RECORD = ("id", "input", "gold", "teacher_label", "rationale", "agreement", "status", "samples")
_SAMPLE = tuple(f.name for f in fields(RecordSample))
_LATER = ("thoughts", "flag")
"""Fields of a sample that earlier files have not; left out where they are empty."""

_TYPES = {
    **{"samples": list, "agreement": float, "filters": list},
    **{"sampling": dict, "prompt": dict, "totals": dict},
}
"""Field -> its type in JSON, of header, record and sample; the others are text."""

_KINDS = {str: "text", float: "a number", list: "a list", dict: "an object"}


def as_json(content: Any, **options: Any) -> bytes:
    """JSON in UTF-8 of any text."""
    text = json.dumps(content, ensure_ascii=False, **options)
    # A lone surrogate, from a reply cut in the middle of a character, cannot be UTF-8. Python's
    # escape of it is JSON's too, so it is read back as it was.
    return text.encode("utf-8", "backslashreplace")


def refused(constant: str) -> None:
    """`parse_constant` of a reader: NaN and infinity could not be written again, so they are none
    (ValueError).
    """
    raise ValueError(f"{constant} is no JSON")


def _loads(line: bytes) -> Any:
    return strict_json.loads(line, parse_constant=refused)


def _line(content: dict[str, Any]) -> bytes:
    return as_json(content, allow_nan=False) + b"\n"


def header_line(header: Header) -> bytes:
    """The first line of a record file."""
    content = asdict(header)
    if not header.prompt:  # Which earlier versions do not know.
        del content["prompt"]
    return _line({"dss_records": FORMAT, **content})


def record_line(record: Record) -> bytes:
    """The line of a record: one JSON object in UTF-8, with its newline."""
    content = {name: getattr(record, name) for name in _RECORD}
    samples = [asdict(sample) for sample in record.samples]
    for sample in samples:
        for name in _LATER:
            if not sample[name]:
                del sample[name]
    return _line(content | {"samples": samples})


def write_records(path: Path, header: Header, records: Iterable[Record]) -> None:
    """Writes a record file that appears whole or not at all, and its folder where there is none.

    The same header and records give the same bytes. Its totals count the rows of a collection; of
    an iterator, whose records are taken one at a time, they stay as they are.

    Raises:
      ValueError: an iterator has not as many records as the totals say; nothing is written then.
    """
    if isinstance(records, Collection):
        header = replace(header, totals={**header.totals, **row_totals(records)})
    write_whole(path, _lines_of(header, records))


def _lines_of(header: Header, records: Iterable[Record]) -> Iterator[bytes]:
    yield header_line(header)
    count = 0
    for record in records:
        yield record_line(record)
        count += 1
    if header.totals.get("rows", count) != count:
        raise ValueError(f"{count} records, but the header's totals say {header.totals['rows']}")


def read_records(path: Path) -> tuple[Header, Iterator[Record]]:
    """Opens a record file: its header, and its records, read and checked line by line as they are
    asked for.

    Raises:
      UsageError: it cannot be read, is no record file or of a newer format; from the iterator: a
        line is no record, or has the id of an earlier one; at its end, there are not as many as the
        header's totals count (older files' may not). Says file and line.
    """
    try:
        lines = path.open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}.") from error
    try:
        header = _header(lines.readline(), f"{path}:1")
        return header, _records(lines, path, header.totals.get("rows"))
    except UsageError:
        lines.close()
        raise


def _header(line: bytes, where: str) -> Header:
    try:
        content = _loads(line)
        version = content.pop("dss_records")
    except strict_json.DuplicateKeyError as error:
        raise UsageError(f"{where}: {error}. Remove one of them.") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UsageError(
            f'{where}: not a record file: its first line is no {{"dss_records": {FORMAT}, ...}}. '
            "Give a file that `dss extract` or `dss records` has written."
        ) from error
    if type(version) is not int or version < 1:
        raise UsageError(f"{where}: dss_records must be a whole number, not {version!r}.")
    if version > FORMAT:
        raise UsageError(
            f"{where}: format {version} of record files; this dss-jax reads up to {FORMAT}. "
            "Install a newer one."
        )
    _check(content, _HEADER, where, optional=set(_HEADER) - {"task", "split", "teacher"})
    return Header(**content | {"filters": tuple(content.get("filters", ()))})


def _records(lines: BinaryIO, path: Path, rows: Any) -> Iterator[Record]:
    seen: dict[str, int] = {}
    with lines:
        for number, line in enumerate(lines, 2):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            record = _record(line, where)
            if record.id in seen:
                raise UsageError(
                    f"{where}: id {record.id!r} is on line {seen[record.id]} already. Remove one "
                    "of the two; whole files are joined by `dss records merge`."
                )
            seen[record.id] = number
            yield record
    if isinstance(rows, int) and rows != len(seen):
        raise UsageError(
            f"{path}: {len(seen):,} records, but {rows:,} by the totals in its first line. It was "
            "cut short, or lines were taken out or put in: take a whole copy. Where it was meant, "
            f'write "rows": {len(seen)} there; `dss records filter` leaves rows out and counts.'
        )


def _record(line: bytes, where: str) -> Record:
    try:
        content = _loads(line)
    except ValueError as error:
        if isinstance(error, strict_json.DuplicateKeyError):
            raise UsageError(f"{where}: {error}. Remove one of them.") from error
        cut = "" if line.endswith(b"\n") else " The file ends here: it may have been cut short."
        raise UsageError(f"{where}: not JSON in UTF-8: {error}.{cut}") from error
    _check(content, _RECORD, where)
    for number, sample in enumerate(content["samples"]):
        _check(sample, _SAMPLE, f"{where}: samples[{number}]", optional=set(_LATER))
    if not content["samples"]:
        raise UsageError(f"{where}: samples is empty; a record has at least one.")
    if not 0 <= content["agreement"] <= 1:
        raise UsageError(f"{where}: agreement must be from 0 to 1, not {content['agreement']!r}.")
    rationale = content.pop("rationale")
    content["agreement"] = float(content["agreement"])
    record = Record(**content | {"samples": tuple(RecordSample(**s) for s in content["samples"])})
    if rationale != record.rationale:
        raise UsageError(
            f"{where}: rationale is a copy of that of the first sample with teacher_label, but "
            "differs from it. Change both, or neither."
        )
    return record


def _check(
    content: Any, names: Sequence[str], where: str, optional: Set[str] = frozenset()
) -> None:
    """Raises UsageError unless `content` is an object with these fields, of the right types."""
    if not isinstance(content, dict):
        raise UsageError(f"{where}: must be a JSON object, not {content!r:.60}.")
    for name in names:
        if name not in content and name not in optional:
            raise UsageError(f"{where}: field {name!r} is missing.")
    for name, value in content.items():
        if name not in names:
            raise UsageError(f"{where}: unknown field {name!r}. Known: {', '.join(names)}.")
        wanted = _TYPES.get(name, str)
        right = type(value) in (int, float) if wanted is float else isinstance(value, wanted)
        if not right:
            raise UsageError(f"{where}: {name} must be {_KINDS[wanted]}, not {value!r:.60}.")
        if name == "status" and value not in STATUSES:
            raise UsageError(f"{where}: unknown status {value!r}. Known: {', '.join(STATUSES)}.")


def row_totals(records: Iterable[Record]) -> dict[str, Any]:
    """What `Header.totals` says of the rows: `rows`, and `statuses`: status -> rows."""
    counts = Counter(record.status for record in records)
    statuses = {status: counts[status] for status in STATUSES if counts[status]}
    return {"rows": counts.total(), "statuses": statuses}


class MergeResult(NamedTuple):
    """What `merge` did: `equal` rows were there once more, and the same; of `answered` rows one
    version had errors that another had not; `conflicts` are (id, first file, other file) of rows
    that differ otherwise.
    """

    rows: int
    equal: int
    answered: int
    conflicts: list[tuple[str, Path, Path]]


def merge(paths: Sequence[Path], out: Path, on_conflict: str | None = None) -> MergeResult:
    """Merges the record files of shards or of repeated runs, of the same task, split, prompt,
    teacher and sampling, into one.

    Rows come in the order in which they are first met. All records are held in memory.
    `on_conflict`: which version is taken of a row that two files answer differently: "first" or
    "last".

    Raises:
      UsageError: the headers do not agree, rows are in conflict, or see `read_records`; nothing is
        written then.
    """
    if len({p.resolve() for p in paths}) < max(2, len(paths)):
        raise UsageError("merge needs two files or more, each once: their totals are added.")
    headers: list[Header] = []
    kept: dict[str, tuple[Record, Path]] = {}
    equal = answered = 0
    conflicts = []
    for path in paths:
        header, records = read_records(path)
        headers.append(header)
        pairs = {name: (getattr(headers[0], name), getattr(header, name)) for name in _SAME}
        if other := "; ".join(f"{n}: {a!r} and {b!r}" for n, (a, b) in pairs.items() if a != b):
            raise UsageError(
                f"{paths[0]} and {path} are of different extractions ({other}). Merge only files "
                "of the same task, split, teacher, prompt and sampling."
            )
        for new in records:
            old, source = kept.setdefault(new.id, (new, path))
            if new == old:
                equal += new is not old
                continue
            better = _answered(old, new)
            if better is not None:
                # Of two failures the first stays: neither is an answer.
                answered += not (old.status == new.status == "error")
            else:
                conflicts.append((new.id, source, path))
                better = new if on_conflict == "last" else old
            if better is new:
                kept[new.id] = (new, path)
    if conflicts and on_conflict is None:
        shown = "; ".join(f"{i!r} in {a} and {b}" for i, a, b in conflicts[:SHOWN_IDS])
        more = f"; and {len(conflicts) - SHOWN_IDS} more" if len(conflicts) > SHOWN_IDS else ""
        raise UsageError(
            f"rows that two files have in different versions: {shown}{more}. Give --on_conflict "
            "first or --on_conflict last to take the version of the first or of the last file."
        )
    merged = [record for record, _ in kept.values()]
    write_records(out, _merged_header(headers, merged), merged)
    return MergeResult(rows=len(merged), equal=equal, answered=answered, conflicts=conflicts)


def _answered(old: Record, new: Record) -> Record | None:
    """Of a row that was asked again, the version with the answers; None: they differ otherwise."""
    if (old.input, old.gold) != (new.input, new.gold):
        return None
    if "error" in (old.status, new.status):
        return new if old.status == "error" != new.status else old
    if _completes(old, new):
        return old
    return new if _completes(new, old) else None


def _completes(new: Record, old: Record) -> bool:
    """Whether `new` is `old`, but with answers for failed samples."""
    return len(old.samples) == len(new.samples) and all(
        # Of two equations of one value the vote's first form is the label of both.
        before.status == "error" or replace(before, label="") == replace(after, label="")
        for before, after in zip(old.samples, new.samples, strict=True)
    )


def _merged_header(headers: Sequence[Header], records: Sequence[Record]) -> Header:
    def joined(name: str, between: str) -> str:
        return between.join(dict.fromkeys(filter(None, (getattr(h, name) for h in headers))))

    totals = functools.reduce(_added, (h.totals for h in headers))
    return replace(
        headers[0],
        endpoint=joined("endpoint", ", "),
        date=max(h.date for h in headers),
        terms=joined("terms", "; "),
        prices=joined("prices", "; "),
        prompt=next((h.prompt for h in headers if h.prompt), {}),  # Of one prompt_sha256.
        totals={**totals, **row_totals(records)},
        filters=tuple(entry for h in headers for entry in h.filters),
    )


def _added(totals: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Adds numbers up, in objects within too; all else must be the same, as a currency."""
    added = totals | more
    for name in (n for n in totals if n in more):
        old, value = totals[name], more[name]
        if isinstance(value, dict) and isinstance(old, dict):
            added[name] = _added(old, value)
        elif isinstance(value, int | float) and isinstance(old, int | float):
            added[name] = old + value
        elif value != old:
            raise UsageError(f"totals cannot be added: {name} is {old!r} and {value!r}.")
    return added
