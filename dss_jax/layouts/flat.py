"""Layout `flat`: each device has one stream of tokens, without padding between the rows.

Linear layers work on the stream; attention alone gathers rows from it and puts them back
(`StreamRows`). What is executed beyond real tokens is the end of the stream and attention's short
rows. Shape letters are those of `dss_jax.layouts.blocks`; K roles, N examples of a batch,
M = K * N / D rows of attention a stream.
"""

from typing import Any

import numpy as np

from dss_jax.core import config
from dss_jax.data.columns import Examples
from dss_jax.layouts.blocks import Batch, Block, BlockShape, StreamRows, map_arrays
from dss_jax.layouts.layout import Layout, LayoutPlan, filled, round_up, token_places

TOKEN_MULTIPLE = 32
"""Streams are multiples of it, so that matrix products have whole tiles."""


def deal(weights: np.ndarray, streams: int) -> np.ndarray:
    """Deals the examples of each batch, of weights int [n, N], to D streams so that all get about
    the same weight: places in the batch, int [n, D, N / D]. The heaviest D come first, the next D
    the other way round and so on.
    """
    n, size = weights.shape
    order = np.argsort(-weights, axis=1, kind="stable").reshape(n, size // streams, streams)
    order[:, 1::2] = order[:, 1::2, ::-1]
    return order.swapaxes(1, 2)


class FlatStreams(Layout):
    """Builds flat batches: a stream for each share of the plan."""

    def __init__(self, examples: Examples, data: config.Data, plan: LayoutPlan) -> None:
        super().__init__(examples, plan)
        self._multiple = data.length_multiple
        self._choose_shapes(plan.batches)

    def block_shapes(self, shape: int) -> tuple[BlockShape, ...]:
        rows, encoder_tokens, s, decoder_tokens, t = self._shapes[shape][0]
        d = self._plan.shares
        return (BlockShape(d * rows, d * encoder_tokens, s, d * decoder_tokens, t),)

    def _placed(self, rows: np.ndarray) -> np.ndarray:
        """Dealt to streams: int [n, N] -> [n, D, N / D]. For one stream the order stays."""
        if self._plan.shares == 1:
            return rows[:, None]
        inputs, targets = self._examples.lengths(rows)
        at = deal((inputs + targets).sum(axis=0), self._plan.shares)
        return np.take_along_axis(rows[:, None, :], at, axis=2)

    def _needed(self, dealt: np.ndarray) -> tuple[BlockShape, ...]:
        lengths = self._examples.lengths(dealt)  # [K, n, D, N / D] each
        # One more for the padding that a stream and a row must end with.
        tokens = [round_up(x.sum(axis=(0, 3)).max(axis=1) + 1, TOKEN_MULTIPLE) for x in lengths]
        longest = [round_up(x.max(axis=(0, 2, 3)) + 1, self._multiple) for x in lengths]
        rows = np.full(len(dealt), len(lengths[0]) * dealt.shape[2])
        return (BlockShape(rows, tokens[0], longest[0], tokens[1], longest[1]),)

    def build(self, dealt: np.ndarray, shape: int) -> Batch:
        own = range(self._plan.shares)[self._plan.own(self._plan.shares)]
        streams = [self._stream(dealt[d], d, self._shapes[shape][0]) for d in own]
        return (map_arrays(lambda *arrays: np.stack(arrays), *streams),)

    def _stream(self, items: np.ndarray, stream: int, block_shape: BlockShape) -> Block:
        """The block of one stream, without the axis of streams."""
        fields, lengths = self._tokens(items, stream * len(items)), self._examples.lengths(items)
        laid: dict[str, Any] = {}
        for (side, (size, length)), own in zip(block_shape.sides.items(), lengths, strict=True):
            for name, tokens in fields[side].items():
                laid[name] = filled(tokens, np.arange(len(tokens)), size, self._rest(name))
            laid[f"{side}_rows"] = stream_rows(own.ravel(), size, length)
        return Block(**laid)


def stream_rows(lengths: np.ndarray, tokens: int, length: int) -> StreamRows:
    """Where rows that lie one after another in a stream of N `tokens` go: their lengths, int [R],
    are all below `length`, L, and their sum below N.
    """
    total = int(lengths.sum())
    assert total < tokens
    assert lengths.max(initial=0) < length
    places = token_places(np.arange(len(lengths)) * length, lengths)
    take = np.full(len(lengths) * length, tokens - 1, np.int32)
    take[places] = np.arange(total)
    back = np.full(tokens, length - 1, np.int32)  # The last place of row 0: it has ended there.
    back[:total] = places
    return StreamRows(take.reshape(len(lengths), length), back)
