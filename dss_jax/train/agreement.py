"""The mutual-information term: a student's rationale is drawn towards what its label says.

Chen et al. 2024 (MI-DSS, arXiv 2403.03348) maximise a bound of the mutual information of the two
tasks' outputs. In their released code that is: of each example, the largest probability of each
piece of the vocabulary over the label's tokens, and over the rationale's; then the cross entropy
of the second, taken as logits, against the first, taken as given. Here padding takes no part.

Shape letters: B rows, T target length, V vocabulary, N examples of the whole batch.
"""

import jax
import jax.numpy as jnp

from dss_jax.core.ids import LABEL, RATIONALE
from dss_jax.layouts.blocks import Batch, Block


def pooled(logits_BxTxV: jax.Array, block: Block, examples: int) -> jax.Array:
    """The largest probability of each piece in each example's label and rationale, of a block with
    `decoder_examples`: float32 [B, T, V] -> [2, N, V], 0 where it has no token of an example.
    """
    probs_MxV = jax.nn.softmax(logits_BxTxV, axis=-1).reshape(-1, logits_BxTxV.shape[-1])
    role_M = jnp.asarray(block.decoder_roles).reshape(-1)
    example_M = jnp.asarray(block.decoder_examples).reshape(-1)
    # Labels first; padding goes into a segment of its own, which is thrown away.
    segment_M = jnp.where(role_M == RATIONALE, examples, 0) + example_M
    segment_M = jnp.where(role_M == 0, 2 * examples, segment_M)
    largest = jax.ops.segment_max(probs_MxV, segment_M, 2 * examples + 1)[:-1]
    return jnp.maximum(largest, 0.0).reshape(2, examples, -1)


def count_pairs(batch: Batch, examples: int) -> jax.Array:
    """How many examples have both tasks, float32 scalar."""
    has = jnp.zeros((2, examples), bool)
    for block in batch:
        roles, numbers = jnp.asarray(block.decoder_roles), jnp.asarray(block.decoder_examples)
        for k, role in enumerate((LABEL, RATIONALE)):
            has = has.at[k, numbers].max(roles == role)
    return jnp.sum(has[0] & has[1]).astype(jnp.float32)


def disagreement(pooled_2xNxV: jax.Array) -> jax.Array:
    """The cross entropy, summed over the examples that have both tasks: float32 scalar."""
    label_NxV, rationale_NxV = jax.lax.stop_gradient(pooled_2xNxV[0]), pooled_2xNxV[1]
    losses_N = -jnp.sum(label_NxV * jax.nn.log_softmax(rationale_NxV, axis=-1), axis=-1)
    both_N = jnp.any(pooled_2xNxV > 0, axis=-1).all(axis=0)
    return jnp.sum(jnp.where(both_N, losses_N, 0.0))
