"""T5X checkpoints in and out, without importing t5x or TensorFlow.

Read are both forms that T5X writes, legacy and Orbax, of T5 (unscanned) and `scalable_t5`
(scanned; T5X's umT5 is of it), whatever optimizer state lies beside the parameters. Written is the
legacy form, which T5X restores as it does its own: scanned where each layer has its position bias,
else unscanned.

Unscanned (`t5x.examples.t5`) keeps one array a layer: encoder/layers_0/attention/query/kernel
[E, J], J = heads * head_dim. Scanned (`t5x.examples.scalable_t5`) keeps all layers in one array,
the layers on axis 1, the heads apart, and a position bias in each layer:

  encoder/encoder/attention/query/kernel    [E, L, H, D]     (key, value alike)
  encoder/encoder/attention/out/kernel      [H, L, D, E]
  encoder/encoder/mlp/wo/kernel             [F, L, E]
  encoder/encoder/pre_mlp_layer_norm/scale  [E, L]
  encoder/encoder/relpos_bias/rel_embedding [H, L, buckets]

Ours are T5X's unscanned ones, stacked: encoder/layers/attention/query/kernel [L, E, J]. Where the
layers of each stack have equal biases they are read as one.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dss_jax.core import storage
from dss_jax.core.config import T5Config
from dss_jax.core.environment import T5X_CONSTANTS
from dss_jax.core.errors import UsageError
from dss_jax.core.partial import whole_folder
from dss_jax.core.t5_config import SHAPE_FIELDS
from dss_jax.interop import t5x_store
from dss_jax.interop.t5x_store import LEGACY_INDEX, ORBAX_INDEX
from dss_jax.interop.weights import (
    Leaf,
    Shape,
    StoredParameter,
    Weights,
    checked_leaves,
    expected_shapes,
    nested,
)

_MIN_DIM_SIZE_TO_FACTOR = 128

CONSTANTS: dict[str, Any] = {n: T5X_CONSTANTS[n] for n in SHAPE_FIELDS if n in T5X_CONSTANTS}
"""What T5X has in its code, and no checkpoint says (but for the buckets)."""

_STACKS = {"encoder": "attention", "decoder": "self_attention"}
"""Stack -> the name of self-attention in it."""

SCANNED = tuple(f"target/{stack}/{stack}/" for stack in _STACKS)
"""What the names of the layers' parameters begin with in `scalable_t5`."""


def is_scanned(names: Collection[str]) -> bool:
    """Whether these are the names of `scalable_t5`."""
    return any(name.startswith(SCANNED) for name in names)


def parameters(config: T5Config, *, scanned: bool) -> list[StoredParameter]:
    """All parameters of the model."""
    return [
        _scanned(path, shape, config) if scanned else _unscanned(path, shape)
        for path, shape in expected_shapes(config).items()
    ]


def _unscanned(path: str, shape: Shape) -> StoredParameter:
    if "/layers/" not in path:
        return StoredParameter(path, shape, [f"target/{path}"], shape)
    names = [f"target/{path.replace('/layers/', f'/layers_{i}/')}" for i in range(shape[0])]
    return StoredParameter(path, shape, names, shape[1:])


def of_first_layer(bias_HxLxN: np.ndarray) -> np.ndarray:
    """The position bias of all layers, where T5X keeps one for each and all are the same."""
    return bias_HxLxN[:, 0]


def _scanned(path: str, shape: Shape, config: T5Config) -> StoredParameter:
    stack = path.split("/")[0]
    if path == f"{stack}/relpos_bias/rel_embedding":
        name = path.replace("/relpos_bias/", f"/{stack}/relpos_bias/")
        layers = getattr(config, f"num_{stack}_layers")
        theirs: Shape = (shape[0], layers, shape[1])
        return StoredParameter(path, shape, [f"target/{name}"], theirs, of_first_layer)
    if "/layers/" not in path:
        return _unscanned(path, shape)
    _, *rest = shape
    heads = (config.num_heads, config.head_dim)
    if path.endswith(("/query/kernel", "/key/kernel", "/value/kernel")):
        rest = [rest[0], *heads]
    elif path.endswith("/out/kernel"):
        rest = [*heads, rest[1]]
    name = path.replace("/layers/", f"/{stack}/")
    apart: Shape = (shape[0], *rest)
    theirs = (rest[0], shape[0], *rest[1:])

    def swapped(array: np.ndarray) -> np.ndarray:
        """Theirs -> ours, and back."""
        if array.shape == theirs:
            return array.swapaxes(0, 1).reshape(shape)
        return array.reshape(apart).swapaxes(0, 1)

    return StoredParameter(path, shape, [f"target/{name}"], theirs, swapped)


def infer_config(shapes: Mapping[str, Shape], origin: str) -> T5Config:
    """The model's configuration, which a T5X checkpoint does not hold, from T5X's name -> shape.

    A gated feed-forward layer is taken as gelu-linear and a plain one as relu, which all public
    T5X checkpoints of T5, mT5, ByT5, LM-adapted T5 and Flan-T5 have.

    Raises:
      UsageError: a parameter that shows the sizes is missing or has another rank.
    """
    scanned = is_scanned(shapes)

    def shape(name: str, rank: int) -> Shape:
        found = shapes.get(f"target/{name}")
        if found is None or len(found) != rank:
            what = f"missing: target/{name}"
            if found is not None:
                what = f"misshapen: target/{name} is {list(found)}, needed with {rank} axes"
            raise UsageError(f"{origin} does not hold the parameters of a T5: {what}.")
        return found

    layer = {s: f"{s}/{s}" if scanned else f"{s}/layers_0" for s in _STACKS}
    wi = f"{layer['encoder']}/mlp/wi_0/kernel"
    gated = f"target/{wi}" in shapes
    vocab_size, emb_dim = shape("token_embedder/embedding", 2)
    bias_of = layer["encoder"] if scanned else "encoder"
    num_heads, *_, buckets = shape(f"{bias_of}/relpos_bias/rel_embedding", 2 + scanned)
    query = {
        stack: shape(f"{layer[stack]}/{attention}/query/kernel", 4 if scanned else 2)
        for stack, attention in _STACKS.items()
    }
    if scanned:
        layers = {stack: query[stack][1] for stack in _STACKS}
    else:
        numbered = (re.match(r"target/(\w+)/layers_(\d+)/", name) for name in shapes)
        found = [(match[1], int(match[2])) for match in numbered if match]
        layers = {s: 1 + max(i for stack, i in found if stack == s) for s in _STACKS}
    constants = CONSTANTS | {"relative_attention_num_buckets": buckets}
    return T5Config(
        vocab_size=vocab_size,
        emb_dim=emb_dim,
        num_heads=num_heads,
        head_dim=query["encoder"][3] if scanned else query["encoder"][1] // num_heads,
        mlp_dim=shape(wi if gated else wi.replace("wi_0", "wi"), 2 + scanned)[-1],
        num_encoder_layers=layers["encoder"],
        num_decoder_layers=layers["decoder"],
        mlp_activations=("gelu", "linear") if gated else ("relu",),
        logits_via_embedding="target/decoder/logits_dense/kernel" not in shapes,
        **constants,
    )


def is_t5x(path: str) -> bool:
    """Whether a folder (local or gs://) is one step's checkpoint of T5X, of either form. Raises
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
    """A T5X checkpoint's parameters, whose arrays are read when they are asked for; `path` is the
    folder of one step, for example "gs://bucket/t5_1_1_small/checkpoint_1000000". Raises
    UsageError: it is no T5X checkpoint, or a parameter is missing, unexpected or misshapen.
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

    def read(names: list[str]) -> list[np.ndarray]:
        return t5x_store.read_arrays({name: arrays[name] for name in names})

    def leaves_of(config: T5Config) -> dict[str, Leaf]:
        needed = parameters(config, scanned=is_scanned(shapes))
        return checked_leaves(needed, shapes, read, path)

    config = infer_config(shapes, path)
    leaves = leaves_of(config)
    t5x_store.check_readable(arrays, path)
    if is_scanned(shapes):
        biases = read([f"target/{stack}/{stack}/relpos_bias/rel_embedding" for stack in _STACKS])
        if any((bias_HxLxN != bias_HxLxN[:, :1]).any() for bias_HxLxN in biases):
            config = replace(config, relative_attention_per_layer=True)
            leaves = leaves_of(config)
    return Weights(config=config, leaves=leaves, origin=f"T5X {path}")


def write_t5x(weights: Weights, path: str) -> None:
    """Writes what `t5x.train`, `t5x.eval` and `t5x.infer` restore; T5X takes the step from the
    folder's name, "DIR/checkpoint_<step>".

    The legacy form in float32, with T5X's initial Adafactor state (zeros): the state of the run
    that trained the parameters is not taken along. A local checkpoint is written under
    another name and renamed when it is whole; under gs:// its file `checkpoint` comes last.

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
    for name, value in CONSTANTS.items():
        if (own := getattr(weights.config, name)) != value:
            raise UsageError(
                f"T5X has {name} = {value} in its code, and this model {own}: T5X would compute "
                "something else with it."
            )
    target, states = dict[str, Any](), dict[str, Any]()
    with _fresh(path) as folder:
        scanned = weights.config.relative_attention_per_layer
        for parameter in parameters(weights.config, scanned=scanned):
            theirs = parameter.to_theirs(weights.leaves[parameter.path].read())
            target |= t5x_store.write_arrays(folder, theirs)
            for name in parameter.names:
                state = _adafactor_state(name, parameter.their_shape)
                states[name.removeprefix("target/")] = state
        step = np.asarray(int(match[1]), np.int32)
        optimizer = {"state": {"step": step, "param_states": nested(states)}, **nested(target)}
        t5x_store.write_index(folder, {"version": 3, "optimizer": optimizer})


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


def _adafactor_state(name: str, shape: Shape) -> dict[str, np.ndarray]:
    """As `t5x.adafactor.Adafactor.init_param_state` makes it, without momentum.

    The second moment of a matrix is factored where both its sizes are at least 128. Of scanned
    parameters that of all kernels is: the layers, on axis 1, stand for themselves, the axis "embed"
    is the row, and all others are columns.
    """
    rows, columns = set[int](), set[int]()
    if name.startswith(SCANNED):
        if name.endswith("/kernel"):
            rows = {len(shape) - 1 if name.endswith(("/out/kernel", "/wo/kernel")) else 0}
            columns = set(range(len(shape))) - rows - {1}
    elif len(shape) == 2 and min(shape) >= _MIN_DIM_SIZE_TO_FACTOR:
        rows, columns = ({int(axis)} for axis in np.argsort(shape))
    sizes = {"m": (1,), "v": shape, "v_row": (1,), "v_col": (1,)}
    if columns:
        kept = (("v_row", columns), ("v_col", rows))
        sizes = {k: tuple(n for i, n in enumerate(shape) if i not in left) for k, left in kept}
        sizes |= {"m": (1,), "v": (1,)}
    return {kind: np.zeros(size, np.float32) for kind, size in sizes.items()}
