"""Tables of rows, as they come and as they go: CSV, JSONL, Parquet, and plain lines.

Rows are read and written a chunk at a time. What is written lies beside its place until it is
whole, with a file that says how far it is; whoever is stopped goes on after the last whole chunk.
"""

import csv
import io
import itertools
import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dss_jax.core import storage, strict_json
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import make_folder, write_whole
from dss_jax.core.table import FORMS
from dss_jax.core.texts import is_utf8
from dss_jax.data.parquet import read_parquet
from dss_jax.data.rows import Located, jsonl_rows, lines_of, numbered, table_rows

Row = dict[str, Any]
"""Column -> value."""

ENDINGS = {**FORMS, ".txt": "lines"}
DELIMITERS = {"csv": ",", "tsv": "\t"}

STANDARD = "-"
"""For standard input, and output."""

INPUT = "input"
"""The column of plain lines."""

_ESCAPED = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), *range(0xD800, 0xE000))}
"""What a terminal may obey, and halves of characters; in JSON this reads as the same."""


class RowTable(NamedTuple):
    """Rows as they are read; of Parquet also the schema, and how many there are."""

    rows: Iterator[Located]
    schema: Any = None
    total: int | None = None


def _form(name: str, flag: str) -> str:
    form = ENDINGS.get(Path(name).suffix.lower())
    if form is None:
        known = ", ".join(ENDINGS)
        raise UsageError(f"{flag} {name}: the name must end in one of {known}, or be {STANDARD}.")
    return form


def open_table(name: str) -> RowTable:
    """Opens a table, local or remote, or standard input, which has JSON objects or plain lines.
    Raises UsageError: no such file, or not of this form, then or when the row is read, with its
    line.
    """
    if name == STANDARD:
        if isinstance(sys.stdin, io.TextIOWrapper):
            # As of files, so that a wrong line is named. What is read so far is nothing.
            sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape")
        return RowTable(_of_lines(Path("standard input"), sys.stdin))
    form, file = _form(name, "--input"), storage.local_file(name)
    if not file.is_file():
        raise UsageError(f"--input {name}: there is no such file.")
    if form == "parquet":
        table = read_parquet(file)
        return RowTable(numbered(table.rows, str(file), 1), table.schema, table.total)
    if form in DELIMITERS:
        return RowTable(table_rows(file), None, _line_count(file, -1))
    if form == "jsonl":
        return RowTable(jsonl_rows(file), None, _line_count(file))
    return RowTable(_plain(file, lines_of(file)), None, _line_count(file))


def _line_count(file: Path, more: int = 0) -> int:
    """How many rows there are, for a progress bar: fields with line breaks count for several."""
    count = more
    with file.open("rb") as content:
        while block := content.read(2**20):
            count += block.count(b"\n")
    return max(count, 0)


def _of_lines(name: Path, lines: Iterable[str]) -> Iterator[Located]:
    lines, seen = iter(lines), list[str]()
    for line in lines:
        seen.append(line)
        if line.strip():
            break
    every = itertools.chain(seen, lines)
    objects = "".join(seen).lstrip().startswith("{")
    return jsonl_rows(name, every) if objects else _plain(name, every)


def _plain(name: Path, lines: Iterable[str]) -> Iterator[Located]:
    for number, line in enumerate(lines, 1):
        where = f"{name}, line {number}"
        wrong = "" if is_utf8(line) else f"{where}: not UTF-8 text."
        yield Located(where=where, row={INPUT: line.rstrip("\r\n")}, wrong=wrong)


class RowWriter:
    """Writes rows to standard output, as JSONL."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"rows": 0}

    def write(self, rows: Sequence[Row], **state: Any) -> None:
        """Writes a chunk; when it returns it is there. `state` is kept with the count, `rows`."""
        sys.stdout.write("".join(map(_json_line, rows)).translate(_ESCAPED))
        sys.stdout.flush()
        self.state |= {"rows": self.state["rows"] + len(rows), **state}

    def finish(self) -> None:
        """All are written."""


class FileWriter(RowWriter):
    """Writes rows beside the place of a file, and moves them there when all are written.

    Attributes:
      state: kept on the disk: the `job`, how many `rows` are written, and what `write` was given.
    """

    def __init__(self, out: str, job: dict[str, Any]) -> None:
        """`job`: what decides the rows; UsageError: the file is there, or rows of another job."""
        if storage.is_remote(out):
            raise UsageError(f"--out {out}: rows are written to a local file. Copy it afterwards.")
        self.file = Path(out).expanduser()
        self._partial = self.file.with_name(f"{self.file.name}.partial")
        self._state_file = self.file.with_name(f"{self.file.name}.partial.json")
        if self.file.exists():
            raise UsageError(f"--out {out} is there already. Give another name, or remove it.")
        # As JSON gives it back.
        self.state = {"job": json.loads(json.dumps(job)), "rows": 0, "bytes": 0, "columns": None}
        self.state["crc"] = 0  # Of the bytes.
        if self._state_file.is_file():
            fix = f"Remove it and {self._partial}, and give the same command again."
            found = strict_json.read(self._state_file, fix)
            numbers = [found.get(name) for name in ("rows", "bytes", "crc")]
            whole = all(type(number) is int and number >= 0 for number in numbers)
            if not (whole and isinstance(found.get("job"), dict) and "columns" in found):
                raise UsageError(f"{self._state_file} is damaged. {fix}")
            self._go_on(found)
        make_folder(self.file.parent)

    def _go_on(self, found: dict[str, Any]) -> None:
        before, now = found["job"], self.state["job"]
        other = [f"{k} {before.get(k)!r}, now {now[k]!r}" for k in now if before.get(k) != now[k]]
        if other:
            raise UsageError(
                f"{self._partial} holds rows of another job ({'; '.join(other)}). Give the same "
                f"flags to go on with it, or another --out; or remove it and {self._state_file}."
            )
        self.state = found

    def _check(self, *files: Path) -> None:
        """UsageError: these do not begin with the bytes that were written."""
        left, crc = self.state["bytes"], 0
        for file in files:
            with suppress(FileNotFoundError), file.open("rb") as content:
                while block := content.read(min(left, 2**20)):
                    left, crc = left - len(block), zlib.crc32(block, crc)
        if left or crc != self.state["crc"]:
            raise self._damaged()

    def _damaged(self) -> UsageError:
        return UsageError(
            f"{self._partial} is damaged: it is not what was written. Remove it and "
            f"{self._state_file}, and give the same command again."
        )

    def _append(self, stream: BinaryIO, content: bytes) -> None:
        """Writes these, and counts them once they are on the disk."""
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
        self.state["bytes"] += len(content)
        self.state["crc"] = zlib.crc32(content, self.state["crc"])

    def write(self, rows: Sequence[Row], **state: Any) -> None:
        if rows and self.state["columns"] is None:
            self.state["columns"] = [*rows[0]]
        self._write(rows)
        self.state |= {"rows": self.state["rows"] + len(rows), **state}
        write_whole(self._state_file, strict_json.dumps(self.state))

    def _write(self, rows: Sequence[Row]) -> None:
        raise NotImplementedError

    def _check_columns(self, rows: Sequence[Row]) -> list[str]:
        """The columns of the file; UsageError: a row has another one."""
        columns: list[str] = self.state["columns"]
        for number, row in enumerate(rows, self.state["rows"] + 1):
            if new := sorted(row.keys() - set(columns)):
                raise UsageError(
                    f"row {number} has a column {new[0]!r}, which the first row has not, and "
                    f"{self.file} has one header for all. Take a name that ends in .jsonl."
                )
        return columns

    def finish(self) -> None:
        """Puts the file in its place, whole."""
        self._move()
        self._state_file.unlink(missing_ok=True)

    def _move(self) -> None:
        os.replace(self._partial, self.file)


class TextWriter(FileWriter):
    """CSV and JSONL: one file that grows."""

    def __init__(self, out: str, job: dict[str, Any], form: str) -> None:
        super().__init__(out, job)
        self._form = form
        self._check(self._partial)
        self._stream = self._partial.open("ab")
        # Of a chunk that was cut short nothing stays.
        self._stream.truncate(self.state["bytes"])

    def _write(self, rows: Sequence[Row]) -> None:
        text = "".join(map(_json_line, rows)) if self._form == "jsonl" else self._csv(rows)
        content = text.encode("utf-8", "backslashreplace")
        self._append(self._stream, content)

    def _csv(self, rows: Sequence[Row]) -> str:
        text, delimiter = io.StringIO(newline=""), DELIMITERS[self._form]
        columns = self._check_columns(rows) if rows else []
        plain = csv.writer(text, delimiter=delimiter, lineterminator="\n")
        # Python does not quote what has a carriage return alone, which readers take for a new row.
        quoted = csv.writer(
            text, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC
        )
        table = [[_cell(row.get(name)) for name in columns] for row in rows]
        if rows and not self.state["bytes"]:
            table.insert(0, columns)
        for cells in table:
            (quoted if any("\r" in cell for cell in cells) else plain).writerow(cells)
        return text.getvalue()

    def _move(self) -> None:
        self._stream.close()
        super()._move()


class ParquetWriter(FileWriter):
    """Parquet, which cannot grow: a file a chunk, put together at the end.

    Args:
      schema: of the table that the rows come from; None: by the first rows.
      added: further columns and their types.
    """

    def __init__(
        self, out: str, job: dict[str, Any], schema: Any, added: Mapping[str, type]
    ) -> None:
        import pyarrow
        import pyarrow.parquet

        self._arrow = pyarrow
        super().__init__(out, job)
        self._schema, self._added = schema, added
        self._partial.mkdir(exist_ok=True)
        self._check(*self._parts())

    def _parts(self) -> list[Path]:
        """Those that are whole, in order."""
        files = sorted(self._partial.glob("*.parquet"))
        return [file for file in files if int(file.stem) < self.state["rows"]]

    def _whole_schema(self, rows: Sequence[Row]) -> Any:
        arrow = self._arrow
        if parts := self._parts():
            return arrow.parquet.read_schema(parts[0])
        schema = self._schema
        if schema is None:
            own = [{k: v for k, v in row.items() if k not in self._added} for row in rows]
            schema = arrow.Table.from_pylist(own).schema
        kinds = {str: arrow.string(), float: arrow.float64()}
        for name, kind in self._added.items():
            schema = schema.append(arrow.field(name, kinds[kind]))
        return schema

    def _write(self, rows: Sequence[Row]) -> None:
        arrow, made = self._arrow, self._arrow.BufferOutputStream()
        try:
            if rows:
                self._check_columns(rows)
            table = arrow.Table.from_pylist(rows, schema=self._whole_schema(rows))
            arrow.parquet.write_table(table, made)
        # Half a character; more than 64 bits.
        except (arrow.ArrowException, UnicodeEncodeError, OverflowError) as error:
            raise UsageError(
                f"the rows from {self.state['rows'] + 1} on do not fit the columns of {self.file}: "
                f"{error}. Take a name that ends in .jsonl."
            ) from error
        content = made.getvalue().to_pybytes()
        with (self._partial / f"{self.state['rows']:012}.parquet").open("wb") as part:
            self._append(part, content)

    def _move(self) -> None:
        whole, rows = self._partial / "whole", 0
        with whole.open("wb") as file:
            with self._arrow.parquet.ParquetWriter(file, self._whole_schema([])) as writer:
                for part in self._parts():
                    table = self._arrow.parquet.read_table(part)
                    writer.write_table(table)
                    rows += len(table)
            file.flush()
            os.fsync(file.fileno())  # Before the parts are removed.
        if rows != self.state["rows"]:
            raise self._damaged()
        os.replace(whole, self.file)
        shutil.rmtree(self._partial)


def open_writer(out: str, job: dict[str, Any], schema: Any, added: Mapping[str, type]) -> RowWriter:
    """What writes rows to `out`; "-" is standard output. Goes on after what a job that was stopped
    has written. UsageError: see `FileWriter`, or the name says no form.
    """
    if out == STANDARD:
        return RowWriter()
    form = _form(out, "--out")
    if form == "lines":
        raise UsageError(f"--out {out}: answers are rows. Take .jsonl, .csv, .tsv or .parquet.")
    if form == "parquet":
        return ParquetWriter(out, job, schema, added)
    return TextWriter(out, job, form)


def _json_line(row: Row) -> str:
    return strict_json.dumps(row, ensure_ascii=False, default=str) + "\n"


def _cell(value: Any) -> str:
    """A value as a field of a CSV file."""
    if value is None or isinstance(value, str):
        return value or ""
    return strict_json.dumps(value, ensure_ascii=False, default=str)
