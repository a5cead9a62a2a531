"""Whole compiled steps on the disk, so that a second start traces nothing.

JAX keeps what XLA has compiled (`compile.keep_compiled_code`), but finds it by the lowered
function, and to trace and lower T5's steps takes Python longer than to read the checkpoint. Here a
step is found by all that it is made from: this package's files, the libraries, JAX's settings, the
run's configuration, the devices, and the shapes. If any of it differs, the step is made anew.

The files hold machine code, as JAX's own do, and pickles: who can write there can run code here.
"""

import functools
import hashlib
import os
import pickle
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.sharding import Mesh

from dss_jax.core import config
from dss_jax.core.digest import package_digest
from dss_jax.layouts.blocks import Batch

MAX_BYTES = 2 * 2**30
"""The steps that were not used for longest are removed beyond this."""

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")
_ENVIRONMENT = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")


@functools.cache
def _code() -> str:
    """This package's files and the libraries."""
    versions = (f"{name} {metadata.version(name)}" for name in _LIBRARIES)
    return " ".join((package_digest(), *versions))


def made_from(run: config.Run, mesh: Mesh, state: Any) -> str:
    """All that a step is made from, but for its name and the shapes of a batch.

    Args:
      run: only what is compiled in counts. Seeds, data and places are none of it, nor is how often
        something is logged or saved.
      mesh: where it runs.
      state: shapes, dtypes and shardings of what it takes beside the batch.
    """
    compiled_in = (
        run.method, run.model, run.lora, run.loss, run.optimizer, run.mesh, run.data.batch_size,
        run.train.steps, run.train.microbatches, run.train.max_bad_steps,
    )  # fmt: skip
    devices = [(d.id, d.process_index, d.device_kind, d.platform) for d in mesh.devices.flat]
    settings = {k: v for k, v in jax.config.values.items() if "cache" not in k}
    parts = (
        _code(), compiled_in, dict(mesh.shape), devices,
        mesh.devices.flat[0].client.platform_version, jax.tree.map(repr, state),
        sorted(settings.items(), key=str), [os.environ.get(name) for name in _ENVIRONMENT],
    )  # fmt: skip
    return repr(parts)


def shapes_of(batch: Batch) -> tuple:
    """What tells batches of different shapes apart; can be hashed."""
    leaves, structure = jax.tree.flatten(batch)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


class SavedSteps:
    """A function's compiled code for each shape of batch.

    Attributes:
      folder: where it is kept.
    """

    def __init__(self, folder: Path, key: str, mesh: Mesh) -> None:
        """`key`: the function's name, and all that it is made from; `mesh`: where it runs."""
        self.folder, self._key, self._devices = folder, key, list(mesh.devices.flat)

    def _file(self, batch: Batch) -> Path:
        digest = hashlib.sha256(f"{self._key} {shapes_of(batch)}".encode())
        return self.folder / digest.hexdigest()

    def load(self, batch: Batch) -> Callable | None:
        """The function for this shape; None where it is not there or cannot be read."""
        file = self._file(batch)
        try:
            content = file.read_bytes()
        except OSError:
            return None
        try:
            if hashlib.sha256(content[32:]).digest() != content[:32]:
                raise ValueError("cut short")
            code, inputs, outputs = pickle.loads(content[32:])
            compiled: Callable = serialize_executable.deserialize_and_load(
                code, inputs, outputs, self._devices[0].client, self._devices
            )
            file.touch()  # It was used now.
        except Exception:
            # Whatever is wrong with it (a disk that was full, another JAX), a new one is made.
            file.unlink(missing_ok=True)
            return None
        return compiled

    def save(self, batch: Batch, compiled: jax.stages.Compiled) -> None:
        """Keeps it, where JAX and the disk can."""
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
        files = sorted(
            ((s.st_mtime, s.st_size, f) for f in self.folder.iterdir() if (s := f.stat())),
            reverse=True,
        )
        total = 0
        for _, size, file in files:
            total += size
            if total > MAX_BYTES:
                file.unlink(missing_ok=True)


def saved_steps(name: str, run: config.Run, mesh: Mesh, state: Any) -> SavedSteps | None:
    """Where a function of a run is kept.

    Args:
      name: tells functions of the same run, mesh and state apart.
      run, mesh, state: as in `made_from`.

    Returns:
      None where compiled code is not kept on a local disk, or where several processes run one
      function.
    """
    settings = jax.config.values
    folder = settings["jax_compilation_cache_dir"]
    kept = folder and settings["jax_enable_compilation_cache"] and "://" not in folder
    if not kept or jax.process_count() > 1:
        return None
    return SavedSteps(Path(folder) / "steps", f"{name} {made_from(run, mesh, state)}", mesh)
