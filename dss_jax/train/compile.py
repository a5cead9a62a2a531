"""Compiled code: the folder in which it is kept between runs, what XLA is told, and steps that are
compiled ahead of time.

JAX keeps what XLA has compiled (`keep_compiled_code`), but finds it by the lowered function, and to
trace and lower T5's steps takes Python longer than to read the checkpoint. So a step is kept whole
too (`Compiled`), and found by all that it is made from: files of this package (`ROOMS`), libraries,
JAX's settings, what of the configuration is compiled in, devices, shapes; anew if any differs.

The files hold machine code, as JAX's own do, and pickles: who can write there can run code here. So
both folders are the user's own, and nobody else may write to them (`core/own_folder.py`).
"""

import contextlib
import functools
import hashlib
import os
import pickle
import platform
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import jax
from jax.experimental import serialize_executable
from jax.sharding import Mesh

from dss_jax.core import config, processes
from dss_jax.core.digest import code_digest
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import cache_folder, write_whole
from dss_jax.layouts.blocks import Batch
from dss_jax.train.sharding import on_mesh

COMPILE_CACHE = "DSS_COMPILE_CACHE"
"""Environment variable: the folder of compiled code, or "off"."""

MAX_CACHE_BYTES = 10 * 2**30
"""The code that was not used for longest is removed beyond this."""

MAX_BYTES = 2 * 2**30
"""The steps that were not used for longest are removed beyond this."""

ROOMS = ("core", "records", "data", "layouts", "model", "train", "evaluate")
"""Of which steps are made: those that make them, `train` and `evaluate`, and what these import."""

_ENVIRONMENT = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")

_TRACING = threading.Lock()
"""Held while a function is lowered. That is Python, so two at once are no faster; one by one, in
the order in which they were begun, no step waits for a later one."""

_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
_TPU_OPTIONS = {"xla_tpu_dot_dot_fusion": "false"}

_HIT, _MISS = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"


@functools.cache
def step_options(device: jax.Device, remat_policy: str = "none") -> dict[str, str]:
    """What XLA is told when it compiles training steps for a device. On a CPU it gives sums over
    all tokens (gradients of norms and position bias) to YNNPACK with what is summed, which takes 7
    to 10 % of the step (benchmarks/README.md, "Levers"); so YNNPACK is left the products only. On a
    TPU with full remat libtpu (0.0.42.1) dies of products inside of products, dropout between.
    """
    remat = device.platform == "tpu" and remat_policy == "full"
    options = _CPU_OPTIONS if device.platform == "cpu" else _TPU_OPTIONS if remat else {}
    place = jax.sharding.SingleDeviceSharding(device)
    try:
        if options:
            jax.jit(lambda: 0.0, out_shardings=place, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:  # an XLA without this option
        return {}
    return options


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
    goes before both, and is used as it is, as is a folder in a bucket (gs://). To be called before
    anything is compiled. Gives the folder; None where nothing is kept, also where the package's
    cache folder cannot be written, or see `own_folder`.

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
        if _own(folder) is None:
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


def fingerprint(run: config.Run, mesh: Mesh, first: Any) -> str:
    """All that a step is made from, but for its name and the shapes of a batch.

    Of the configuration only what is compiled in counts: no seeds, data, places, nor when to log.
    """
    compiled_in = (
        (run.method, run.model, run.lora, run.loss, run.optimizer, run.mesh),
        (run.data.batch_size, run.train.steps, run.train.microbatches, run.train.max_bad_steps),
    )
    first = jax.tree.map(repr, first)
    devices = [(d.id, d.process_index, d.device_kind, d.platform) for d in mesh.devices.flat]
    values = jax.config.values.items()  # The platforms are not those of what is made for others.
    settings = {k: v for k, v in values if "cache" not in k and k != "jax_platforms"}
    environment = [os.environ.get(name) for name in _ENVIRONMENT]
    version = mesh.devices.flat[0].client.platform_version
    code, shape = code_digest(*ROOMS), dict(mesh.shape)
    parts = (code, compiled_in, shape, devices, version, first, environment)
    return repr((*parts, sorted(settings.items(), key=str)))


def abstract(x: Any) -> jax.ShapeDtypeStruct:
    """An array's shape, dtype, and where it has been put."""
    place = x.sharding if getattr(x, "committed", False) else None
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)


def shapes_of(batch: Any) -> tuple:
    """What tells batches of different shapes apart; can be hashed."""
    leaves, structure = jax.tree.flatten(batch)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


class Compiled:
    """A function of (something, batch on the mesh), compiled for each shape of batch that was
    announced; another is compiled when it is met. A batch may be several arguments.

    Attributes:
      lower: shapes of a batch -> the function, lowered for them; takes no memory.
      folder: where compiled code is kept; None: it is not.
    """

    def __init__(
        self, lower: Callable[..., Any], mesh: Mesh, folder: Path | None = None, key: str = ""
    ) -> None:
        """`key`: all that the function is made from, but for the shapes of a batch."""
        self.lower, self._mesh, self.folder, self._key = lower, mesh, folder, key
        self._compiled: dict[tuple, Future[Callable]] = {}
        self._met: set[tuple] = set()

    @classmethod
    def kept(
        cls, name: str, run: config.Run, mesh: Mesh, lower_whole: Callable[..., Any], first: Any
    ) -> Self:
        """A step of a run, kept where compiled code is; `name` tells it from its others. Logical
        axes in the model mean axes of the mesh while it is traced, by a jitted function's
        `lower_whole`; `first`: shapes, dtypes and shardings of its first argument.
        """

        def lower(*batch: Any) -> jax.stages.Lowered:
            with on_mesh(mesh, run.mesh.logical_axis_rules):
                return lower_whole(first, *batch)

        folder = _folder()
        key = "" if folder is None else f"{name} {fingerprint(run, mesh, first)}"
        return cls(lower, mesh, folder, key)

    def ahead(self, shapes: Iterable[Batch], pool: ThreadPoolExecutor) -> None:
        """Begins to compile in the pool, for global batches of anything that has `shape` and
        `dtype`; XLA works on several at once.
        """
        for batch in shapes:
            key = shapes_of((batch,))
            if key not in self._compiled:
                self._compiled[key] = pool.submit(self._compile, (batch,))

    def wait(self) -> None:
        """Waits for all that was begun; raises what the compiler raised."""
        for future in self._compiled.values():
            future.result()

    def __call__(self, first: Any, *batch: Any) -> Any:
        """Calls the code that was compiled for the batch's shapes; with several processes, all must
        call it, and begin the first call of each shape together.
        """
        key = shapes_of(batch)
        if (known := self._compiled.get(key)) is None:
            made: Future[Callable] = Future()
            # Threads that meet a shape at the same time wait for the first of them.
            if (known := self._compiled.setdefault(key, made)) is made:
                try:
                    made.set_result(self._compile(batch))
                except BaseException as error:
                    del self._compiled[key]
                    made.set_exception(error)
        function = known.result()
        if key not in self._met:
            processes.barrier()
            self._met.add(key)
        return function(first, *batch)

    def _compile(self, batch: tuple) -> Callable:
        counts = cache_counts()
        if (found := self._load(batch)) is not None:
            counts.found += 1
            return found
        before = counts.missing_here
        compiled = self.made(batch)
        # Only what XLA has compiled just now. Code that JAX has read from the disk loses functions
        # when it is written again, on CPUs; it shows when it runs ("NOT_FOUND: Function ...").
        if counts.missing_here > before:
            self.keep(batch, compiled)
        return compiled

    def made(self, batch: tuple) -> jax.stages.Compiled:
        """The function, compiled for a batch's shapes, whatever is kept."""
        with _TRACING:
            lowered = self.lower(*jax.tree.map(abstract, batch))
        return lowered.compile()

    def _name(self, batch: tuple) -> str:
        return hashlib.sha256(f"{self._key} {shapes_of(batch)}".encode()).hexdigest()

    def _load(self, batch: tuple) -> Callable | None:
        """The code for this shape; None where it is not there or cannot be read."""
        if self.folder is None:
            return None
        file, devices = self.folder / self._name(batch), list(self._mesh.devices.flat)
        try:
            with file.open("rb") as opened:
                if os.fstat(opened.fileno()).st_uid != os.geteuid():
                    return None
                content = opened.read()
        except OSError:
            return None
        try:
            if hashlib.sha256(content[32:]).digest() != content[:32]:
                raise ValueError("cut short")
            code, inputs, outputs = pickle.loads(content[32:])
            compiled: Callable = serialize_executable.deserialize_and_load(
                code, inputs, outputs, devices[0].client, devices
            )
            file.touch()  # It was used now.
        except Exception:
            # Whatever is wrong with it (a disk that was full, another JAX), a new one is made.
            file.unlink(missing_ok=True)
            return None
        return compiled

    def keep(self, batch: tuple, compiled: jax.stages.Compiled) -> Path | None:
        """Keeps it, where JAX and the disk can: the file."""
        if self.folder is None:
            return None
        # Not each executable can be kept, and no run shall fail because one was not.
        with contextlib.suppress(Exception):
            content = pickle.dumps(serialize_executable.serialize(compiled))
            content = hashlib.sha256(content).digest() + content
            write_whole(written := self.folder / self._name(batch), content)
            total = 0
            for file in sorted(self.folder.iterdir(), key=lambda file: -file.stat().st_mtime):
                total += file.stat().st_size
                if total > MAX_BYTES and file != written:
                    file.unlink(missing_ok=True)
            return written
        return None


def _folder() -> Path | None:
    """Where steps are kept; None: no code is kept on a local disk, or see `own_folder`."""
    settings = jax.config.values
    folder = settings["jax_compilation_cache_dir"]
    kept = folder and settings["jax_enable_compilation_cache"] and "://" not in folder
    return None if not kept or jax.process_count() > 1 else _own(f"{folder}/steps")


def _own(folder: str) -> Path | None:
    from dss_jax.core.own_folder import own_folder

    return own_folder(Path(folder), COMPILE_CACHE)
