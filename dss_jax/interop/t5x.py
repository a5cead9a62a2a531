"""T5X checkpoints in and out, without importing t5x or TensorFlow.

Read are both forms that T5X writes, legacy and Orbax, of T5 (unscanned) and
`scalable_t5` (scanned), local or under gs://, whatever optimizer state lies beside the parameters.
Written is the legacy form, unscanned, which T5X restores as it does its own.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dss_jax.core import storage
from dss_jax.core.config import T5Config
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import whole_folder
from dss_jax.interop import t5x_store
from dss_jax.interop.t5x_names import (
    CONSTANTS,
    infer_config,
    is_scanned,
    of_first_layer,
    parameters,
)
from dss_jax.interop.t5x_store import LEGACY_INDEX, ORBAX_INDEX
from dss_jax.interop.weights import Weights, checked_leaves, nested

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
        data = t5x_store.read_file(path, name)
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
    of_form = t5x_store.orbax_arrays if name == ORBAX_INDEX else t5x_store.legacy_arrays
    arrays = of_form(path, data)
    if not arrays:
        raise UsageError(f"{path} holds no parameters (`target`), only the optimizer's state.")
    shapes = {name: array.shape for name, array in arrays.items()}
    config = infer_config(shapes, path)
    needed = parameters(config, scanned=is_scanned(shapes))

    def read(names: list[str]) -> list[np.ndarray]:
        return t5x_store.read_arrays({name: arrays[name] for name in names})

    leaves = checked_leaves(needed, shapes, read, path)
    t5x_store.check_readable(arrays, path)
    for parameter in needed:
        if parameter.view is of_first_layer:
            [bias] = read(parameter.names)
            _check_shared(parameter.names[0], bias, path)
    return Weights(config=config, leaves=leaves, origin=f"T5X {path}")


def _check_shared(name: str, bias_HxLxN: np.ndarray, origin: str) -> None:
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
        for parameter in parameters(weights.config, scanned=False):
            theirs = parameter.to_theirs(weights.leaves[parameter.path].read())
            target |= t5x_store.write_arrays(folder, theirs)
            for name in parameter.names:
                states[name.removeprefix("target/")] = _adafactor_state(parameter.their_shape)
        state = {"step": np.asarray(int(match[1]), np.int32), "param_states": nested(states)}
        optimizer = {"state": state, **nested(target)}
        t5x_store.write_index(folder, {"version": 3, "optimizer": optimizer})


def _check_t5x_has(config: T5Config) -> None:
    for name, value in CONSTANTS.items():
        if getattr(config, name) != value:
            raise UsageError(
                f"T5X has {name} = {value} in its code, and this model {getattr(config, name)}: "
                "T5X would compute something else with it."
            )


@contextmanager
def _fresh(path: str) -> Iterator[str]:
    """A folder to write to, which is `path` when all went well."""
    remote = storage.is_remote(path)
    if is_t5x(path) if remote else Path(path).expanduser().exists():
        raise UsageError(f"{path} is there already.")
    if remote:
        yield path
        return
    # T5X looks for checkpoint_<digits> only, not for what is not whole yet.
    with whole_folder(Path(path).expanduser()) as folder:
        yield str(folder)


def _adafactor_state(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """As `t5x.adafactor.Adafactor.init_param_state` makes it, without momentum.

    The second moment of a matrix is factored where both its sizes are at least 128.
    """
    sizes = {"m": (1,), "v": shape, "v_row": (1,), "v_col": (1,)}
    if len(shape) == 2 and min(shape) >= _MIN_DIM_SIZE_TO_FACTOR:
        sizes |= {"v": (1,), "v_row": (min(shape),), "v_col": (max(shape),)}
    return {name: np.zeros(size, np.float32) for name, size in sizes.items()}
