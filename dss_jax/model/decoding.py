"""Greedy decoding with a key-value cache.

Shape letters are those of `dss_jax.model.layers`; here T is `max_decode_length`.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dss_jax.model.layers import PAD_ID, KeyValue, padding_mask
from dss_jax.model.t5 import T5, DecoderLayer

_CACHE = ("layers", "batch", "length", "heads", "kv")


class Prepared(NamedTuple):
    """What stays the same over all positions.

    Attributes:
      layers: parameters of the decoder's layers, kernels in the activations' dtype.
      cross_LxBxSxHxD: keys and values of the encoder, for all layers.
      cross_mask_Bx1x1xS: True where the encoder's token is real.
      bias_1xHxTxT: the decoder's position bias.
    """

    layers: Any
    cross_LxBxSxHxD: KeyValue
    cross_mask_Bx1x1xS: jax.Array
    bias_1xHxTxT: jax.Array


class State(NamedTuple):
    """What the loop carries. `cache` is [L, B, T, H, D] and written in place."""

    position: jax.Array
    last_B: jax.Array
    done_B: jax.Array
    tokens_BxT: jax.Array
    cache: KeyValue


def _apply(module: nn.Module, params: Any, *args: Any, method: str) -> Any:
    return module.apply({"params": params}, *args, method=method)


def prepare(
    model: T5, params: Any, encoder_input_tokens: jax.Array, max_decode_length: int
) -> Prepared:
    """Encodes, and computes all that no position changes."""
    config, dtype = model.config, jnp.dtype(model.config.dtype)
    encoded_BxSxE = _apply(model, params, encoder_input_tokens, method="encode")
    # Cast once: the layers would do it again at each position.
    layers = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.astype(dtype) if path[-1].key == "kernel" else leaf,
        params["decoder"]["layers"],
    )

    def cross(name: str) -> jax.Array:
        kernel_LxExJ = layers["encoder_decoder_attention"][name]["kernel"]
        x_LxBxSxJ = jnp.einsum("bse,lej->lbsj", encoded_BxSxE, kernel_LxExJ)
        shape = (*x_LxBxSxJ.shape[:-1], config.num_heads, config.head_dim)
        return nn.with_logical_constraint(x_LxBxSxJ.reshape(shape), _CACHE)

    return Prepared(
        layers=layers,
        cross_LxBxSxHxD=KeyValue(cross("key"), cross("value")),
        cross_mask_Bx1x1xS=padding_mask(encoder_input_tokens),
        bias_1xHxTxT=_apply(model, params, max_decode_length, method="decoder_position_bias"),
    )


def empty_cache(model: T5, batch_size: int, max_decode_length: int) -> KeyValue:
    """Zeros [L, B, T, H, D] for keys and for values, in the activations' dtype."""
    config = model.config
    shape = (
        config.num_decoder_layers,
        batch_size,
        max_decode_length,
        config.num_heads,
        config.head_dim,
    )
    zeros = nn.with_logical_constraint(jnp.zeros(shape, config.dtype), _CACHE)
    return KeyValue(zeros, zeros)


def decode_step(
    model: T5,
    params: Any,
    prepared: Prepared,
    cache: KeyValue,
    tokens_B: jax.Array,
    position: jax.Array,
) -> tuple[jax.Array, KeyValue]:
    """Logits for the token after `tokens_B`, which stand at `position`.

    Args:
      model, params: the model and its parameters.
      prepared: from `prepare`.
      cache: keys and values of the positions before; those after are not read.
      tokens_B: int32 [B], the decoder's input at `position` (0 at position 0).
      position: int32 scalar.

    Returns:
      Logits [B, V] in float32, and the cache with `position` written.
    """
    layer_module = DecoderLayer(model.config, parent=None)
    bias_1xHx1xT = jax.lax.dynamic_slice_in_dim(prepared.bias_1xHxTxT, position, 1, axis=2)

    def layer(carry: tuple[jax.Array, KeyValue], xs: tuple[Any, KeyValue, jax.Array]) -> Any:
        x_Bx1xE, cache = carry
        layer_params, cross, index = xs
        carry = _apply(
            layer_module,
            layer_params,
            x_Bx1xE,
            cache,
            index,
            position,
            bias_1xHx1xT,
            cross,
            prepared.cross_mask_Bx1x1xS,
            method="step",
        )
        return carry, None

    x_Bx1xE = _apply(model, params, tokens_B[:, None], method="embed")
    # The cache is carried, not scanned over: scanning would copy all of it at each position.
    (x_Bx1xE, cache), _ = jax.lax.scan(
        layer,
        (x_Bx1xE, cache),
        (
            prepared.layers,
            prepared.cross_LxBxSxHxD,
            jnp.arange(model.config.num_decoder_layers),
        ),
    )
    return _apply(model, params, x_Bx1xE, method="logits")[:, 0], cache


def greedy_decode(
    model: T5,
    params: Any,
    encoder_input_tokens: jax.Array,
    *,
    max_decode_length: int,
    eos_id: int = 1,
) -> jax.Array:
    """The most likely token at each position, until EOS or `max_decode_length`.

    Stops as soon as every row has its EOS. A row that is all padding (as fills up a last batch)
    gives only zeros and holds up nothing. Can be jitted with `model`, `max_decode_length` and
    `eos_id` static; runs without dropout.

    Args:
      model: the model.
      params: its parameters, boxed with logical axes or not.
      encoder_input_tokens: int32 [B, S], 0 is padding.
      max_decode_length: longest output in tokens, EOS included.
      eos_id: ends a row.

    Returns:
      int32 [B, max_decode_length]: EOS is kept, 0 after it.
    """
    params = nn.unbox(params)
    batch_size = encoder_input_tokens.shape[0]
    prepared = prepare(model, params, encoder_input_tokens, max_decode_length)

    def unfinished(state: State) -> jax.Array:
        return (state.position < max_decode_length) & ~jnp.all(state.done_B)

    def advance(state: State) -> State:
        logits_BxV, cache = decode_step(
            model, params, prepared, state.cache, state.last_B, state.position
        )
        best_B = jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
        next_B = jnp.where(state.done_B, PAD_ID, best_B)
        return State(
            position=state.position + 1,
            last_B=next_B,
            done_B=state.done_B | (next_B == eos_id),
            tokens_BxT=jax.lax.dynamic_update_slice(
                state.tokens_BxT, next_B[:, None], (0, state.position)
            ),
            cache=cache,
        )

    start = State(
        position=jnp.int32(0),
        last_B=jnp.zeros(batch_size, jnp.int32),
        done_B=jnp.all(encoder_input_tokens == PAD_ID, axis=1),
        tokens_BxT=jnp.zeros((batch_size, max_decode_length), jnp.int32),
        cache=empty_cache(model, batch_size, max_decode_length),
    )
    return jax.lax.while_loop(unfinished, advance, start).tokens_BxT
