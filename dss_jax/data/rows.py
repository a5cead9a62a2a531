"""From a task's sources to `Example`s, split by split. No TensorFlow.

Sources that need TensorFlow are read by `dss_jax.data.seqio_sources`, imported only when such a
split is asked for.
"""

import functools
import math
import os
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

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
from dss_jax.data.row_files import Located, csv_rows, jsonl_rows, parse_json

DATA_DIR_HELP = "Give the folder with --data_dir, or set DSS_DATA_DIR."


def data_folder(data_dir: str | os.PathLike[str] | None) -> Path | None:
    """The data directory: the argument, else DSS_DATA_DIR, else None. Of a remote one, a copy.

    Raises:
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


def available_splits(
    task: DistillationTask, data_dir: str | os.PathLike[str] | None = None
) -> tuple[str, ...]:
    """The splits that can be read, in the order train, validation, test.

    A split that only TFDS or a SeqIO source has counts as available: whether it can be
    downloaded shows when it is read. A validation split that is held out of train counts too.
    """
    folder = data_folder(data_dir)
    served = _served(task, folder)
    if _holds_out(task, served):
        served.add("validation")
    return tuple(s for s in SPLITS if s in served)


def examples(
    task: DistillationTask, split: str, data_dir: str | os.PathLike[str] | None = None
) -> list[Example]:
    """All examples of a split, in order.

    Where no source has a validation split and the task asks for one, it is held out of train;
    both then keep the order in which `datasets.Dataset.train_test_split` puts them.

    Args:
      task: the task.
      split: "train", "validation" or "test".
      data_dir: folder of the data; None: DSS_DATA_DIR.

    Raises:
      SplitUnavailable: the split is to come from TFDS but cannot be downloaded.
      UsageError: unknown or unavailable split; missing, unreadable or ill-formed data, with file
        and line.
    """
    return [example for example, _ in examples_with_completions(task, split, data_dir)]


def examples_with_completions(
    task: DistillationTask, split: str, data_dir: str | os.PathLike[str] | None = None
) -> list[tuple[Example, str | None]]:
    """As `examples`, each with its raw completion as released; None where there is none."""
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    folder = data_folder(data_dir)
    served = _served(task, folder)
    if _holds_out(task, served) and split != "test":
        rows = _read(task, "train", folder)
        train, validation = hold_out(len(rows), task.validation_fraction, task.validation_seed)
        return [rows[i] for i in (train if split == "train" else validation)]
    if split not in served:
        raise _no_split(task, split, folder, available_splits(task, folder))
    return _read(task, split, folder)


def held_out(task: DistillationTask, data_dir: str | os.PathLike[str] | None = None) -> bool:
    """Whether the validation split is held out of train; ids are then unique over both."""
    return _holds_out(task, _served(task, data_folder(data_dir)))


def hold_out(n: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The row numbers of `datasets.Dataset.train_test_split(test_size=fraction, seed=seed)`.

    Args:
      n: number of rows.
      fraction: share that is held out; rounded up.
      seed: of `numpy.random.default_rng`.

    Returns:
      (train, held out), int64, in that function's order (checked against `datasets` 5.2.0).
    """
    held = math.ceil(fraction * n)
    order = np.random.default_rng(seed).permutation(n)
    return order[held:], order[:held]


def source_files(
    task: DistillationTask, data_dir: str | os.PathLike[str] | None = None
) -> dict[str, Path]:
    """Every file that the task's rows come from and that exists: name in the sources -> path."""
    folder = data_folder(data_dir)
    files: dict[str, Path] = {}
    for source in task.sources:
        match source:
            case Release() | Tfds() if folder is not None:
                below = folder / _completions_folder(source)
                if isinstance(source, Release):
                    files |= {f"{below.name}/{f}": below / f for f in source.files.values()}
                for pattern in source.completions.values():
                    files |= {f"{below.name}/{f.relative_to(below).as_posix()}": f
                              for f in _chunks(below, pattern)}  # fmt: skip
            case Jsonl() | Csv():
                for file in source.files.values():
                    files[file] = _find(task, file, folder) or Path(file)
    return {name: path for name, path in sorted(files.items()) if path.is_file()}


def needs_tensorflow(task: DistillationTask, split: str, data_dir: Path | None) -> bool:
    """Whether the split is read through TFDS or another SeqIO source."""
    return isinstance(_source_of(task, split, data_dir), Tfds | SeqioSource)


def _served(task: DistillationTask, folder: Path | None) -> set[str]:
    return {s for s in SPLITS if _source_of(task, s, folder) is not None}


def _holds_out(task: DistillationTask, served: set[str]) -> bool:
    return task.validation_fraction > 0 and "validation" not in served and "train" in served


def _source_of(task: DistillationTask, split: str, folder: Path | None) -> Source | None:
    """The first source that has the split."""
    for source in task.sources:
        match source:
            case Release():
                name = source.files.get(split)
                has = bool(name and folder and (folder / source.folder / name).is_file())
            case Jsonl() | Csv():
                name = source.files.get(split)
                has = name is not None and _find(task, name, folder) is not None
            case _:
                has = split in source.splits
        if has:
            return source
    return None


def _no_split(
    task: DistillationTask, split: str, folder: Path | None, available: tuple[str, ...]
) -> UsageError:
    looked = []
    for source in task.sources:
        if isinstance(source, Release | Jsonl | Csv) and split in source.files:
            below = source.folder if isinstance(source, Release) else ""
            for base in _bases(task, source, folder):
                looked.append(str(base / below / source.files[split]))
            if folder is None and isinstance(source, Release):
                looked.append(f"(no data folder given)/{below}/{source.files[split]}")
    have = f"It has: {', '.join(available)}." if available else "It has no split at all here."
    where = f" Looked for {'; '.join(looked)}. {DATA_DIR_HELP}" if looked else ""
    return UsageError(f"task {task.name!r} has no {split} split. {have}{where}")


def _bases(task: DistillationTask, source: Source, folder: Path | None) -> list[Path]:
    bases = [folder] if folder is not None else []
    if isinstance(source, Jsonl | Csv) and task.file:
        bases.append(Path(task.file).parent)
    return bases


def _find(task: DistillationTask, name: str, folder: Path | None) -> Path | None:
    """A file of `Jsonl` or `Csv`: absolute, in the data folder, or beside the task file."""
    path = Path(name).expanduser()
    if path.is_absolute():
        return path if path.is_file() else None
    beside = Path(task.file).parent if task.file else None
    for base in (folder, beside):
        if base is not None and (base / path).is_file():
            return base / path
    return None


def _read(
    task: DistillationTask, split: str, folder: Path | None
) -> list[tuple[Example, str | None]]:
    """Examples and completions of one split of the source that has it, ids made sure of."""
    source = _source_of(task, split, folder)
    assert source is not None
    first_seen: dict[str, str] = {}
    found = []
    for number, located in enumerate(_located(task, source, split, folder)):
        example = _example(task, located)
        if not example.id:
            example = replace(example, id=f"{split}-{number}")
        if example.id in first_seen:
            raise UsageError(
                f"{located.where}: id {example.id!r} was seen before, at "
                f"{first_seen[example.id]}. Ids must be unique within a split; leave the field "
                "out to have rows numbered."
            )
        first_seen[example.id] = located.where
        found.append((example, located.completion))
    if not found:
        raise UsageError(f"the {split} split of task {task.name!r} has no rows.")
    return found


def _example(task: DistillationTask, located: Located) -> Example:
    try:
        example = task.to_example(located.row, located.completion)
    except KeyError as error:
        fields = ", ".join(sorted(map(str, located.row)))
        raise UsageError(
            f"{located.where}: field {error} is missing. The row has: {fields}."
        ) from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        raise UsageError(
            f"{located.where}: to_example of task {task.name!r} fails on this row "
            f"({frames[-1].filename}:{frames[-1].lineno}): {type(error).__name__}: {error}"
        ) from error
    if not isinstance(example, Example):
        raise UsageError(
            f"{located.where}: to_example of task {task.name!r} gave a "
            f"{type(example).__name__}, not a dss_jax.core.types.Example."
        )
    for name in ("id", "input", "label", "teacher_label", "rationale"):
        value = getattr(example, name)
        if not isinstance(value, str):
            raise UsageError(
                f"{located.where}: {name} must be text, but to_example of task {task.name!r} "
                f"gave {value!r}."
            )
    if not example.input.strip():
        raise UsageError(f"{located.where}: the input is empty.")
    return example


def _located(
    task: DistillationTask, source: Source, split: str, folder: Path | None
) -> Iterator[Located]:
    match source:
        case Release():
            assert folder is not None
            file = folder / source.folder / source.files[split]
            rows = list(jsonl_rows(file))
            required = not source.completions_optional
            return _join(rows, _completions(source, split, folder, required=required), str(file))
        case Jsonl():
            return jsonl_rows(_must_find(task, source.files[split], folder))
        case Csv():
            return csv_rows(_must_find(task, source.files[split], folder))
        case Generated():
            return _numbered(task, split, source.rows(split))
        case Tfds() | SeqioSource():
            from dss_jax.data import seqio_sources

            if isinstance(source, SeqioSource):
                return _numbered(task, split, seqio_sources.rows(source.make(), split))
            texts = _completions(source, split, folder, required=False)
            name = f"TFDS {source.name}, split {source.splits[split]!r}"
            # Completions are joined by position, so the rows must come in their original order.
            tfds_rows = seqio_sources.tfds_rows(source, split, in_order=texts is not None)
            rows = [Located(where=f"{name}, row {n}", row=r) for n, r in enumerate(tfds_rows)]
            return _join(rows, texts, name)
    raise AssertionError(source)


def _numbered(task: DistillationTask, split: str, rows: Iterator[Row]) -> Iterator[Located]:
    where = f"task {task.name!r}, {split}, row"
    return (Located(where=f"{where} {n}", row=row) for n, row in enumerate(rows))


def _must_find(task: DistillationTask, name: str, folder: Path | None) -> Path:
    path = _find(task, name, folder)
    assert path is not None
    return path


def _completions_folder(source: Release | Tfds) -> str:
    return source.folder if isinstance(source, Release) else source.completions_folder


def _chunks(below: Path, pattern: str) -> list[Path]:
    """The files of a pattern for k = 0, 1, ... as long as there are any."""
    files: list[Path] = []
    while (file := below / pattern.format(k=len(files))).is_file():
        files.append(file)
    return files


def _completions(
    source: Release | Tfds, split: str, folder: Path | None, *, required: bool
) -> list[str] | None:
    pattern = source.completions.get(split)
    if pattern is None or (folder is None and not required):
        return None
    assert folder is not None
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


def _join(rows: list[Located], texts: list[str] | None, where: str) -> Iterator[Located]:
    if texts is None:
        return iter(rows)
    if len(rows) != len(texts):
        raise UsageError(
            f"{where} has {len(rows)} rows, but there are {len(texts)} completions for them. "
            "They are joined by position, so both must be complete."
        )
    return (replace(r, completion=t) for r, t in zip(rows, texts, strict=True))
