"""The layers of T5 without attention, in Flax Linen.

Raffel et al. 2020 (v1.0) and T5 v1.1. Names and initialisers follow T5X, the arithmetic follows
Hugging Face's PyTorch T5, against which the tests hold it.

Shape letters at the end of names:
  B batch, T query (or decoder) length, S key (or encoder) length, E emb_dim, H heads, D head_dim,
  J = H * D (joined_kv), M mlp_dim, V vocabulary, N buckets of the position bias, L stacked layers.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dss_jax.core.config import T5Config
from dss_jax.model.dropout import Dropout
from dss_jax.model.matmul import matmul

FAN_IN_NORMAL = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
_fan_in_truncated = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")

_ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "linear": lambda x: x,
}


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

    def setup(self) -> None:
        shape = (self.vocab_size, self.config.emb_dim)
        initializer = nn.initializers.normal(1.0)
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
    """x / rms(x) * scale: no mean, no bias; computed in float32, returned in the input's dtype."""

    epsilon: float

    @nn.compact
    def __call__(self, x_BxTxE: jax.Array) -> jax.Array:
        """[..., E] -> [..., E]."""
        shape = (x_BxTxE.shape[-1],)
        scale_E = parameter(self, "scale", nn.initializers.ones_init(), ("embed",), shape)
        wide = x_BxTxE.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normed = wide * jax.lax.rsqrt(mean_square + self.epsilon)
        return (normed * jnp.broadcast_to(scale_E, wide.shape)).astype(x_BxTxE.dtype)


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
