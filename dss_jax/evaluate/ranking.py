"""Predicts the most probable of each row's allowed labels.

Shape letters: B inputs, S input length, C candidates an input, T candidate length, V vocabulary.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.ids import EOS_ID, PAD_ID
from dss_jax.data.store import Slices, StoreSplit
from dss_jax.data.vocabulary import SentencePiece
from dss_jax.evaluate.engine import rows_at_once
from dss_jax.layouts.batches import eval_batches
from dss_jax.layouts.layout import pad_rows, round_up
from dss_jax.model.sampling import log_probs_of
from dss_jax.model.t5 import T5
from dss_jax.train.compile import first_together
from dss_jax.train.sharding import batch_sharding, on_mesh, put_whole
from dss_jax.train.step import Program


class LabelRanker:
    """Compiled once for each shape of a batch."""

    def __init__(self, run: config.Run, program: Program, vocabulary: SentencePiece) -> None:
        self._run, self._program, self._vocabulary = run, program, vocabulary
        params = jax.tree.map(lambda x: x.sharding, program.abstract_params)
        rows = batch_sharding(program.mesh)
        self._score: Callable[[Any, Any, Any], jax.Array] = first_together(
            jax.jit(
                lambda *args: candidate_log_probs(program.model, *args),
                in_shardings=(params, rows, rows),
                out_shardings=NamedSharding(program.mesh, PartitionSpec()),
            )
        )

    def _labels(self, split: StoreSplit, rows: np.ndarray) -> list[list[str]]:
        labels = [json.loads(split.text("allowed_labels")[int(row)]) for row in rows]
        if [] in labels:
            raise UsageError(
                f"row {rows[labels.index([])]} of the split has no list of allowed labels, so "
                "there is nothing to rank. Give another --decode (greedy, beam or sample), or set "
                "Example.allowed_labels in the task file."
            )
        return labels

    def _tokens(self, labels: Sequence[Sequence[str]]) -> np.ndarray:
        """int32 [N, C, T], EOS at the end of each label."""
        ids = [[[*self._vocabulary.encode(text), EOS_ID] for text in row] for row in labels]
        longest = max(len(label) for row in ids for label in row)
        length = int(round_up(longest, self._run.data.length_multiple))
        tokens = np.zeros((len(ids), max(map(len, ids)), length), np.int32)
        for n, row in enumerate(ids):
            for c, label in enumerate(row):
                tokens[n, c, : len(label)] = label
        return tokens

    def __call__(
        self, params: Any, split: StoreSplit, inputs: Slices, rows: np.ndarray, input_length: int
    ) -> list[dict[str, Any]]:
        """The predictions of rows, in their order, with the log-probability of each label. Raises
        UsageError: a row has no allowed labels.
        """
        labels = self._labels(split, rows)
        if not labels:
            return []
        tokens_NxCxT = self._tokens(labels)
        predictions: list[dict[str, Any]] = []
        mesh = self._program.mesh
        # As many sequences at once as a batch has when it is decoded.
        at_once = max(1, self._run.evaluate.batch_size // tokens_NxCxT.shape[1])
        for at in eval_batches(np.arange(len(rows)), rows_at_once(len(rows), at_once, mesh)):
            padded = pad_rows(inputs, np.where(at < 0, -1, rows[at]), input_length)
            candidates = tokens_NxCxT[np.maximum(at, 0)]
            with on_mesh(mesh, self._run.mesh.logical_axis_rules):
                scores = self._score(params, *put_whole((padded, candidates), mesh))
            for n, log_probs in zip(at[at >= 0], np.asarray(scores), strict=False):
                found = dict(zip(labels[n], map(float, log_probs), strict=False))
                best = labels[n][int(np.argmax(log_probs[: len(labels[n])]))]
                prediction = {"prediction": best, "log_prob": found[best]}
                predictions.append(prediction | {"label_log_probs": found})
        return predictions


def candidate_log_probs(
    model: T5, params: Any, encoder_input_tokens: jax.Array, candidates_BxCxT: jax.Array
) -> jax.Array:
    """The log-probability of each candidate, given its input, which is encoded once.

    Args:
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
    logits = t5.decode(encoded_BxSxE, encoder_input_tokens, shifted, candidates)
    logits_BxCxTxV = logits.reshape(batch_size, candidates, length, -1)
    log_probs_BxCxT = log_probs_of(candidates_BxCxT, logits_BxCxTxV)
    real_BxCxT = candidates_BxCxT != PAD_ID
    sums_BxC = jnp.sum(jnp.where(real_BxCxT, log_probs_BxCxT, 0.0), axis=-1)
    return jnp.where(jnp.any(real_BxCxT, axis=-1), sums_BxC, -jnp.inf)
