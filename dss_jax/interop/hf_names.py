"""Parameter names of Hugging Face's PyTorch T5 <-> our tree of stacked layers."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from dss_jax.core.config import T5Config
from dss_jax.interop.weights import Shape, expected_shapes, flat, nested


class Entry(NamedTuple):
    """One of our parameters and where Hugging Face keeps it.

    Attributes:
      path: in our tree, with "/" between the names.
      hf_name: in the state dict; "{i}" stands for the layer, if `layers` is set.
      transposed: whether the last two axes are swapped (`nn.Linear` keeps [out, in]).
      layers: how many are stacked over our leading axis; None: the parameter is not stacked.
    """

    path: str
    hf_name: str
    transposed: bool
    layers: int | None = None

    def hf_names(self) -> list[str]:
        if self.layers is None:
            return [self.hf_name]
        return [self.hf_name.format(i=i) for i in range(self.layers)]


def entries(config: T5Config) -> list[Entry]:
    """All parameters of the model. Aliases in the state dict (embed_tokens) are left out."""
    found = [
        Entry("token_embedder/embedding", "shared.weight", False),
        *_stack(config, "encoder", config.num_encoder_layers),
        *_stack(config, "decoder", config.num_decoder_layers),
    ]
    if not config.logits_via_embedding:
        found.append(Entry("decoder/logits_dense/kernel", "lm_head.weight", True))
    return found


def _stack(config: T5Config, stack: str, layers: int) -> Iterator[Entry]:
    # (our norm, HF's layer number, our sub-layer, HF's sub-layer)
    if stack == "encoder":
        parts = [
            ("pre_attention_layer_norm", 0, "attention", "SelfAttention"),
            ("pre_mlp_layer_norm", 1, "mlp", "DenseReluDense"),
        ]
    else:
        parts = [
            ("pre_self_attention_layer_norm", 0, "self_attention", "SelfAttention"),
            ("pre_cross_attention_layer_norm", 1, "encoder_decoder_attention", "EncDecAttention"),
            ("pre_mlp_layer_norm", 2, "mlp", "DenseReluDense"),
        ]
    gated = len(config.mlp_activations) > 1
    mlp = {name: name for name in (("wi_0", "wi_1", "wo") if gated else ("wi", "wo"))}
    attention = {"query": "q", "key": "k", "value": "v", "out": "o"}
    for norm, number, ours, theirs in parts:
        block = f"{stack}.block.{{i}}.layer.{number}"
        yield Entry(f"{stack}/layers/{norm}/scale", f"{block}.layer_norm.weight", False, layers)
        for kernel, letter in (mlp if ours == "mlp" else attention).items():
            yield Entry(
                f"{stack}/layers/{ours}/{kernel}/kernel",
                f"{block}.{theirs}.{letter}.weight",
                True,
                layers,
            )
    bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    yield Entry(f"{stack}/relpos_bias/rel_embedding", bias, True)
    yield Entry(f"{stack}/{stack}_norm/scale", f"{stack}.final_layer_norm.weight", False)


def hf_shapes(config: T5Config) -> dict[str, Shape]:
    """Hugging Face's name -> shape, of every tensor that the model needs; without aliases."""
    ours = expected_shapes(config)
    shapes = {}
    for entry in entries(config):
        shape = ours[entry.path] if entry.layers is None else ours[entry.path][1:]
        shape = (*shape[:-2], shape[-1], shape[-2]) if entry.transposed else shape
        shapes.update(dict.fromkeys(entry.hf_names(), shape))
    return shapes


def to_ours(entry: Entry, shape: Shape, tensors: Iterable[np.ndarray]) -> np.ndarray:
    """One of our parameters from Hugging Face's tensors of it, which are taken one at a time.

    Args:
      entry: which parameter.
      shape: of ours.
      tensors: in the order of `entry.hf_names()`; of any floating type.

    Returns:
      float32 array of `shape`.
    """
    value = np.empty(shape, np.float32)
    slots = [value] if entry.layers is None else value
    for slot, tensor in zip(slots, tensors, strict=True):
        slot[...] = tensor.swapaxes(-1, -2) if entry.transposed else tensor
    return value


def to_theirs(entry: Entry, value: np.ndarray) -> dict[str, np.ndarray]:
    """Hugging Face's tensors by name, as views of one of our parameters."""
    if entry.transposed:
        value = value.swapaxes(-1, -2)
    values = [value] if entry.layers is None else value
    return dict(zip(entry.hf_names(), values, strict=True))


def from_hf(state: Mapping[str, np.ndarray], config: T5Config) -> dict[str, Any]:
    """Our nested parameter tree in float32, from arrays by their Hugging Face names.

    Raises:
      KeyError: a name is missing.
    """
    shapes = expected_shapes(config)
    return nested(
        {
            entry.path: to_ours(entry, shapes[entry.path], (state[n] for n in entry.hf_names()))
            for entry in entries(config)
        }
    )


def to_hf(params: Mapping[str, Any], config: T5Config) -> dict[str, np.ndarray]:
    """Arrays by their Hugging Face names, from our parameter tree; without aliases."""
    arrays = flat(params)
    state: dict[str, np.ndarray] = {}
    for entry in entries(config):
        state |= to_theirs(entry, np.asarray(arrays[entry.path]))
    return state
