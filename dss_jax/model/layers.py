"""The layers of T5 without attention, in Flax Linen.

Raffel et al. 2020 (v1.0) and T5 v1.1. Names and initialisers follow T5X, the arithmetic follows
Hugging Face's PyTorch T5, against which the tests hold it.

Shape letters at the end of names:
  B batch, T query (or decoder) length, S key (or encoder) length, E emb_dim, H heads, D head_dim,
  J = H * D (joined_kv), M mlp_dim, V vocabulary, N buckets of the position bias, L stacked layers.

Dropout masks are cheap: one evaluation of Threefry gives four. On a CPU, JAX has it in a rolled
loop, which writes whole arrays at each turn, and `jax.random.bernoulli` takes one (64 bits) an
element: masks were the second largest part of a training step. Here the rounds are unrolled, so
that they fuse with the rest, there are 13 of them (the fewest that pass BigCrush: Salmon et al.
2011, table 2), and an element takes 16 bits.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dss_jax.core.config import T5Config
from dss_jax.model.matmul import matmul, on_cpu

FAN_IN_NORMAL = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
_fan_in_truncated = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")

_ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "linear": lambda x: x,
}

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
ROUNDS = 13
BITS = 16
PER_WORDS = 64 // BITS


def parameter(
    module: nn.Module,
    name: str,
    initializer: nn.initializers.Initializer,
    axes: tuple[str, ...],
    shape: tuple[int, ...],
) -> jax.Array:
    """A float32 parameter of `module` with logical axes."""
    boxed = nn.with_logical_partitioning(initializer, axes)
    value: Any = module.param(name, boxed, shape, jnp.float32)
    return value


def _two_axes(x: jax.Array) -> jax.Array:
    """[..., in] -> [N, in].

    The gradient of a kernel is then a plain product of two matrices; with more axes XLA's CPU
    backend transposes what it is computed from, which took a third of the MLP's time.
    """
    return x.reshape(-1, x.shape[-1])


class Dense(nn.Module):
    """Linear map of the last axis, without bias; kernel [in, features] in float32.

    Where the parameters hold `lora_a` [in, r] and `lora_b` [r, features] beside the kernel
    (`dss_jax.model.lora`), their product is added to it.
    """

    features: int
    axes: tuple[str, str]
    dtype: str
    kernel_init: nn.initializers.Initializer = _fan_in_truncated

    @nn.compact
    def __call__(self, x: jax.Array, *, accumulate_in_float32: bool = False) -> jax.Array:
        """[..., in] -> [..., features] in `dtype`, or in float32 where asked."""
        shape = (x.shape[-1], self.features)
        kernel = parameter(self, "kernel", self.kernel_init, self.axes, shape)
        dtype = jnp.dtype(self.dtype)
        out_dtype = jnp.float32 if accumulate_in_float32 else dtype
        lead, x = x.shape[:-1], _two_axes(x.astype(dtype))
        y = matmul(x, kernel, out_dtype)
        if self.has_variable("params", "lora_a"):
            a: jax.Array = self.get_variable("params", "lora_a")
            b: jax.Array = self.get_variable("params", "lora_b")
            y += matmul(matmul(x, a, dtype), b, out_dtype)
        return y.reshape(*lead, self.features)


class Embed(nn.Module):
    """Token embedding [V, E] in float32, read by gather."""

    vocab_size: int
    config: T5Config
    stddev: float = 1.0  # Of the initial values.

    def setup(self) -> None:
        shape = (self.vocab_size, self.config.emb_dim)
        initializer = nn.initializers.normal(self.stddev)
        self.embedding = parameter(self, "embedding", initializer, ("vocab", "embed"), shape)

    def __call__(self, tokens_BxT: jax.Array) -> jax.Array:
        """int32 [B, T] -> [B, T, E] in the activations' dtype; NaN for ids >= V."""
        x_BxTxE = jnp.take(self.embedding, tokens_BxT, axis=0).astype(self.config.dtype)
        return nn.with_logical_constraint(x_BxTxE, ("batch", "length", "activation_embed"))

    def attend(self, x_BxTxE: jax.Array) -> jax.Array:
        """Logits [B, T, V] in float32: the product with every embedding."""
        logits = matmul(_two_axes(x_BxTxE), self.embedding, transposed=True)
        return logits.reshape(*x_BxTxE.shape[:-1], -1)


class RMSNorm(nn.Module):
    """x / rms(x) * (scale + offset): no mean, no bias; computed in float32, returned in the input's
    dtype.
    """

    epsilon: float
    offset: float = 0.0

    @nn.compact
    def __call__(self, x_BxTxE: jax.Array) -> jax.Array:
        """[..., E] -> [..., E]."""
        shape = (x_BxTxE.shape[-1],)
        initializer = nn.initializers.constant(1.0 - self.offset)
        scale_E = parameter(self, "scale", initializer, ("embed",), shape)
        wide = x_BxTxE.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normed = wide * jax.lax.rsqrt(mean_square + self.epsilon)
        if self.offset:
            scale_E = scale_E + self.offset  # Not in place: it may be an array of NumPy.
        # Not broadcast_to: autodiff would keep the broadcast array for the backward pass.
        scale = jnp.expand_dims(scale_E, range(wide.ndim - 1))
        return (normed * scale).astype(x_BxTxE.dtype)


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


def keep_mask(
    key: jax.Array, keep: float, shape: tuple[int, ...], again: bool = False
) -> jax.Array:
    """True with probability `keep`, in [0, 1], to 1 / 65536: bool of a shape of one to four axes.
    `again`: the same, but XLA shall not find that it is.

    Depends on the key (typed, of any implementation of `jax.random`) and on an element's indices
    alone, so neither a mesh nor more padding changes it.
    """
    data = jax.random.key_data(key)
    key_words = data[0], data[1]
    if data.size == 4:  # RBG keys
        key_words = threefry_2x32(key_words, (data[2], data[3]))
    if on_cpu():
        words = -(-shape[-1] // PER_WORDS)
        both = jnp.stack(threefry_2x32(key_words, _counters((*shape[:-1], words))), axis=-1)
        parts = jax.lax.bitcast_convert_type(both, jnp.uint16)
        parts = parts.reshape(*shape[:-1], words * PER_WORDS)[..., : shape[-1]].astype(jnp.uint32)
    else:
        from dss_jax.model.accelerators import spread

        parts = spread(lambda grid: threefry_2x32(key_words, _counters(grid)), shape)
    threshold = jnp.uint32(round(keep * 2**BITS))  # In 32 bits: that of keep = 1 is 65536.
    return parts < (jax.lax.optimization_barrier(threshold) if again else threshold)


class Dropout(nn.Module):
    """Inverted dropout, as `flax.linen.Dropout` with its key named "dropout"."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """[...] -> [...], scaled by 1 / (1 - rate)."""
        if deterministic or not self.rate:
            return x

        def drop(x: jax.Array, key: jax.Array, again: bool = False) -> jax.Array:
            keep = keep_mask(key, 1.0 - self.rate, x.shape, again)
            return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros_like(x))

        if on_cpu():
            return drop(x, self.make_rng("dropout"))
        from dss_jax.model.accelerators import drawn_twice

        return drawn_twice(drop, x, self.make_rng("dropout"))


class Mlp(nn.Module):
    """Feed-forward layer: one activation (v1.0), or the product of two (gated, v1.1)."""

    config: T5Config

    @nn.compact
    def __call__(self, x_BxTxE: jax.Array, deterministic: bool) -> jax.Array:
        """[B, T, E] -> [B, T, E]; dropout is on the hidden layer."""
        config = self.config
        gated = len(config.mlp_activations) > 1
        hidden_BxTxM = None
        for i, activation in enumerate(config.mlp_activations):
            name = f"wi_{i}" if gated else "wi"
            wi = Dense(config.mlp_dim, ("embed", "mlp"), config.dtype, name=name)
            branch = _ACTIVATIONS[activation](wi(x_BxTxE))
            hidden_BxTxM = branch if hidden_BxTxM is None else hidden_BxTxM * branch
        hidden_BxTxM = nn.with_logical_constraint(hidden_BxTxM, ("batch", "length", "mlp"))
        hidden_BxTxM = Dropout(config.dropout_rate)(hidden_BxTxM, deterministic)
        return Dense(config.emb_dim, ("mlp", "embed"), config.dtype, name="wo")(hidden_BxTxM)
