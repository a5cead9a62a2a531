"""Record files: a header line, then one row a line. The schema is in `docs/records.md`."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from dss_jax.core.errors import UsageError
from dss_jax.teacher.records import FORMAT, STATUSES, Header, Record, Sample

MARK = "dss_records"
"""The header's first field; its value is the format."""

_TEXTS = ("id", "input", "gold", "teacher_label", "rationale", "status")
_SAMPLE_TEXTS = tuple(f.name for f in fields(Sample))


def write_records(path: str | os.PathLike[str], header: Header, records: Iterable[Record]) -> None:
    """Writes a record file that appears whole or not at all; the same records give the same bytes.

    Args:
      path: replaced where it is there.
      header: goes into the first line.
      records: consumed one by one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, fresh = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            Path(fresh).chmod(0o644)
            file.write(_line({MARK: FORMAT, **asdict(header)}))
            for record in records:
                file.write(_line(_as_json(record)))
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    finally:
        Path(fresh).unlink(missing_ok=True)


def read_records(path: str | os.PathLike[str]) -> tuple[Header, Iterator[Record]]:
    """Header and records of a file; the records are read one by one.

    Raises:
      UsageError: no record file, or of a newer format; an ill-formed line, with file and line (for
        a record, when it is reached).
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            header = _header(file.readline(), path)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(f"cannot read the record file {path}: {reason}.") from error
    return header, _records(path)


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _as_json(record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "input": record.input,
        "gold": record.gold,
        "teacher_label": record.teacher_label,
        "rationale": record.rationale,
        "agreement": record.agreement,
        "status": record.status,
        "samples": [asdict(sample) for sample in record.samples],
    }


def _header(line: str, path: Path) -> Header:
    where = f"{path}, line 1"
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict) or MARK not in value:
        raise UsageError(
            f"{where}: no record file: its first line must be the header, with {MARK!r}. "
            "`dss extract` writes such files."
        )
    version = value.pop(MARK)
    if version != FORMAT:
        raise UsageError(f"{where}: format {version!r}, but this dss-jax reads {FORMAT}.")
    known = {f.name for f in fields(Header)}
    wrong = sorted(set(value) ^ known)
    if wrong:
        raise UsageError(f"{where}: fields missing or unknown in the header: {', '.join(wrong)}.")
    value["filters"] = tuple(value["filters"])
    return Header(**value)


def _records(path: Path) -> Iterator[Record]:
    seen: dict[str, int] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if number == 1 or not line.strip():
                continue
            record = _record(line, f"{path}, line {number}")
            if record.id in seen:
                raise UsageError(
                    f"{path}, line {number}: id {record.id!r} was seen before, in line "
                    f"{seen[record.id]}. `dss records merge` joins files that overlap."
                )
            seen[record.id] = number
            yield record


def _record(line: str, where: str) -> Record:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise UsageError(f"{where}: must be a JSON object.")
    wrong = sorted(set(value) ^ {*_TEXTS, "agreement", "samples"})
    if wrong:
        raise UsageError(f"{where}: fields missing or unknown: {', '.join(wrong)}.")
    _texts(value, _TEXTS, where)
    if isinstance(value["agreement"], bool) or not isinstance(value["agreement"], int | float):
        raise UsageError(f"{where}: agreement must be a number, not {value['agreement']!r}.")
    if not isinstance(value["samples"], list) or not value["samples"]:
        raise UsageError(f"{where}: samples must be a list with at least one.")
    samples = []
    for sample in value["samples"]:
        if not isinstance(sample, dict) or set(sample) != set(_SAMPLE_TEXTS):
            raise UsageError(f"{where}: each sample must have {', '.join(_SAMPLE_TEXTS)}.")
        _texts(sample, _SAMPLE_TEXTS, where)
        samples.append(Sample(**sample))
    record = Record(
        id=value["id"], input=value["input"], gold=value["gold"],
        teacher_label=value["teacher_label"], agreement=value["agreement"],
        status=value["status"], samples=tuple(samples),
    )  # fmt: skip
    if record.rationale != value["rationale"]:
        raise UsageError(
            f"{where}: rationale is not that of the first sample with the teacher's label. Change "
            "it there too, or leave both as they were."
        )
    return record


def _texts(value: dict[str, Any], names: tuple[str, ...], where: str) -> None:
    for name in names:
        if not isinstance(value[name], str):
            raise UsageError(f"{where}: {name} must be text, not {value[name]!r}.")
    if value["status"] not in STATUSES:
        raise UsageError(
            f"{where}: status {value['status']!r} is none of {', '.join(STATUSES)}."
        )
