"""Finds or makes the token store of a run. No TensorFlow: the work is done in a child process.

A store's folder is named by a digest of all that decides its content, so that a changed source,
vocabulary, prefix or task file makes another store and an old one is never served for it.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from dss_jax.core import config, locks, storage
from dss_jax.core.digest import file_digest, imported_files, module_file, package_digest
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import cache_folder
from dss_jax.core.registry import load_task, load_task_file
from dss_jax.data import prepare_child, sources, vocabulary
from dss_jax.data.rationales import records_digest
from dss_jax.data.store import FORMAT, MANIFEST, StoreDamaged, TokenStore, key_of, open_store
from dss_jax.records.files import read_records

log = logging.getLogger(__name__)

Request = dict[str, Any]
"""What the child process is asked for; plain JSON. `made_from` is what the key is a digest of."""

ROOMS = ("core", "records", "data")
"""Whose source files are part of the key. They import no other room (tests/test_architecture.py),
and a task file imports `core` only, so all of this package that decides what is in a store is in
them; and a change of the trainer or of a report makes no store again.
"""


def ensure_store(
    task_cfg: config.Task,
    vocabulary_cfg: config.Vocabulary,
    data_cfg: config.Data,
    *,
    task_dirs: Iterable[str | os.PathLike[str]] = (),
    need: Sequence[str] = (),
    beam: Mapping[str, Any] | None = None,
    before: Callable[[Request], None] | None = None,
) -> TokenStore:
    """The token store of a task: opened if it is there and sound, made if not.

    Args:
      data_cfg: `store` (one store, taken as it is) or `store_dir`.
      task_dirs: folders searched for task files before the others.
      need: splits that the caller cannot do without; a store that lacks one because a download
        failed is made again.
      beam: how Apache Beam makes the store, see `seqio_beam.answer`; None: this machine does.
      before: called before a store is made, which it may refuse.

    Raises:
      UsageError: unknown task, missing or ill-formed data, a store for something else,
        TensorFlow not installed.
      prepare_child.PrepareError: the child process failed for a reason that is not the user's.
    """
    if task_cfg.extra_tasks:
        ensure = partial(ensure_store, task_dirs=task_dirs, need=need, beam=beam, before=before)
        return _with_extras(task_cfg, vocabulary_cfg, data_cfg, ensure)
    if data_cfg.store is not None:
        return _given_store(data_cfg.store, task_cfg, vocabulary_cfg)
    request = make_request(task_cfg, vocabulary_cfg, task_dirs)
    name = re.sub(r"[^\w.-]", "_", f"{request['name']}-{request['key'][:16]}")
    given = data_cfg.store_dir or os.environ.get("DSS_STORE_DIR") or cache_folder() / "stores"
    # A store of a remote folder is made in the user's cache.
    remote = f"{str(given).rstrip('/')}/{name}" if storage.is_remote(given) else None
    local = (cache_folder() / "stores" if remote else Path(given).expanduser().resolve()) / name
    for place in (str(local), remote):
        store, why = _look(place, need) if place else (None, "")
        if why:
            log.info(why)
        if store is not None:
            break
    else:
        if before is not None:
            before(request)
        store = _make(request, local, need, beam)
        if remote:
            log.info(f"copying the token store to {remote}")
            # The manifest says that it is whole.
            storage.upload_folder(store.path, remote, last=MANIFEST)
    for line in store.manifest.get("rationales", ()):
        log.info(line)
    for line in store.manifest.get("old_records", ()):
        log.warning(line)
    return store


def _with_extras(
    task_cfg: config.Task,
    vocabulary_cfg: config.Vocabulary,
    data_cfg: config.Data,
    ensure: "partial[TokenStore]",
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
    own, *others = (
        replace(task_cfg, name=name, extra_tasks=(), record_files=tuple(records.get(name, ())))
        for name in names
    )
    store = ensure(own, vocabulary_cfg, data_cfg)
    if "train" not in ensure.keywords["need"]:
        return store  # Scoring needs no extra rows.
    same = replace(vocabulary_cfg, path=str(store.vocabulary_path), extra_ids=store.extra_ids)
    elsewhere = replace(data_cfg, store=None)
    store.extras = tuple(ensure(other, same, elsewhere) for other in others)
    for extra in store.extras:
        if not extra.split("train").tokens("teacher_label_targets").lengths().any():
            raise UsageError(
                f"--extra_task {extra.manifest['name']}: its rows have no teacher labels. Extract "
                "them with dss extract, and give the records with --rationales."
            )
    return store


def _make(
    request: Request, path: Path, need: Sequence[str], beam: Mapping[str, Any] | None
) -> TokenStore:
    said = "{owner} is preparing this token store; waiting for it"
    # The lock only saves work: without it, the rename of a finished store decides.
    with locks.held(path.parent / f".lock-{path.name}", said, wait=True):
        # Another process may have made it while this one waited.
        found, _ = _look(str(path), need)
        if found is not None:
            return found
        log.info(f"preparing the token store of {request['name']} (once): {path}")
        asked = {**request, "path": str(path)}
        if beam is None:
            prepare_child.run(asked)
        else:
            prepare_child.run({**asked, "beam": dict(beam)}, "dss_jax.data.seqio_beam")
    store = open_store(path)
    for split, reason in store.manifest.get("unavailable", {}).items():
        log.info(f"without the {split} split: {reason}")
    return store


def make_request(
    task_cfg: config.Task,
    vocabulary_cfg: config.Vocabulary,
    task_dirs: Iterable[str | os.PathLike[str]] = (),
) -> Request:
    """What the child process has to make, and the key of it; UsageError: unknown task, no data."""
    request: Request
    if task_cfg.mixture_or_task_name is not None:
        assert task_cfg.mixture_or_task_module is not None
        # Not imported here, for it needs TensorFlow.
        module = module_file(task_cfg.mixture_or_task_module, loaded=False)
        request = {
            "kind": "seqio",
            "name": task_cfg.mixture_or_task_name,
            "module": task_cfg.mixture_or_task_module,
            "executed": [*map(str, imported_files([module], loaded=False) if module else ())],
            "use_cached": task_cfg.use_cached,
            "cache_dirs": list(task_cfg.seqio_cache_dirs),
        }
    elif task_cfg.name is None:
        raise UsageError("no task is given. Give --task NAME; dss tasks lists them.")
    else:
        task = load_task(task_cfg.name, task_dirs)
        data_dir = sources.data_folder(task_cfg.data_dir)
        if not sources.available_splits(task, data_dir):
            raise sources.no_split(task, "train", data_dir)
        request = {
            "kind": "task",
            "name": task.name,
            "task_file": task.file,
            "executed": [*task.files],
            "data_dir": str(data_dir.resolve()) if data_dir else None,
            "rationales": [str(file) for file in _record_files(task_cfg)],
            "bad_rows": task_cfg.bad_rows,
            "prefixes": task_cfg.prefixes,
            "vocabulary": str(vocabulary.resolve(vocabulary_cfg.path, task)),
            "extra_ids": vocabulary_cfg.extra_ids,
        }
    content = made_from(request)
    return {**request, "made_from": content, "key": key_of(content)}


def made_from(request: Request) -> dict[str, Any]:
    """Everything that decides a store's content, as it is on the disk now."""
    executed = [Path(file) for file in request["executed"]]
    common = {
        "format": FORMAT,
        "code": package_digest(*ROOMS),
        "seqio": next((d.version for d in metadata.distributions(name="seqio")), None),
        # Where they lie does not matter.
        "executed": sorted([f.name, file_digest(f) if f.is_file() else ""] for f in executed),
    }
    if request["kind"] == "seqio":
        given = {k: request[k] for k in ("module", "use_cached")}
        return {**common, "seqio_task": request["name"], **given}
    of_tokenizer = vocabulary.is_tokenizer(Path(request["vocabulary"]))
    files = sources.source_files(load_task_file(Path(request["task_file"])), request["data_dir"])
    return {
        **common,
        "task": request["name"],
        "files": {name: file_digest(path) for name, path in files.items()},
        "records": sorted(map(records_digest, request["rationales"])),
        "vocabulary_sha256": vocabulary.vocabulary_digest(Path(request["vocabulary"])),
        "extra_ids": request["extra_ids"],
        "prefixes": request["prefixes"],
        "bad_rows": request["bad_rows"],
        **({"tokenizers": metadata.version("tokenizers")} if of_tokenizer else {}),
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


def _look(path: str, need: Sequence[str]) -> tuple[TokenStore | None, str]:
    """The store if it can be used; else None, and why not ("" where there is none)."""
    remote = storage.is_remote(path)
    if not storage.exists(f"{path}/{MANIFEST}" if remote else path):
        return None, ""
    try:
        store = open_anywhere(path)
    except StoreDamaged as error:
        return None, f"{error} It is made again."
    if lacking := store.lacking(need):
        return None, f"{path} lacks the {lacking[0]} split, which could not be had. Trying again."
    # Where another machine has made it, they are that machine's.
    files = {} if remote else store.manifest.get("source_files", {})
    for name, (size, mtime_ns) in files.items():
        file = Path(name)
        stat = file.stat() if file.exists() else None
        if stat is None or (stat.st_size, stat.st_mtime_ns) != (size, mtime_ns):
            return None, f"{name} has changed since {path} was made. It is made again."
    return store, ""


def open_anywhere(path: str) -> TokenStore:
    """Opens a store, local or remote; every file of it is checked against the manifest. A remote
    one is copied into the cache, for it is memory-mapped. Raises as `open_store`, and
    UsageError.
    """
    if not storage.is_remote(path):
        return open_store(path)
    folder = storage.local_folder(path)
    try:
        return open_store(folder)
    except StoreDamaged:
        # The copy may be what is damaged.
        shutil.rmtree(folder)
        return open_store(storage.local_folder(path))


def _given_store(path: str, task_cfg: config.Task, vocabulary_cfg: config.Vocabulary) -> TokenStore:
    store = open_anywhere(path)
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
    names = task_cfg.record_files
    files = [Path(f).expanduser() for f in names if not storage.is_remote(f)]
    # Where a store was copied to, the records need not be.
    known = names and len(files) == len(names) and all(f.is_file() for f in files)
    if known and sorted(map(records_digest, files)) != manifest["made_from"].get("records"):
        raise UsageError(
            f"the store {path} was not made with the records {','.join(names)}. "
            "Leave --store out to make one that is, or --rationales to use the store's."
        )
    if vocabulary_cfg.path is not None:
        given = vocabulary.resolve(vocabulary_cfg.path)
        if vocabulary.vocabulary_digest(given) != manifest["vocabulary"]["sha256"]:
            raise UsageError(
                f"the store {path} was made with another vocabulary than {given}: its own is "
                f"{store.vocabulary_path}. Give a store that was made with it, or that vocabulary."
            )
    return store
