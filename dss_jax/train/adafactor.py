"""Adafactor as T5X uses it, over layers that are stacked on an axis."""

from collections.abc import Callable

import jax
import optax

from dss_jax.core import config

STACKED = "layers"
"""Path element below which parameters are stacked over layers on axis 0."""


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


def adafactor(cfg: config.Optimizer, schedule: Callable) -> optax.GradientTransformation:
    """Shazeer & Stern 2018 (arXiv 1804.04235) with T5X's settings. The clipping of updates and the
    scale by the parameters' RMS are per parameter, so stacked layers are taken one by one.
    """
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
