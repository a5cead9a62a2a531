"""Tasks of a user's that `seqio_cache_tasks` has run already: SeqIO's own cache as a source."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dss_jax.core.errors import UsageError


def check_cache(provider: Any, use_cached: bool, cache_dirs: Sequence[str]) -> list[Any]:
    """The tasks of a SeqIO task or mixture, after a look at whether they are cached.

    Args:
      provider: the task or mixture.
      use_cached: whether the rows shall come from the cache.
      cache_dirs: folders of caches, local or of TensorFlow's file systems (gs://).

    Raises:
      UsageError: a task is not cached although it shall be or has to be; or it cannot be.
    """
    import seqio

    seqio.add_global_cache_dirs(list(cache_dirs))
    tasks: list[Any] = list(seqio.get_subtasks(provider))
    for task in tasks:
        if not use_cached:
            if task.requires_caching:
                raise UsageError(
                    f"the SeqIO task {task.name!r} has a CacheDatasetPlaceholder(required=True), "
                    "so its rows come from a cache only. Give --use_cached."
                )
        elif not task.supports_caching:
            raise UsageError(
                f"the SeqIO task {task.name!r} cannot be cached: it has no CacheDatasetPlaceholder."
                " Leave --use_cached out."
            )
        elif not task.cache_dir:
            looked = ", ".join(seqio.get_global_cache_dirs()) or "no folder: none was given"
            raise UsageError(
                f"the SeqIO task {task.name!r} is not cached. Looked in {looked}. Name the folder "
                "with --seqio_additional_cache_dirs DIR, or make the cache: seqio_cache_tasks "
                f"--tasks={task.name} --output_cache_dir=DIR --module_import=MODULE."
            )
    return tasks


def cached_files(tasks: Sequence[Any]) -> dict[str, tuple[int, int]]:
    """The files of local caches: path -> (bytes, mtime in ns)."""
    files: dict[str, tuple[int, int]] = {}
    for task in tasks:
        for file in sorted(Path(task.cache_dir).absolute().glob("*")):
            if file.is_file():
                files[str(file)] = (file.stat().st_size, file.stat().st_mtime_ns)
    return files
