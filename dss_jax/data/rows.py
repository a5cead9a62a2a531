"""From a task's sources to `Example`s, split by split; errors name file and line. No TensorFlow.

Sources that need TensorFlow are read by `dss_jax.data.seqio_sources`, imported only when such a
split is asked for. What is wrong with a row of a file is said, not raised, so that all of a file's
mistakes are seen at once.
"""

import csv
import functools
import itertools
import json
import logging
import re
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dss_jax.core import strict_json
from dss_jax.core.errors import UsageError, unknown_name
from dss_jax.core.fields import FIELDS, first_twice
from dss_jax.core.lfs import MARK, pointer
from dss_jax.core.table import FORMS, TableSource, text_id
from dss_jax.core.texts import AS_UTF8, is_utf8
from dss_jax.core.types import (
    SPLITS,
    Csv,
    DistillationTask,
    Example,
    Generated,
    Jsonl,
    Release,
    Row,
    SeqioSource,
    Source,
    Tfds,
)
from dss_jax.data import sources
from dss_jax.data.parquet import read_parquet
from dss_jax.data.sources import DataDir

log = logging.getLogger(__name__)

SHOWN_WRONG = 10
"""At most so many rows that cannot be used are named."""

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
    id: str = ""  # Of an example that has none; "": its number.


def examples(
    task: DistillationTask, split: str, data_dir: DataDir = None, left_out: list[str] | None = None
) -> list[Example]:
    """All examples of a split, in order.

    Where no source has a validation split and the task asks for one, it is held out of train;
    both then keep the order in which `datasets.Dataset.train_test_split` puts them.

    Args:
      left_out: rows that cannot be used are left out, and this gets what is wrong with each, once
        (each split of a table meets those that cannot be read); None: they are an error. Those of
        train and of a validation split held out of it are not told apart.

    Raises:
      SplitUnavailable: the split is to come from TFDS but cannot be downloaded.
      UsageError: unknown or unavailable split; missing, unreadable or ill-formed data, with file
        and line.
    """
    return [example for example, _ in examples_with_completions(task, split, data_dir, left_out)]


def examples_with_completions(
    task: DistillationTask, split: str, data_dir: DataDir = None, left_out: list[str] | None = None
) -> list[tuple[Example, str | None]]:
    """As `examples`, each with its raw completion as released; None where there is none."""
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    folder = sources.data_folder(data_dir)
    if split == "test" or not sources.held_out(task, folder):
        return _read(task, split, folder, left_out)
    rows = _read(task, "train", folder, left_out)
    train, validation = sources.hold_out(len(rows), task.validation_fraction, task.validation_seed)
    return [rows[i] for i in (train if split == "train" else validation)]


def _read(
    task: DistillationTask, split: str, folder: Path | None, left_out: list[str] | None
) -> list[tuple[Example, str | None]]:
    """Examples and completions of one split of the source that has it, ids made sure of."""
    source = sources.source_of(task, split, folder)
    if source is None:
        raise sources.no_split(task, split, folder)
    first_seen: dict[str, str] = {}
    found, wrong = [], []
    for number, located in enumerate(_located(task, source, split, folder)):
        try:
            example = example_of(task, located)
            if not example.id:
                example = replace(example, id=located.id or f"{split}-{number}")
            before = first_seen.setdefault(example.id, located.where)
            if before != located.where:
                raise UsageError(
                    f"{located.where}: id {example.id!r} was seen before, at {before}. Ids must be "
                    "unique within a split; leave the field out to have rows numbered."
                )
        except UsageError as error:
            wrong.append(str(error))
            continue
        found.append((example, located.completion))
    if wrong and left_out is None:
        more = len(wrong) - SHOWN_WRONG
        listed = [*wrong[:SHOWN_WRONG], *([f"and {more:,} more"] if more > 0 else [])]
        raise UsageError(
            "\n".join(listed) + f"\n{len(wrong):,} of {len(wrong) + len(found):,} rows cannot be "
            "used: mend them, or leave them out with --bad_rows skip."
        )
    if not found:
        without = f" It had {len(wrong):,} that cannot be used: {wrong[0]}" if wrong else ""
        files = getattr(source, "files", {})
        of = f" ({files[split]})" if split in files else ""
        raise UsageError(f"the {split} split of task {task.name!r}{of} has no rows.{without}")
    if left_out is not None:
        left_out[:] = dict.fromkeys([*left_out, *wrong])
    return found


def example_of(task: DistillationTask, located: Located) -> Example:
    """What a task makes of a row; UsageError: the row is wrong, or the task makes no example."""
    if located.wrong:
        raise UsageError(located.wrong)
    made_by = f"to_example of task {task.name!r}"
    try:
        example = task.to_example(located.row, located.completion)
    except UsageError as error:
        raise UsageError(f"{located.where}: {error}") from error
    except KeyError as error:
        fields = f"The row has: {', '.join(sorted(map(str, located.row)))}."
        raise UsageError(f"{located.where}: field {error} is missing. {fields}") from error
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise UsageError(
            f"{located.where}: {made_by} fails on this row ({frame.filename}:{frame.lineno}): "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(example, Example):
        raise UsageError(
            f"{located.where}: {made_by} gave a {type(example).__name__}, not a "
            "dss_jax.core.types.Example."
        )
    texts = [(name, getattr(example, name)) for name in FIELDS]
    texts += [("a label in allowed_labels", label) for label in example.allowed_labels]
    for name, value in texts:
        if not isinstance(value, str):
            raise UsageError(f"{located.where}: {name} must be text, but {made_by} gave {value!r}.")
        try:
            value.isascii() or value.encode()
        except UnicodeEncodeError as error:
            before = value[max(0, error.start - 20) : error.start]
            raise UsageError(
                f"{located.where}: {name} holds {value[error.start]!r}, which is half of a "
                f"character, after {before!r}."
            ) from error
    if not example.input.strip():
        raise UsageError(f"{located.where}: the input is empty.")
    if task.labels and not example.allowed_labels:
        return replace(example, allowed_labels=task.labels)
    return example


def _located(
    task: DistillationTask, source: Source, split: str, folder: Path | None
) -> Iterable[Located]:
    if isinstance(source, Release | Jsonl):
        file = sources.file_of(task, source, split, folder)
        assert file is not None
        if isinstance(source, TableSource):
            return _of_table(source, file, split)
        found = csv_rows(file) if isinstance(source, Csv) else jsonl_rows(file)
        if not isinstance(source, Release):
            return found
        texts = _completions(source, split, folder, required=not source.completions_optional)
        return _join(list(found), texts, str(file))
    name = f"task {task.name!r}, {split}"
    if isinstance(source, Generated):
        return numbered(source.rows(split), name)

    from dss_jax.data import seqio_sources

    if isinstance(source, SeqioSource):
        return numbered(seqio_sources.rows(source.make(), split), name)
    texts = _completions(source, split, folder, required=False)
    # Completions are joined by position, so the rows must come in their original order.
    own = seqio_sources.tfds_rows(source, split, in_order=texts is not None)
    name = f"TFDS {source.name}, split {source.splits[split]!r}"
    return _join(list(numbered(own, name)), texts, name)


def _of_table(source: TableSource, file: Path, split: str) -> Iterator[Located]:
    """The rows of a split of a table, but for those without a label that are left out."""
    times: Counter[str] = Counter()
    lacking, without = dict.fromkeys(source.columns), 0
    found: Sequence[str] = ()
    for located in table_rows(file):
        found = [*located.row] or found
        for name in lacking.keys() & located.row.keys():
            del lacking[name]
        example, side = None, split
        try:
            if not located.wrong and (side := source.split_of(located.row, split)) == split:
                example = source.to_example(located.row)
        except UsageError as error:
            located = replace(located, wrong=f"{located.where}: {error}")
        if example is None:
            if side == split:
                yield located
        elif example.label or (source.unlabelled and split == "train"):
            own = text_id(example.input)
            times[own] += 1
            yield replace(located, id=own if times[own] == 1 else f"{own}-{times[own]}")
        else:
            without += 1
    if lacking and found:
        raise UsageError(f"{file}: {unknown_name('column', next(iter(lacking)), found)}")
    if without:
        _say_once(f"{file}: {without:,} rows of {split} have no label and are left out")


@functools.cache
def _say_once(text: str) -> None:
    """Each split reads the file."""
    log.info(text)


def numbered(rows: Iterable[Row], where: str, first: int = 0) -> Iterator[Located]:
    return (Located(where=f"{where}, row {n}", row=row) for n, row in enumerate(rows, first))


def _completions(
    source: Release | Tfds, split: str, folder: Path | None, *, required: bool
) -> list[str] | None:
    pattern = source.completions.get(split)
    if pattern is None or folder is None:
        return None
    below = folder / sources.completions_folder(source)
    files = sources.chunks(below, pattern)
    if not files and required:
        raise UsageError(
            f"the teacher's completions for the {split} split are missing: "
            f"{below / pattern.format(k=0)} and following. The authors' release has them in that "
            f"place. {sources.DATA_DIR_HELP}"
        )
    texts: list[str] = []
    for file in files:
        part = parse_json("".join(lines_of(file)), str(file))
        if not isinstance(part, list) or not all(isinstance(t, str) for t in part):
            raise UsageError(f"{file}: must be a JSON list of strings, the raw completions.")
        texts += part
    return texts if files else None


def _join(rows: list[Located], texts: list[str] | None, where: str) -> Iterable[Located]:
    if texts is None:
        return rows
    if len(rows) != len(texts):
        raise UsageError(
            f"{where} has {len(rows)} rows, but there are {len(texts)} completions for them. "
            "They are joined by position, so both must be complete."
        )
    return (replace(r, completion=t) for r, t in zip(rows, texts, strict=True))


def parse_json(text: str, where: str) -> Any:
    """The value; a `UsageError` that begins with `where` if it is not JSON, or an object in it has
    two fields of one name.
    """
    try:
        return strict_json.loads(text)
    except strict_json.DuplicateKeyError as error:
        raise UsageError(f"{where}: {error}. Remove one of them.") from error
    except json.JSONDecodeError as error:
        line = "" if "line" in where else f", line {error.lineno}"
        at = f"{where}{line}, column {error.colno}"
        raise UsageError(f"{at}: not valid JSON: {error.msg}.") from error
    except ValueError as error:  # A number of 5,000 digits, 1,000 brackets.
        raise UsageError(f"{where}: JSON that cannot be read: {error}.") from error


def lines_of(file: Path, newline: str | None = None) -> Iterator[str]:
    """Lines with bytes that are no UTF-8 come too: see `is_utf8`. UsageError: it cannot be read."""
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline) as lines:
            for number, line in enumerate(lines):
                if not number and line.startswith(MARK):
                    raise pointer(file)
                yield line
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}.") from error


def jsonl_rows(file: Path, lines: Iterable[str] | None = None) -> Iterator[Located]:
    """The objects of a JSONL file; empty lines are passed over. `lines`: its lines, where they come
    from elsewhere; `file` is then its name in messages.
    """
    for number, line in enumerate(lines or lines_of(file), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = parse_json(line, where)
        except UsageError as error:
            row, wrong = None, str(error)
        else:
            wrong = "" if isinstance(row, dict) else f"{where}: must be a JSON object, one a line."
        if not is_utf8(line):
            wrong = f"{where}: not UTF-8 text."
        yield Located(where=where, row={} if wrong else row, wrong=wrong)


def table_rows(file: Path) -> Iterator[Located]:
    """The rows of a CSV, TSV, JSONL or Parquet file, by the end of its name."""
    form = FORMS.get(file.suffix.lower())
    if form in ("csv", "tsv"):
        return csv_rows(file, "\t" if form == "tsv" else None)
    if form == "parquet":
        return numbered(read_parquet(file).rows, str(file), 1)
    return jsonl_rows(file)


def _is_text(field: str) -> bool:
    """Whether it was UTF-8, without NUL bytes, which disks leave where something was lost."""
    return is_utf8(field) and "\0" not in field


def csv_rows(file: Path, delimiter: str | None = None) -> Iterator[Located]:
    """The rows of a CSV file with a header line, which shows the quotes, and the delimiter where
    none is given; empty ones, as Excel leaves them, are passed over and counted. Raises UsageError
    where quotes do not close: where the next row begins is not known then.
    """
    csv.field_size_limit(LONGEST_FIELD)
    lines = lines_of(file, newline="")
    header = next(lines, "")
    quote = "'" if header.startswith("'") else '"'
    outside = re.sub(f"{quote}[^{quote}]*{quote}", "", header)
    found = delimiter or max(DELIMITERS, key=outside.count)
    if (quote, found) != ('"', delimiter or ","):
        _say_once(f"{file}: {DELIMITERS.get(found, found)} between fields, {quote} around them")
    both = itertools.chain([header], lines)
    reader = csv.reader(both, strict=True, delimiter=found, quotechar=quote)
    begin, empty = 1, 0  # Of a row, which may have several lines; rows without anything.
    try:
        names = next(reader, [])
        if not all(map(_is_text, names)):
            raise UsageError(f"{file}, line 1: not UTF-8 text. Is it a CSV file? {AS_UTF8}")
        if (twice := first_twice(names)) is not None:
            raise UsageError(f"{file}, line 1: two columns are called {twice!r}. Rename one.")
        begin = reader.line_num + 1
        for fields in reader:
            where, wrong = f"{file}, line {begin}", ""
            begin = reader.line_num + 1
            if not any(fields) and len(fields) != 1:
                empty += bool(fields)
                continue
            if len(fields) != len(names):
                wrong = f"{where}: has not as many fields as the header line ({len(names)})."
            elif not all(map(_is_text, fields)):
                wrong = f"{where}: not UTF-8 text, or a NUL byte in it. {AS_UTF8}"
            row = {} if wrong else dict(zip(names, fields, strict=True))
            yield Located(where=where, row=row, wrong=wrong)
    except csv.Error as error:
        raise UsageError(
            f"{file}, line {begin - 1}: {error}, in the row that begins after this line. "
            f"Text that holds {quote} is written between {quote}, and its own are doubled."
        ) from error
    if empty:
        _say_once(f"{file}: {empty:,} empty rows are left out")
