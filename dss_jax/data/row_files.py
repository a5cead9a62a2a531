"""The rows of JSONL and CSV files, each with its place; what is wrong with one is said, not raised,
so that all of a file's mistakes are seen at once.
"""

import csv
import itertools
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dss_jax.core.errors import UsageError
from dss_jax.core.types import Row

log = logging.getLogger(__name__)

LONGEST_FIELD = 2**31 - 1
"""Characters of a field of CSV; Python's own limit is 131,072."""

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True, kw_only=True)
class Located:
    """A row, and where it is, for messages ("cqa/cqa_train.json, line 3")."""

    where: str
    row: Row = field(default_factory=dict)
    completion: str | None = None
    wrong: str = ""  # Why the row cannot be used; "": it can.


def parse_json(text: str, where: str) -> Any:
    """`json.loads`; a `UsageError` that begins with `where` if it is not JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = "" if "line" in where else f", line {error.lineno}"
        at = f"{where}{line}, column {error.colno}"
        raise UsageError(f"{at}: not valid JSON: {error.msg}.") from error
    except (ValueError, RecursionError) as error:  # A number of 5,000 digits, 1,000 brackets.
        raise UsageError(f"{where}: JSON that cannot be read: {error}.") from error


def _lines(file: Path, newline: str | None = None) -> Iterator[str]:
    """Bytes that are no UTF-8 come as lone surrogates, which no row may have."""
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline) as lines:
            yield from lines
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}.") from error


def jsonl_rows(file: Path) -> Iterator[Located]:
    """The objects of a JSONL file; empty lines are passed over."""
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = parse_json(line, where)
        except UsageError as error:
            other = any("\udc80" <= character <= "\udcff" for character in line)
            yield Located(where=where, wrong=f"{where}: not UTF-8 text." if other else str(error))
            continue
        if isinstance(row, dict):
            yield Located(where=where, row=row)
        else:
            yield Located(where=where, wrong=f"{where}: must be a JSON object, one a line.")


def csv_rows(file: Path) -> Iterator[Located]:
    """The rows of a CSV file with a header line, which shows the delimiter and the quotes. Raises
    UsageError where quotes do not close: where the next row begins is not known then.
    """
    csv.field_size_limit(LONGEST_FIELD)
    lines = _lines(file, newline="")
    header = next(lines, "")
    quote = "'" if header.startswith("'") else '"'
    outside = re.sub(f"{quote}[^{quote}]*{quote}", "", header)
    delimiter = max(DELIMITERS, key=outside.count)
    if (quote, delimiter) != ('"', ","):
        log.info(f"{file}: {DELIMITERS[delimiter]} between fields, {quote} around them")
    reader = csv.DictReader(
        itertools.chain([header], lines), strict=True, delimiter=delimiter, quotechar=quote
    )
    try:
        for row in reader:
            where, wrong = f"{file}, line {reader.line_num}", ""
            if None in row or None in row.values():
                count = len(reader.fieldnames or ())
                wrong = f"{where}: has not as many fields as the header line ({count})."
            yield Located(where=where, row={} if wrong else row, wrong=wrong)
    except csv.Error as error:
        raise UsageError(
            f"{file}, line {reader.line_num}: {error}, in the row that begins after this line. "
            f"Text that holds {quote} is written between {quote}, and its own are doubled."
        ) from error
