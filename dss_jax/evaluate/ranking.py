"""The log-probabilities of each row's allowed labels, and the most probable of them.

The labels of a row are a trie (`dss_jax.evaluate.trie`). Its input is encoded once, and all nodes
of the trie go through the decoder in one pass, where each sees those that it goes on from: what
labels begin with alike is computed once, and no position waits for another.

Shape letters are those of `dss_jax.evaluate.trie`, and S input length, V vocabulary.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.data.store import Slices, StoreSplit
from dss_jax.data.tokenizer import Tokenizer
from dss_jax.evaluate.trie import Ids, Trie, TrieArrays, stacked, trie_of
from dss_jax.layouts.batches import eval_batches
from dss_jax.layouts.layout import pad_rows, round_up
from dss_jax.model.t5 import T5
from dss_jax.train.compile import Compiled
from dss_jax.train.sharding import batch_sharding, data_parallelism, put_whole
from dss_jax.train.step import Program

NODES, EDGES = 4, 16
"""Nodes and edges of a batch are filled up to multiples of these."""

NODES_A_ROW = 4
"""With so many nodes a row, a batch has as many rows as where labels are decoded; with more it has
fewer, for the logits take memory."""

WINDOW = 2
"""Batches of inputs of like lengths, among which rows with like tries are put together."""


class RankBatch(NamedTuple):
    """Inputs, int32 [B, S], 0 is padding, and the tries of their labels."""

    encoder_input_tokens: Any
    tries: TrieArrays


def edge_log_probs(model: T5, params: Any, batch: RankBatch) -> jax.Array:
    """The log-probability of each edge of a batch's tries, under the whole vocabulary: float32
    [B, N], of no meaning where there is no edge.
    """
    tokens, tries = batch
    t5 = model.bind({"params": params})
    logits_BxMxV = t5.decode(
        t5.encode(tokens), tokens, tries.tokens_BxM, tries.positions_BxM, tries.sees_BxMxM
    )
    totals_BxM = jax.nn.logsumexp(logits_BxMxV, axis=-1)
    rows_Bx1 = jnp.arange(len(tokens))[:, None]
    chosen_BxN = logits_BxMxV[rows_Bx1, tries.nodes_BxN, tries.next_BxN]
    return chosen_BxN - totals_BxM[rows_Bx1, tries.nodes_BxN]


class TrieRanker:
    """Ranks labels that are given as ids; compiled once for each shape of a batch, and kept."""

    def __init__(self, run: config.Run, model: T5, mesh: Mesh, params: Any) -> None:
        """Nothing is compiled yet. `params`: those of the plain model, or their shapes, dtypes and
        shardings.
        """
        self._mesh, self._batch_size = mesh, run.evaluate.batch_size
        self._limit, self._config = run.data.input_length, model.config
        jitted = jax.jit(
            lambda params, batch: edge_log_probs(model, params, batch),
            in_shardings=(jax.tree.map(lambda leaf: leaf.sharding, params), batch_sharding(mesh)),
            out_shardings=NamedSharding(mesh, PartitionSpec()),
        )
        self._score = Compiled.kept("rank", run, mesh, jitted, params)

    def __call__(
        self,
        params: Any,
        inputs: Slices,
        rows: np.ndarray,
        labels: Sequence[Sequence[Ids]],
        lengths: Sequence[int],
    ) -> list[np.ndarray]:
        """The log-probabilities of each row's labels, end-of-sequence included: float32 [labels of
        the row], in the order of `rows`.

        Args:
          params: of the plain model.
          inputs: a token column.
          rows: int [N], of the column.
          labels: of each of them, ids without end-of-sequence.
          lengths: the padded input lengths that may be compiled, ascending; longer inputs are cut.
        """
        tries, found = self._tries_of(labels), [np.zeros(0, np.float32)] * len(rows)
        row_lengths = inputs.lengths()[rows]
        for at in self._batches(row_lengths, np.array([len(t.tokens) for t in tries], int)):
            real = at[at >= 0]
            # Places that no row fills have the first one's labels.
            own = [tries[n] for n in np.where(at < 0, real[0], at)]
            longest = int(row_lengths[real].max())
            length = next((s for s in lengths if s >= longest), lengths[-1])
            chosen = np.where(at < 0, -1, rows[at])
            tokens = pad_rows(inputs, chosen, length, self._limit, self._config.pad_token_id)
            arrays = stacked(
                own,
                int(round_up(max(len(t.tokens) for t in own), NODES)),
                int(round_up(max(len(t.edges) for t in own), EDGES)),
            )
            batch = put_whole(RankBatch(tokens, arrays), self._mesh)
            scores = np.asarray(self._score(params, batch))
            for n, log_probs in zip(real, scores, strict=False):
                found[n] = tries[n].scores(log_probs)
        return found

    def _batches(self, lengths: np.ndarray, nodes: np.ndarray) -> list[np.ndarray]:
        """Places of rows with these lengths and nodes, int [N] each, in batches of one size, a
        power of four or the largest: few shapes, whatever the number of rows. -1 is no row.
        """
        if not len(lengths):
            return []
        fitting = max(1, int(self._batch_size * NODES_A_ROW / nodes.mean()))
        most = min(self._batch_size, 1 << (fitting.bit_length() - 1))
        size = next((4**k for k in range(16) if 4**k >= len(lengths)), most)
        size = int(round_up(min(size, most), data_parallelism(self._mesh)))
        order = np.argsort(-lengths, kind="stable")
        windows = np.split(order, range(WINDOW * size, len(order), WINDOW * size))
        order = np.concatenate([w[np.argsort(-nodes[w], kind="stable")] for w in windows])
        return eval_batches(order, size)

    def _tries_of(self, labels: Sequence[Sequence[Ids]]) -> list[Trie]:
        """The trie of each row; rows with the same labels share one."""
        known: dict[tuple, Trie] = {}
        start, eos = self._config.decoder_start_token_id, self._config.eos_token_id
        for row in map(tuple, labels):
            key = tuple(map(tuple, row))
            if key not in known:
                known[key] = trie_of(row, start, eos)
        return [known[tuple(map(tuple, row))] for row in labels]


class LabelRanker:
    """Predicts the most probable of each row's allowed labels."""

    def __init__(self, run: config.Run, program: Program, vocabulary: Tokenizer) -> None:
        self._vocabulary = vocabulary
        self._rank = TrieRanker(run, program.model, program.mesh, program.abstract_params)

    def __call__(
        self,
        params: Any,
        split: StoreSplit,
        inputs: Slices,
        rows: np.ndarray,
        lengths: Sequence[int],
    ) -> list[dict[str, Any]]:
        """The predictions of rows, in their order, with the log-probability of each label; see
        `TrieRanker`. Raises UsageError: a row has no allowed labels.
        """
        labels = [json.loads(split.text("allowed_labels")[int(row)]) for row in rows]
        if [] in labels:
            raise UsageError(
                f"row {rows[labels.index([])]} of the split has no list of allowed labels, so "
                "there is nothing to rank. Give another --decode (greedy, beam or sample), or set "
                "Example.allowed_labels in the task file."
            )
        texts = [*dict.fromkeys(text for row in labels for text in row)]
        ids = dict(zip(texts, self._vocabulary.encode_all(texts), strict=True))
        tokens = [[ids[text] for text in row] for row in labels]
        predictions = []
        for texts, scores in zip(
            labels, self._rank(params, inputs, rows, tokens, lengths), strict=True
        ):
            best = int(np.argmax(scores))
            prediction = {"prediction": texts[best], "log_prob": float(scores[best])}
            found = dict(zip(texts, map(float, scores), strict=True))
            predictions.append(prediction | {"label_log_probs": found})
        return predictions
