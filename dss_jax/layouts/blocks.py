"""What a batch is made of, whatever its layout. NumPy only.

Shape letters: R rows of a block, S and T its input and target length; in layout `flat` D streams
(one a device and microbatch), N tokens of a stream, L the length of attention's rows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dss_jax.core.flops import Work


class StreamRows(NamedTuple):
    """Where the tokens of streams lie in the rows that attention works on, and back.

    The last token of a stream is always padding, and so is the last place of a row: whatever is
    taken from there counts nowhere, so that neither direction needs a mask.

    Attributes:
      take: int32 [D, R, L], the token at each place of the rows; N - 1 where the row has ended.
      back: int32 [D, N], the place r * L + i of each token; a place where a row has ended for
        padding.
    """

    take: Any
    back: Any


class Block(NamedTuple):
    """Rows, or streams of tokens, that are run through the model together.

    The loss only looks at the role of each target token, so it is the same for every layout. In
    layout `flat`, R is D and S and T are the lengths of the streams.

    Attributes:
      encoder_input_tokens: int32 [R, S], padded with `pad_token_id`.
      decoder_input_tokens: int32 [R, T], the targets shifted right, after the start id.
      decoder_target_tokens: int32 [R, T], padded in the same way.
      decoder_roles: int32 [R, T]: the task that the target belongs to: 0 none (padding),
        1 label, 2 rationale.
      encoder_segment_ids, decoder_segment_ids: int32 [R, S] and [R, T], layout `packed`: which of
        the row's examples a token belongs to, from 1; 0 is padding. As in T5X.
      encoder_rows, decoder_rows: layout `flat`: where attention finds its rows.
      decoder_examples: int32 [R, T], with `Loss.mutual_information`: which of the whole batch's
        examples the target belongs to, from 0; of padding any number.
    """

    encoder_input_tokens: Any
    decoder_input_tokens: Any
    decoder_target_tokens: Any
    decoder_roles: Any
    encoder_segment_ids: Any = None
    decoder_segment_ids: Any = None
    encoder_rows: StreamRows | None = None
    decoder_rows: StreamRows | None = None
    decoder_examples: Any = None


Batch = tuple[Block, ...]


def map_arrays(function: Callable[..., np.ndarray], *blocks: Block) -> Block:
    """A block of what a function makes of each array of a block; or of those that several blocks
    have in one place.
    """

    def one(*values: Any) -> Any:
        if isinstance(values[0], StreamRows):
            return StreamRows(*map(function, *values))
        return None if values[0] is None else function(*values)

    return Block(*map(one, *blocks))


class BlockShape(NamedTuple):
    """The static shape of a block: all that decides what it costs. Numbers, or arrays of them.

    Tokens are with padding; rows and their lengths, in tokens, are attention's.
    """

    rows: Any
    encoder_tokens: Any
    encoder_length: Any
    decoder_tokens: Any
    decoder_length: Any

    @property
    def sides(self) -> dict[str, tuple[Any, Any]]:
        """(tokens, length of a row) of encoder and decoder."""
        return {"encoder": self[1:3], "decoder": self[3:5]}

    @property
    def work(self) -> Work:
        """All that is computed, padding included."""
        rows, encoder_tokens, s, decoder_tokens, t = self
        return Work(
            encoder_tokens=encoder_tokens,
            decoder_tokens=decoder_tokens,
            logit_tokens=decoder_tokens,
            encoder_pairs=rows * s * s,
            decoder_pairs=rows * t * t,
            cross_pairs=rows * s * t,
        )

    def fits(self, needed: "BlockShape") -> Any:
        """Whether what is needed has room in it; element by element for arrays."""
        return np.logical_and.reduce([n <= have for n, have in zip(needed, self, strict=True)])
