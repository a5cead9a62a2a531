"""AdamW against its formula and Transformers' schedule; Adafactor against T5X's rules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dss_jax.core import config
from dss_jax.train.step import learning_rate_schedule, make_optimizer


def test_linear_decay_without_warm_up_starts_at_the_peak_and_ends_at_zero() -> None:
    schedule = learning_rate_schedule(config.Optimizer(learning_rate=1.0), 10)
    np.testing.assert_allclose(
        [float(schedule(jnp.asarray(s))) for s in range(11)],
        [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0],
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("linear", [0, 0.5, 1, 0.75, 0.5, 0.25]), ("constant", [0, 0.5, 1, 1, 1, 1])],
)
def test_warm_up(schedule: str, expected: list[float]) -> None:
    cfg = config.Optimizer(learning_rate=1.0, schedule=schedule, warmup_steps=2)
    rate = learning_rate_schedule(cfg, 6)
    np.testing.assert_allclose([float(rate(jnp.asarray(s))) for s in range(6)], expected)


def test_adamw_and_clipping_follow_the_formula() -> None:
    cfg = config.Optimizer(learning_rate=0.1, clip_norm=1.0)
    optimizer = make_optimizer(cfg, steps=4)
    params = {"a": jnp.array([1.0, -2.0, 3.0])}
    state = optimizer.init(params)
    m, v, expected = np.zeros(3), np.zeros(3), np.array([1.0, -2.0, 3.0])
    gradients = [np.array([0.3, -4.0, 0.2]), np.array([0.1, 0.2, -0.1]), np.array([5.0, 1.0, 0.0])]
    for t, gradient in enumerate(gradients, 1):
        updates, state = optimizer.update({"a": jnp.asarray(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        clipped = gradient * min(1.0, 1.0 / np.linalg.norm(gradient))
        m, v = 0.9 * m + 0.1 * clipped, 0.999 * v + 0.001 * clipped**2
        rate = 0.1 * (1 - (t - 1) / 4)
        expected -= rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(params["a"], expected, rtol=1e-5)


def _adafactor_reference(
    param: np.ndarray, gradients: list[np.ndarray], rate: float, factored: bool
) -> np.ndarray:
    """t5x.adafactor.Adafactor.apply_param_gradient for one parameter, in NumPy."""
    row = np.zeros(param.shape[0])
    column = np.zeros(param.shape[1]) if factored else None
    v = np.zeros_like(param)
    param = param.copy()
    for step, gradient in enumerate(gradients):
        decay = 1.0 - (step + 1.0) ** -0.8
        square = gradient**2 + 1e-30
        if factored:
            row = decay * row + (1 - decay) * square.mean(1)
            column = decay * column + (1 - decay) * square.mean(0)
            update = gradient * (row / row.mean())[:, None] ** -0.5 * column[None, :] ** -0.5
        else:
            v = decay * v + (1 - decay) * square
            update = gradient * v**-0.5
        update /= max(1.0, np.sqrt((update**2).mean()) / 1.0)
        scale = max(np.sqrt((param**2).mean()), 1e-3)
        param -= rate * scale * update
    return param


@pytest.mark.parametrize(("shape", "factored"), [((128, 160), True), ((8, 160), False)])
def test_adafactor_is_that_of_t5x_also_for_stacked_layers(shape: tuple, factored: bool) -> None:
    rng = np.random.default_rng(0)
    # Layers of unlike size: clipping and scale must be each layer's own.
    layers = [rng.normal(size=shape) * s for s in (1.0, 0.01)]
    gradients = [[rng.normal(size=shape) * s for s in (1.0, 30.0)] for _ in range(3)]
    cfg = config.Optimizer(name="adafactor", learning_rate=1e-2, schedule="constant", clip_norm=0.0)
    optimizer = make_optimizer(cfg, steps=100)
    single, stacked = jnp.asarray(layers[0]), jnp.stack([jnp.asarray(x) for x in layers])
    # The decoder has another number of layers than the encoder.
    params = {
        "embedding": single,
        "encoder": {"layers": {"kernel": stacked}},
        "decoder": {"layers": {"kernel": stacked[:1]}},
    }
    state = optimizer.init(params)
    for pair in gradients:
        both = jnp.stack([jnp.asarray(x) for x in pair])
        tree = {
            "embedding": jnp.asarray(pair[0]),
            "encoder": {"layers": {"kernel": both}},
            "decoder": {"layers": {"kernel": both[:1]}},
        }
        updates, state = jax.jit(optimizer.update)(tree, state, params)
        params = optax.apply_updates(params, updates)
    for layer in range(2):
        expected = _adafactor_reference(
            layers[layer], [pair[layer] for pair in gradients], 1e-2, factored
        )
        np.testing.assert_allclose(
            params["encoder"]["layers"]["kernel"][layer], expected, rtol=2e-4, atol=1e-6
        )
    first = params["encoder"]["layers"]["kernel"][0]
    np.testing.assert_allclose(params["embedding"], first, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        params["decoder"]["layers"]["kernel"][0], first, rtol=1e-5, atol=1e-7
    )
