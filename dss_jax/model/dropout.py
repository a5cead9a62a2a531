"""Cheap dropout masks: four of them out of one evaluation of Threefry.

On a CPU, JAX evaluates Threefry in a rolled loop, which writes whole arrays at each turn, and
`jax.random.bernoulli` takes one evaluation (64 bits) an element: masks were the second largest
part of a training step. Here the rounds are unrolled, so that they fuse with the rest, there are
13 of them (the fewest that pass BigCrush: Salmon et al. 2011, table 2), and an element takes 16
bits.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
ROUNDS = 13
BITS = 16
PER_WORDS = 64 // BITS


def threefry_2x32(
    key: tuple[jax.Array, jax.Array], counter: tuple[jax.Array, jax.Array], rounds: int = ROUNDS
) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 (Salmon et al. 2011), unrolled; with 20 rounds it is JAX's own.

    Counter and result are two uint32 arrays of one shape, to which the key can be broadcast.
    """
    schedule = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    x, y = counter[0] + schedule[0], counter[1] + schedule[1]
    for i in range(rounds):
        rotation = _ROTATIONS[i // 4 % 2][i % 4]
        x = x + y
        y = x ^ ((y << rotation) | (y >> (32 - rotation)))
        if i % 4 == 3:
            turn = i // 4 + 1
            x = x + schedule[turn % 3]
            y = y + schedule[(turn + 1) % 3] + jnp.uint32(turn)
    return x, y


def _counters(grid: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Two uint32 a place that are no other place's, made of its indices.

    Of four axes each has 16 bits, of three the middle one 32; sizes of the grid above that would
    repeat masks, and are far from what fits a device.
    """
    index = [jax.lax.broadcasted_iota(jnp.uint32, grid, axis) for axis in range(len(grid))]
    none = jnp.zeros(grid, jnp.uint32)
    assert 1 <= len(grid) <= 4
    if len(grid) <= 2:
        return (none, index[0]) if len(grid) == 1 else (index[0], index[1])
    if len(grid) == 3:
        return index[1], (index[0] << 16) | index[2]
    return (index[0] << 16) | index[1], (index[2] << 16) | index[3]


def keep_mask(key: jax.Array, keep: float, shape: tuple[int, ...]) -> jax.Array:
    """True with probability `keep`, in [0, 1], to 1 / 65536: bool of a shape of one to four axes.

    Depends on the key (typed, of any implementation of `jax.random`) and on an element's indices
    alone, so neither a mesh nor more padding changes it.
    """
    data = jax.random.key_data(key)
    key_words = data[0], data[1]
    if data.size == 4:  # RBG keys
        key_words = threefry_2x32(key_words, (data[2], data[3]))
    words = -(-shape[-1] // PER_WORDS)
    first, second = _counters((*shape[:-1], words))
    both = jnp.stack(threefry_2x32(key_words, (first, second)), axis=-1)
    parts = jax.lax.bitcast_convert_type(both, jnp.uint16)
    parts = parts.reshape(*shape[:-1], words * PER_WORDS)[..., : shape[-1]]
    # In 32 bits, because the threshold of keep = 1 is 65536.
    return parts.astype(jnp.uint32) < jnp.uint32(round(keep * 2**BITS))


class Dropout(nn.Module):
    """Inverted dropout, as `flax.linen.Dropout` with its key named "dropout"."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """[...] -> [...], scaled by 1 / (1 - rate)."""
        if deterministic or not self.rate:
            return x
        keep = keep_mask(self.make_rng("dropout"), 1.0 - self.rate, x.shape)
        return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros_like(x))
