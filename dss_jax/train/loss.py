"""The two-task loss: alpha * mean(label tokens) + (1 - alpha) * mean(rationale tokens).

Hsieh et al. 2023 (arXiv 2305.02301), section 3.2; each mean is over the task's own real tokens in
the global batch, as in the authors' released code. Mixture rates with a token-summed loss are
something else: a rationale has 3 to 10 times the tokens of a label, so the label would drown.

Shape letters: B rows, T target length, V vocabulary, K = 2 tasks (label, rationale).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dss_jax.core import config
from dss_jax.data.blocks import LABEL, RATIONALE, Batch, Block
from dss_jax.model.t5 import T5

MIN_COUNT = 1.0
"""A task without a token in the batch has loss 0, not 0 / 0."""


class TaskSums(NamedTuple):
    """Sums over the real tokens of each task, float32 [K]."""

    loss: jax.Array
    correct: jax.Array
    tokens: jax.Array


def token_losses(logits_BxTxV: jax.Array, targets_BxT: jax.Array, cfg: config.Loss) -> jax.Array:
    """Cross entropy of each token, with label smoothing and z-loss as T5X has them.

    Args:
      logits_BxTxV: float32.
      targets_BxT: int32; padding gives a number too, which the caller masks.
      cfg: the coefficients.

    Returns:
      float32 [B, T]. Label smoothing gives the off-target tokens `s / (V - 1)` each and takes
      the entropy of that target distribution off, so that the least loss is 0
      (t5x.losses.compute_weighted_cross_entropy).
    """
    vocab_size = logits_BxTxV.shape[-1]
    log_z_BxT = jax.nn.logsumexp(logits_BxTxV, axis=-1)
    target_logits_BxT = jnp.take_along_axis(logits_BxTxV, targets_BxT[..., None], axis=-1)[..., 0]
    loss_BxT = log_z_BxT - target_logits_BxT
    if cfg.label_smoothing:
        low = cfg.label_smoothing / (vocab_size - 1)
        high = 1.0 - cfg.label_smoothing
        all_BxT = vocab_size * log_z_BxT - jnp.sum(logits_BxTxV, axis=-1)
        entropy = -(high * jnp.log(high) + (vocab_size - 1) * low * jnp.log(low + 1e-20))
        loss_BxT = (high - low) * loss_BxT + low * all_BxT - entropy
    if cfg.z_loss:
        loss_BxT += cfg.z_loss * jnp.square(log_z_BxT)
    return loss_BxT


def count_tokens(batch: Batch) -> jax.Array:
    """Real target tokens of each task in the batch: float32 [K]."""
    per_block = [
        jnp.stack([jnp.sum(block.decoder_roles == role) for role in (LABEL, RATIONALE)])
        for block in batch
    ]
    return sum(per_block[1:], per_block[0]).astype(jnp.float32)


def _block_sums(
    model: T5, params: dict, block: Block, cfg: config.Loss, dropout_key: jax.Array | None
) -> TaskSums:
    logits_BxTxV = model.apply(
        {"params": params},
        block,
        method="block_logits",
        deterministic=dropout_key is None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
    )
    assert isinstance(logits_BxTxV, jax.Array)
    targets_BxT = jnp.asarray(block.decoder_target_tokens)
    losses_BxT = token_losses(logits_BxTxV, targets_BxT, cfg)
    hits_BxT = jnp.argmax(logits_BxTxV, axis=-1) == targets_BxT
    masks = [block.decoder_roles == role for role in (LABEL, RATIONALE)]
    return TaskSums(
        loss=jnp.stack([jnp.sum(jnp.where(m, losses_BxT, 0.0)) for m in masks]),
        correct=jnp.stack([jnp.sum(m & hits_BxT) for m in masks]).astype(jnp.float32),
        tokens=jnp.stack([jnp.sum(m) for m in masks]).astype(jnp.float32),
    )


def task_sums(
    model: T5, params: dict, batch: Batch, cfg: config.Loss, dropout_key: jax.Array | None
) -> TaskSums:
    """Sums over all blocks of a batch. No dropout where `dropout_key` is None."""
    keys = [
        None if dropout_key is None else jax.random.fold_in(dropout_key, i)
        for i in range(len(batch))
    ]
    parts = [
        _block_sums(model, params, block, cfg, key) for block, key in zip(batch, keys, strict=True)
    ]
    return jax.tree.map(lambda *xs: sum(xs[1:], xs[0]), *parts)


def task_weights(cfg: config.Loss, method: config.Method) -> tuple[float, float]:
    """Weights of the label and the rationale task; a method without rationales has (1, 0)."""
    return (cfg.alpha, 1.0 - cfg.alpha) if method.rationale else (1.0, 0.0)


def weighted_loss(
    loss_sums_K: jax.Array, tokens_K: jax.Array, weights: tuple[float, float]
) -> jax.Array:
    """alpha * mean + (1 - alpha) * mean, float32 scalar.

    Args:
      loss_sums_K: summed losses of each task, perhaps of a part of the batch.
      tokens_K: real tokens of each task in the whole batch.
      weights: of the tasks.
    """
    return jnp.sum(jnp.asarray(weights) * loss_sums_K / jnp.maximum(tokens_K, MIN_COUNT))
