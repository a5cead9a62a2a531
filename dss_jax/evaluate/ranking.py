"""The log-probabilities of each row's allowed labels, and the most probable of them.

The labels of a row are a trie (`dss_jax.evaluate.trie`). Its input is encoded once, and all nodes
of the trie go through the decoder in one pass, where each sees those that it goes on from: what
labels begin with alike is computed once, and no position waits for another. Rows lie in streams, as
in layout `flat`, so neither inputs nor tries are padded.

Shape letters are those of `dss_jax.evaluate.trie`, and P tokens of a stream's inputs, S length of
attention's rows of them, V vocabulary.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.data.ragged import Slices, join_rows
from dss_jax.data.store import StoreSplit
from dss_jax.data.tokenizer import Tokenizer
from dss_jax.evaluate.trie import Ids, Trie, trie_of, trie_stream
from dss_jax.evaluate.workers import for_each, share_of
from dss_jax.layouts.batches import eval_batches
from dss_jax.layouts.blocks import Block
from dss_jax.layouts.flat import stream_rows
from dss_jax.layouts.layout import filled, round_up
from dss_jax.model.t5 import T5
from dss_jax.train.compile import Compiled
from dss_jax.train.sharding import batch_sharding, data_parallelism, put_whole
from dss_jax.train.step import Program

LOGITS_BYTES = 2**28
"""Most memory for the logits of a stream, and for a layer's scores of attention among its nodes: a
batch of large tries has fewer rows.
"""

MANY, FINE, COARSE = 3, 16, 2
"""Of so many batches of like sizes, and of fewer: how many sizes of streams are compiled between a
power of two and the next."""


class RankBatch(NamedTuple):
    """Streams of inputs and of the tries of their labels.

    Attributes:
      block: of layout `flat`, without targets.
      positions_BxM, sees_BxMxM, nodes_GxN, next_GxN: see `TrieArrays`.
    """

    block: Block
    positions_BxM: Any
    sees_BxMxM: Any
    nodes_GxN: Any
    next_GxN: Any


class RankShape(NamedTuple):
    """The static sizes of a batch: R, P, S, Q and M."""

    rows: int
    tokens: int
    length: int
    nodes: int
    nodes_of_row: int


def edge_log_probs(model: T5, params: Any, batch: RankBatch) -> jax.Array:
    """The log-probability of each edge of a batch's tries, under the whole vocabulary: float32
    [G, N], of no meaning where there is no edge.
    """
    logits_GxQxV = model.bind({"params": params}).block_logits(
        batch.block, positions_BxT=batch.positions_BxM, sees_BxTxT=batch.sees_BxMxM
    )
    totals_GxQ = jax.nn.logsumexp(logits_GxQxV, axis=-1)
    streams_Gx1 = jnp.arange(len(logits_GxQxV))[:, None]
    chosen_GxN = logits_GxQxV[streams_Gx1, batch.nodes_GxN, batch.next_GxN]
    return chosen_GxN - totals_GxQ[streams_Gx1, batch.nodes_GxN]


class TrieRanker:
    """Ranks labels that are given as ids; compiled once for each shape of a batch, and kept."""

    def __init__(self, run: config.Run, model: T5, mesh: Mesh, params: Any) -> None:
        """Nothing is compiled yet. `params`: those of the plain model, or their shapes, dtypes and
        shardings.
        """
        self._mesh, self._batch_size = mesh, share_of(run.evaluate.batch_size, mesh)
        self._limit, self._config = run.data.input_length, model.config
        self._streams = data_parallelism(mesh)
        jitted = jax.jit(
            lambda params, batch: edge_log_probs(model, params, batch),
            in_shardings=(jax.tree.map(lambda leaf: leaf.sharding, params), batch_sharding(mesh)),
            out_shardings=NamedSharding(mesh, PartitionSpec()),
        )
        self._score = Compiled.kept("rank", run, mesh, jitted.lower, params)

    def __call__(
        self, params: Any, inputs: Slices, rows: np.ndarray, labels: Sequence[Sequence[Ids]]
    ) -> list[np.ndarray]:
        """The log-probabilities of each row's labels, end-of-sequence included: float32 [labels of
        the row], in the order of `rows`.

        Args:
          params: of the plain model.
          inputs: a token column; longer ones than `Data.input_length` are cut.
          rows: int [N], of the column.
          labels: of each of them, ids without end-of-sequence.
        """
        tries, found = self._tries_of(labels), [np.zeros(0, np.float32)] * len(rows)
        lengths = np.minimum(inputs.lengths()[rows], self._limit)
        nodes = np.array([len(trie.tokens) for trie in tries], int)
        fitting = fitting_rows(self._config, nodes) * self._streams
        most = min(self._batch_size, 1 << (fitting.bit_length() - 1))

        def score(streams: np.ndarray, shape: RankShape) -> None:
            parts = [self._stream(inputs, rows, lengths, tries, at, shape) for at in streams]
            batch = jax.tree.map(lambda *arrays: np.stack(arrays), *parts)
            by_row = [x.reshape(-1, *x.shape[2:]) for x in batch[1:3]]
            batch = put_whole(RankBatch(batch.block, *by_row, *batch[3:]), self._mesh)
            scores_GxN = np.asarray(self._score(params, batch))
            for at, scores_N in zip(streams, scores_GxN, strict=True):
                first = 0
                for n in at[at >= 0]:
                    edges = len(tries[n].edges)
                    found[n] = tries[n].scores(scores_N[first : first + edges])
                    first += edges

        batches = rank_batches(lengths, nodes, most, self._streams)
        for_each(lambda one: score(*one), batches, self._mesh)
        return found

    def _tries_of(self, labels: Sequence[Sequence[Ids]]) -> list[Trie]:
        """The trie of each row; rows with the same labels share one."""
        known: dict[tuple, Trie] = {}
        start, eos = self._config.decoder_start_token_id, self._config.eos_token_id
        for row in map(tuple, labels):
            key = tuple(map(tuple, row))
            if key not in known:
                known[key] = trie_of(row, start, eos)
        return [known[tuple(map(tuple, row))] for row in labels]

    def _stream(
        self,
        inputs: Slices,
        rows: np.ndarray,
        lengths: np.ndarray,
        tries: Sequence[Trie],
        at: np.ndarray,
        shape: RankShape,
    ) -> RankBatch:
        """The stream of the rows at some places, int [R]; without the axis of streams."""
        own = np.where(at < 0, 0, lengths[at])
        tokens = join_rows(inputs, rows[at], own)
        trie = trie_stream(
            [tries[n] if n >= 0 else None for n in at], shape.nodes, shape.nodes_of_row
        )
        block = Block(
            filled(tokens, np.arange(len(tokens)), shape.tokens, self._config.pad_token_id),
            trie.tokens_Q,
            None,
            None,
            encoder_rows=stream_rows(own, shape.tokens, shape.length),
            decoder_rows=trie.rows,
        )
        return RankBatch(block, *trie[2:])


def fitting_rows(model: config.T5Config, nodes: np.ndarray) -> int:
    """How many of the rows, of so many nodes each, int [N], memory has room for in a stream."""
    logits = (model.vocab_size or 0) * float(nodes.mean()) if len(nodes) else 0
    # Attention pads all rows to the longest.
    scores = model.num_heads * int(nodes.max(initial=1)) ** 2
    return max(1, int(LOGITS_BYTES / (4 * max(logits, scores))))


def rank_batches(
    lengths: np.ndarray, nodes: np.ndarray, most: int, streams: int
) -> Iterator[tuple[np.ndarray, RankShape]]:
    """Deals rows of these lengths and nodes, int [n] each, to batches of at most `most` rows, a
    power of four or that: places of rows, int [G, R], -1 is no row; and the batch's shape. Rows of
    like lengths share batches, which are all about the same: few shapes, whatever n is.
    """
    size = next((4**k for k in range(16) if 4**k >= len(lengths)), most)
    rows_a_stream = int(round_up(min(size, most), streams)) // streams
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        # Attention pads its rows, which costs little where they are up to twice as long.
        alike = int(np.sum(2 * lengths[order] > lengths[order[0]]))
        group, order = np.split(order, [max(rows_a_stream * streams, alike)])
        dealt = _dealt(group, nodes, int(round_up(-(-len(group) // rows_a_stream), streams)))
        whole = np.pad(dealt, ((0, 0), (0, rows_a_stream - dealt.shape[1])), constant_values=-1)
        shape = _shape_of(whole, lengths, nodes, len(whole) // streams)
        for batch in whole.reshape(-1, streams, rows_a_stream):
            yield batch, shape


def _shape_of(
    streams: np.ndarray, lengths: np.ndarray, nodes: np.ndarray, batches: int
) -> RankShape:
    """One with room for each of these streams, int [n, R], of so many batches."""
    steps = FINE if batches >= MANY else COARSE
    sizes = []
    for each in (lengths, nodes):
        own = np.where(streams < 0, 0, each[streams])
        # One more for the padding that a stream and a row must end with.
        sizes += [
            _size_up(int(own.sum(axis=1).max()) + 1, steps),
            _size_up(int(own.max()) + 1, steps),
        ]
    return RankShape(streams.shape[1], *sizes)


def _size_up(least: int, steps: int) -> int:
    """The next size that is compiled: a multiple of 8, so many of them to a power of two."""
    return int(round_up(least, max(8, (1 << (least - 1).bit_length()) // (2 * steps))))


def _dealt(rows: np.ndarray, nodes: np.ndarray, streams: int) -> np.ndarray:
    """Deals rows, sorted by length, so that streams have about as many tokens and nodes each: int
    [streams, R], -1 is no row.
    """
    had, columns = np.zeros(streams, int), []
    for strip in eval_batches(rows, streams):
        own = np.where(strip < 0, 0, nodes[strip])
        order, places = np.argsort(-own, kind="stable"), np.argsort(had, kind="stable")
        column = np.empty(streams, int)
        column[places] = strip[order]
        had[places] += own[order]
        columns.append(column)
    return np.stack(columns, axis=1)


class LabelRanker:
    """Predicts the most probable of each row's allowed labels."""

    def __init__(self, run: config.Run, program: Program, vocabulary: Tokenizer) -> None:
        self._vocabulary = vocabulary
        self._rank = TrieRanker(run, program.model, program.mesh, program.abstract_params)

    def __call__(
        self, params: Any, split: StoreSplit, inputs: Slices, rows: np.ndarray
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
        for texts, scores in zip(labels, self._rank(params, inputs, rows, tokens), strict=True):
            best = int(np.argmax(scores))
            prediction = {"prediction": texts[best], "log_prob": float(scores[best])}
            found = dict(zip(texts, map(float, scores), strict=True))
            predictions.append(prediction | {"label_log_probs": found})
        return predictions
