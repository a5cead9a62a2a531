"""The folder in which compiled code is kept between runs, and what XLA is told."""

import functools
import hashlib
import os
import platform
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from dss_jax.core import processes
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import cache_folder
from dss_jax.model.matmul import on_cpu

COMPILE_CACHE = "DSS_COMPILE_CACHE"
"""Environment variable: the folder of compiled code, or "off"."""

MAX_CACHE_BYTES = 10 * 2**30
"""The code that was not used for longest is removed beyond this."""

_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}

_HIT, _MISS = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"


@functools.cache
def step_options() -> dict[str, str]:
    """What XLA is told when it compiles training steps; empty but on CPU.

    There XLA gives sums over all tokens (gradients of norms and of the position bias) to YNNPACK
    together with what is summed. In a step that is slower than XLA's own code, by 7 to 10 % of the
    step (benchmarks/README.md, "Levers"), so YNNPACK is left the products of matrices only.
    """
    if not on_cpu():
        return {}
    try:
        jax.jit(lambda: 0.0, compiler_options=_CPU_OPTIONS)()
    except jax.errors.JaxRuntimeError:  # an XLA without this option
        return {}
    return _CPU_OPTIONS


def _processor() -> str:
    """A short name of the kind of processor, for which XLA compiles on a CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    kinds = [x for x in lines if x.startswith(("model name", "flags", "Features"))][:2]
    return f"{platform.machine()}-{hashlib.sha256(''.join(kinds).encode()).hexdigest()[:8]}"


def _remove_cut_short(folder: Path) -> None:
    """Removes what a process that was killed has left half written in JAX's folder.

    JAX writes "...-cache", then "...-atime". It looks through all of the latter before it keeps
    anything, and as long as one is missing it warns at each function, and keeps none.
    """
    # Listed once: to ask for each file would be slow on a network disk.
    names = {file.name for file in folder.iterdir()}
    for name in names:
        if name.endswith("-cache") and name.removesuffix("-cache") + "-atime" not in names:
            (folder / name).unlink(missing_ok=True)


def keep_compiled_code() -> str | None:
    """Lets JAX keep compiled code on the disk, so that the second start of a run compiles nothing.

    The folder is DSS_COMPILE_CACHE ("off" for none), else `compiled` in the package's cache
    folder, with a folder for each kind of processor in it. JAX's own JAX_COMPILATION_CACHE_DIR
    goes before both. A folder in a bucket (gs://) is used as it is, and never made smaller. To be
    called before anything is compiled.

    Returns:
      The folder; None where nothing is kept, also where the package's cache folder cannot be
      written.

    Raises:
      UsageError: the folder that DSS_COMPILE_CACHE names cannot be made.
    """
    asked = os.environ.get(COMPILE_CACHE, "")
    if asked == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    jax.config.update("jax_enable_compilation_cache", True)
    if own := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return own
    if "://" in asked:
        folder, limit = f"{asked.rstrip('/')}/{_processor()}", -1
    else:
        base = Path(asked).expanduser() if asked else cache_folder() / "compiled"
        folder, limit = str(base.absolute() / _processor()), MAX_CACHE_BYTES
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if asked:
                raise UsageError(
                    f"{COMPILE_CACHE}: {folder} cannot be made ({error.strerror}). Give a folder "
                    'that can be written, or "off".'
                ) from error
            return None
        _remove_cut_short(Path(folder))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_compilation_cache_max_size", limit)
    # A start compiles a hundred small functions beside the steps; together they take seconds.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    return folder


class CacheCounts:
    """How often this process found compiled code on the disk, and how often it did not."""

    def __init__(self) -> None:
        self.found = self.missing = 0
        self._here = threading.local()

    @property
    def missing_here(self) -> int:
        """In this thread."""
        return getattr(self._here, "missing", 0)

    def count(self, event: str, **_: Any) -> None:
        """Listens to JAX's events, in the thread that compiles."""
        self.found += event == _HIT
        self._here.missing = self.missing_here + (event == _MISS)
        self.missing += event == _MISS


@functools.cache
def cache_counts() -> CacheCounts:
    """The process's counts, from the first call on."""
    counts = CacheCounts()
    jax.monitoring.register_event_listener(counts.count)
    return counts


def first_together(function: Callable) -> Callable:
    """A jitted function that all processes begin to run together: see `processes.barrier`.

    Every process must call it, with the same shapes in the same order.
    """
    if processes.count() == 1:
        return function
    met: set[tuple] = set()

    def call(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        key = structure, tuple(map(jax.typeof, leaves))
        if key not in met:
            function.lower(*args).compile()  # type: ignore[attr-defined]  # JAX keeps it.
            processes.barrier()
            met.add(key)
        return function(*args)

    return call
