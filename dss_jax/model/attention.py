"""T5's attention: masks, position bias, and rows that are gathered from streams of tokens.

Names and initialisers follow T5X, the arithmetic follows Hugging Face's PyTorch T5, against which
the tests hold it. Shape letters are those of `dss_jax.model.layers`, and G streams, P tokens of a
stream, R rows of a stream (layout `flat`: B = G * R).
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from dss_jax.core.config import T5Config
from dss_jax.core.ids import PAD_ID
from dss_jax.layouts.blocks import Block, StreamRows
from dss_jax.model.layers import FAN_IN_NORMAL, Dense, Dropout, parameter
from dss_jax.model.matmul import MIXED

MASKED = -1e10  # finite, so that a row with no key at all gives a flat softmax instead of NaN.

_fan_avg_uniform = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


def padding_mask(tokens_BxS: jax.Array, pad_id: int = PAD_ID) -> jax.Array:
    """Bool [B, 1, 1, S]: True where the key is a real token."""
    return (tokens_BxS != pad_id)[:, None, None, :]


def causal_mask(length: int) -> jax.Array:
    """Bool [1, 1, T, T]: True where the key is not after the query."""
    position_T = jnp.arange(length)
    return (position_T[:, None] >= position_T[None, :])[None, None]


def relative_position_buckets(
    relative_positions: np.ndarray, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> np.ndarray:
    """The bucket of each relative position, key minus query, as in T5X and Hugging Face: integers
    of any shape -> int32 in [0, num_buckets).

    Half of the buckets are for exact distances, half grow logarithmically, and from `max_distance`
    on all share the last. Keys after the query share bucket 0, or if `bidirectional` have buckets
    of their own, the upper half.
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


class RelativePositionBias(nn.Module):
    """T5's learned bias by bucketed relative position: of a stack, or of one of its layers."""

    config: T5Config
    bidirectional: bool = False

    def __call__(self, positions: jax.Array) -> jax.Array:
        """Of queries and keys at these positions, int32 [T] or [B, T]: float32 [1, H, T, T], or
        [B, H, T, T]. Where each layer has its own: what `of_buckets` takes, with N in place of H.
        """
        num_buckets = self.config.relative_attention_num_buckets
        furthest = self.config.relative_attention_max_distance
        table = relative_position_buckets(
            np.arange(-furthest, furthest + 1),
            bidirectional=self.bidirectional,
            num_buckets=num_buckets,
            max_distance=furthest,
        )
        positions_BxT = positions.reshape(-1, positions.shape[-1])
        relative_BxTxT = positions_BxT[:, None, :] - positions_BxT[:, :, None]
        bucket_BxTxT = jnp.take(table, jnp.clip(relative_BxTxT, -furthest, furthest) + furthest)
        one_hot_BxNxTxT = jax.nn.one_hot(bucket_BxTxT, num_buckets, dtype=jnp.float32, axis=1)
        own = self.config.relative_attention_per_layer
        return one_hot_BxNxTxT if own else self.of_buckets(one_hot_BxNxTxT)

    def of_layer(self, bias: jax.Array, layer: int) -> jax.Array:
        """A layer's part of what a call gives."""
        return bias

    @nn.compact
    def of_buckets(self, one_hot_BxNxTxS: jax.Array) -> jax.Array:
        """[B, N, T, S], 1 where a query and a key are in the bucket -> the bias, [B, H, T, S]."""
        shape = (self.config.num_heads, self.config.relative_attention_num_buckets)
        axes = ("heads", "relpos_buckets")
        rel_embedding_HxN = parameter(self, "rel_embedding", _fan_avg_uniform, axes, shape)
        # A one-hot product, as in T5X: its gradient is a matmul, where that of a gather is a
        # scatter-add, slow on accelerators. Highest precision, because it only selects.
        highest = jax.lax.Precision.HIGHEST
        return jnp.einsum("bnts,hn->bhts", one_hot_BxNxTxS, rel_embedding_HxN, precision=highest)


class KeyValue(NamedTuple):
    """Keys and values of attention, each [B, H, S, D]: heads before length, so that both products
    are batched matrix products without a transposition at each decoded position."""

    key: jax.Array
    value: jax.Array


class Pattern(NamedTuple):
    """Who attends to whom, and where queries and keys are. Built once for all layers of a stack.

    Attributes:
      mask: bool, broadcastable to [B, H, T, S]; False hides the key. None: nothing is hidden.
      bias: float32, broadcastable to [B, H, T, S], added to the scores; None: zero.
      queries, keys: where attention's rows are in the streams; None: the input has rows.
      query_lengths, key_lengths: int32 [B], real tokens of each row, which cuDNN's attention takes
        in place of the mask. None: XLA's is used.
    """

    mask: Any = None
    bias: Any = None
    queries: StreamRows | None = None
    keys: StreamRows | None = None
    query_lengths: jax.Array | None = None
    key_lengths: jax.Array | None = None


def segment_mask(queries_BxT: jax.Array, keys_BxS: jax.Array) -> jax.Array:
    """Bool [B, 1, T, S]: True where query and key are of one segment; 0 is padding."""
    same = queries_BxT[:, :, None] == keys_BxS[:, None, :]
    return (same & (keys_BxS != 0)[:, None, :])[:, None]


def row_mask(rows: StreamRows) -> jax.Array:
    """Bool [B, 1, 1, S]: True where the row has not ended."""
    take_GxRxS, tokens = jnp.asarray(rows.take), rows.back.shape[-1]
    return (take_GxRxS != tokens - 1).reshape(-1, 1, 1, take_GxRxS.shape[-1])


def _take(x_GxPxJ: jax.Array, index: jax.Array) -> jax.Array:
    """[G, P, J], int [G, ...] -> [G, ..., J]."""
    return jax.vmap(lambda x, i: x.at[i].get(mode="promise_in_bounds"))(x_GxPxJ, index)


@jax.custom_vjp
def to_rows(x_GxPxJ: jax.Array, rows: StreamRows) -> jax.Array:
    """Streams -> attention's rows: [G, P, J] -> [B, L, J].

    The gradient is the gather back, not a scatter-add, which is slow on accelerators and on GPUs
    depends on the order. See `StreamRows` for why nothing needs a mask: a place where a row has
    ended takes the stream's last token, a padding. As a key it is masked, as a query nothing comes
    back from it, so its gradient is zero, and padding tokens take that zero.
    """
    taken_GxRxLxJ = _take(x_GxPxJ, jnp.asarray(rows.take))
    return taken_GxRxLxJ.reshape(-1, *taken_GxRxLxJ.shape[2:])


@jax.custom_vjp
def from_rows(y_BxLxJ: jax.Array, rows: StreamRows) -> jax.Array:
    """Attention's rows -> streams: [B, L, J] -> [G, P, J]."""
    back_GxP = jnp.asarray(rows.back)
    return _take(y_BxLxJ.reshape(len(back_GxP), -1, y_BxLxJ.shape[-1]), back_GxP)


to_rows.defvjp(
    lambda x, rows: (to_rows(x, rows), rows),
    lambda rows, gradient: (from_rows(gradient, rows), None),
)
from_rows.defvjp(
    lambda y, rows: (from_rows(y, rows), rows),
    lambda rows, gradient: (to_rows(gradient, rows), None),
)


def decoder_length(block: Block) -> int:
    """T: length of the decoder's rows of attention."""
    if block.decoder_rows is not None:
        return block.decoder_rows.take.shape[-1]
    return block.decoder_input_tokens.shape[1]


def block_patterns(block: Block, config: T5Config) -> tuple[Pattern, Pattern, Pattern]:
    """The patterns of a block's encoder and decoder self-attention and of cross-attention, without
    position bias: of layout `flat` if it has rows, of `packed` if it has segment ids, else
    `padded`; with lengths of the rows for cuDNN's attention, but in `packed`.
    """
    causal = causal_mask(decoder_length(block))
    if block.encoder_segment_ids is not None:
        encoder, decoder = map(jnp.asarray, (block.encoder_segment_ids, block.decoder_segment_ids))
        return (
            Pattern(segment_mask(encoder, encoder)),
            Pattern(segment_mask(decoder, decoder) & causal),
            Pattern(segment_mask(decoder, encoder)),
        )
    keys, queries = block.encoder_rows, block.decoder_rows
    tokens = jnp.asarray(block.encoder_input_tokens)
    mask = padding_mask(tokens, config.pad_token_id) if keys is None else row_mask(keys)
    lengths: jax.Array | None = None
    decoder_lengths: jax.Array | None = None
    if config.attention == "cudnn":
        from dss_jax.model import fused

        of_decoder = None if queries is None else row_mask(queries)
        lengths, decoder_lengths = fused.lengths(mask, of_decoder, decoder_length(block))
    return (
        Pattern(mask, None, keys, keys, lengths, lengths),
        # Padding comes after all real tokens, which do not see it.
        Pattern(causal, None, queries, queries, decoder_lengths, decoder_lengths),
        Pattern(mask, None, queries, keys, decoder_lengths, lengths),
    )


class Attention(nn.Module):
    """Multi-head attention without scaling by 1/sqrt(D), kernels [E, J] and [J, E].

    `causal`: whether it is the decoder's self-attention; only `T5Config.attention = "cudnn"` looks
    at it, the mask says it otherwise.
    """

    config: T5Config
    causal: bool = False

    def setup(self) -> None:
        config = self.config
        joined = config.num_heads * config.head_dim
        # T5 folds 1/sqrt(D) into the initial query kernel.
        query_init = nn.initializers.variance_scaling(1.0 / config.head_dim, "fan_in", "normal")
        self.query, self.key, self.value = (
            Dense(joined, ("embed", "joined_kv"), config.dtype, init)
            for init in (query_init, FAN_IN_NORMAL, FAN_IN_NORMAL)
        )
        self.out = Dense(config.emb_dim, ("joined_kv", "embed"), config.dtype, FAN_IN_NORMAL)
        self.dropout = Dropout(config.dropout_rate)

    def _heads(self, x: jax.Array, rows: StreamRows | None) -> jax.Array:
        """[B, T, J], or [G, P, J] with rows -> [B, H, T, D]."""
        x_BxTxJ = x if rows is None else to_rows(x, rows)
        shape = (*x_BxTxJ.shape[:-1], -1, self.config.head_dim)
        x_BxHxTxD = x_BxTxJ.reshape(shape).swapaxes(1, 2)
        return nn.with_logical_constraint(x_BxHxTxD, ("batch", "heads", "length", "kv"))

    def key_value(self, x_BxSxE: jax.Array, pattern: Pattern) -> KeyValue:
        """Keys and values of what is attended to: [B, S, E], or streams with the pattern's rows."""
        return KeyValue(*(self._heads(f(x_BxSxE), pattern.keys) for f in (self.key, self.value)))

    def __call__(
        self, x_BxTxE: jax.Array, key_value: KeyValue, pattern: Pattern, deterministic: bool
    ) -> jax.Array:
        """Attends from `x_BxTxE` (streams [G, P, E] where the pattern has rows of queries) to keys
        and values of `key_value`, or of a cache. Of the shape of `x_BxTxE`; a query that sees no
        key gets the mean of all values.
        """
        q_BxHxTxD = self._heads(self.query(x_BxTxE), pattern.queries)
        if self.config.attention == "cudnn" and pattern.key_lengths is not None:
            from dss_jax.model import fused

            query, key, value = (x.swapaxes(1, 2) for x in (q_BxHxTxD, *key_value))
            lengths = pattern.query_lengths, pattern.key_lengths
            bias, causal = pattern.bias, self.causal
            mixed_BxTxHxD = fused.attention(query, key, value, bias, *lengths, causal=causal)
        else:
            mixed_BxTxHxD = self._attend(q_BxHxTxD, key_value, pattern, deterministic)
        mixed_BxTxJ = mixed_BxTxHxD.reshape(*mixed_BxTxHxD.shape[:2], -1)
        if pattern.queries is not None:
            mixed_BxTxJ = from_rows(mixed_BxTxJ, pattern.queries)
        return self.out(mixed_BxTxJ.reshape(*x_BxTxE.shape[:-1], -1))

    def _attend(
        self, q_BxHxTxD: jax.Array, key_value: KeyValue, pattern: Pattern, deterministic: bool
    ) -> jax.Array:
        scores_BxHxTxS = jnp.einsum(
            "bhtd,bhsd->bhts", q_BxHxTxD, key_value.key, preferred_element_type=jnp.float32
        )
        if pattern.bias is not None:
            scores_BxHxTxS += pattern.bias
        if pattern.mask is not None:
            scores_BxHxTxS = jnp.where(pattern.mask, scores_BxHxTxS, MASKED)
        weights_BxHxTxS = jax.nn.softmax(scores_BxHxTxS, axis=-1).astype(q_BxHxTxD.dtype)
        weights_BxHxTxS = self.dropout(weights_BxHxTxS, deterministic)
        mixed_BxHxTxD = jnp.einsum("bhts,bhsd->bhtd", weights_BxHxTxS, key_value.value)
        return checkpoint_name(mixed_BxHxTxD.swapaxes(1, 2), MIXED)
