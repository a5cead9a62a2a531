"""Autoregressive decoding with a key-value cache, whatever chooses the tokens.

A search (`dss_jax.model.sampling`, `dss_jax.model.beam`) chooses; this file encodes, runs the
decoder one position at a time, and stops. The work comes in parts, `start` and `advance`, so that
a host can look in between and drop the rows that are done (`take_rows`); `decode` is all of it.

Shape letters are those of `dss_jax.model.layers`; here K is sequences an input and T is
`max_decode_length`. In every array of `Prepared` and of `DecodeState.rows` the input is axis 0.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dss_jax.core.ids import EOS_ID
from dss_jax.model.attention import KeyValue, padding_mask
from dss_jax.model.t5 import T5


class Decoded(NamedTuple):
    """Sequences, the best of an input first where the search ranks them. JAX or NumPy arrays.

    Attributes:
      tokens: int32 [B, K, T]; EOS is kept, 0 after it.
      log_probs: float32 [B, K]: the model's, of the sequence, EOS included.
      scores: float32 [B, K]: by which they are ranked.
    """

    tokens: Any
    log_probs: Any
    scores: Any


class Chosen(NamedTuple):
    """What a search says after a position: its state, with inputs on axis 0, the next tokens, which
    sequence each goes on from (None: each from itself), and whether nothing can change any more.
    """

    state: Any
    tokens_BxK: jax.Array
    parents_BxK: jax.Array | None
    done_B: jax.Array


@dataclass(frozen=True)
class Search(abc.ABC):
    """How tokens are chosen. Hashable, because it is a static argument of compiled functions."""

    settings: Any
    eos_id: int = EOS_ID

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """K, sequences an input."""

    @abc.abstractmethod
    def start(self, ids_B: jax.Array, max_decode_length: int) -> Any:
        """Its state before position 0; `ids_B` are the numbers of the inputs, int32."""

    @abc.abstractmethod
    def choose(self, state: Any, logits_BxKxV: jax.Array, position: jax.Array) -> Chosen:
        """Takes the tokens of a position."""

    @abc.abstractmethod
    def finish(self, state: Any) -> Decoded:
        """The result."""

    def without_eos(self, logits: jax.Array, position: jax.Array) -> jax.Array:
        """Logits [..., V] with -inf for EOS as long as the output is too short."""
        if not self.settings.min_decode_length:
            return logits
        is_eos_V = jnp.arange(logits.shape[-1]) == self.eos_id
        banned_V = is_eos_V & (position < self.settings.min_decode_length)
        return jnp.where(jnp.broadcast_to(banned_V, logits.shape), -jnp.inf, logits)


class Prepared(NamedTuple):
    """What stays the same over all positions: cross-attention, a pair for each layer."""

    cross: tuple[KeyValue, ...]
    cross_mask_Bx1x1xS: jax.Array


class DecodeRows(NamedTuple):
    """What changes, input by input. The cache has a pair [B, K, H, T, D] for each layer."""

    tokens_BxK: jax.Array
    done_B: jax.Array
    cache: tuple[KeyValue, ...]
    search: Any


class DecodeState(NamedTuple):
    """What the loop carries."""

    position: jax.Array
    rows: DecodeRows


def gather(x_BxKx: jax.Array, index_BxN: jax.Array) -> jax.Array:
    """Sequences of each input: [B, K, ...], int [B, N] -> [B, N, ...]."""
    index = index_BxN.reshape(*index_BxN.shape, *(1,) * (x_BxKx.ndim - 2))
    return jnp.take_along_axis(x_BxKx, index, axis=1)


def where_rows(rows_B: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """`x` in some rows, else `y`: bool [B], two [B, ...]."""
    return jnp.where(rows_B.reshape(-1, *(1,) * (x.ndim - 1)), x, y)


def _decoder_layers(model: T5, params: Any) -> Any:
    """The decoder's stacked parameters, kernels in the activations' dtype: cast once."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.astype(model.config.dtype) if path[-1].key == "kernel" else leaf,
        params["decoder"]["layers"],
    )


def _cross_attention(model: T5, params: Any, encoded_BxSxE: jax.Array) -> tuple[KeyValue, ...]:
    """Keys and values of the encoder: one product for all layers."""
    kernels = _decoder_layers(model, params)["encoder_decoder_attention"]
    axes, both = ("layers", "batch", "heads", "length", "kv"), []
    for name in ("key", "value"):
        kernel_LxExJ = kernels[name]["kernel"]
        kernel_LxExHxD = kernel_LxExJ.reshape(*kernel_LxExJ.shape[:2], -1, model.config.head_dim)
        x_LxBxHxSxD = jnp.einsum("bse,lehd->lbhsd", encoded_BxSxE, kernel_LxExHxD)
        both.append(nn.with_logical_constraint(x_LxBxHxSxD, axes))
    return tuple(map(KeyValue, *both))


def _empty_cache(cross: tuple[KeyValue, ...], width: int, length: int) -> tuple[KeyValue, ...]:
    """Zeros [B, K, H, T, D] for keys and for values of each layer; heads and dtype of `cross`."""
    axes = ("batch", None, "heads", "length", "kv")

    def zeros(x_BxHxSxD: jax.Array) -> jax.Array:  # What is donated must not be there twice.
        batch_size, heads, _, size = x_BxHxSxD.shape
        empty = jnp.zeros((batch_size, width, heads, length, size), x_BxHxSxD.dtype)
        return nn.with_logical_constraint(empty, axes)

    return jax.tree.map(zeros, cross)


def start(
    model: T5,
    params: Any,
    encoder_input_tokens: jax.Array,
    ids_B: jax.Array,
    search: Search,
    max_decode_length: int,
) -> tuple[Prepared, DecodeState]:
    """Encodes, and computes all that no position changes.

    A row that is all padding (as fills up a last batch) is done at once.
    """
    batch_size, config = encoder_input_tokens.shape[0], model.config
    encoded_BxSxE = model.bind({"params": params}).encode(encoder_input_tokens)
    cross = _cross_attention(model, params, encoded_BxSxE)
    prepared = Prepared(cross, padding_mask(encoder_input_tokens, config.pad_token_id))
    rows = DecodeRows(
        tokens_BxK=jnp.full((batch_size, search.width), config.decoder_start_token_id, jnp.int32),
        done_B=jnp.all(encoder_input_tokens == config.pad_token_id, axis=1),
        cache=_empty_cache(cross, search.width, max_decode_length),
        search=search.start(ids_B, max_decode_length),
    )
    return prepared, DecodeState(jnp.int32(0), rows)


def _step(
    model: T5,
    params: Any,
    layers: list[Any],
    prepared: Prepared,
    bias_1xHxTxT: Any,
    rows: DecodeRows,
    position: jax.Array,
) -> tuple[jax.Array, tuple[KeyValue, ...]]:
    """Logits [B, K, V] after `rows.tokens_BxK`, which stand at `position`, and the cache."""
    t5 = model.bind({"params": params})
    layer_module = t5.decoder.layer(model.config, parent=None)
    row = partial(jax.lax.dynamic_slice_in_dim, start_index=position, slice_size=1, axis=2)
    bias_1xHx1xT = jax.tree.map(row, bias_1xHxTxT)
    x_BxKxE = t5.token_embedder(rows.tokens_BxK)
    mask, cache = prepared.cross_mask_Bx1x1xS, []
    for i, (old, cross) in enumerate(zip(rows.cache, prepared.cross, strict=True)):
        layer = layer_module.bind({"params": layers[i]})
        bias = t5.decoder.relpos_bias.of_layer(bias_1xHx1xT, i)
        x_BxKxE, new = layer.step(x_BxKxE, old, position, bias, cross, mask)
        cache.append(new)
    return t5.logits(x_BxKxE), tuple(cache)


def advance(
    model: T5,
    params: Any,
    prepared: Prepared,
    state: DecodeState,
    until: jax.Array | int,
    search: Search,
) -> DecodeState:
    """Decodes until position `until`, or until every row is done."""
    length = state.rows.cache[0].key.shape[3]
    # Sliced here, outside of the loop: a scan over layers would copy every weight at each position.
    stacked, count = _decoder_layers(model, params), model.config.num_decoder_layers
    layers = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(count)]
    bias_1xHxTxT = model.bind({"params": params}).decoder.relpos_bias(jnp.arange(length))

    # The loop's cache has inputs and sequences in one axis. With a reshape between its update and
    # its use, XLA would update a copy at each position.
    def joined(x_BxKx: jax.Array) -> jax.Array:
        return x_BxKx.reshape(-1, *x_BxKx.shape[2:])

    def parted(x_Rx: jax.Array) -> jax.Array:
        return x_Rx.reshape(-1, search.width, *x_Rx.shape[1:])

    def unfinished(state: DecodeState) -> jax.Array:
        return (state.position < until) & ~jnp.all(state.rows.done_B)

    def one_position(state: DecodeState) -> DecodeState:
        position, rows = state
        logits_BxKxV, cache = _step(model, params, layers, prepared, bias_1xHxTxT, rows, position)
        chosen = search.choose(rows.search, logits_BxKxV, position)
        if (parents_BxK := chosen.parents_BxK) is not None:
            cache = jax.tree.map(lambda x: joined(gather(parted(x), parents_BxK)), cache)
        found = jax.tree.map(partial(where_rows, rows.done_B), rows.search, chosen.state)
        rows = DecodeRows(chosen.tokens_BxK, rows.done_B | chosen.done_B, cache, found)
        return DecodeState(position + 1, rows)

    def with_cache(state: DecodeState, change: Callable) -> DecodeState:
        cache = jax.tree.map(change, state.rows.cache)
        return DecodeState(state.position, state.rows._replace(cache=cache))

    state = with_cache(state, joined)
    return with_cache(jax.lax.while_loop(unfinished, one_position, state), parted)


def take_rows(
    prepared: Prepared, state: DecodeState, rows_B: jax.Array
) -> tuple[Prepared, DecodeState]:
    """The batch of these rows only."""
    prepared, rows = jax.tree.map(lambda x: x[rows_B], (prepared, state.rows))
    return prepared, DecodeState(state.position, rows)


def decode(
    model: T5,
    params: Any,
    encoder_input_tokens: jax.Array,
    search: Search,
    *,
    max_decode_length: int,
    ids_B: jax.Array | None = None,
) -> Decoded:
    """Decodes a batch in one go, without dropout. Can be jitted with `model`, `search` and
    `max_decode_length` static.

    Args:
      params: of the model, boxed with logical axes or not.
      encoder_input_tokens: int32 [B, S], padded. A row of padding only gives zeros.
      max_decode_length: longest output in tokens, EOS included.
      ids_B: int32 [B], numbers of the inputs, on which a sampled sequence depends; None: 0, 1, ...
    """
    params = nn.unbox(params)
    if ids_B is None:
        ids_B = jnp.arange(encoder_input_tokens.shape[0], dtype=jnp.int32)
    prepared, state = start(model, params, encoder_input_tokens, ids_B, search, max_decode_length)
    state = advance(model, params, prepared, state, max_decode_length, search)
    return search.finish(state.rows.search)
