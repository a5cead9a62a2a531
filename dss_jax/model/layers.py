"""The layers of T5, in Flax Linen, and the masks that go with them.

Raffel et al. 2020 (v1.0) and T5 v1.1. Names and initialisers follow T5X, the arithmetic follows
Hugging Face's PyTorch T5, against which the tests hold it.

Shape letters at the end of names:
  B batch, T query (or decoder) length, S key (or encoder) length, E emb_dim, H heads, D head_dim,
  J = H * D (joined_kv), M mlp_dim, V vocabulary, N buckets of the position bias, L stacked layers.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dss_jax.core.config import T5Config

PAD_ID = 0
MASKED = -1e10  # finite, so that a row with no key at all gives a flat softmax instead of NaN.

_fan_in_normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
_fan_in_truncated = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
_fan_avg_uniform = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")

_ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "linear": lambda x: x,
}


def padding_mask(tokens_BxS: jax.Array) -> jax.Array:
    """Bool [B, 1, 1, S]: True where the key is a real token (not 0)."""
    return (tokens_BxS != PAD_ID)[:, None, None, :]


def causal_mask(length: int, sequences: int = 1) -> jax.Array:
    """Bool [1, 1, T, T]: True where the key is not after the query.

    T is `length` times `sequences`, which lie one after another and do not see each other.
    """
    position_T = jnp.arange(length * sequences)
    own = position_T[:, None] // length == position_T // length
    return (own & (position_T[:, None] >= position_T))[None, None]


def relative_position_buckets(
    relative_positions: np.ndarray, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> np.ndarray:
    """The bucket of each relative position, key minus query, as in T5X and Hugging Face.

    Args:
      relative_positions: integers of any shape.
      bidirectional: whether keys after the query have buckets of their own (the upper half);
        otherwise they share bucket 0.
      num_buckets: half of them are for exact distances, half grow logarithmically.
      max_distance: from here on all distances share the last bucket.

    Returns:
      int32, of the same shape, in [0, num_buckets).
    """
    distances = -np.asarray(relative_positions)
    offset = np.zeros_like(distances)
    if bidirectional:
        num_buckets //= 2
        offset = (distances < 0) * num_buckets
        distances = np.abs(distances)
    distances = np.maximum(distances, 0)
    max_exact = num_buckets // 2
    # As in T5X: the epsilon keeps exact powers from being rounded into the bucket below.
    log_ratio = np.log(np.maximum(distances, 1).astype(np.float32) / max_exact + np.float32(1e-7))
    scaled = log_ratio / math.log(max_distance / max_exact) * (num_buckets - max_exact)
    far = np.minimum(max_exact + scaled.astype(np.int32), num_buckets - 1)
    return (offset + np.where(distances < max_exact, distances, far)).astype(np.int32)


def _parameter(
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
        kernel = _parameter(self, "kernel", self.kernel_init, self.axes, shape)
        dtype = jnp.dtype(self.dtype)
        out_dtype = jnp.float32 if accumulate_in_float32 else dtype
        x = x.astype(dtype)
        y = jnp.matmul(x, kernel.astype(dtype), preferred_element_type=out_dtype)
        if self.has_variable("params", "lora_a"):
            a: jax.Array = self.get_variable("params", "lora_a").astype(dtype)
            b: jax.Array = self.get_variable("params", "lora_b").astype(dtype)
            y += jnp.matmul(jnp.matmul(x, a), b, preferred_element_type=out_dtype)
        return y


class Embed(nn.Module):
    """Token embedding [V, E] in float32, read by gather."""

    vocab_size: int
    config: T5Config

    def setup(self) -> None:
        shape = (self.vocab_size, self.config.emb_dim)
        initializer = nn.initializers.normal(1.0)
        self.embedding = _parameter(self, "embedding", initializer, ("vocab", "embed"), shape)

    def __call__(self, tokens_BxT: jax.Array) -> jax.Array:
        """int32 [B, T] -> [B, T, E] in the activations' dtype; NaN for ids >= V."""
        x_BxTxE = jnp.take(self.embedding, tokens_BxT, axis=0).astype(self.config.dtype)
        return nn.with_logical_constraint(x_BxTxE, ("batch", "length", "activation_embed"))

    def attend(self, x_BxTxE: jax.Array) -> jax.Array:
        """Logits [B, T, V] in float32: the product with every embedding."""
        return jnp.einsum(
            "bte,ve->btv",
            x_BxTxE,
            self.embedding.astype(x_BxTxE.dtype),
            preferred_element_type=jnp.float32,
        )


class RMSNorm(nn.Module):
    """x / rms(x) * scale: no mean, no bias; computed in float32, returned in the input's dtype."""

    epsilon: float

    @nn.compact
    def __call__(self, x_BxTxE: jax.Array) -> jax.Array:
        """[..., E] -> [..., E]."""
        shape = (x_BxTxE.shape[-1],)
        scale_E = _parameter(self, "scale", nn.initializers.ones_init(), ("embed",), shape)
        wide = x_BxTxE.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normed = wide * jax.lax.rsqrt(mean_square + self.epsilon) * scale_E
        return normed.astype(x_BxTxE.dtype)


class RelativePositionBias(nn.Module):
    """T5's learned bias by bucketed relative position; one for all layers of a stack."""

    config: T5Config
    bidirectional: bool

    @nn.compact
    def __call__(self, query_positions_T: jax.Array, key_positions_S: jax.Array) -> jax.Array:
        """int32 [T], int32 [S] -> [1, H, T, S] in float32."""
        num_buckets = self.config.relative_attention_num_buckets
        furthest = self.config.relative_attention_max_distance
        shape = (self.config.num_heads, num_buckets)
        axes = ("heads", "relpos_buckets")
        rel_embedding_HxN = _parameter(self, "rel_embedding", _fan_avg_uniform, axes, shape)
        table = relative_position_buckets(
            np.arange(-furthest, furthest + 1),
            bidirectional=self.bidirectional,
            num_buckets=num_buckets,
            max_distance=furthest,
        )
        relative_TxS = key_positions_S[None, :] - query_positions_T[:, None]
        bucket_TxS = jnp.take(table, jnp.clip(relative_TxS, -furthest, furthest) + furthest)
        # A one-hot product, as in T5X: its gradient is a matmul, where that of a gather is a
        # scatter-add, slow on accelerators. Highest precision, because it only selects.
        one_hot_TxSxN = jax.nn.one_hot(bucket_TxS, num_buckets, dtype=jnp.float32)
        bias_HxTxS = jnp.einsum(
            "tsn,hn->hts",
            one_hot_TxSxN,
            rel_embedding_HxN,
            precision=jax.lax.Precision.HIGHEST,
        )
        return bias_HxTxS[None]


class KeyValue(NamedTuple):
    """Keys and values of attention, each [B, H, S, D]: heads before length, so that both products
    are batched matrix products without a transposition at each decoded position."""

    key: jax.Array
    value: jax.Array


class Attention(nn.Module):
    """Multi-head attention without scaling by 1/sqrt(D), kernels [E, J] and [J, E]."""

    config: T5Config

    def setup(self) -> None:
        config = self.config
        joined = config.num_heads * config.head_dim
        # T5 folds 1/sqrt(D) into the initial query kernel.
        query_init = nn.initializers.variance_scaling(1.0 / config.head_dim, "fan_in", "normal")
        into = ("embed", "joined_kv")
        self.query = Dense(joined, into, config.dtype, query_init)
        self.key = Dense(joined, into, config.dtype, _fan_in_normal)
        self.value = Dense(joined, into, config.dtype, _fan_in_normal)
        self.out = Dense(config.emb_dim, ("joined_kv", "embed"), config.dtype, _fan_in_normal)
        self.dropout = nn.Dropout(config.dropout_rate)

    def _heads(self, x_BxTxJ: jax.Array) -> jax.Array:
        shape = (*x_BxTxJ.shape[:-1], self.config.num_heads, self.config.head_dim)
        x_BxHxTxD = x_BxTxJ.reshape(shape).swapaxes(1, 2)
        return nn.with_logical_constraint(x_BxHxTxD, ("batch", "heads", "length", "kv"))

    def key_value(self, x_BxSxE: jax.Array) -> KeyValue:
        """Keys and values of what is attended to."""
        return KeyValue(self._heads(self.key(x_BxSxE)), self._heads(self.value(x_BxSxE)))

    def __call__(
        self,
        x_BxTxE: jax.Array,
        key_value: KeyValue,
        mask: jax.Array | None,
        bias: jax.Array | None,
        deterministic: bool,
    ) -> jax.Array:
        """Attends from `x_BxTxE`.

        Args:
          x_BxTxE: the queries' input.
          key_value: from `key_value`, or from a cache.
          mask: bool, broadcastable to [B, H, T, S]; False hides the key. None: nothing is hidden.
          bias: float32, broadcastable to [B, H, T, S], added to the scores; None: zero.
          deterministic: no dropout.

        Returns:
          [B, T, E]. A query that sees no key gets the mean of all values.
        """
        q_BxHxTxD = self._heads(self.query(x_BxTxE))
        scores_BxHxTxS = jnp.einsum(
            "bhtd,bhsd->bhts", q_BxHxTxD, key_value.key, preferred_element_type=jnp.float32
        )
        if bias is not None:
            scores_BxHxTxS += bias
        if mask is not None:
            scores_BxHxTxS = jnp.where(mask, scores_BxHxTxS, MASKED)
        weights_BxHxTxS = jax.nn.softmax(scores_BxHxTxS, axis=-1).astype(x_BxTxE.dtype)
        weights_BxHxTxS = self.dropout(weights_BxHxTxS, deterministic=deterministic)
        mixed_BxHxTxD = jnp.einsum("bhts,bhsd->bhtd", weights_BxHxTxS, key_value.value)
        mixed_BxTxJ = mixed_BxHxTxD.swapaxes(1, 2).reshape(*x_BxTxE.shape[:-1], -1)
        return self.out(mixed_BxTxJ)


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
        hidden_BxTxM = nn.Dropout(config.dropout_rate)(hidden_BxTxM, deterministic=deterministic)
        return Dense(config.emb_dim, ("mlp", "embed"), config.dtype, name="wo")(hidden_BxTxM)
