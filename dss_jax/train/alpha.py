"""`Loss.alpha_schedule`: the weight of the label task where it changes."""

import jax
import jax.numpy as jnp
import numpy as np

from dss_jax.core import config


def scheduled(cfg: config.Loss, step: jax.Array, steps: int) -> jax.Array:
    """`loss.alpha_at` of a schedule that is not "constant"."""
    if cfg.alpha_schedule == "phased":
        shares, alphas = zip(*cfg.alpha_phases, strict=True)
        ends = jnp.asarray([round(float(end) * steps) for end in np.cumsum(shares)][:-1])
        return jnp.asarray(alphas, jnp.float32)[jnp.sum(step >= ends)]
    done = step.astype(jnp.float32) / max(1, steps - 1)
    if cfg.alpha_schedule == "cosine":
        done = (1 - jnp.cos(jnp.pi * done)) / 2
    return cfg.alpha + (cfg.alpha_end - cfg.alpha) * done
