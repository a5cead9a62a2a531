"""Greedy decoding and sampling: each sequence goes its own way.

Shape letters: B inputs, K sequences an input, T longest output, V vocabulary.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dss_jax.core.ids import PAD_ID
from dss_jax.core.t5_config import GREEDY, Sample
from dss_jax.model import matmul
from dss_jax.model.decoding import Chosen, Decoded, Search

_CHUNK = 128


def first_argmax(x: jax.Array) -> jax.Array:
    """`argmax` of the last axis; on CPU in two stages, where XLA's own is 15 times slower at 32k.

    Elsewhere in one: a vocabulary that a mesh shares out does not fall into chunks evenly, and the
    logits would be gathered whole on each device.
    """
    *rows, size = x.shape
    if size % _CHUNK or not matmul.on_cpu():
        return jnp.argmax(x, axis=-1).astype(jnp.int32)
    chunks = x.reshape(*rows, size // _CHUNK, _CHUNK)
    chunk = jnp.argmax(chunks.max(axis=-1), axis=-1)
    inside = jnp.take_along_axis(chunks, chunk[..., None, None], axis=-2)[..., 0, :]
    return (chunk * _CHUNK + jnp.argmax(inside, axis=-1)).astype(jnp.int32)


def log_probs_of(tokens: jax.Array, logits: jax.Array) -> jax.Array:
    """The log-probability of each token: int [...], float32 [..., V] -> float32 [...]."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


class SampleState(NamedTuple):
    """Sequences so far, their log-probabilities, and which inputs they belong to."""

    ids_B: jax.Array
    tokens_BxKxT: jax.Array
    log_probs_BxK: jax.Array
    ended_BxK: jax.Array


def processed(logits: jax.Array, settings: Sample) -> jax.Array:
    """Logits [..., V] of the distribution that is drawn from, -inf where its probability is 0."""
    logits = logits / settings.temperature
    if settings.top_k:
        least = jax.lax.top_k(logits, min(settings.top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if settings.top_p < 1:
        descending = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(descending, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        # The most likely token always stays.
        stays = (before < settings.top_p).at[..., 0].set(True)
        least = jnp.min(jnp.where(stays, descending, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


@dataclass(frozen=True)
class SampleSearch(Search):
    """Draws each token from the model's distribution, or takes the most likely one. Gives the
    sequences in the order of their numbers.
    """

    settings: Sample = GREEDY

    @property
    def width(self) -> int:
        return self.settings.num_samples

    def start(self, ids_B: jax.Array, max_decode_length: int) -> SampleState:
        shape = (ids_B.shape[0], self.width)
        return SampleState(
            ids_B=ids_B,
            tokens_BxKxT=jnp.zeros((*shape, max_decode_length), jnp.int32),
            log_probs_BxK=jnp.zeros(shape, jnp.float32),
            ended_BxK=jnp.zeros(shape, bool),
        )

    def _draw(self, logits_BxKxV: jax.Array, ids_B: jax.Array, position: jax.Array) -> jax.Array:
        def one(logits_V: jax.Array, input_id: jax.Array, sample: jax.Array) -> jax.Array:
            key = jax.random.fold_in(jax.random.key(self.settings.seed), input_id)
            key = jax.random.fold_in(jax.random.fold_in(key, sample), position)
            return jax.random.categorical(key, logits_V)

        of_inputs = jax.vmap(jax.vmap(one, in_axes=(0, None, 0)), in_axes=(0, 0, None))
        return of_inputs(processed(logits_BxKxV, self.settings), ids_B, jnp.arange(self.width))

    def choose(self, state: SampleState, logits_BxKxV: jax.Array, position: jax.Array) -> Chosen:
        allowed_BxKxV = self.without_eos(logits_BxKxV, position)
        if self.settings.temperature == 0:
            tokens_BxK = first_argmax(allowed_BxKxV)
        else:
            tokens_BxK = self._draw(allowed_BxKxV, state.ids_B, position)
        log_probs_BxK = log_probs_of(tokens_BxK, logits_BxKxV)
        tokens_BxK = jnp.where(state.ended_BxK, PAD_ID, tokens_BxK).astype(jnp.int32)
        ended_BxK = state.ended_BxK | (tokens_BxK == self.eos_id)
        update, place = jax.lax.dynamic_update_slice, (0, 0, position)
        state = SampleState(
            ids_B=state.ids_B,
            tokens_BxKxT=update(state.tokens_BxKxT, tokens_BxK[..., None], place),
            log_probs_BxK=state.log_probs_BxK + jnp.where(state.ended_BxK, 0.0, log_probs_BxK),
            ended_BxK=ended_BxK,
        )
        return Chosen(state, tokens_BxK, None, jnp.all(ended_BxK, axis=1))

    def finish(self, state: SampleState) -> Decoded:
        return Decoded(state.tokens_BxKxT, state.log_probs_BxK, state.log_probs_BxK)
