"""A run that a folder holds, opened again: for the commands that look at it."""

import logging
import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dss_jax.cli import gin_config
from dss_jax.core import config, registry, storage
from dss_jax.core.checks import rule_of
from dss_jax.core.errors import UsageError

if TYPE_CHECKING:
    from dss_jax.run.session import Session

log = logging.getLogger(__name__)

MODULE, STORES = "Task.mixture_or_task_module", "Data.store_dir"
"""Settings by which a run executes code, and where it writes beside its folder."""

DATA_PATHS = (
    "Task.data_dir",
    "Task.record_files",
    "Task.seqio_cache_dirs",
    "Vocabulary.path",
    "Data.store",
    STORES,
)


def resolve(folder: Path, vocabulary: str | None, bindings: Sequence[str]) -> config.Run:
    """The configuration of the run in a folder, with what bindings change; without a `vocabulary`
    that was given, with the run's own copy, which is there where the original has moved.

    Raises:
      UsageError: the folder holds no run, one that has trained nothing, or one of somebody else's
        that would execute a module or write where nobody has said so.
    """
    from dss_jax.interop.model_files import T5_CONFIG, read_model_files
    from dss_jax.interop.vocabularies import vocabulary_of

    saved = _saved_config(folder).absolute()
    known = (folder / T5_CONFIG).is_file()  # Which says how many extra ids there are.
    own = read_model_files(folder).vocabulary if known else vocabulary_of(folder)
    if vocabulary is None and own is not None:
        bindings = [f"Vocabulary.path = {str(own.absolute())!r}", *bindings]
    values, text = gin_config.read_saved(saved).values, saved.read_text()
    began, _ = registry.remembered(text)
    paths = _whole_paths(folder, values, began)
    run = gin_config.read_saved(saved, [*paths, *bindings]).run()
    if began is None:
        _check_named(folder, run, {binding.partition(" = ")[0] for binding in bindings})
    if not run.method.trains:
        raise UsageError(
            f"{folder} holds the scores of --method {run.method.name}: nothing was trained. They "
            "are in results.json, and dss train gives them again."
        )
    return run


def _saved_config(folder: Path) -> Path:
    """The configuration of the run in a folder, a copy where that is remote; raises UsageError
    where the folder holds none.
    """
    from dss_jax.run import run_folder

    file = folder / run_folder.CONFIG
    if not storage.exists(file):
        raise UsageError(f"{folder} holds no run: there is no {run_folder.CONFIG} in it.")
    return storage.local_file(file)


def _check_named(folder: Path, run: config.Run, named: Collection[str]) -> None:
    """Checks what a run would do that this user did not begin: what executes or writes must be
    among the settings that were `named` with the command; what only reads need not.
    """
    not_begun = f"{folder} holds a run that you did not begin here, and its configuration names"
    module, stores = run.task.mixture_or_task_module, run.data.store_dir
    if module is not None and MODULE not in named:
        raise UsageError(
            f"{not_begun} the Python module {module!r}, which would be imported, and so executed. "
            f"If you trust it, name it yourself: --mixture_or_task_module {shlex.quote(module)}."
        )
    if stores is not None and run.data.store is None and STORES not in named:
        raise UsageError(
            f"{not_begun} {stores!r} as the folder to write token stores to ({STORES}). Give one "
            "of your own, or that one, with --store_dir DIR; or a store with --store."
        )


def _whole_paths(folder: Path, values: Mapping[str, Any], began: Path | None) -> list[str]:
    """Bindings by which the paths of a run's data hold in any folder: they are those of the folder
    in which it began, by this user's note, else by what the run's folder says.
    """
    if began is None:
        from dss_jax.run import trained_on

        if "folder" not in (known := trained_on.read(folder)):
            return []
        began = Path(known["folder"])

    def whole(path: str) -> str:
        return path if "://" in path else str(began / Path(path).expanduser())

    bindings = []
    for name in DATA_PATHS:
        if value := rule_of(config.SETTINGS[name]).tidy(values.get(name)):
            found = [*map(whole, value)] if isinstance(value, tuple) else whole(value)
            bindings.append(f"{name} = {found!r}")
    return bindings


def reopen(
    run: config.Run, folder: Path, task_dirs: Sequence[str], splits: Sequence[str]
) -> "Session":
    """The run's data and program; with several processes, all must call it. Its task is looked for
    in `task_dirs`, then where it was when the run began; where it is not found, the run's own token
    store does. A mesh of the run that does not fit the devices that are here is replaced by one
    that does. Says what of the data has changed. Raises UsageError where the processes do not have
    the same, or there is no such task, data or split.
    """
    from dss_jax.data.prepare import ensure_store
    from dss_jax.run import trained_on

    saved = _saved_config(folder).read_text()
    _, own = registry.remembered(saved)
    task_dirs = [*task_dirs, *map(str, own)]
    if run.task.name is None or run.task.name in registry.task_names(task_dirs):
        scorer = registry.scorer_of(run.task.name, task_dirs)
    else:
        scorer, path = trained_on.without_task_file(folder, run.task.name, run.data.store)
        run = replace(run, data=replace(run.data, store=path))
    if run.data.store is not None:
        # It has what the records said; they may be others now, and scoring needs none.
        run = replace(run, task=replace(run.task, record_files=()))

    from dss_jax.data.store import TokenStore
    from dss_jax.run.hosts import same_store
    from dss_jax.run.session import open_session

    def open_store() -> TokenStore:
        store = ensure_store(run.task, run.vocabulary, run.data, task_dirs=task_dirs)
        for split in splits:
            store.split(split)
        return store

    store = same_store(run, open_store)
    trained_on.warn(folder, store)
    if run.mesh == config.from_gin(saved).mesh:  # Or one was asked for.
        run = replace(run, mesh=_fitting(run.mesh))
    if run.method.equal_compute and "train" in splits:
        from dss_jax.run.compute import drawn_out

        run = drawn_out(run, store)
    return open_session(run, folder, store, scorer)


def _fitting(mesh: config.Mesh) -> config.Mesh:
    """The mesh, or where it does not fit the devices that are here, one that does and cuts the
    parameters up as far as it did.
    """
    import jax

    from dss_jax.train.sharding import make_mesh

    try:
        make_mesh(mesh)
    except UsageError as error:
        count = jax.device_count()
        model = math.gcd(mesh.model, count)
        fsdp = math.gcd(mesh.fsdp, count // model)
        mesh = replace(mesh, data=-1, fsdp=fsdp, model=model)
        shape = " x ".join(f"{a} {n}" for a, n in make_mesh(mesh).shape.items())
        log.info("%s", error)
        log.info("this mesh is taken instead: %s (--gin.Mesh.data=N and so on choose one)", shape)
    return mesh
