"""T5X's names and shapes of T5's parameters, unscanned and scanned, and ours.

Unscanned (`t5x.examples.t5`) keeps one array a layer: encoder/layers_0/attention/query/kernel
[E, J], J = heads * head_dim. Scanned (`t5x.examples.scalable_t5`) keeps all layers in one array,
the layers on axis 1, the heads apart, and a position bias in each layer:

  encoder/encoder/attention/query/kernel    [E, L, H, D]     (key, value alike)
  encoder/encoder/attention/out/kernel      [H, L, D, E]
  encoder/encoder/mlp/wo/kernel             [F, L, E]
  encoder/encoder/pre_mlp_layer_norm/scale  [E, L]
  encoder/encoder/relpos_bias/rel_embedding [H, L, buckets]

Ours are T5X's unscanned ones, stacked: encoder/layers/attention/query/kernel [L, E, J].
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dss_jax.core.config import T5Config
from dss_jax.core.errors import UsageError
from dss_jax.interop.weights import Shape, expected_shapes

# T5X's network has these as constants, and no checkpoint says them.
MAX_DISTANCE = 128
EPSILON = 1e-6
NUM_BUCKETS = 32

_STACKS = {"encoder": "attention", "decoder": "self_attention"}
"""Stack -> the name of self-attention in it."""


class Entry(NamedTuple):
    """One of our parameters and where T5X keeps it.

    Attributes:
      path: in our tree.
      shape: of ours.
      names: T5X's: one, or one a layer.
      t5x_shape: of each of them.
    """

    path: str
    shape: Shape
    names: list[str]
    t5x_shape: Shape

    @property
    def is_shared_bias(self) -> bool:
        """Whether T5X keeps one bias a layer where we keep one for all."""
        return self.path.endswith("/rel_embedding") and len(self.t5x_shape) == 3

    def from_t5x(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Ours from T5X's arrays, in the order of `names`."""
        if self.is_shared_bias:
            return arrays[0][:, 0]
        if "/layers/" not in self.path:
            return arrays[0]
        if self.t5x_shape == self.shape[1:]:
            return np.stack(arrays)
        return np.moveaxis(arrays[0], 1, 0).reshape(self.shape)

    def to_t5x(self, ours: np.ndarray) -> Sequence[np.ndarray]:
        """T5X's unscanned arrays from ours, in the order of `names` of an unscanned entry."""
        return list(ours) if "/layers/" in self.path else [ours]


def is_scanned(names: Mapping[str, Shape]) -> bool:
    """Whether these are the names of `scalable_t5`."""
    return any(name.startswith("target/encoder/encoder/") for name in names)


def entries(config: T5Config, *, scanned: bool) -> list[Entry]:
    """All parameters of the model."""
    return [
        _scanned(path, shape, config) if scanned else _unscanned(path, shape)
        for path, shape in expected_shapes(config).items()
    ]


def _unscanned(path: str, shape: Shape) -> Entry:
    if "/layers/" not in path:
        return Entry(path, shape, [f"target/{path}"], shape)
    layers = [path.replace("/layers/", f"/layers_{i}/") for i in range(shape[0])]
    return Entry(path, shape, [f"target/{name}" for name in layers], shape[1:])


def _scanned(path: str, shape: Shape, config: T5Config) -> Entry:
    stack = path.split("/")[0]
    if path.endswith("/rel_embedding"):
        layers = getattr(config, f"num_{stack}_layers")
        name = path.replace("/relpos_bias/", f"/{stack}/relpos_bias/")
        return Entry(path, shape, [f"target/{name}"], (shape[0], layers, shape[1]))
    if "/layers/" not in path:
        return _unscanned(path, shape)
    layers, *rest = shape
    heads = (config.num_heads, config.head_dim)
    if path.endswith(("/query/kernel", "/key/kernel", "/value/kernel")):
        rest = [rest[0], *heads]
    elif path.endswith("/out/kernel"):
        rest = [*heads, rest[1]]
    name = path.replace("/layers/", f"/{stack}/")
    return Entry(path, shape, [f"target/{name}"], (rest[0], layers, *rest[1:]))


def infer_config(shapes: Mapping[str, Shape], origin: str) -> T5Config:
    """The model's configuration, which a T5X checkpoint does not hold, from its shapes.

    A gated feed-forward layer is taken as gelu-linear and a plain one as relu, which all public
    T5X checkpoints of T5, mT5, ByT5, LM-adapted T5 and Flan-T5 have. Buckets of the position bias
    reach to distance 128, and the norms' epsilon is 1e-6, as in T5X's code.

    Args:
      shapes: T5X's name -> shape.
      origin: of the checkpoint, for messages.

    Raises:
      UsageError: a parameter that shows the sizes is missing or has another rank.
    """
    scanned = is_scanned(shapes)
    layer = {s: f"target/{s}/{s}" if scanned else f"target/{s}/layers_0" for s in _STACKS}
    bias_of = layer["encoder"] if scanned else "target/encoder"
    gated = f"{layer['encoder']}/mlp/wi_0/kernel" in shapes
    embedding = _shape(shapes, "target/token_embedder/embedding", 2, origin)
    bias = _shape(shapes, f"{bias_of}/relpos_bias/rel_embedding", 2 + scanned, origin)
    wi = f"{layer['encoder']}/mlp/{'wi_0' if gated else 'wi'}/kernel"
    query = {
        stack: _shape(
            shapes, f"{layer[stack]}/{attention}/query/kernel", 4 if scanned else 2, origin
        )
        for stack, attention in _STACKS.items()
    }
    layers = {
        stack: query[stack][1] if scanned else _count_layers(shapes, stack) for stack in _STACKS
    }
    return T5Config(
        vocab_size=embedding[0],
        emb_dim=embedding[1],
        num_heads=bias[0],
        head_dim=query["encoder"][3] if scanned else query["encoder"][1] // bias[0],
        mlp_dim=_shape(shapes, wi, 2 + scanned, origin)[-1],
        num_encoder_layers=layers["encoder"],
        num_decoder_layers=layers["decoder"],
        mlp_activations=("gelu", "linear") if gated else ("relu",),
        logits_via_embedding="target/decoder/logits_dense/kernel" not in shapes,
        relative_attention_num_buckets=bias[-1],
        relative_attention_max_distance=MAX_DISTANCE,
        layer_norm_epsilon=EPSILON,
    )


def _count_layers(shapes: Mapping[str, Shape], stack: str) -> int:
    found = (re.match(rf"target/{stack}/layers_(\d+)/", name) for name in shapes)
    return 1 + max(int(match[1]) for match in found if match)


def _shape(shapes: Mapping[str, Shape], name: str, rank: int, origin: str) -> Shape:
    if name not in shapes:
        raise UsageError(f"{origin} does not hold the parameters of a T5: missing: {name}.")
    if len(shapes[name]) != rank:
        raise UsageError(
            f"{origin} does not hold the parameters of a T5: misshapen: {name} is "
            f"{list(shapes[name])}, needed with {rank} axes."
        )
    return shapes[name]
