"""Finds or makes the token store of a run. No TensorFlow: the work is done in a child process.

A store's folder is named by a digest of all that decides its content, so that a changed source,
vocabulary, prefix or task file makes another store and an old one is never served for it.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from dss_jax.core import config, locks, storage
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import PACKAGE, cache_folder
from dss_jax.core.registry import load_task, load_task_file
from dss_jax.data import prepare_child, remote_stores, rows, vocabulary
from dss_jax.data.rationales import records_digest
from dss_jax.data.store import FORMAT, StoreDamaged, TokenStore, open_store
from dss_jax.data.store_writer import remove_leftovers
from dss_jax.records.files import read_records

Log = Callable[[str], None]
Request = dict[str, Any]
"""What the child process is asked for; plain JSON. `made_from` is what the key is a digest of."""

CODE = (
    "core/completions.py", "core/prefixes.py", "core/types.py", "data/rationales.py",
    "data/row_files.py", "data/rows.py", "data/seqio_beam.py", "data/seqio_cached.py",
    "data/seqio_child.py", "data/seqio_encode.py", "data/seqio_prepare.py",
    "data/seqio_sources.py", "data/seqio_tasks.py", "data/store_writer.py", "data/tokens.py",
    "data/vocabulary.py", "records/files.py", "records/records.py",
)  # fmt: skip
"""The modules that decide what is in a store."""


def ensure_store(
    task_cfg: config.Task,
    vocabulary_cfg: config.Vocabulary,
    data_cfg: config.Data,
    *,
    task_dirs: Iterable[str | os.PathLike[str]] = (),
    need: Sequence[str] = (),
    log: Log = print,
    beam: Mapping[str, Any] | None = None,
) -> TokenStore:
    """The token store of a task: opened if it is there and sound, made if not.

    Args:
      task_cfg: which task, or which SeqIO task or mixture of the user's.
      vocabulary_cfg: the vocabulary.
      data_cfg: `store` (one store, taken as it is) or `store_dir`.
      task_dirs: folders searched for task files before the others.
      need: splits that the caller cannot do without; a store that lacks one because a download
        failed is made again.
      log: is given lines that tell the user what happens.
      beam: how Apache Beam makes the store, see `seqio_beam.make`; None: this machine does.

    Raises:
      UsageError: unknown task, missing or ill-formed data, a store for something else,
        TensorFlow not installed.
      prepare_child.PrepareError: the child process failed for a reason that is not the user's.
    """
    if task_cfg.extra_tasks:
        options = {"task_dirs": task_dirs, "need": need, "log": log, "beam": beam}
        return _with_extras(task_cfg, vocabulary_cfg, data_cfg, **options)
    if data_cfg.store is not None:
        return _given_store(data_cfg.store, task_cfg, vocabulary_cfg, log)
    request = make_request(task_cfg, vocabulary_cfg, task_dirs)
    name = f"{_safe(request['name'])}-{request['key'][:16]}"
    path = store_folder(data_cfg) / name
    store = _open(path, need, log)
    remote = remote_stores.remote_folder(data_cfg)
    if store is None and remote is not None:
        store = remote_stores.fetch(f"{remote}/{name}", need, log)
    if store is None:
        store = _make(request, path, need, log, beam)
        if remote is not None:
            remote_stores.give(store, f"{remote}/{name}", log)
    for line in store.manifest.get("rationales", ()):
        log(line)
    return store


def _with_extras(
    task_cfg: config.Task, vocabulary_cfg: config.Vocabulary, data_cfg: config.Data, **options: Any
) -> TokenStore:
    """The store, with those of the extra tasks in its vocabulary; record files go to theirs."""
    records: dict[str, list[str]] = {}
    for name, file in zip(task_cfg.record_files, _record_files(task_cfg), strict=True):
        records.setdefault(read_records(file)[0].task, []).append(name)
    names = (task_cfg.name or "", *task_cfg.extra_tasks)
    for task in records:
        if task not in names:
            raise UsageError(
                f"{', '.join(records[task])}: records of task {task!r}, which is none of "
                f"{', '.join(names)}. Leave it out of --rationales."
            )
    given = {name: tuple(records.get(name, ())) for name in names}
    alone = replace(task_cfg, extra_tasks=())
    own = replace(alone, record_files=given[names[0]])
    store = ensure_store(own, vocabulary_cfg, data_cfg, **options)
    if "train" not in options["need"]:
        return store  # Scoring needs no extra rows.
    same = replace(vocabulary_cfg, path=str(store.vocabulary_path), extra_ids=store.extra_ids)
    elsewhere = replace(data_cfg, store=None)
    store.extras = tuple(
        ensure_store(
            replace(alone, name=name, record_files=given[name]), same, elsewhere, **options
        )
        for name in task_cfg.extra_tasks
    )  # fmt: skip
    for extra in store.extras:
        if not extra.split("train").tokens("teacher_label_targets").lengths().any():
            raise UsageError(
                f"--extra_task {extra.manifest['name']}: its rows have no teacher labels. Extract "
                "them with dss extract, and give the records with --rationales."
            )
    return store


def _make(
    request: Request,
    path: Path,
    need: Sequence[str],
    log: Log,
    beam: Mapping[str, Any] | None = None,
) -> TokenStore:
    with _lock(path):
        # Another process may have made it while this one waited.
        found = _open(path, need, lambda _: None)
        if found is not None:
            return found
        remove_leftovers(path)
        log(f"preparing the token store of {request['name']} (once): {path}")
        if beam is None:
            prepare_child.run({**request, "path": str(path)}, log)
        else:
            asked = {**request, "path": str(path), "beam": dict(beam)}
            prepare_child.run(asked, log, "dss_jax.data.seqio_beam")
    store = open_store(path)
    for split, reason in store.manifest.get("unavailable", {}).items():
        log(f"without the {split} split: {reason}")
    return store


def store_folder(data_cfg: config.Data) -> Path:
    """Local folder of all stores: Data.store_dir, DSS_STORE_DIR, or the user's cache, which it also
    is where the first two are remote.
    """
    folder = data_cfg.store_dir or os.environ.get("DSS_STORE_DIR")
    if not folder or storage.is_remote(folder):
        return cache_folder() / "stores"
    return Path(folder).expanduser().resolve()


def make_request(
    task_cfg: config.Task,
    vocabulary_cfg: config.Vocabulary,
    task_dirs: Iterable[str | os.PathLike[str]] = (),
) -> Request:
    """What the child process has to make, and the key of it.

    Raises:
      UsageError: unknown task, no data, no vocabulary.
    """
    if task_cfg.mixture_or_task_name is not None:
        assert task_cfg.mixture_or_task_module is not None
        return _with_key(
            {
                "kind": "seqio",
                "name": task_cfg.mixture_or_task_name,
                "module": task_cfg.mixture_or_task_module,
                "use_cached": task_cfg.use_cached,
                "cache_dirs": list(task_cfg.seqio_cache_dirs),
            }
        )
    if task_cfg.name is None:
        raise UsageError("no task is given. Give --task NAME; dss tasks lists them.")
    task = load_task(task_cfg.name, task_dirs)
    data_dir = rows.data_folder(task_cfg.data_dir)
    if not rows.available_splits(task, data_dir):
        rows.examples(task, "train", data_dir)  # Raises, with where it looked.
    return _with_key(
        {
            "kind": "task",
            "name": task.name,
            "task_file": task.file,
            "data_dir": str(data_dir.resolve()) if data_dir else None,
            "rationales": [str(file) for file in _record_files(task_cfg)],
            "prefixes": task_cfg.prefixes,
            "vocabulary": str(vocabulary.resolve(vocabulary_cfg.path, task)),
            "extra_ids": vocabulary_cfg.extra_ids,
        }
    )


def made_from(request: Request) -> dict[str, Any]:
    """Everything that decides a store's content, read anew from the disk."""
    code = hashlib.sha256()
    for name in CODE:
        code.update((PACKAGE / name).read_bytes())
    common = {"format": FORMAT, "code": code.hexdigest(), "seqio": _version("seqio")}
    if request["kind"] == "seqio":
        file = module_file(request["module"])
        digest = vocabulary.file_digest(file) if file else None
        return {**common, "seqio_task": request["name"], "module": request["module"],
                "module_sha256": digest, "use_cached": request["use_cached"]}  # fmt: skip
    file = Path(request["task_file"])
    task = load_task_file(file)
    sources = rows.source_files(task, request["data_dir"])
    return {
        **common,
        "task": request["name"],
        "task_file_sha256": vocabulary.file_digest(file),
        "files": {name: vocabulary.file_digest(path) for name, path in sources.items()},
        "records": _record_digests(request["rationales"]),
        "vocabulary_sha256": vocabulary.file_digest(Path(request["vocabulary"])),
        "extra_ids": request["extra_ids"],
        "prefixes": request["prefixes"],
    }


def _record_files(task_cfg: config.Task) -> list[Path]:
    files = [storage.local_file(f).resolve() for f in task_cfg.record_files]
    for file in files:
        if not file.is_file():
            raise UsageError(
                f"the record file {str(file)!r} does not exist. Give what `dss extract --out` "
                "wrote with --rationales FILE; several are separated by commas."
            )
    return files


def _record_digests(files: Iterable[str | Path]) -> list[str]:
    return sorted(map(records_digest, files))


def key_of(content: dict[str, Any]) -> str:
    """SHA-256 of what a store is made from, in hex."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def module_file(name: str) -> Path | None:
    """The source file of a module, found without importing anything; None where there is none."""
    parts = Path(*name.split("."))
    for folder in dict.fromkeys([str(Path.cwd()), *sys.path]):
        for file in (Path(folder, parts).with_suffix(".py"), Path(folder, parts, "__init__.py")):
            if file.is_file():
                return file
    return None


def _with_key(request: Request) -> Request:
    content = made_from(request)
    return {**request, "made_from": content, "key": key_of(content)}


def _open(path: Path, need: Sequence[str], log: Log) -> TokenStore | None:
    """The store if it can be used; else None, after saying why."""
    if not path.exists():
        return None
    try:
        store = open_store(path)
    except StoreDamaged as error:
        log(f"{error} It is made again.")
        return None
    if lacking := store.lacking(need):
        log(f"{path} lacks the {lacking[0]} split, which could not be had. Trying again.")
        return None
    for name, (size, mtime_ns) in store.manifest.get("source_files", {}).items():
        file = Path(name)
        stat = file.stat() if file.exists() else None
        if stat is None or (stat.st_size, stat.st_mtime_ns) != (size, mtime_ns):
            log(f"{name} has changed since {path} was made. It is made again.")
            return None
    return store


def _given_store(
    path: str, task_cfg: config.Task, vocabulary_cfg: config.Vocabulary, log: Log
) -> TokenStore:
    store = remote_stores.open_anywhere(path, log)
    manifest = store.manifest
    wanted = task_cfg.name or task_cfg.mixture_or_task_name
    if wanted is not None and manifest["name"] != wanted:
        raise UsageError(
            f"the store {path} is for {manifest['name']!r}, not for {wanted!r}. "
            "Give the store of that task with --store, or another --task."
        )
    if manifest["kind"] == "seqio":
        return store
    if manifest["prefixes"] != task_cfg.prefixes:
        raise UsageError(
            f"the store {path} was made with prefixes {manifest['prefixes']!r}, not "
            f"{task_cfg.prefixes!r}. Give --gin.Task.prefixes=\"'{manifest['prefixes']}'\"."
        )
    if store.extra_ids != vocabulary_cfg.extra_ids:
        raise UsageError(
            f"the store {path} was made with {store.extra_ids} extra ids, not "
            f"{vocabulary_cfg.extra_ids}. Give --gin.Vocabulary.extra_ids={store.extra_ids}."
        )
    local = [f for f in task_cfg.record_files if not storage.is_remote(f)]
    files = [Path(f).expanduser() for f in local]
    # Where a store was copied to, the records need not be.
    known = all(f.is_file() for f in files)
    if files and known and _record_digests(files) != manifest["made_from"].get("records"):
        raise UsageError(
            f"the store {path} was not made with the records {','.join(task_cfg.record_files)}. "
            "Leave --store out to make one that is, or --rationales to use the store's."
        )
    if vocabulary_cfg.path is not None:
        given = vocabulary.resolve(vocabulary_cfg.path)
        if vocabulary.file_digest(given) != manifest["vocabulary"]["sha256"]:
            raise UsageError(
                f"the store {path} was made with another vocabulary than {given}. Leave "
                f"--vocabulary out to use the store's own, {store.vocabulary_path}."
            )
    return store


def _lock(path: Path) -> AbstractContextManager[None]:
    """Lets one process of this machine make a store; the others wait for it.

    The lock only saves work: without it, the rename of a finished store decides.
    """
    said = "{owner} is preparing this token store; waiting for it"
    return locks.held(path.parent / f".lock-{path.name}", said, wait=True)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)
