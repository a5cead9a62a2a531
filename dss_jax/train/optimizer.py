"""Optimisers: AdamW as the authors' code uses it, Adafactor as T5X uses it."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import optax

from dss_jax.core import config

STACKED = "layers"
"""Path element below which parameters are stacked over layers on axis 0."""


def settings(run: config.Run) -> config.Optimizer:
    """The run's optimiser; with LoRA at LoRA's learning rate."""
    if not run.lora.rank:
        return run.optimizer
    return replace(run.optimizer, learning_rate=run.lora.learning_rate)


def learning_rate_schedule(cfg: config.Optimizer, steps: int) -> Callable[[jax.Array], jax.Array]:
    """Update number (0 is the first) -> learning rate.

    "linear" is `transformers.get_linear_schedule_with_warmup`: linear up over the warm-up,
    linear down to 0 at `steps`.
    """

    def schedule(count: jax.Array) -> jax.Array:
        step = jnp.asarray(count, jnp.float32)
        warm = jnp.minimum(1.0, step / cfg.warmup_steps) if cfg.warmup_steps else 1.0
        if cfg.schedule == "constant":
            return jnp.asarray(cfg.learning_rate * warm)
        left = jnp.clip((steps - step) / max(1, steps - cfg.warmup_steps), 0.0, 1.0)
        return cfg.learning_rate * jnp.where(step < cfg.warmup_steps, warm, left)

    return schedule


def _per_layer(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies a transformation to each layer of parameters stacked on axis 0."""
    return optax.GradientTransformation(
        init=jax.vmap(inner.init),
        update=lambda updates, state, params=None: jax.vmap(inner.update)(updates, state, params),
    )


def _labels(params: dict) -> dict:
    """Stack of each parameter: encoder and decoder may differ in depth; "single": in no stack."""

    def label(path: tuple, _: jax.Array) -> str:
        names = [getattr(p, "key", None) for p in path]
        return str(names[0]) if STACKED in names else "single"

    return jax.tree_util.tree_map_with_path(label, params)


def _adafactor(cfg: config.Optimizer, schedule: Callable) -> optax.GradientTransformation:
    # Shazeer & Stern 2018 (arXiv 1804.04235) with T5X's settings. The clipping of updates and
    # the scale by the parameters' RMS are per parameter, so stacked layers are taken one by one.
    inner = optax.adafactor(
        learning_rate=schedule,
        min_dim_size_to_factor=128,
        decay_rate=cfg.decay_rate,
        multiply_by_parameter_scale=True,
        clipping_threshold=1.0,
        momentum=None,
        weight_decay_rate=cfg.weight_decay or None,
    )
    stacked = _per_layer(inner)
    return optax.partition({"encoder": stacked, "decoder": stacked, "single": inner}, _labels)


def make_optimizer(cfg: config.Optimizer, steps: int) -> optax.GradientTransformation:
    """The optimiser of a run of `steps` updates: clip by global norm, then update."""
    schedule = learning_rate_schedule(cfg, steps)
    if cfg.name == "adamw":
        update = optax.adamw(
            schedule, b1=cfg.b1, b2=cfg.b2, eps=cfg.eps, weight_decay=cfg.weight_decay
        )
    else:
        update = _adafactor(cfg, schedule)
    clip = optax.clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity()
    return optax.chain(clip, update)
