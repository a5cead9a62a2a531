"""Small T5s with random weights in which every parameter matters."""

import dataclasses

import numpy as np
import toy

from dss_jax.core.config import T5Config
from dss_jax.core.ids import EOS_ID
from dss_jax.interop.weights import Weights, expected_shapes, from_tree, nested

BASE = T5Config(
    vocab_size=448,
    emb_dim=32,
    num_heads=4,
    head_dim=12,
    mlp_dim=48,
    num_encoder_layers=2,
    num_decoder_layers=3,
    dropout_rate=0.0,
)
V1_0 = dataclasses.replace(BASE, mlp_activations=("relu",), logits_via_embedding=True)
MODELS = {
    "v1_0": V1_0,
    "v1_1": BASE,
    "umt5": dataclasses.replace(BASE, relative_attention_per_layer=True),
    "v1_0 gated": dataclasses.replace(BASE, logits_via_embedding=True),
    "another": dataclasses.replace(
        BASE,
        mlp_activations=("silu", "linear"),
        relative_attention_num_buckets=16,
        relative_attention_max_distance=40,
        layer_norm_epsilon=1e-3,
        num_decoder_layers=1,
        decoder_start_token_id=3,
    ),
}
UNUSED = 440
"""A row of the embedding beyond the vocabulary, which has 426 ids."""


def random_weights(config: T5Config, seed: int = 0) -> Weights:
    """Parameters that all matter. In v1.1 some texts end soon, and some tokens are of no piece."""
    rng, tree = np.random.default_rng(seed), {}
    for path, shape in expected_shapes(config).items():
        if path.endswith("scale"):
            tree[path] = rng.uniform(0.5, 1.5, shape)
        else:
            deviation = 1.0 if "embedding" in path else shape[-2] ** -0.5
            tree[path] = rng.normal(0, deviation, shape)
    if (head := tree.get("decoder/logits_dense/kernel")) is not None:
        head[:, [EOS_ID, UNUSED]] *= 2.5
    params = nested({path: x.astype(np.float32) for path, x in tree.items()})
    files = {"vocabulary": toy.VOCABULARY, "extra_ids": 10}
    return from_tree(config, params, origin="a test", **files)
