"""The two-task loss: alpha * mean(label tokens) + (1 - alpha) * mean(rationale tokens).

Hsieh et al. 2023 (arXiv 2305.02301), section 3.2; each mean is over the task's own real tokens in
the global batch, as in the authors' released code. Mixture rates with a token-summed loss are
something else: a rationale has 3 to 10 times the tokens of a label, so the label would drown.

Shape letters: B rows, T target length, V vocabulary, K = 2 tasks (label, rationale).
"""

from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dss_jax.core import config
from dss_jax.core.ids import LABEL, RATIONALE
from dss_jax.layouts.blocks import Batch, Block
from dss_jax.model.t5 import T5

MIN_COUNT = 1.0
"""A task without a token in the batch has loss 0, not 0 / 0."""


class TaskSums(NamedTuple):
    """Sums over the real tokens of each task, float32 [K]; `disagreement` is that of
    `dss_jax.train.agreement`, a float32 scalar, None where it is off.
    """

    loss: jax.Array
    correct: jax.Array
    tokens: jax.Array
    disagreement: jax.Array | None = None


def token_losses(logits_BxTxV: jax.Array, targets_BxT: jax.Array, cfg: config.Loss) -> jax.Array:
    """Cross entropy of each token, with label smoothing and z-loss as T5X has them: float32
    [B, T, V], int32 -> float32. Padding gives a number too, which the caller masks.

    Label smoothing gives the off-target tokens `s / (V - 1)` each and takes the entropy of that
    distribution off, so that the least loss is 0 (t5x.losses.compute_weighted_cross_entropy).
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


def hits(logits_BxTxV: jax.Array, targets_BxT: jax.Array) -> jax.Array:
    """Bool [B, T]: no logit is above the target's. An argmax would read all logits once more."""
    of_targets = jnp.take_along_axis(logits_BxTxV, targets_BxT[..., None], axis=-1)[..., 0]
    return of_targets >= jnp.max(logits_BxTxV, axis=-1)


def count_tokens(batch: Batch) -> jax.Array:
    """Real target tokens of each task in the batch: float32 [K]."""
    per_block = [
        _sums(block.decoder_roles == role for role in (LABEL, RATIONALE)) for block in batch
    ]
    return sum(per_block[1:], per_block[0]).astype(jnp.float32)


def _sums(of_tasks: Iterable[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.sum(x) for x in of_tasks])


def _block_sums(
    model: T5,
    params: dict,
    block: Block,
    cfg: config.Loss,
    dropout_key: jax.Array | None,
    examples: int,
) -> tuple[TaskSums, jax.Array | None]:
    """The sums, and what `agreement.pooled` makes of the block where it is numbered."""
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
    hits_BxT = hits(logits_BxTxV, targets_BxT)
    masks = [block.decoder_roles == role for role in (LABEL, RATIONALE)]
    sums = TaskSums(
        loss=_sums(jnp.where(m, losses_BxT, 0.0) for m in masks),
        correct=_sums(m & hits_BxT for m in masks).astype(jnp.float32),
        tokens=_sums(masks).astype(jnp.float32),
    )
    if block.decoder_examples is None:
        return sums, None
    from dss_jax.train import agreement

    return sums, agreement.pooled(logits_BxTxV, block, examples)


def task_sums(
    model: T5,
    params: dict,
    batch: Batch,
    cfg: config.Loss,
    dropout_key: jax.Array | None,
    examples: int = 0,
) -> TaskSums:
    """Sums over all blocks of a batch. No dropout where `dropout_key` is None.

    `examples`: of the whole batch, where its blocks have `decoder_examples`.
    """
    found = []
    for i, block in enumerate(batch):
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, i)
        found.append(_block_sums(model, params, block, cfg, key, examples))
    parts, pooled = zip(*found, strict=True)
    total = jax.tree.map(lambda *xs: sum(xs[1:], xs[0]), *parts)
    if pooled[0] is None:
        return total
    from dss_jax.train import agreement

    largest = reduce(jnp.maximum, pooled)
    return total._replace(disagreement=agreement.disagreement(largest))


def alpha_at(cfg: config.Loss, step: jax.Array, steps: int) -> jax.Array:
    """Weight of the label task after `step` updates, int32 scalar, of the run's `steps`: float32
    scalar; see `config.Loss`.
    """
    if cfg.alpha_schedule == "constant":
        return jnp.float32(cfg.alpha)
    from dss_jax.train import alpha

    return alpha.scheduled(cfg, step, steps)


def task_weights(
    cfg: config.Loss, method: config.Method, alpha: float | jax.Array | None = None
) -> tuple[float | jax.Array, float | jax.Array]:
    """Weights of the label and the rationale task; a method without rationales has (1, 0).

    `alpha`: of the step; None: `cfg.alpha`.
    """
    if not method.rationale:
        return 1.0, 0.0
    alpha = cfg.alpha if alpha is None else alpha
    return alpha, 1.0 - alpha


def weighted_loss(
    loss_sums_K: jax.Array, tokens_K: jax.Array, weights: tuple[float | jax.Array, ...]
) -> jax.Array:
    """alpha * mean + (1 - alpha) * mean, float32 scalar: of the summed losses of each task, perhaps
    of a part of the batch, over its real tokens in the whole batch.
    """
    return jnp.sum(jnp.asarray(weights) * loss_sums_K / jnp.maximum(tokens_K, MIN_COUNT))
