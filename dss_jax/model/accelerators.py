"""Dropout in the form that GPUs and TPUs want: nothing is kept, and no mask written that is not
needed; imported where there is one.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

LINES = 8
PARTS = 4


def spread(
    words_of: Callable[[tuple[int, ...]], tuple[jax.Array, jax.Array]], shape: tuple[int, ...]
) -> jax.Array:
    """16 random bits an element, as uint32, of 64 that `words_of` makes for each place of a grid:
    of 32 lines of the array, those that are 8 apart share a place.

    A TPU has 8 lines of 128 numbers in a register. Nothing is moved between lanes, as it is to take
    words of the last axis apart, which was a quarter of a step.
    """
    *lead, lines, width = shape if len(shape) > 1 else (*shape, 1)
    blocks = -(-lines // (PARTS * LINES))
    whole = (*lead, blocks, PARTS, LINES, width)
    first, second = (
        jnp.broadcast_to(w.reshape(*lead, blocks, 1, LINES, width), whole)
        for w in words_of((*lead, blocks * LINES, width))
    )
    part = jax.lax.broadcasted_iota(jnp.uint32, whole, len(lead) + 1)
    word = jnp.where(part < 2, first, second)
    bits = jnp.where(part % 2 == 0, word & 0xFFFF, word >> 16)
    return bits.reshape(*lead, -1, width)[..., :lines, :].reshape(shape)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def drawn_twice(
    drop: Callable[[jax.Array, jax.Array, bool], jax.Array], x: jax.Array, key: jax.Array
) -> jax.Array:
    """`drop(x, key, again)`, which is linear in x; the backward pass finds only the key kept.

    `again`: XLA shall not find that the mask is the same. Of one that several operations look at it
    makes bytes, which a TPU has in another order than numbers: dearer than to draw it for each.
    """
    return drop(x, key, False)


drawn_twice.defvjp(
    lambda drop, x, key: (drop(x, key, False), key),
    lambda drop, key, gradient: (drop(gradient, key, True), None),
)
