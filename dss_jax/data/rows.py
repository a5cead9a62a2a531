"""From a task's sources to `Example`s, split by split; errors name file and line. No TensorFlow.

Sources that need TensorFlow are read by `dss_jax.data.seqio_sources`, imported only when such a
split is asked for.
"""

import csv
import functools
import itertools
import json
import math
import os
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dss_jax.core import storage
from dss_jax.core.errors import UsageError, unknown_name
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

LONGEST_FIELD = 2**30
"""Characters of a field in a CSV file; Python's own limit, 131,072, is less than some documents."""

DataDir = str | os.PathLike[str] | None
DATA_DIR_HELP = "Give the folder with --data_dir, or set DSS_DATA_DIR."


@dataclass(frozen=True, kw_only=True)
class Located:
    """A row, and where it is, for messages ("cqa/cqa_train.json, line 3")."""

    where: str
    row: Row
    completion: str | None = None


def data_folder(data_dir: DataDir) -> Path | None:
    """The data directory: the argument, else DSS_DATA_DIR, else None. Of a remote one, a copy.
    UsageError: it is given but is no folder.
    """
    folder = data_dir or os.environ.get("DSS_DATA_DIR")
    if not folder:
        return None
    if storage.is_remote(folder):
        return _copy_of(str(folder))
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UsageError(f"the data folder {str(path)!r} does not exist. {DATA_DIR_HELP}")
    return path


@functools.cache
def _copy_of(folder: str) -> Path:
    """Looked at once a process."""
    return storage.local_folder(folder)


def available_splits(task: DistillationTask, data_dir: DataDir = None) -> tuple[str, ...]:
    """The splits that can be read, in the order train, validation, test.

    A split that only TFDS or a SeqIO source has counts as available: whether it can be
    downloaded shows when it is read. A validation split that is held out of train counts too.
    """
    folder = data_folder(data_dir)
    held = {"validation"} if held_out(task, folder) else set()
    return tuple(s for s in SPLITS if s in held or source_of(task, s, folder))


def examples(task: DistillationTask, split: str, data_dir: DataDir = None) -> list[Example]:
    """All examples of a split, in order.

    Where no source has a validation split and the task asks for one, it is held out of train;
    both then keep the order in which `datasets.Dataset.train_test_split` puts them.

    Raises:
      SplitUnavailable: the split is to come from TFDS but cannot be downloaded.
      UsageError: unknown or unavailable split; missing, unreadable or ill-formed data, with file
        and line.
    """
    return [example for example, _ in examples_with_completions(task, split, data_dir)]


def examples_with_completions(
    task: DistillationTask, split: str, data_dir: DataDir = None
) -> list[tuple[Example, str | None]]:
    """As `examples`, each with its raw completion as released; None where there is none."""
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    folder = data_folder(data_dir)
    if split == "test" or not held_out(task, folder):
        return _read(task, split, folder)
    rows = _read(task, "train", folder)
    train, validation = hold_out(len(rows), task.validation_fraction, task.validation_seed)
    return [rows[i] for i in (train if split == "train" else validation)]


def held_out(task: DistillationTask, data_dir: DataDir = None) -> bool:
    """Whether the validation split is held out of train; ids are then unique over both."""
    folder = data_folder(data_dir)
    has = [source_of(task, split, folder) is not None for split in ("train", "validation")]
    return task.validation_fraction > 0 and has == [True, False]


def hold_out(n: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The row numbers of `datasets.Dataset.train_test_split(test_size=fraction, seed=seed)`:
    (train, held out), int64, in that function's order (checked against `datasets` 5.2.0). The
    fraction is rounded up.
    """
    held = math.ceil(fraction * n)
    order = np.random.default_rng(seed).permutation(n)
    return order[held:], order[:held]


def source_files(task: DistillationTask, data_dir: DataDir = None) -> dict[str, Path]:
    """Every file that the task's rows come from and that exists: name in the sources -> path."""
    folder = data_folder(data_dir)
    files: dict[str, Path] = {}
    for source in task.sources:
        if isinstance(source, Jsonl):
            found = {n: _file(task, source, s, folder) for s, n in source.files.items()}
            files |= {name: file for name, file in found.items() if file}
        if isinstance(source, Release | Tfds) and folder is not None:
            below = folder / _completions_folder(source)
            own = [below / name for name in getattr(source, "files", {}).values()]
            own += [f for pattern in source.completions.values() for f in _chunks(below, pattern)]
            files |= {f"{below.name}/{f.relative_to(below).as_posix()}": f for f in own}
    return {name: file for name, file in sorted(files.items()) if file.is_file()}


def source_of(task: DistillationTask, split: str, folder: Path | None) -> Source | None:
    """The first source that has the split."""

    def has(source: Source) -> bool:
        if isinstance(source, Release | Jsonl):
            return _file(task, source, split, folder) is not None
        return split in source.splits

    return next(filter(has, task.sources), None)


def _places(
    task: DistillationTask, source: Release | Jsonl, split: str, folder: Path | None
) -> list[Path]:
    """Where the file of a split may lie: in the data folder, or beside the task file."""
    if split not in source.files:
        return []
    file = Path(source.files[split]).expanduser()
    if isinstance(source, Release):
        return [folder / source.folder / file] if folder else []
    beside = Path(task.file).parent if task.file else None
    return [file] if file.is_absolute() else [base / file for base in (folder, beside) if base]


def _file(
    task: DistillationTask, source: Release | Jsonl, split: str, folder: Path | None
) -> Path | None:
    return next((p for p in _places(task, source, split, folder) if p.is_file()), None)


def _read(
    task: DistillationTask, split: str, folder: Path | None
) -> list[tuple[Example, str | None]]:
    """Examples and completions of one split of the source that has it, ids made sure of."""
    source = source_of(task, split, folder)
    if source is None:
        looked: list[str] = []
        for other in task.sources:
            if isinstance(other, Release | Jsonl):
                nowhere = Path("(no data folder given)") if isinstance(other, Release) else None
                looked += map(str, _places(task, other, split, folder or nowhere))
        available = ", ".join(available_splits(task, folder))
        have = f"It has: {available}." if available else "It has no split at all here."
        where = f" Looked for {'; '.join(looked)}. {DATA_DIR_HELP}" if looked else ""
        raise UsageError(f"task {task.name!r} has no {split} split. {have}{where}")
    first_seen: dict[str, str] = {}
    found = []
    for number, located in enumerate(_located(task, source, split, folder)):
        example = example_of(task, located)
        if not example.id:
            example = replace(example, id=f"{split}-{number}")
        before = first_seen.setdefault(example.id, located.where)
        if before != located.where:
            raise UsageError(
                f"{located.where}: id {example.id!r} was seen before, at {before}. Ids must be "
                "unique within a split; leave the field out to have rows numbered."
            )
        found.append((example, located.completion))
    if not found:
        raise UsageError(f"the {split} split of task {task.name!r} has no rows.")
    return found


def example_of(task: DistillationTask, located: Located) -> Example:
    """What a task makes of a row; UsageError: it fails on it, or gives no example."""
    made_by = f"to_example of task {task.name!r}"
    try:
        example = task.to_example(located.row, located.completion)
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
    for name in ("id", "input", "label", "teacher_label", "rationale"):
        value = getattr(example, name)
        if not isinstance(value, str):
            raise UsageError(f"{located.where}: {name} must be text, but {made_by} gave {value!r}.")
    if not example.input.strip():
        raise UsageError(f"{located.where}: the input is empty.")
    return example


def _located(
    task: DistillationTask, source: Source, split: str, folder: Path | None
) -> Iterable[Located]:
    if isinstance(source, Release | Jsonl):
        file = _file(task, source, split, folder)
        assert file is not None
        found = csv_rows(file) if isinstance(source, Csv) else jsonl_rows(file)
        if not isinstance(source, Release):
            return found
        texts = _completions(source, split, folder, required=not source.completions_optional)
        return _join(list(found), texts, str(file))
    name = f"task {task.name!r}, {split}"
    if isinstance(source, Generated):
        return _numbered(source.rows(split), name)

    from dss_jax.data import seqio_sources

    if isinstance(source, SeqioSource):
        return _numbered(seqio_sources.rows(source.make(), split), name)
    texts = _completions(source, split, folder, required=False)
    # Completions are joined by position, so the rows must come in their original order.
    own = seqio_sources.tfds_rows(source, split, in_order=texts is not None)
    name = f"TFDS {source.name}, split {source.splits[split]!r}"
    return _join(list(_numbered(own, name)), texts, name)


def _numbered(rows: Iterable[Row], where: str) -> Iterator[Located]:
    return (Located(where=f"{where}, row {n}", row=row) for n, row in enumerate(rows))


def _completions_folder(source: Release | Tfds) -> str:
    return source.folder if isinstance(source, Release) else source.completions_folder


def _chunks(below: Path, pattern: str) -> list[Path]:
    """The files of a pattern for k = 0, 1, ... as long as there are any."""
    files = (below / pattern.format(k=k) for k in itertools.count())
    return list(itertools.takewhile(Path.is_file, files))


def _completions(
    source: Release | Tfds, split: str, folder: Path | None, *, required: bool
) -> list[str] | None:
    pattern = source.completions.get(split)
    if pattern is None or folder is None:
        return None
    below = folder / _completions_folder(source)
    files = _chunks(below, pattern)
    if not files and required:
        raise UsageError(
            f"the teacher's completions for the {split} split are missing: "
            f"{below / pattern.format(k=0)} and following. The authors' release has them in that "
            f"place. {DATA_DIR_HELP}"
        )
    texts: list[str] = []
    for file in files:
        part = parse_json(file.read_text(encoding="utf-8"), str(file))
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
    """`json.loads`; a `UsageError` that begins with `where` if it is not JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = "" if "line" in where else f", line {error.lineno}"
        at = f"{where}{line}, column {error.colno}"
        raise UsageError(f"{at}: not valid JSON: {error.msg}.") from error


def _lines(file: Path, newline: str | None = None) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8-sig", newline=newline) as lines:
            yield from lines
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: not UTF-8 text ({error.reason}, byte {error.start}).") from error


def jsonl_rows(file: Path, lines: Iterable[str] | None = None) -> Iterator[Located]:
    """The objects of a JSONL file; empty lines are passed over. `lines`: its lines, where they come
    from elsewhere; `file` is then its name in messages.
    """
    for number, line in enumerate(lines or _lines(file), 1):
        if line.strip():
            where = f"{file}, line {number}"
            row = parse_json(line, where)
            if not isinstance(row, dict):
                raise UsageError(f"{where}: must be a JSON object, one a line.")
            yield Located(where=where, row=row)


def csv_rows(file: Path, delimiter: str = ",") -> Iterator[Located]:
    """The rows of a CSV file with a header line."""
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.DictReader(_lines(file, newline=""), delimiter=delimiter, strict=True)
    try:
        names = reader.fieldnames or ()
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            raise UsageError(f"{file}, line 1: two columns are called {twice!r}. Rename one.")
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            if None in row or None in row.values():
                count = len(reader.fieldnames or ())
                raise UsageError(f"{where}: has not as many fields as the header line ({count}).")
            yield Located(where=where, row=row)
    except csv.Error as error:
        raise UsageError(f"{file}, line {reader.line_num}: {error}.") from error
