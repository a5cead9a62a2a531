"""Decoding with the cache equals the whole model run again at each position."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dss_jax.core.config import T5Config
from dss_jax.core.t5_config import GREEDY, Sample
from dss_jax.model import decoding
from dss_jax.model.decoding import decode
from dss_jax.model.sampling import SampleSearch
from dss_jax.model.t5 import T5

pytestmark = [pytest.mark.usefixtures("strict"), pytest.mark.filterwarnings("error")]

V1_1 = T5Config(
    vocab_size=24,
    emb_dim=16,
    num_heads=2,
    head_dim=12,
    mlp_dim=40,
    num_encoder_layers=2,
    num_decoder_layers=3,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=10,
)
V1_0 = dataclasses.replace(V1_1, mlp_activations=("relu",), logits_via_embedding=True)
LENGTH = 20

jit_decode = jax.jit(decode, static_argnames=("model", "search", "max_decode_length"))


def jitted(
    model: T5, params: Any, inputs: Any, *, max_decode_length: int, eos_id: int = 1
) -> jax.Array:
    """Greedy tokens [B, T]."""
    search = SampleSearch(GREEDY, eos_id)
    return jit_decode(model, params, inputs, search, max_decode_length=max_decode_length).tokens[
        :, 0
    ]


@functools.cache
def make(config: T5Config, rows: int = 24) -> tuple[T5, Any, jax.Array]:
    """A model with weights at a scale that makes outputs vary, and padded inputs."""
    model = T5(config)
    rng = np.random.default_rng(0)
    inputs = rng.integers(2, config.vocab_size, (rows, 9)).astype(np.int32)
    for row in inputs:
        row[rng.integers(3, 10) :] = 0
    params = jax.jit(model.init)(jax.random.key(1), inputs[:1], inputs[:1])["params"]
    # At T5's initial scales the output repeats its last token: weigh position and past more.
    params = jax.tree.map(lambda leaf: leaf * 1.5, nn.unbox(params))
    params["token_embedder"]["embedding"] /= 15
    params["encoder"]["relpos_bias"]["rel_embedding"] *= 8
    params["decoder"]["relpos_bias"]["rel_embedding"] *= 8
    return model, params, jnp.asarray(inputs)


def uncached(
    model: T5, params: Any, inputs: jax.Array, eos_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens, and for each real one the logits' lead over the second."""
    rows = len(inputs)
    tokens, leads = np.zeros((rows, LENGTH), np.int32), np.full((rows, LENGTH), np.inf)
    done = np.all(np.asarray(inputs) == 0, axis=1)
    apply = jax.jit(model.apply)
    for t in range(LENGTH):
        shifted = np.concatenate([np.zeros((rows, 1), np.int32), tokens[:, :-1]], axis=1)
        logits = np.asarray(apply({"params": params}, inputs, shifted))[:, t]
        best_two = np.sort(logits, axis=-1)[:, -2:]
        tokens[:, t] = np.where(done, 0, logits.argmax(axis=-1))
        leads[:, t] = np.where(done, np.inf, best_two[:, 1] - best_two[:, 0])
        done |= tokens[:, t] == eos_id
    return tokens, leads


@pytest.mark.parametrize(
    "config", [pytest.param(V1_0, marks=pytest.mark.slow), V1_1], ids=["v1_0", "v1_1"]
)
def test_cached_equals_uncached(config: T5Config) -> None:
    model, params, inputs = make(config)
    frequent, _ = uncached(model, params, inputs, eos_id=-1)
    # Random weights seldom say 1: the token that ends the most different rows serves as EOS.
    ends = {
        token: {int(np.argmax(row == token)) for row in frequent if token in row}
        for token in range(2, config.vocab_size)
    }
    eos_id = max(ends, key=lambda token: len(ends[token]))
    expected, leads = uncached(model, params, inputs, eos_id=eos_id)
    lengths = {int(np.argmax(row == eos_id)) if eos_id in row else LENGTH for row in expected}
    assert len(lengths) >= 4, "the rows must end at different steps for this test to tell anything"
    assert leads.min() > 1e-4, "a tie would make this test depend on rounding"
    tokens = jitted(model, params, inputs, max_decode_length=LENGTH, eos_id=eos_id)
    assert tokens.dtype == jnp.int32
    np.testing.assert_array_equal(tokens, expected)


def test_rows_of_padding_finish_at_once() -> None:
    model, params, inputs = make(V1_1)
    mixed = inputs.at[1::2].set(0)
    tokens = jitted(model, params, mixed, max_decode_length=LENGTH)
    assert (tokens[1::2] == 0).all()
    alone = jitted(model, params, inputs, max_decode_length=LENGTH)
    np.testing.assert_array_equal(tokens[::2], alone[::2])
    assert (alone != 0).any(axis=1).sum() > 20


def test_stops_when_all_rows_are_done() -> None:
    model, params, inputs = make(V1_1)
    positions: list[int] = []

    class Watched(SampleSearch):
        def choose(self, state: Any, logits_BxKxV: jax.Array, position: jax.Array) -> Any:
            jax.debug.callback(lambda p: positions.append(int(p)), position)
            return super().choose(state, logits_BxKxV, position)

    decode(model, params, jnp.zeros_like(inputs), Watched(), max_decode_length=LENGTH)
    jax.effects_barrier()
    assert positions == []

    free, _ = uncached(model, params, inputs[:1], eos_id=-1)
    eos_id = int(free[0, 3])
    first = int(np.argmax(free[0] == eos_id))
    decode(model, params, inputs[:1], Watched(GREEDY, eos_id), max_decode_length=LENGTH)
    jax.effects_barrier()
    assert sorted(positions) == list(range(first + 1))


def test_boxed_parameters_and_bfloat16() -> None:
    config = dataclasses.replace(V1_1, dtype="bfloat16")
    model, _, inputs = make(config)
    boxed = jax.jit(model.init)(jax.random.key(1), inputs[:1], inputs[:1])["params"]
    tokens = jitted(model, boxed, inputs, max_decode_length=6)
    np.testing.assert_array_equal(
        tokens, jitted(model, nn.unbox(boxed), inputs, max_decode_length=6)
    )
    four, ids = SampleSearch(Sample(num_samples=4)), jnp.arange(len(inputs))
    cache = decoding.start(model, nn.unbox(boxed), inputs, ids, four, 6)[1].rows.cache
    assert len(cache) == 3
    assert cache[0].key.shape == (len(inputs), 4, 2, 6, 12)
    assert cache[0].key.dtype == jnp.bfloat16


def test_the_cache_is_updated_in_place() -> None:
    """No second buffer of the cache's size: the loop's temporaries stay below the cache's."""
    config = dataclasses.replace(V1_1, num_decoder_layers=8)
    model, params, _ = make(config)
    inputs = jax.ShapeDtypeStruct((64, 4), jnp.int32)
    lowered = jit_decode.lower(model, params, inputs, SampleSearch(), max_decode_length=256)
    compiled = lowered.compile()
    cache = 2 * 8 * 64 * 256 * 2 * 12 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < 1.6 * cache
