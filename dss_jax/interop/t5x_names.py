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
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from dss_jax.core.config import T5Config
from dss_jax.core.errors import UsageError
from dss_jax.interop.weights import Shape, StoredParameter, expected_shapes

CONSTANTS: dict[str, Any] = {
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "layer_norm_epsilon": 1e-6,
}
"""What T5X's network has in its code, and no checkpoint says (but for the buckets)."""

_STACKS = {"encoder": "attention", "decoder": "self_attention"}
"""Stack -> the name of self-attention in it."""


def is_scanned(names: Collection[str]) -> bool:
    """Whether these are the names of `scalable_t5`."""
    return any(name.startswith("target/encoder/encoder/") for name in names)


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
    if path.endswith("/rel_embedding"):
        name = path.replace("/relpos_bias/", f"/{stack}/relpos_bias/")
        layers = getattr(config, f"num_{stack}_layers")
        theirs: Shape = (shape[0], layers, shape[1])
        return StoredParameter(path, shape, [f"target/{name}"], theirs, of_first_layer)
    if "/layers/" not in path:
        return _unscanned(path, shape)
    layers, *rest = shape
    heads = (config.num_heads, config.head_dim)
    if path.endswith(("/query/kernel", "/key/kernel", "/value/kernel")):
        rest = [rest[0], *heads]
    elif path.endswith("/out/kernel"):
        rest = [*heads, rest[1]]
    name = path.replace("/layers/", f"/{stack}/")

    def layers_first(array: np.ndarray) -> np.ndarray:
        return np.moveaxis(array, 1, 0).reshape(shape)

    theirs = (rest[0], layers, *rest[1:])
    return StoredParameter(path, shape, [f"target/{name}"], theirs, layers_first)


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

    def shape(name: str, rank: int) -> Shape:
        found = shapes.get(f"target/{name}")
        needs = f"{origin} does not hold the parameters of a T5:"
        if found is None:
            raise UsageError(f"{needs} missing: target/{name}.")
        if len(found) != rank:
            raise UsageError(
                f"{needs} misshapen: target/{name} is {list(found)}, needed with {rank} axes."
            )
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
    layers = {s: query[s][1] if scanned else _count_layers(shapes, s) for s in _STACKS}
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


def _count_layers(shapes: Mapping[str, Shape], stack: str) -> int:
    found = (re.match(rf"target/{stack}/layers_(\d+)/", name) for name in shapes)
    return 1 + max(int(match[1]) for match in found if match)
