"""Layout `flat`: each device has one stream of tokens, without padding between the rows.

Linear layers work on the stream; attention alone gathers rows from it and puts them back
(`StreamRows`). What is executed beyond real tokens is the end of the stream and attention's short
rows. Shape letters are those of `dss_jax.layouts.blocks`; K roles, N examples of a batch,
M = K * N / D rows of attention a stream.
"""

import numpy as np

from dss_jax.core import config
from dss_jax.data.columns import Examples, shift_joined
from dss_jax.layouts.blocks import Batch, Block, BlockShape, StreamRows
from dss_jax.layouts.shapes import Plan, first_that_fits, round_up

TOKEN_MULTIPLE = 32
"""Streams are multiples of it, so that matrix products have whole tiles."""


def deal(weights: np.ndarray, streams: int) -> np.ndarray:
    """Deals the examples of each batch to streams so that all get about the same weight.

    Args:
      weights: int [n, N].
      streams: D, a divisor of N.

    Returns:
      int [n, D, N / D], places in the batch: the heaviest D first, the next D the other way round
      and so on. For one stream the order stays.
    """
    n, size = weights.shape
    if streams == 1:
        return np.broadcast_to(np.arange(size), (n, 1, size))
    order = np.argsort(-weights, axis=1, kind="stable").reshape(n, size // streams, streams)
    order[:, 1::2] = order[:, 1::2, ::-1]
    return order.swapaxes(1, 2)


class FlatStreams:
    """Builds flat batches.

    Attributes:
      shapes: how many shapes are compiled.
    """

    def __init__(self, examples: Examples, data: config.Data, plan: Plan) -> None:
        """Chooses the shapes. There is a stream for each share of the plan."""
        self._examples = examples
        self._streams = plan.share.count
        self._own = range(self._streams)[plan.share.own(self._streams)]
        self._multiple, self._numbered = data.length_multiple, plan.numbered
        self._extents = plan.block_shapes(lambda rows: self._needed(self._dealt(rows)))
        self.shapes = len(self._extents)

    def block_shapes(self, shape: int) -> tuple[BlockShape, ...]:
        """What is executed of a whole batch, block by block."""
        rows, encoder_tokens, s, decoder_tokens, t = self._extents[shape][0]
        d = self._streams
        return (BlockShape(d * rows, d * encoder_tokens, s, d * decoder_tokens, t),)

    def _dealt(self, rows: np.ndarray) -> np.ndarray:
        """int [n, N] -> [n, D, N / D]."""
        inputs, targets = self._examples.lengths(rows)
        at = deal((inputs + targets).sum(axis=0), self._streams)
        return np.take_along_axis(rows[:, None, :], at, axis=2)

    def _needed(self, dealt: np.ndarray) -> tuple[BlockShape, ...]:
        lengths = self._examples.lengths(dealt)  # [K, n, D, N / D] each
        # One more for the padding that a stream and a row must end with.
        tokens = [round_up(x.sum(axis=(0, 3)).max(axis=1) + 1, TOKEN_MULTIPLE) for x in lengths]
        longest = [round_up(x.max(axis=(0, 2, 3)) + 1, self._multiple) for x in lengths]
        rows = np.full(len(dealt), len(lengths[0]) * dealt.shape[2])
        return (BlockShape(rows, tokens[0], longest[0], tokens[1], longest[1]),)

    def assign(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Batches' row numbers, int [n, N] -> dealt to streams [n, D, N / D]; shape numbers [n]."""
        dealt = self._dealt(rows)
        return dealt, first_that_fits(self._extents, self._needed(dealt))

    def build(self, dealt: np.ndarray, shape: int) -> Batch:
        """One batch of this process: dealt rows [D, N / D] -> a block of its streams."""
        streams = [self._stream(dealt[d], d, self._extents[shape][0]) for d in self._own]
        inputs, shifted, targets, roles, numbers, *rows = (
            np.stack(x) for x in zip(*streams, strict=True)
        )
        return (
            Block(
                inputs,
                shifted,
                targets,
                roles,
                encoder_rows=StreamRows(*rows[:2]),
                decoder_rows=StreamRows(*rows[2:]),
                decoder_examples=numbers if self._numbered else None,
            ),
        )

    def _stream(
        self, rows: np.ndarray, stream: int, block_shape: BlockShape
    ) -> tuple[np.ndarray, ...]:
        input_lengths, target_lengths = (x.reshape(-1) for x in self._examples.lengths(rows))
        targets = self._examples.targets(rows)
        roles = np.repeat(np.array(self._examples.roles), len(rows))
        numbers = np.tile(np.arange(len(rows)) + stream * len(rows), len(self._examples.roles))
        encoder, decoder = block_shape.encoder_tokens, block_shape.decoder_tokens
        return (
            _filled(self._examples.inputs(rows), encoder),
            _filled(shift_joined(targets, target_lengths), decoder),
            _filled(targets, decoder),
            _filled(np.repeat(roles, target_lengths), decoder),
            _filled(np.repeat(numbers, target_lengths), decoder),
            *stream_rows(input_lengths, encoder, block_shape.encoder_length),
            *stream_rows(target_lengths, decoder, block_shape.decoder_length),
        )


def _filled(tokens: np.ndarray, length: int) -> np.ndarray:
    filled = np.zeros(length, np.int32)
    filled[: len(tokens)] = tokens
    return filled


def stream_rows(lengths: np.ndarray, tokens: int, length: int) -> StreamRows:
    """Where rows that lie one after another in a stream go.

    Args:
      lengths: int [R], of the rows; all below `length`, their sum below `tokens`.
      tokens: N.
      length: L.
    """
    total = int(lengths.sum())
    assert total < tokens
    assert lengths.max(initial=0) < length
    places = np.repeat(np.arange(len(lengths)) * length - (np.cumsum(lengths) - lengths), lengths)
    places += np.arange(total)
    take = np.full(len(lengths) * length, tokens - 1, np.int32)
    take[places] = np.arange(total)
    back = np.full(tokens, length - 1, np.int32)  # The last place of row 0: it has ended there.
    back[:total] = places
    return StreamRows(take.reshape(len(lengths), length), back)
