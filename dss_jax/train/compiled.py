"""Steps compiled ahead of time, one for each shape of batch, and kept whole on the disk.

JAX keeps what XLA has compiled (`compile.keep_compiled_code`), but finds it by the lowered
function, and to trace and lower T5's steps takes Python longer than to read the checkpoint. Here a
step is found by all that it is made from: this package's files, the libraries, JAX's settings, what
of the configuration is compiled in, the devices, and the shapes. If any of it differs, the step is
made anew.

The files hold machine code, as JAX's own do, and pickles: who can write there can run code here.
"""

import hashlib
import os
import pickle
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import jax
from jax.experimental import serialize_executable

from dss_jax.core import config, processes
from dss_jax.core.digest import code_digest
from dss_jax.layouts.blocks import Batch
from dss_jax.train.compile import cache_counts
from dss_jax.train.step import Step

MAX_BYTES = 2 * 2**30
"""The steps that were not used for longest are removed beyond this."""

_ENVIRONMENT = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")

_TRACING = threading.Lock()
"""Held while a function is lowered. That is Python, so two at once are no faster; one by one, in
the order in which they were begun, XLA has the first early, and no step waits for a later one.
"""


def fingerprint(run: config.Run, step: Step) -> str:
    """All that a step is made from, but for its name and the shapes of a batch.

    Of the configuration only what is compiled in counts. Seeds, data and places are none of it, nor
    is how often something is logged or saved.
    """
    compiled_in = (
        (run.method, run.model, run.lora, run.loss, run.optimizer, run.mesh),
        (run.data.batch_size, run.train.steps, run.train.microbatches, run.train.max_bad_steps),
    )
    mesh, first = step.mesh, jax.tree.map(repr, step.first)
    devices = [(d.id, d.process_index, d.device_kind, d.platform) for d in mesh.devices.flat]
    settings = {k: v for k, v in jax.config.values.items() if "cache" not in k}
    environment = [os.environ.get(name) for name in _ENVIRONMENT]
    version = mesh.devices.flat[0].client.platform_version
    parts = (code_digest(), compiled_in, dict(mesh.shape), devices, version, first, environment)
    return repr((*parts, sorted(settings.items(), key=str)))


def shapes_of(batch: Batch) -> tuple:
    """What tells batches of different shapes apart; can be hashed."""
    leaves, structure = jax.tree.flatten(batch)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


class Compiled:
    """A step, compiled for each shape of batch that was announced.

    A shape that was not announced is compiled when it is met.

    Attributes:
      folder: where compiled steps are kept; None: they are not.
    """

    def __init__(self, step: Step, folder: Path | None = None, key: str = "") -> None:
        """`key`: all that the step is made from, but for the shapes of a batch."""
        self._step, self.folder, self._key = step, folder, key
        self._compiled: dict[tuple, Future[Callable]] = {}
        self._met: set[tuple] = set()

    @classmethod
    def kept(cls, name: str, run: config.Run, step: Step) -> Self:
        """A step of a run, kept where compiled code is; `name` tells it from others of the run."""
        folder = _folder()
        return cls(step, folder, "" if folder is None else f"{name} {fingerprint(run, step)}")

    def ahead(self, shapes: Iterable[Batch], pool: ThreadPoolExecutor) -> None:
        """Begins to compile in the pool; XLA works on several at once.

        Args:
          shapes: global batches of anything that has `shape` and `dtype`.
          pool: its threads.
        """
        for batch in shapes:
            key = shapes_of(batch)
            if key not in self._compiled:
                self._compiled[key] = pool.submit(self._compile, batch)

    def wait(self) -> None:
        """Waits for all that was begun; raises what the compiler raised."""
        for future in self._compiled.values():
            future.result()

    def __call__(self, first: Any, batch: Batch) -> Any:
        """Calls the code that was compiled for the batch's shapes; with several processes, all must
        call it, and begin the first call of each shape together.
        """
        key = shapes_of(batch)
        if key not in self._compiled:
            made: Future[Callable] = Future()
            made.set_result(self._compile(batch))
            self._compiled[key] = made
        function = self._compiled[key].result()
        if key not in self._met:
            processes.barrier()
            self._met.add(key)
        return function(first, batch)

    def _compile(self, batch: Batch) -> Callable:
        if (found := self._load(batch)) is not None:
            cache_counts().found += 1
            return found
        with _TRACING:
            lowered = self._step.lower(
                jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
            )
        before = cache_counts().missing_here
        compiled = lowered.compile()
        # Only what XLA has compiled just now. Code that JAX has read from the disk loses functions
        # when it is written again, on CPUs; it shows when it runs ("NOT_FOUND: Function ...").
        if cache_counts().missing_here > before:
            self._keep(batch, compiled)
        return compiled

    def _file(self, batch: Batch) -> Path:
        assert self.folder is not None
        digest = hashlib.sha256(f"{self._key} {shapes_of(batch)}".encode())
        return self.folder / digest.hexdigest()

    def _load(self, batch: Batch) -> Callable | None:
        """The code for this shape; None where it is not there or cannot be read."""
        if self.folder is None:
            return None
        file, devices = self._file(batch), list(self._step.mesh.devices.flat)
        try:
            content = file.read_bytes()
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

    def _keep(self, batch: Batch, compiled: jax.stages.Compiled) -> None:
        """Keeps it, where JAX and the disk can."""
        if self.folder is None:
            return
        try:
            content = pickle.dumps(serialize_executable.serialize(compiled))
            self.folder.mkdir(parents=True, exist_ok=True)
            # Several processes may write the same one.
            with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:
                file.write(hashlib.sha256(content).digest() + content)
            Path(file.name).replace(self._file(batch))
            self._remove_old()
        except Exception:
            # Not each executable can be kept, and no run shall fail because one was not.
            return

    def _remove_old(self) -> None:
        assert self.folder is not None
        stats = sorted(((f.stat(), f) for f in self.folder.iterdir()), key=lambda x: -x[0].st_mtime)
        total = 0
        for stat, file in stats:
            total += stat.st_size
            if total > MAX_BYTES:
                file.unlink(missing_ok=True)


def _folder() -> Path | None:
    """Where steps are kept; None where compiled code is not kept on a local disk, or where several
    processes run one function.
    """
    settings = jax.config.values
    folder = settings["jax_compilation_cache_dir"]
    kept = folder and settings["jax_enable_compilation_cache"] and "://" not in folder
    return Path(folder) / "steps" if kept and jax.process_count() == 1 else None
