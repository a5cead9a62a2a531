"""Parameter names of Hugging Face's PyTorch T5 <-> our tree of stacked layers."""

import numpy as np

from dss_jax.core.config import T5Config
from dss_jax.interop.weights import StoredParameter, expected_shapes

_SUBLAYERS = {
    "encoder": [
        ("pre_attention_layer_norm", "attention", "SelfAttention"),
        ("pre_mlp_layer_norm", "mlp", "DenseReluDense"),
    ],
    "decoder": [
        ("pre_self_attention_layer_norm", "self_attention", "SelfAttention"),
        ("pre_cross_attention_layer_norm", "encoder_decoder_attention", "EncDecAttention"),
        ("pre_mlp_layer_norm", "mlp", "DenseReluDense"),
    ],
}
"""Stack -> of each part of a layer, in order: our norm, our name, Hugging Face's."""

_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
_MLP = {"wi": "wi", "wi_0": "wi_0", "wi_1": "wi_1", "wo": "wo"}


def _names() -> dict[str, str]:
    """Our path -> Hugging Face's name, of the parameters of every T5; "{i}" is the layer."""
    names = {"token_embedder/embedding": "shared.weight"}
    for stack, sublayers in _SUBLAYERS.items():
        for number, (norm, ours, theirs) in enumerate(sublayers):
            block = f"{stack}.block.{{i}}.layer.{number}"
            names[f"{stack}/layers/{norm}/scale"] = f"{block}.layer_norm.weight"
            for kernel, letter in (_MLP if ours == "mlp" else _ATTENTION).items():
                name = f"{block}.{theirs}.{letter}.weight"
                names[f"{stack}/layers/{ours}/{kernel}/kernel"] = name
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        names[f"{stack}/relpos_bias/rel_embedding"] = bias
        names[f"{stack}/{stack}_norm/scale"] = f"{stack}.final_layer_norm.weight"
    return names | {"decoder/logits_dense/kernel": "lm_head.weight"}


def _transposed(array: np.ndarray) -> np.ndarray:
    return array.swapaxes(-1, -2)


def parameters(config: T5Config) -> list[StoredParameter]:
    """All of the model, in the order in which files have them; aliases (embed_tokens) left out."""
    shapes, found = expected_shapes(config), []
    for path, name in _names().items():
        if path not in shapes:
            continue
        shape, by_layer = shapes[path], "/layers/" in path
        names = [name.format(i=i) for i in range(shape[0] if by_layer else 1)]
        theirs = shape[1:] if by_layer else shape
        # `nn.Linear` keeps [out, in].
        if path.endswith(("/kernel", "/rel_embedding")):
            found.append(StoredParameter(path, shape, names, theirs[::-1], _transposed))
        else:
            found.append(StoredParameter(path, shape, names, theirs))
    assert len(found) == len(shapes)
    return found
