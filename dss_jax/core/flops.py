"""Floating-point operations of T5, from the lengths of its rows.

Standard library only.

Counted are matrix products, two operations for each multiply-add, as is usual for a utilisation
(Chowdhery et al. 2022, PaLM, appendix B); norms, softmax, dropout and the optimiser are left out.
With d = emb_dim, hk = num_heads * head_dim, f = mlp_dim, m = 3 products with a gate and 2 without,
and kv = hk but in T5Gemma, whose encoder also has sizes of its own, a row of S input and T target
tokens takes in the forward pass

  S * 2 L_e (2 d hk + 2 d kv + m d f)  encoder: query, out, key, value, feed-forward
  S * S * 4 L_e hk               encoder: scores and their product with the values
  S * 4 L_d d kv                 keys and values of the encoder, of width d, for each decoder layer
  T * 2 L_d (4 d hk + 2 d kv + m d f)  decoder: two attentions, but for the line above, feed-forward
  T * (T + S) * 4 L_d hk         decoder: scores, of both attentions
  T * 2 d V                      logits

The causal half of T * T is not taken off: the products are computed whole. The backward pass takes
twice the forward pass. `tests/test_flops.py` holds all this against XLA's own count.
"""

from collections.abc import Iterable
from typing import NamedTuple

from dss_jax.core.t5_config import T5Config

TRAINING = 3
"""Forward and backward pass, in forward passes."""


class Work(NamedTuple):
    """What decides the operations: sums over rows. Real tokens give the useful work; the slots of
    a static shape, padding included, give the executed work.
    """

    encoder_tokens: int = 0  # Sum of S.
    decoder_tokens: int = 0  # Sum of T.
    # Target tokens whose logits are computed; sum of T unless padding is left out.
    logit_tokens: int = 0
    # Sums of S * S, T * T and T * S.
    encoder_pairs: int = 0
    decoder_pairs: int = 0
    cross_pairs: int = 0

    def plus(self, other: "Work") -> "Work":
        """Both together."""
        return Work(*(a + b for a, b in zip(self, other, strict=True)))


def work_of_rows(lengths: Iterable[tuple[int, int]]) -> Work:
    """The work of rows, given (input length, target length) of each."""
    rows = [(s, t, t, s * s, t * t, s * t) for s, t in lengths]
    return Work(*map(sum, zip(*rows, strict=True))) if rows else Work()


def work_of_shape(rows: int, input_length: int, target_length: int) -> Work:
    """The work of `rows` rows that are all padded to the same lengths."""
    return Work(*(rows * n for n in work_of_rows([(input_length, target_length)])))


def forward_flops(model: T5Config, work: Work) -> int:
    """Operations of a forward pass of a model whose `vocab_size` is a number."""
    assert model.vocab_size is not None
    sides = [(model, model.num_heads)] * 2
    if model.gemma is not None:
        from dss_jax.core.t5gemma import encoder_of, of

        sides = [(side, of(side).num_kv_heads) for side in (encoder_of(model), model)]
    sizes = [(m.emb_dim, m.num_heads * m.head_dim, heads * m.head_dim) for m, heads in sides]
    (width, encoder_hk, encoder_kv), (d, hk, kv) = sizes
    products = len(model.mlp_activations) + 1
    own, feed_forward = (products * m.emb_dim * m.mlp_dim for m, _ in sides)
    encoders, decoders = model.num_encoder_layers, model.num_decoder_layers
    return (
        work.encoder_tokens * 2 * encoders * (2 * width * (encoder_hk + encoder_kv) + own)
        + work.encoder_pairs * 4 * encoders * encoder_hk
        + work.encoder_tokens * 4 * decoders * width * kv
        + work.decoder_tokens * 2 * decoders * (d * (4 * hk + 2 * kv) + feed_forward)
        + (work.decoder_pairs + work.cross_pairs) * 4 * decoders * hk
        + work.logit_tokens * 2 * d * model.vocab_size
    )


def training_flops(model: T5Config, work: Work) -> int:
    """Operations of a training step: the forward pass and twice as much for the backward pass.

    What `T5Config.remat_policy` computes again is not counted: it is not useful work.
    """
    return TRAINING * forward_flops(model, work)
