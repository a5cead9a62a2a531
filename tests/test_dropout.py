"""Dropout masks: the generator against JAX's own, the rate, and what a mask depends on."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry2x32_p

from dss_jax.model import layers
from dss_jax.model.layers import Dropout, keep_mask, threefry_2x32

KEY = jax.random.key(3)


@pytest.fixture(autouse=True, params=["cpu", "accelerator"])
def _platform(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks have another form on accelerators, and all that is said here of both."""
    monkeypatch.setattr(layers, "on_cpu", lambda: request.param == "cpu")


def test_with_twenty_rounds_it_is_the_threefry_of_jax() -> None:
    rng = np.random.default_rng(0)
    k0, k1, c0, c1 = (jnp.asarray(rng.integers(0, 2**32, 500, np.uint32)) for _ in range(4))
    expected = threefry2x32_p.bind(k0, k1, c0, c1)
    for x, y in zip(threefry_2x32((k0, k1), (c0, c1), rounds=20), expected, strict=True):
        np.testing.assert_array_equal(x, y)
    fewer = threefry_2x32((k0, k1), (c0, c1))
    assert not np.array_equal(fewer[0], expected[0])


@pytest.mark.parametrize("shape", [(100_000,), (300, 501), (2, 300, 203), (6, 7, 50, 51)])
@pytest.mark.parametrize("keep", [0.9, 0.5])
def test_the_rate_is_kept_along_every_axis(shape: tuple[int, ...], keep: float) -> None:
    mask = np.asarray(keep_mask(KEY, keep, shape))
    assert mask.shape == shape
    for axis in range(len(shape)):
        others = tuple(a for a in range(len(shape)) if a != axis)
        share = mask.mean(axis=others) if others else mask.mean(keepdims=True)
        spread = np.sqrt(keep * (1 - keep) / (mask.size / share.size))
        assert np.abs(share - keep).max() < 6 * spread
        # Neighbours are independent.
        a, b = (np.take(mask, range(i, mask.shape[axis] - 1 + i), axis) for i in (0, 1))
        both = (a & b).mean()
        assert abs(both - keep**2) < 6 * np.sqrt(keep**2 * (1 - keep**2) / a.size) + 1e-3


def test_a_rate_of_zero_keeps_all_and_of_one_nothing() -> None:
    assert keep_mask(KEY, 1.0, (1000, 100)).all()
    assert not keep_mask(KEY, 0.0, (1000, 100)).any()


@pytest.mark.parametrize("shape", [(3, 20), (2, 30, 20), (3, 4, 20, 24)])
def test_more_padding_changes_no_mask(shape: tuple[int, ...]) -> None:
    small = np.asarray(keep_mask(KEY, 0.5, shape))
    large = np.asarray(keep_mask(KEY, 0.5, tuple(n + 8 for n in shape)))
    np.testing.assert_array_equal(large[tuple(slice(n) for n in shape)], small)


def test_keys_of_another_implementation_work_too() -> None:
    rbg = jax.random.key(1, impl="rbg")
    other = jax.random.fold_in(rbg, 1)
    a, b = (np.asarray(keep_mask(k, 0.5, (100, 100))) for k in (rbg, other))
    assert 0.4 < (a == b).mean() < 0.6


def test_it_scales_and_passes_gradients_like_flax() -> None:
    x = jnp.arange(1.0, 10_001.0).reshape(100, 100)
    ours, flax = Dropout(0.25), nn.Dropout(0.25)
    y = ours.apply({}, x, False, rngs={"dropout": KEY})
    kept = np.asarray(y) != 0
    np.testing.assert_allclose(np.asarray(y)[kept], np.asarray(x)[kept] / 0.75, rtol=1e-6)
    theirs = flax.apply({}, x, deterministic=False, rngs={"dropout": KEY})
    assert abs(kept.mean() - (np.asarray(theirs) != 0).mean()) < 0.02
    gradient = jax.grad(lambda v: ours.apply({}, v, False, rngs={"dropout": KEY}).sum())(x)
    np.testing.assert_allclose(gradient, kept / 0.75, rtol=1e-6)
    np.testing.assert_array_equal(ours.apply({}, x, True), x)
