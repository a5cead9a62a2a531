"""Remat and unroll change memory and time, never the numbers."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dss_jax.core import config as run_config
from dss_jax.core.config import T5Config
from dss_jax.core.errors import UsageError
from dss_jax.layouts.batches import TrainBatches
from dss_jax.layouts.blocks import Batch
from dss_jax.model import matmul, t5
from dss_jax.model.t5 import T5
from dss_jax.train.memory import _kept

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


def _products(config: T5Config, batch: Batch) -> int:
    """Numbers of the layers' products that their backward pass needs: all but that of `wo`, which
    goes into the next layer's input.
    """
    joined, emb, mlp = config.num_heads * config.head_dim, config.emb_dim, config.mlp_dim
    hidden = len(config.mlp_activations) * mlp
    numbers = 0
    for block in batch:
        inputs, targets = block.encoder_input_tokens.size, block.decoder_input_tokens.size
        encoder = inputs * (3 * joined + emb + hidden)
        # Of cross-attention the keys and values are the encoder's.
        decoder = targets * (3 * joined + emb + joined + emb + hidden) + inputs * 2 * joined
        numbers += config.num_encoder_layers * encoder + config.num_decoder_layers * decoder
    return numbers


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["padded", "flat", "packed"])
def test_what_the_backward_pass_finds_kept(toy_store: Any, layout: str, dtype: str) -> None:
    data = run_config.Data(batch_size=8, layout=layout)
    method = run_config.Method(name="dss", label="gold", rationale=True)
    train = toy_store.split("train")
    batch = TrainBatches(train, run_config.Task(name="toy"), data, method)(0)
    config = dataclasses.replace(PLAIN, vocab_size=1024, dtype=dtype)
    params = jax.eval_shape(
        lambda: nn.meta.unbox(T5(config).init(jax.random.key(0), INPUTS, TARGETS)["params"])
    )

    def kept(policy: str) -> int:
        model = T5(dataclasses.replace(config, remat_policy=policy))

        def logits(params: Any, batch: Batch, key: jax.Array) -> tuple[list[jax.Array], None]:
            run = jax.tree_util.Partial(model.apply, method=model.block_logits)
            rngs = {"dropout": key}
            return [
                run({"params": params}, block, deterministic=False, rngs=rngs) for block in batch
            ], None

        return _kept(logits, params, batch, jax.eval_shape(lambda: jax.random.key(0)))

    everything, minimal, full = map(kept, ("none", "minimal", "full"))
    itemsize = jnp.dtype(dtype).itemsize
    assert minimal - full == itemsize * _products(config, batch)
    assert everything - minimal > minimal - full


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_accelerators_keep_less_and_compute_the_same(
    dropout: float, plain: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(PLAIN, dropout_rate=dropout)
    params, _ = plain

    def made() -> tuple[int, Any]:
        def loss(params: Any, key: jax.Array) -> tuple[jax.Array, None]:
            rngs = {"dropout": key}
            run = jax.tree_util.Partial(T5(config).apply, deterministic=False, rngs=rngs)
            return jnp.mean(jnp.square(run({"params": params}, INPUTS, TARGETS))), None

        kept = _kept(loss, params, jax.eval_shape(lambda: jax.random.key(0)))
        return kept, jax.jit(jax.value_and_grad(loss, has_aux=True))(params, jax.random.key(1))

    cpu, expected = made()
    monkeypatch.setattr(matmul, "platform", lambda: "gpu")
    monkeypatch.setattr(t5, "platform", lambda: "gpu")
    accelerator, found = made()
    assert accelerator < 0.6 * cpu
    if not dropout:  # Masks are others.
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(UsageError, match=r"remat_policy.*'minimal'"):
        T5Config(remat_policy="minimum")
    with pytest.raises(UsageError, match="scan_unroll"):
        T5Config(scan_unroll=0)
