"""T5X checkpoints in and out, without importing t5x or TensorFlow.

Read are both forms that T5X writes, legacy and Orbax, of T5 (unscanned) and
`scalable_t5` (scanned), local or under gs://, whatever optimizer state lies beside the parameters.
Written is the legacy form, unscanned, which T5X restores as it does its own.
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dss_jax.core import storage
from dss_jax.core.config import T5Config
from dss_jax.core.errors import UsageError
from dss_jax.interop.t5x_names import (
    EPSILON,
    MAX_DISTANCE,
    NUM_BUCKETS,
    Entry,
    entries,
    infer_config,
    is_scanned,
)
from dss_jax.interop.t5x_store import (
    LEGACY_INDEX,
    ORBAX_INDEX,
    Array,
    check_readable,
    legacy_arrays,
    orbax_arrays,
    read_arrays,
    read_file,
    write_arrays,
    write_index,
)
from dss_jax.interop.weights import Leaf, Weights, check_names, nested

_MIN_DIM_SIZE_TO_FACTOR = 128


def is_t5x(path: str) -> bool:
    """Whether a folder (local or gs://) is one step's checkpoint of T5X, of either form.

    Raises:
      UsageError: a bucket does not answer.
    """
    return _index(path) is not None


def _index(path: str) -> tuple[str, bytes] | None:
    """Name and content of the file that names the arrays."""
    for name in (LEGACY_INDEX, ORBAX_INDEX):
        data = read_file(path, name)
        # TensorFlow writes a text file of the legacy index's name.
        if data is not None and not data.startswith(b"model_checkpoint_path"):
            return name, data
    return None


def read_t5x(path: str) -> Weights:
    """A T5X checkpoint's parameters, whose arrays are read when they are asked for.

    Args:
      path: folder of one step, for example "gs://bucket/t5_1_1_small/checkpoint_1000000".

    Raises:
      UsageError: it is no T5X checkpoint, a parameter is missing, unexpected or misshapen, or
        the layers of `scalable_t5` have position biases that differ.
    """
    path = path.rstrip("/")
    index = _index(path)
    if index is None:
        raise UsageError(
            f"{path} is no T5X checkpoint: it has neither a file {LEGACY_INDEX!r} (legacy form) "
            f"nor {ORBAX_INDEX!r} (Orbax form). Give the folder of one step, for example "
            f"{path}/checkpoint_1000000."
        )
    name, data = index
    arrays = (orbax_arrays if name == ORBAX_INDEX else legacy_arrays)(path, data)
    if not arrays:
        raise UsageError(f"{path} holds no parameters (`target`), only the optimizer's state.")
    shapes = {name: array.shape for name, array in arrays.items()}
    config = infer_config(shapes, path)
    table = entries(config, scanned=is_scanned(shapes))
    check_names({name: e.t5x_shape for e in table for name in e.names}, shapes, path)
    check_readable(arrays, path)
    for entry in table:
        if entry.is_shared_bias:
            _check_shared(entry.names[0], arrays, path)
    leaves = {e.path: Leaf(e.shape, partial(_read, e, arrays)) for e in table}
    return Weights(config=config, leaves=leaves, origin=f"T5X {path}")


def _read(entry: Entry, arrays: Mapping[str, Array]) -> np.ndarray:
    return entry.from_t5x(read_arrays({name: arrays[name] for name in entry.names}))


def _check_shared(name: str, arrays: Mapping[str, Array], origin: str) -> None:
    [bias_HxLxN] = read_arrays({name: arrays[name]})
    differ = (bias_HxLxN != bias_HxLxN[:, :1]).any(axis=(0, 2)).nonzero()[0]
    if differ.size:
        raise UsageError(
            f"{origin}: {name} {list(bias_HxLxN.shape)} has one position bias per layer (axis 1), "
            f"and those of layers {', '.join(map(str, differ))} differ from layer 0's. T5 here has "
            "one bias that all layers of a stack share, so this model of `scalable_t5` cannot be "
            "read. It can be where all layers' biases are equal."
        )


def write_t5x(weights: Weights, path: str) -> None:
    """Writes what `t5x.train`, `t5x.eval` and `t5x.infer` restore.

    The legacy form, unscanned, in float32, with T5X's initial Adafactor state (zeros): the state
    of the run that trained the parameters is not taken along. A local checkpoint is written under
    another name and renamed when it is whole; under gs:// its file `checkpoint` comes last.

    Args:
      weights: with T5X's position bias and norm (see `infer_config`).
      path: the checkpoint's own folder, "DIR/checkpoint_<step>"; T5X takes the step from it.

    Raises:
      UsageError: another name, it is there already, or T5X has no such model.
    """
    path = path.rstrip("/")
    match = re.fullmatch(r"checkpoint_(\d+)", path.rsplit("/", 1)[-1])
    if match is None:
        raise UsageError(
            f"T5X finds a checkpoint by its name, checkpoint_<step>: write to "
            f"{path}/checkpoint_0, not to {path}."
        )
    _check_t5x_has(weights.config)
    target: dict[str, Any] = {}
    states: dict[str, Any] = {}
    with _fresh(path) as folder:
        for entry in entries(weights.config, scanned=False):
            ours = weights.leaves[entry.path].read()
            target |= write_arrays(folder, dict(zip(entry.names, entry.to_t5x(ours), strict=True)))
            for name in entry.names:
                states[name.removeprefix("target/")] = _adafactor_state(entry.t5x_shape)
        state = {"step": np.asarray(int(match[1]), np.int32), "param_states": nested(states)}
        write_index(folder, {"version": 3, "optimizer": {"state": state, **nested(target)}})


def _check_t5x_has(config: T5Config) -> None:
    for name, value in (
        ("relative_attention_max_distance", MAX_DISTANCE),
        ("relative_attention_num_buckets", NUM_BUCKETS),
        ("layer_norm_epsilon", EPSILON),
    ):
        if getattr(config, name) != value:
            raise UsageError(
                f"T5X has {name} = {value} in its code, and this model {getattr(config, name)}: "
                "T5X would compute something else with it."
            )


@contextmanager
def _fresh(path: str) -> Iterator[str]:
    """A folder to write to, which is `path` when all went well."""
    if storage.is_remote(path):
        if is_t5x(path):
            raise UsageError(f"{path} is there already.")
        yield path
        return
    final = Path(path).expanduser()
    if final.exists():
        raise UsageError(f"{path} is there already.")
    final.parent.mkdir(parents=True, exist_ok=True)
    # T5X looks for checkpoint_<digits> only.
    partial_folder = final.with_name(f"{final.name}.tmp-{os.getpid()}")
    try:
        yield str(partial_folder)
        partial_folder.rename(final)
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)


def _adafactor_state(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """As `t5x.adafactor.Adafactor.init_param_state` makes it, without momentum.

    The second moment of a matrix is factored where both its sizes are at least 128.
    """
    sizes = {"m": (1,), "v": shape, "v_row": (1,), "v_col": (1,)}
    if len(shape) == 2 and min(shape) >= _MIN_DIM_SIZE_TO_FACTOR:
        sizes |= {"v": (1,), "v_row": (min(shape),), "v_col": (max(shape),)}
    return {name: np.zeros(size, np.float32) for name, size in sizes.items()}
