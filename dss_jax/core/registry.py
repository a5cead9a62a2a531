"""Finds task files by name and loads them. Standard library only.

A task is found in the first folder of this list that has `<name>.py`: folders given by the
caller, those of the environment's DSS_TASK_PATH, `./tasks`, the tasks that come with the package.
Files whose name starts with an underscore are skipped.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import sys
import threading
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from dss_jax.core.digest import file_digest, imported_files, installed
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import cache_folder, shipped, write_whole
from dss_jax.core.types import DistillationTask, Scorer

TaskDirs = Iterable[str | os.PathLike[str]]


def folders_on_path() -> list[str]:
    """The folders that DSS_TASK_PATH names."""
    return [p for p in os.environ.get("DSS_TASK_PATH", "").split(os.pathsep) if p]


def task_folders(dirs: TaskDirs = ()) -> list[Path]:
    """The folders that are searched, first wins; UsageError: one that was named does not exist."""
    asked = [(str(d), "task folder") for d in dirs]
    asked += [(p, "folder in DSS_TASK_PATH") for p in folders_on_path()]
    for folder, what in asked:
        if not Path(folder).is_dir():
            raise UsageError(f"{what} {folder!r} does not exist. Give an existing folder.")
    return [*(Path(folder) for folder, _ in asked), Path("tasks"), shipped("tasks")]


def task_names(dirs: TaskDirs = ()) -> dict[str, Path]:
    """Name -> file of every task that can be found, sorted by name."""
    found: dict[str, Path] = {}
    for folder in task_folders(dirs):
        for file in sorted(folder.glob("*.py")):
            if not file.name.startswith("_"):
                found.setdefault(file.stem, file.resolve())
    return dict(sorted(found.items()))


def load_task(name: str, dirs: TaskDirs = ()) -> DistillationTask:
    """The task of that name; `dirs` are searched before the other folders. UsageError: no such
    task; or its file fails to load or holds no `TASK`, with file and line.
    """
    known = task_names(dirs)
    if name not in known:
        from dss_jax.core.hints import unknown_task

        raise unknown_task(name, known, task_folders(dirs))
    return load_task_file(known[name])


def _note_of(configuration: str) -> Path:
    digest = hashlib.sha256(configuration.encode()).hexdigest()
    return cache_folder() / "begun" / f"{digest[:32]}.json"


def remember(name: str | None, configuration: str) -> None:
    """Notes in the user's cache where a run began, which the text of its `config.gin` names: the
    working directory, and the file of its task where that does not come with the package. A
    `config.gin` itself may come from anywhere, so it must not say which file is executed.
    """
    task = loaded(name)
    note = {"folder": str(Path.cwd()), "task_file": task.file if task else None}
    with contextlib.suppress(OSError, UsageError):  # A cache that cannot be written.
        write_whole(_note_of(configuration), json.dumps(note))


def remembered(configuration: str) -> tuple[Path | None, list[Path]]:
    """The working directory in which a run began, and the folder of its task file, to be searched
    for it; None and [] where this user began no such run here, or the file is gone.
    """
    try:
        note = json.loads(_note_of(configuration).read_bytes())
    except (OSError, ValueError):
        return None, []
    file = Path(note["task_file"] or "")
    own = file.is_file() and not file.is_relative_to(shipped("tasks").resolve())
    return Path(note["folder"]), [file.parent] if own else []


def loaded(name: str | None) -> DistillationTask | None:
    """The task of that name that this process has loaded last; None: none."""
    return next((task for task in reversed(_loaded.values()) if task.name == name), None)


def scorer_of(name: str | None, dirs: TaskDirs = ()) -> Scorer:
    """The scorer of the task of that name; of a SeqIO task of the user's (None), that of texts."""
    if name:
        return load_task(name, dirs).scorer
    from dss_jax.core.scoring import TEXT_ACCURACY

    return TEXT_ACCURACY


def load_task_file(file: Path) -> DistillationTask:
    """The `TASK` of one file; errors as in `load_task`.

    A file runs once a process, and again when it has changed or one that it has executed.
    """
    with _ONE_AT_A_TIME:
        task = _loaded.get(file)
        files = {Path(name): digest for name, digest in task.files.items()} if task else {}
        if not task or any(not f.is_file() or file_digest(f) != d for f, d in files.items()):
            # Modules of its files are executed again when they are imported next.
            for name, module in list(sys.modules.items()) if files else ():
                own = getattr(module, "__dict__", {}).get("__file__")
                if own and Path(own).resolve() in files and not name.startswith(_MODULE):
                    del sys.modules[name]
            task = _loaded[file] = _run(file)
        for executed in _running:
            executed.update(task.files)
    return task


_MODULE = "_dss_task_"
_ONE_AT_A_TIME = threading.RLock()
_loaded: dict[Path, DistillationTask] = {}

_running: list[set[str]] = []
"""What each of the task files that are running now has executed so far, outermost first."""


def _note(event: str, args: tuple) -> None:
    """Audit hook: notes the file of code that is executed, however it was loaded."""
    if _running and event == "exec":
        for executed in _running:
            executed.add(getattr(args[0], "co_filename", ""))


sys.addaudithook(_note)


def _run(file: Path) -> DistillationTask:
    executed: set[str] = set()
    _running.append(executed)
    # A module that changes twice in a second would be taken from its compiled file.
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        task = getattr(_import(file), "TASK", None)
    finally:
        sys.dont_write_bytecode = writes
        _running.pop()
    if not isinstance(task, DistillationTask):
        found = "none" if task is None else f"a {type(task).__name__}"
        raise UsageError(
            f"{file}: a task file must define TASK, a dss_jax.core.types.DistillationTask; "
            f"found {found}. docs/add_a_task.md shows one."
        )
    if task.name != file.stem:
        raise UsageError(
            f"{file}: TASK.name is {task.name!r}, but must be the file's name, {file.stem!r}."
        )
    own = {f for f in map(Path, executed) if f.is_file() and not installed(f.resolve())}
    # Imports are followed too: a module that another task had imported was not executed now.
    files = {str(f): file_digest(f) for f in sorted(imported_files({file, *own}))}
    return dataclasses.replace(task, file=str(file), files=files)


def _import(file: Path) -> ModuleType:
    digest = hashlib.sha256(str(file).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"{_MODULE}{file.stem}_{digest}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses and pickle look a class's module up by name.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f.lineno for f in frames if f.filename == str(file)]
        if isinstance(error, SyntaxError) and error.filename == str(file):
            lines.append(error.lineno)
        where = f"{file}:{(lines or [1])[-1] or 1}: the task file fails to load"
        raise UsageError(f"{where}: {type(error).__name__}: {error}") from error
    return module
