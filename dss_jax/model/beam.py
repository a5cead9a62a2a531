"""Beam search, after the rules of Hugging Face's `generate` or of T5X.

Shape letters: B inputs, K beams, T longest output, V vocabulary, C = 2 * K candidates.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dss_jax.core.t5_config import Beam
from dss_jax.model.decoding import Chosen, Decoded, Search, gather, where_rows

DEAD = -1e9
"""Log-probability of a beam that is not there; finite, as in both references."""


class Hypotheses(NamedTuple):
    """Sequences [B, n, T], their log-probabilities and scores [B, n], and which are there."""

    tokens: jax.Array
    log_probs: jax.Array
    scores: jax.Array
    real: jax.Array


class BeamState(NamedTuple):
    """Beams that go on, whose score is the log-probability, and those that have ended, whose score
    is normalised by length.
    """

    live: Hypotheses
    ended: Hypotheses


def _top_k(scores_BxKxV: jax.Array, n: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The n best of all beams: scores, beams and tokens, each [B, n]. Two stages: the first sorts
    each beam's vocabulary alone, which stays on its device and is short.
    """
    vocabulary = scores_BxKxV.shape[-1]
    of_beam_BxKxN, token_BxKxN = jax.lax.top_k(scores_BxKxV, min(n, vocabulary))
    flat = of_beam_BxKxN.reshape(of_beam_BxKxN.shape[0], -1)
    best_BxN, at_BxN = jax.lax.top_k(flat, n)
    beam_BxN = at_BxN // of_beam_BxKxN.shape[-1]
    return best_BxN, beam_BxN, gather(token_BxKxN.reshape(flat.shape), at_BxN)


@dataclass(frozen=True)
class BeamSearch(Search):
    """Keeps the K best beginnings; gives the K best sequences, or those so far where none ended."""

    settings: Beam

    @property
    def width(self) -> int:
        return self.settings.num_beams

    def start(self, ids_B: jax.Array, max_decode_length: int) -> BeamState:
        # One empty live beam; the others are dead, so that the first tokens all differ.
        shape = (ids_B.shape[0], self.width)
        tokens = jnp.zeros((*shape, max_decode_length), jnp.int32)
        dead, none = jnp.full(shape, DEAD, jnp.float32), jnp.zeros(shape, bool)
        first = dead.at[:, 0].set(0.0)
        return BeamState(
            live=Hypotheses(tokens, first, first, none), ended=Hypotheses(tokens, dead, dead, none)
        )

    def _norm(self, length: jax.Array | int) -> jax.Array:
        """What a log-probability is divided by."""
        length = jnp.asarray(length, jnp.float32)
        if self.settings.rule == "t5x":
            length = (5.0 + length) / 6.0
        return length**self.settings.length_penalty

    def _hopeless(self, live: Hypotheses, ended: Hypotheses, position: jax.Array) -> jax.Array:
        """Bool [B]: no live beam can come among the ended ones any more."""
        longest = live.tokens.shape[-1]
        worst_B = jnp.min(jnp.where(ended.real, ended.scores, DEAD), axis=1)
        best_live_B = jnp.max(live.log_probs, axis=1)
        if self.settings.rule == "t5x":
            # T5X counts the start token here, so its bound is that of one token more.
            return worst_B > best_live_B / self._norm(longest + 1)
        hopeful = self.settings.early_stopping == "never" and self.settings.length_penalty > 0
        possible_B = best_live_B / self._norm(longest if hopeful else position + 1)
        hopeless_B = jnp.all(ended.real, axis=1) & (possible_B <= worst_B)
        if self.settings.early_stopping is True:
            hopeless_B |= jnp.all(ended.real, axis=1)
        return hopeless_B

    def choose(self, state: BeamState, logits_BxKxV: jax.Array, position: jax.Array) -> Chosen:
        beams, longest = self.width, state.live.tokens.shape[-1]
        log_probs_BxKxV = jax.nn.log_softmax(logits_BxKxV, axis=-1)
        log_probs_BxKxV = self.without_eos(log_probs_BxKxV, position)
        totals_BxKxV = state.live.log_probs[..., None] + log_probs_BxKxV
        # 2 K, so that K go on even where the K best all end.
        totals_BxC, parents_BxC, tokens_BxC = _top_k(totals_BxKxV, 2 * beams)
        sequences_BxCxT = jax.lax.dynamic_update_slice(
            gather(state.live.tokens, parents_BxC), tokens_BxC[..., None], (0, 0, position)
        )
        ends_BxC = tokens_BxC == self.eos_id
        closes_BxC = ends_BxC
        if self.settings.rule == "hf":
            last = position + 1 == longest
            closes_BxC = (ends_BxC | last) & (jnp.arange(2 * beams) < beams)[None, :]
        scores_BxC = jnp.where(closes_BxC, totals_BxC / self._norm(position + 1), DEAD)
        new = Hypotheses(sequences_BxCxT, totals_BxC, scores_BxC, closes_BxC)
        both = jax.tree.map(lambda *pair: jnp.concatenate(pair, axis=1), state.ended, new)
        _, best_BxK = jax.lax.top_k(both.scores, beams)
        ended = Hypotheses(*(gather(x, best_BxK) for x in both))
        live_scores_BxC = jnp.where(ends_BxC, DEAD, totals_BxC)
        _, at_BxK = jax.lax.top_k(live_scores_BxC, beams)
        log_probs_BxK = gather(live_scores_BxC, at_BxK)
        sequences_BxKxT = gather(sequences_BxCxT, at_BxK)
        all_BxK = jnp.ones_like(log_probs_BxK, dtype=bool)
        live = Hypotheses(sequences_BxKxT, log_probs_BxK, log_probs_BxK, all_BxK)
        tokens_BxK, parents_BxK = (gather(x, at_BxK) for x in (tokens_BxC, parents_BxC))
        hopeless_B = self._hopeless(live, ended, position)
        return Chosen(BeamState(live, ended), tokens_BxK, parents_BxK, hopeless_B)

    def finish(self, state: BeamState) -> Decoded:
        none_B = ~jnp.any(state.ended.real, axis=1)
        tokens, log_probs, scores, real = map(partial(where_rows, none_B), state.live, state.ended)
        tokens = jnp.where(real[..., None], tokens, 0)
        return Decoded(tokens, jnp.where(real, log_probs, DEAD), scores)
