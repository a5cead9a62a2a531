"""How probable given targets are.

Shape letters: B inputs, S input length, C candidates an input, T candidate length, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dss_jax.core.ids import PAD_ID
from dss_jax.model.sampling import log_probs_of
from dss_jax.model.t5 import T5


def candidate_log_probs(
    model: T5, params: Any, encoder_input_tokens: jax.Array, candidates_BxCxT: jax.Array
) -> jax.Array:
    """The log-probability of each candidate, given its input.

    The input is encoded once, and its candidates share the encoder's keys and values.

    Args:
      model, params: the model and its parameters.
      encoder_input_tokens: int32 [B, S], 0 is padding.
      candidates_BxCxT: int32, targets with EOS, padded with 0; one of padding only is no candidate.

    Returns:
      float32 [B, C]: summed over the candidate's tokens, EOS included; -inf where there is none.
    """
    batch_size, candidates, length = candidates_BxCxT.shape
    shifted_BxCxT = jnp.pad(candidates_BxCxT, ((0, 0), (0, 0), (1, 0)))[..., :-1]
    t5 = model.bind({"params": params})
    encoded_BxSxE = t5.encode(encoder_input_tokens)
    shifted = shifted_BxCxT.reshape(batch_size, candidates * length)
    logits = t5.decode(encoded_BxSxE, encoder_input_tokens, shifted, candidates=candidates)
    logits_BxCxTxV = logits.reshape(batch_size, candidates, length, -1)
    log_probs_BxCxT = log_probs_of(candidates_BxCxT, logits_BxCxTxV)
    real_BxCxT = candidates_BxCxT != PAD_ID
    sums_BxC = jnp.sum(jnp.where(real_BxCxT, log_probs_BxCxT, 0.0), axis=-1)
    return jnp.where(jnp.any(real_BxCxT, axis=-1), sums_BxC, -jnp.inf)
