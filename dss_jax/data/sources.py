"""Where a task's rows come from: its splits, and the files of its sources. Reads no rows."""

import functools
import itertools
import math
import os
from pathlib import Path

import numpy as np

from dss_jax.core import storage
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import cache_folder
from dss_jax.core.types import SPLITS, DistillationTask, Jsonl, Release, Source, Tfds

DataDir = str | os.PathLike[str] | None
DATA_DIR_HELP = "Give the folder with --data_dir, or set DSS_DATA_DIR."


def data_folder(data_dir: DataDir) -> Path | None:
    """The data directory: the argument, else DSS_DATA_DIR, else what `dss tasks fetch` has fetched,
    else None. Of a remote one, a copy. UsageError: it is given but is no folder.
    """
    folder = data_dir or os.environ.get("DSS_DATA_DIR")
    if not folder:
        return fetched if (fetched := fetched_folder()).is_dir() else None
    if storage.is_remote(folder):
        return _copy_of(str(folder))
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UsageError(f"the data folder {str(path)!r} does not exist. {DATA_DIR_HELP}")
    return path


def fetched_folder() -> Path:
    """Where `dss tasks fetch` puts the authors' release, if no other folder is given."""
    return cache_folder() / "release"


_copy_of = functools.cache(storage.local_folder)  # Looked at once a process.


def available_splits(task: DistillationTask, data_dir: DataDir = None) -> tuple[str, ...]:
    """The splits that can be read, in the order train, validation, test.

    A split that only TFDS or a SeqIO source has counts as available: whether it can be
    downloaded shows when it is read. A validation split that is held out of train counts too.
    """
    folder = data_folder(data_dir)
    held = {"validation"} if held_out(task, folder) else set()
    return tuple(s for s in SPLITS if s in held or source_of(task, s, folder))


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
            found = {n: file_of(task, source, s, folder) for s, n in source.files.items()}
            files |= {name: file for name, file in found.items() if file}
        if isinstance(source, Release | Tfds) and folder is not None:
            below = folder / completions_folder(source)
            own = [below / name for name in getattr(source, "files", {}).values()]
            own += [f for pattern in source.completions.values() for f in chunks(below, pattern)]
            files |= {f"{below.name}/{f.relative_to(below).as_posix()}": f for f in own}
    return {name: file for name, file in sorted(files.items()) if file.is_file()}


def source_of(task: DistillationTask, split: str, folder: Path | None) -> Source | None:
    """The first source that has the split."""

    def has(source: Source) -> bool:
        if isinstance(source, Release | Jsonl):
            return file_of(task, source, split, folder) is not None
        return split in source.splits

    return next(filter(has, task.sources), None)


def no_split(task: DistillationTask, split: str, folder: Path | None) -> UsageError:
    """What is said about a split that no source has."""
    looked: list[str] = []
    for other in task.sources:
        if isinstance(other, Release | Jsonl):
            nowhere = Path("(no data folder given)") if isinstance(other, Release) else None
            looked += map(str, places(task, other, split, folder or nowhere))
    available = ", ".join(available_splits(task, folder))
    have = f"It has: {available}." if available else "It has no split at all here."
    where = f" Looked for {'; '.join(looked)}. {DATA_DIR_HELP}" if looked else ""
    if any(isinstance(other, Release) for other in task.sources):
        where += f" dss tasks fetch {task.name} fetches the authors' release."
    return UsageError(f"task {task.name!r} has no {split} split. {have}{where}")


def places(
    task: DistillationTask, source: Release | Jsonl, split: str, folder: Path | None
) -> list[Path]:
    """Where the file of a split may lie: in the data folder, or beside the task file."""
    if split not in source.files:
        return []
    file = Path(source.files[split]).expanduser()
    if isinstance(source, Release):
        return [folder / source.folder / file] if folder else []
    beside = Path(task.file).parent if task.file else None
    bases = [Path()] if file.is_absolute() else [base for base in (folder, beside) if base]
    return [Path(os.path.normpath(base / file)) for base in bases]  # "tasks/../tickets.csv"


def file_of(
    task: DistillationTask, source: Release | Jsonl, split: str, folder: Path | None
) -> Path | None:
    return next((p for p in places(task, source, split, folder) if p.is_file()), None)


def completions_folder(source: Release | Tfds) -> str:
    return source.folder if isinstance(source, Release) else source.completions_folder


def chunks(below: Path, pattern: str) -> list[Path]:
    """The files of a pattern for k = 0, 1, ... as long as there are any."""
    files = (below / pattern.format(k=k) for k in itertools.count())
    return list(itertools.takewhile(Path.is_file, files))
