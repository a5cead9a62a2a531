"""Floating-point operations of T5, from the lengths of its rows. Standard library only.

Counted are matrix products, two operations for each multiply-add, as is usual for a utilisation
(Chowdhery et al. 2022, PaLM, appendix B); norms, softmax, dropout and the optimiser are left out.
With d = emb_dim, hk = num_heads * head_dim, f = mlp_dim, m = 3 products with a gate and 2 without,
a row of S input and T target tokens takes in the forward pass

  S * 2 L_e (4 d hk + m d f)     encoder: query, key, value, out, feed-forward
  S * S * 4 L_e hk               encoder: scores and their product with the values
  S * 4 L_d d hk                 keys and values of the encoder for each decoder layer
  T * 2 L_d (6 d hk + m d f)     decoder: self-attention's four, cross-attention's two, feed-forward
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

    Attributes:
      encoder_tokens: sum of S.
      decoder_tokens: sum of T.
      logit_tokens: target tokens whose logits are computed; sum of T unless padding is left out.
      encoder_pairs, decoder_pairs, cross_pairs: sums of S * S, T * T and T * S.
    """

    encoder_tokens: int = 0
    decoder_tokens: int = 0
    logit_tokens: int = 0
    encoder_pairs: int = 0
    decoder_pairs: int = 0
    cross_pairs: int = 0

    def plus(self, other: "Work") -> "Work":
        """Both together."""
        return Work(*(a + b for a, b in zip(self, other, strict=True)))


def work_of_rows(lengths: Iterable[tuple[int, int]]) -> Work:
    """The work of rows, given (input length, target length) of each."""
    rows = list(lengths)
    targets = sum(t for _, t in rows)
    return Work(
        encoder_tokens=sum(s for s, _ in rows),
        decoder_tokens=targets,
        logit_tokens=targets,
        encoder_pairs=sum(s * s for s, _ in rows),
        decoder_pairs=sum(t * t for _, t in rows),
        cross_pairs=sum(s * t for s, t in rows),
    )


def work_of_shape(rows: int, input_length: int, target_length: int) -> Work:
    """The work of `rows` rows that are all padded to the same lengths."""
    return Work(*(rows * n for n in work_of_rows([(input_length, target_length)])))


def forward_flops(model: T5Config, work: Work) -> int:
    """Operations of a forward pass.

    Args:
      model: its shape; `vocab_size` is a number.
      work: of the rows.
    """
    assert model.vocab_size is not None
    d, hk = model.emb_dim, model.num_heads * model.head_dim
    feed_forward = (len(model.mlp_activations) + 1) * d * model.mlp_dim
    encoders, decoders = model.num_encoder_layers, model.num_decoder_layers
    return (
        work.encoder_tokens * 2 * encoders * (4 * d * hk + feed_forward)
        + work.encoder_pairs * 4 * encoders * hk
        + work.encoder_tokens * 4 * decoders * d * hk
        + work.decoder_tokens * 2 * decoders * (6 * d * hk + feed_forward)
        + (work.decoder_pairs + work.cross_pairs) * 4 * decoders * hk
        + work.logit_tokens * 2 * d * model.vocab_size
    )


def training_flops(model: T5Config, work: Work) -> int:
    """Operations of a training step: the forward pass and twice as much for the backward pass.

    What `T5Config.remat_policy` computes again is not counted: it is not useful work.
    """
    return TRAINING * forward_flops(model, work)
