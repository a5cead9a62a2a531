"""Reads JSONL and CSV files row by row; errors name file and line. Standard library only."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dss_jax.core.errors import UsageError
from dss_jax.core.types import Row


class SplitUnavailable(UsageError):  # noqa: N818
    """A split that exists in the world but could not be downloaded."""


@dataclass(frozen=True, kw_only=True)
class Located:
    """A row, and where it is, for messages ("cqa/cqa_train.json, line 3")."""

    where: str
    row: Row
    completion: str | None = None


def parse_json(text: str, where: str) -> Any:
    """`json.loads`; a `UsageError` that begins with `where` if it is not JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if "line" not in where else ""
        raise UsageError(
            f"{where}{line}, column {error.colno}: not valid JSON: {error.msg}."
        ) from error


def jsonl_rows(file: Path) -> Iterator[Located]:
    """The objects of a JSONL file; empty lines are passed over."""
    with _open(file) as lines:
        for number, line in enumerate(_decoded(lines, file), 1):
            if line.strip():
                where = f"{file}, line {number}"
                row = parse_json(line, where)
                if not isinstance(row, dict):
                    raise UsageError(f"{where}: must be a JSON object, one a line.")
                yield Located(where=where, row=row)


def csv_rows(file: Path) -> Iterator[Located]:
    """The rows of a CSV file with a header line."""
    with _open(file, newline="") as lines:
        reader = csv.DictReader(_decoded(lines, file), strict=True)
        try:
            for row in reader:
                where = f"{file}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise UsageError(
                        f"{where}: has not as many fields as the header line "
                        f"({len(reader.fieldnames or ())})."
                    )
                yield Located(where=where, row=row)
        except csv.Error as error:
            raise UsageError(f"{file}, line {reader.line_num}: {error}.") from error


def _open(file: Path, newline: str | None = None) -> Any:
    try:
        return file.open(encoding="utf-8-sig", newline=newline)
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}.") from error


def _decoded(lines: Iterator[str], file: Path) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: not UTF-8 text ({error.reason}, byte {error.start}).") from error
