"""Remat and unroll change memory and time, never the numbers."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dss_jax.core.config import T5Config
from dss_jax.core.errors import UsageError
from dss_jax.model.t5 import T5

pytestmark = [pytest.mark.usefixtures("strict"), pytest.mark.filterwarnings("error")]

PLAIN = T5Config(
    vocab_size=32,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=64,
    num_encoder_layers=3,
    num_decoder_layers=2,
    dropout_rate=0.1,
)
INPUTS = jnp.full((8, 48), 5, jnp.int32).at[0, 30:].set(0)
TARGETS = jnp.full((8, 24), 6, jnp.int32)


def _compiled(config: T5Config, params: Any) -> Any:
    def loss(params: Any) -> jax.Array:
        rngs = {"dropout": jax.random.key(1)}
        logits = T5(config).apply(
            {"params": params}, INPUTS, TARGETS, deterministic=False, rngs=rngs
        )
        return jnp.mean(jnp.square(jax.nn.log_softmax(logits)))

    return jax.jit(jax.value_and_grad(loss)).lower(params).compile()


@pytest.fixture(scope="module")
def plain() -> tuple[Any, Any]:
    init = jax.jit(T5(PLAIN).init)
    params = nn.meta.unbox(init(jax.random.key(0), INPUTS, TARGETS)["params"])
    return params, _compiled(PLAIN, params)


@pytest.mark.parametrize(
    ("policy", "unroll"),
    [
        ("minimal", 1),
        ("full", 1),
        pytest.param("none", 2, marks=pytest.mark.slow),
        pytest.param("full", 3, marks=pytest.mark.slow),
    ],
)
def test_loss_and_gradients_are_the_same_with_less_memory(
    policy: str, unroll: int, plain: tuple[Any, Any]
) -> None:
    params, expected = plain
    config = dataclasses.replace(PLAIN, remat_policy=policy, scan_unroll=unroll)
    compiled = _compiled(config, params)
    for x, y in zip(
        jax.tree.leaves(compiled(params)), jax.tree.leaves(expected(params)), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    if policy != "none":
        kept = {("minimal", 1): 0.8, ("full", 1): 0.6, ("full", 3): 0.9}[policy, unroll]
        memory = [c.memory_analysis().temp_size_in_bytes for c in (compiled, expected)]
        assert memory[0] < kept * memory[1], memory


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(UsageError, match=r"remat_policy.*'minimal'"):
        T5Config(remat_policy="minimum")
    with pytest.raises(UsageError, match="scan_unroll"):
        T5Config(scan_unroll=0)
