"""Attention: rows from streams and back with their gradients; the fused kernel's arithmetic."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.layouts.blocks import Block, StreamRows
from dss_jax.layouts.flat import stream_rows
from dss_jax.model import fused
from dss_jax.model.attention import MASKED, Pattern, block_patterns, from_rows, to_rows
from dss_jax.model.t5 import T5

LENGTHS = np.array([[3, 5, 0, 2], [4, 1, 1, 5]])
CUDNN = config.T5Config(attention="cudnn", dtype="bfloat16")


def _rows(tokens: int = 16, length: int = 6) -> StreamRows:
    rows = [stream_rows(row, tokens, length) for row in LENGTHS]
    return StreamRows(*(np.stack(x) for x in zip(*rows, strict=True)))


def test_streams_and_rows_are_each_others_inverse() -> None:
    rows = _rows()
    x = jax.random.normal(jax.random.key(0), (2, 16, 3))
    there = to_rows(x, rows)
    assert there.shape == (8, 6, 3)
    np.testing.assert_array_equal(there[1, :5], x[0, 3:8])
    np.testing.assert_array_equal(there[4, :4], x[1, :4])
    back = from_rows(there, rows)
    for stream, lengths in enumerate(LENGTHS):
        real = lengths.sum()
        np.testing.assert_array_equal(back[stream, :real], x[stream, :real])


def test_the_gradient_is_that_of_a_plain_gather() -> None:
    rows = _rows()
    x = jax.random.normal(jax.random.key(0), (2, 16, 3))
    real = np.arange(16) < LENGTHS.sum(axis=1)[:, None]
    places = np.arange(6) < LENGTHS.reshape(-1, 1)

    def weighed(gather, x: jax.Array) -> jax.Array:
        # As attention does it: places where a row has ended, and padding tokens, weigh nothing.
        y = jnp.sin(gather(x)) * places[..., None]
        return y

    def plain(x: jax.Array) -> jax.Array:
        return x[jnp.arange(2)[:, None, None], rows.take].reshape(8, 6, 3)

    def loss(gather, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.cos(from_rows(weighed(gather, x), rows)) * real[..., None])

    expected = jax.grad(lambda x: jnp.sum(jnp.cos(weighed(plain, x)) * places[..., None]))(x)
    got = jax.grad(lambda x: loss(lambda v: to_rows(v, rows), x))(x)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert not np.asarray(got)[~real].any()


def _reference(q, k, v, pattern: Pattern, causal: bool) -> jax.Array:
    scores = jnp.einsum("bthd,bshd->bhts", q, k) + pattern.bias
    t, s = scores.shape[-2:]
    mask = jnp.arange(s) < pattern.key_lengths[:, None, None, None]
    if causal:
        mask = mask & (jnp.arange(t)[:, None] >= jnp.arange(s))
    weights = jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1)
    return jnp.einsum("bhts,bshd->bthd", weights, v)


def _compare(implementation: str, causal: bool, dtype: str, tolerance: float) -> None:
    b, t, s, h, d = 3, 64, 64 if causal else 128, 4, 64
    keys = jax.random.split(jax.random.key(1), 5)
    q, k, v = (
        0.3 * jax.random.normal(key, (b, n, h, d), jnp.float32)
        for key, n in zip(keys, (t, s, s), strict=False)
    )
    bias = jax.random.normal(keys[3], (1, h, t, s))
    q_lengths, k_lengths = jnp.array([t, t // 2, 5]), jnp.array([s, s // 2, 5])
    real = (jnp.arange(t) < q_lengths[:, None])[..., None, None]
    weigh = jax.random.normal(keys[4], (b, t, h, d))

    def loss(function, inputs) -> jax.Array:
        q, k, v, bias = inputs
        pattern = Pattern(bias=bias, query_lengths=q_lengths, key_lengths=k_lengths)
        return jnp.sum(jnp.where(real, function(q, k, v, pattern) * weigh, 0.0))

    def in_one_kernel(q, k, v, pattern: Pattern) -> jax.Array:
        cast = (x.astype(dtype) for x in (q, k, v))
        out = fused.attention(
            *cast,
            pattern.bias,
            pattern.query_lengths,
            pattern.key_lengths,
            causal=causal,
            implementation=implementation,
        )
        return out.astype(jnp.float32)

    inputs = (q, k, v, bias)
    expected = jax.value_and_grad(lambda x: loss(lambda *a: _reference(*a, causal), x))(inputs)
    got = jax.value_and_grad(lambda x: loss(in_one_kernel, x))(inputs)
    assert np.abs(expected[1][3]).max() > 0.01, "a bias without gradient would prove nothing"
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        scale = np.abs(y).max()
        np.testing.assert_allclose(x / scale, y / scale, atol=tolerance)


@pytest.mark.parametrize("causal", [True, False])
def test_the_fused_call_means_what_our_masks_mean(causal: bool) -> None:
    _compare("xla", causal, "float32", 1e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN's attention needs an NVIDIA GPU")
def test_cudnn_gives_the_outputs_and_gradients_of_the_xla_path(causal: bool) -> None:
    _compare("cudnn", causal, "bfloat16", 3e-2)


def test_lengths_for_cudnn_are_those_of_the_rows() -> None:
    tokens = np.array([[5, 6, 7, 0], [5, 0, 0, 0], [0, 0, 0, 0]])
    block = Block(tokens, tokens[:, :2], None, None)
    encoder, decoder, cross = block_patterns(block, CUDNN)
    assert encoder.key_lengths.tolist() == [3, 1, 1]
    assert decoder.key_lengths.tolist() == [2, 2, 2]
    assert cross.query_lengths.tolist() == [2, 2, 2]
    flat = Block(
        np.zeros((2, 16)), np.zeros((2, 16)), None, None, encoder_rows=_rows(), decoder_rows=_rows()
    )
    _, _, cross = block_patterns(flat, CUDNN)
    expected = np.maximum(LENGTHS.reshape(-1), 1).tolist()
    assert cross.key_lengths.tolist() == expected
    assert cross.query_lengths.tolist() == expected
    assert block_patterns(flat, config.T5Config())[0].key_lengths is None


def test_cudnn_needs_bfloat16_and_no_segments() -> None:
    with pytest.raises(UsageError, match="bfloat16"):
        config.T5Config(attention="cudnn")
    model = config.T5Config(attention="cudnn", dtype="bfloat16")
    with pytest.raises(UsageError, match='Take "flat" or "padded"'):
        config.Run(model=model, data=config.Data(layout="packed"))


@pytest.mark.slow
def test_the_setting_reaches_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of the whole model through the fused call, here in XLA's implementation."""
    small = dataclasses.replace(toy.MODEL, vocab_size=64, dropout_rate=0.0, dtype="bfloat16")
    real, calls = fused.attention, []

    def xla(*args, **kwargs) -> jax.Array:
        calls.append(kwargs["causal"])
        return real(*args, **kwargs, implementation="xla")

    monkeypatch.setattr(fused, "attention", xla)
    inputs = jnp.array([[5, 6, 7, 1, 0, 0], [9, 1, 0, 0, 0, 0]])
    targets = jnp.array([[0, 8, 9, 1], [0, 4, 1, 0]])
    params = T5(small).init(jax.random.key(0), inputs, targets)["params"]
    expected = T5(small).apply({"params": params}, inputs, targets)
    assert not calls
    in_one_kernel = T5(dataclasses.replace(small, attention="cudnn"))
    got = in_one_kernel.apply({"params": params}, inputs, targets)
    assert set(calls) == {True, False}
    np.testing.assert_allclose(got, expected, rtol=0.1, atol=0.1)
