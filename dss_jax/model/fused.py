"""Attention in one kernel of cuDNN's (`T5Config.attention = "cudnn"`)."""

from typing import Literal

import jax
import jax.numpy as jnp


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


def lengths(
    encoder_mask: jax.Array, decoder_mask: jax.Array | None, decoder_length: int
) -> tuple[jax.Array, jax.Array]:
    """Int32 [B], real tokens of encoder's and decoder's rows, from masks bool [B, 1, 1, S]; of a
    decoder without a mask the whole length. A row without a token has 1, or the kernel would have
    nothing to divide by.
    """

    def of(mask_Bx1x1xS: jax.Array) -> jax.Array:
        return jnp.maximum(jnp.sum(mask_Bx1x1xS, axis=(1, 2, 3), dtype=jnp.int32), 1)

    encoder = of(encoder_mask)
    full = jnp.full_like(encoder, decoder_length)
    return encoder, full if decoder_mask is None else of(decoder_mask)
