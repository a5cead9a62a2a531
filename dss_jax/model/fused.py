"""Attention in one kernel of cuDNN's (`T5Config.attention = "cudnn"`)."""

from typing import Literal

import jax


def attention(
    query_BxTxHxD: jax.Array,
    key_BxSxHxD: jax.Array,
    value_BxSxHxD: jax.Array,
    bias: jax.Array | None,
    query_lengths: jax.Array | None,
    key_lengths: jax.Array | None,
    *,
    causal: bool,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """Attention in one kernel, [B, T, H, D]: the scores are never written to memory. No dropout.

    cuDNN's flash attention wants bfloat16 and even T and S, and takes the lengths of the rows:
    a mask would be merged with the bias into an array [B, H, T, S].

    Args:
      bias: float32 [1, H, T, S].
      query_lengths, key_lengths: int32 [B], real tokens of each row.
      causal: a query sees no key after it.
    """
    return jax.nn.dot_product_attention(
        query_BxTxHxD,
        key_BxSxHxD,
        value_BxSxHxD,
        bias=None if bias is None else bias.astype(query_BxTxHxD.dtype),
        scale=1.0,
        is_causal=causal,
        query_seq_lengths=query_lengths,
        key_value_seq_lengths=key_lengths,
        implementation=implementation,
    )
