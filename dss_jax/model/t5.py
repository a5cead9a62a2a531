"""T5 in Flax Linen: encoder, decoder, logits. Layers are stacked over a leading axis.

Parameters are named as in T5X:

  token_embedder/embedding
  encoder/relpos_bias/rel_embedding         (in `layers` where each has its own: umT5)
  encoder/layers/{pre_attention_layer_norm, attention/{query,key,value,out}, pre_mlp_layer_norm,
                  mlp/{wi | wi_0,wi_1, wo}}
  encoder/encoder_norm
  decoder/relpos_bias/rel_embedding
  decoder/layers/{pre_self_attention_layer_norm, self_attention, pre_cross_attention_layer_norm,
                  encoder_decoder_attention, pre_mlp_layer_norm, mlp}
  decoder/decoder_norm
  decoder/logits_dense                      (v1.1 only; v1.0 uses the embedding)

Shape letters are those of `dss_jax.model.layers`. Masks and the position bias are built once, in
`T5.encode` and `T5.decode`, and handed down: the layers know nothing of padding or order.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from dss_jax.core.config import T5Config
from dss_jax.core.errors import UsageError
from dss_jax.layouts.blocks import Block
from dss_jax.model.attention import (
    Attention,
    KeyValue,
    Pattern,
    RelativePositionBias,
    block_patterns,
    decoder_length,
    padding_mask,
)
from dss_jax.model.layers import Dense, Dropout, Embed, Mlp, RMSNorm
from dss_jax.model.matmul import MIXED, PRODUCT, SUM, platform

_HIDDEN = ("batch", "length", "activation_embed")

_REMAT_POLICIES = {
    "none": jax.checkpoint_policies.save_only_these_names(PRODUCT, MIXED, SUM),
    "minimal": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""What is kept of each layer for the backward pass, beside its input; "none" on a CPU: all."""


def stacked(layer: type[nn.Module], config: T5Config, length: int, in_axes: tuple) -> Any:
    """`length` of `layer`, run in turn; each parameter gets a leading axis "layers". `in_axes`: of
    the inputs after the first, as `nn.scan` takes them: `nn.broadcast` is the same for all layers.
    """
    policy, here = config.remat_policy, platform()
    unroll = config.scan_unroll or (length if here == "tpu" and policy == "none" else 1)
    if policy != "none" or here != "cpu":
        layer = nn.remat(
            layer,
            policy=_REMAT_POLICIES[policy],
            # Two loops cannot share results; without a loop XLA would undo the recomputation.
            prevent_cse=unroll >= length,
            static_argnums=(1 + len(in_axes),),  # deterministic, the last
        )
    return nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=in_axes,
        length=length,
        unroll=unroll,
        metadata_params={nn.PARTITION_NAME: "layers"},
        # Flax would trace each stack once more, to see that it broadcasts no results.
        check_constancy_invariants=False,
    )


class _Layer(nn.Module):
    """What the layers of both stacks have."""

    config: T5Config
    attention_type, mlp_type, offset = Attention, Mlp, 0.0

    def setup(self) -> None:
        self.pre_mlp_layer_norm = self._norm()
        self.mlp = self.mlp_type(self.config)
        self.dropout = Dropout(self.config.dropout_rate)
        if self.config.relative_attention_per_layer:
            self.relpos_bias = RelativePositionBias(self.config)

    def _biased(self, pattern: Pattern) -> Pattern:
        """A pattern of self-attention, with this layer's own bias where it has one."""
        own = self.config.relative_attention_per_layer
        return pattern._replace(bias=self.relpos_bias.of_buckets(pattern.bias)) if own else pattern

    def _norm(self) -> RMSNorm:
        return RMSNorm(self.config.layer_norm_epsilon, self.offset)

    def _add(self, x_BxTxE: jax.Array, h_BxTxE: jax.Array, deterministic: bool) -> jax.Array:
        return checkpoint_name(x_BxTxE + self.dropout(h_BxTxE, deterministic), SUM)

    def _feed_forward(self, x_BxTxE: jax.Array, deterministic: bool) -> jax.Array:
        h_BxTxE = self.mlp(self.pre_mlp_layer_norm(x_BxTxE), deterministic)
        return nn.with_logical_constraint(self._add(x_BxTxE, h_BxTxE, deterministic), _HIDDEN)


class EncoderLayer(_Layer):
    """Self-attention and feed-forward, each behind a norm and added to its input."""

    def setup(self) -> None:
        super().setup()
        self.pre_attention_layer_norm = self._norm()
        self.attention = self.attention_type(self.config)

    def __call__(
        self, x_BxSxE: jax.Array, pattern: Pattern, deterministic: bool
    ) -> tuple[jax.Array, None]:
        """[B, S, E] -> [B, S, E], and None for the scan."""
        h_BxSxE = self.pre_attention_layer_norm(x_BxSxE)
        key_value = self.attention.key_value(h_BxSxE, pattern)
        h_BxSxE = self.attention(h_BxSxE, key_value, self._biased(pattern), deterministic)
        x_BxSxE = self._add(x_BxSxE, h_BxSxE, deterministic)
        return self._feed_forward(x_BxSxE, deterministic), None


class DecoderLayer(_Layer):
    """Self-attention, cross-attention (without position bias) and feed-forward."""

    def setup(self) -> None:
        super().setup()
        self.pre_self_attention_layer_norm = self._norm()
        self.self_attention = self.attention_type(self.config, causal=True)
        self.pre_cross_attention_layer_norm = self._norm()
        self.encoder_decoder_attention = self.attention_type(self.config)

    def __call__(
        self,
        x_BxTxE: jax.Array,
        encoded_BxSxE: jax.Array,
        self_pattern: Pattern,
        cross_pattern: Pattern,
        deterministic: bool,
    ) -> tuple[jax.Array, None]:
        """[B, T, E] -> [B, T, E], and None for the scan."""
        h_BxTxE = self.pre_self_attention_layer_norm(x_BxTxE)
        key_value = self.self_attention.key_value(h_BxTxE, self_pattern)
        h_BxTxE = self.self_attention(h_BxTxE, key_value, self._biased(self_pattern), deterministic)
        x_BxTxE = self._add(x_BxTxE, h_BxTxE, deterministic)
        cross = self.encoder_decoder_attention.key_value(encoded_BxSxE, cross_pattern)
        return self._after_self_attention(x_BxTxE, cross, cross_pattern, deterministic), None

    def step(
        self,
        x_BxKxE: jax.Array,
        cache: KeyValue,
        position: jax.Array,
        self_bias: Any,
        cross_key_value: KeyValue,
        cross_mask: jax.Array,
    ) -> tuple[jax.Array, KeyValue]:
        """One position, int32 scalar, of K sequences an input, with the keys and values of those
        before it.

        Args:
          cache: this layer's, each [R, H, T, D] with R = B * K; written at `position`.
          self_bias: the position's row of the bias, [1, H, 1, T], see `Pattern.bias`.
          cross_key_value: this layer's keys and values of the encoder, [B, H, S, D].
          cross_mask: bool [B, 1, 1, S].

        Returns:
          [B, K, E], and the cache.
        """
        rows = x_BxKxE.shape[0] * x_BxKxE.shape[1]
        h_Rx1xE = self.pre_self_attention_layer_norm(x_BxKxE).reshape(rows, 1, -1)
        mask_1x1x1xT = (jnp.arange(cache.key.shape[2]) <= position)[None, None, None]
        pattern = self._biased(Pattern(mask=mask_1x1x1xT, bias=self_bias))
        new_RxHx1xD = self.self_attention.key_value(h_Rx1xE, pattern)
        update = jax.lax.dynamic_update_slice
        pairs = zip(cache, new_RxHx1xD, strict=True)
        cache = KeyValue(*(update(old, new, (0, 0, position, 0)) for old, new in pairs))
        h_BxKxE = self.self_attention(h_Rx1xE, cache, pattern, True).reshape(x_BxKxE.shape)
        x_BxKxE, cross = x_BxKxE + h_BxKxE, Pattern(mask=cross_mask)
        # The K sequences of an input are K queries of the same keys: nothing is repeated.
        return self._after_self_attention(x_BxKxE, cross_key_value, cross, True), cache

    def _after_self_attention(
        self, x_BxTxE: jax.Array, cross_key_value: KeyValue, pattern: Pattern, deterministic: bool
    ) -> jax.Array:
        h_BxTxE = self.pre_cross_attention_layer_norm(x_BxTxE)
        h_BxTxE = self.encoder_decoder_attention(h_BxTxE, cross_key_value, pattern, deterministic)
        return self._feed_forward(self._add(x_BxTxE, h_BxTxE, deterministic), deterministic)


class Encoder(nn.Module):
    """The encoder's stack, its position bias and its final norm."""

    config: T5Config
    layer: ClassVar[Any] = EncoderLayer
    bias: ClassVar[Any] = RelativePositionBias
    in_axes: ClassVar[tuple] = (nn.broadcast,) * 2

    def setup(self) -> None:
        config = self.config
        self.relpos_bias = self.bias(config, bidirectional=True)
        self.layers = stacked(self.layer, config, config.num_encoder_layers, self.in_axes)(config)
        self.encoder_norm = RMSNorm(config.layer_norm_epsilon, self.layer.offset)
        self.dropout = Dropout(config.dropout_rate)

    def __call__(self, x_BxSxE: jax.Array, pattern: Pattern, deterministic: bool) -> jax.Array:
        """Embedded tokens [B, S, E] -> [B, S, E]; the pattern has no bias yet."""
        length = x_BxSxE.shape[1] if pattern.keys is None else pattern.keys.take.shape[-1]
        pattern = pattern._replace(bias=self.relpos_bias(jnp.arange(length)))
        x_BxSxE = self.dropout(x_BxSxE, deterministic)
        x_BxSxE, _ = self.layers(x_BxSxE, pattern, deterministic)
        return self.dropout(self.encoder_norm(x_BxSxE), deterministic)


class Decoder(nn.Module):
    """The decoder's stack, its position bias, its final norm and, for v1.1, the logits."""

    config: T5Config
    vocab_size: int
    layer: ClassVar[Any] = DecoderLayer
    bias: ClassVar[Any] = RelativePositionBias
    in_axes: ClassVar[tuple] = (nn.broadcast,) * 4

    def setup(self) -> None:
        config = self.config
        self.relpos_bias = self.bias(config, bidirectional=False)
        self.layers = stacked(self.layer, config, config.num_decoder_layers, self.in_axes)(config)
        self.decoder_norm = RMSNorm(config.layer_norm_epsilon, self.layer.offset)
        self.dropout = Dropout(config.dropout_rate)
        if not config.logits_via_embedding:
            self.logits_dense = Dense(self.vocab_size, ("embed", "vocab"), config.dtype)

    def __call__(
        self,
        x_BxTxE: jax.Array,
        encoded_BxSxE: jax.Array,
        positions: jax.Array,
        self_pattern: Pattern,
        cross_pattern: Pattern,
        deterministic: bool,
    ) -> jax.Array:
        """Embedded tokens [B, T, E] -> [B, T, E], before the final norm.

        `positions` are those of attention's rows, int32 [T], or [B, T] where rows differ;
        `self_pattern` has no bias yet.
        """
        self_pattern = self_pattern._replace(bias=self.relpos_bias(positions))
        x_BxTxE = self.dropout(x_BxTxE, deterministic)
        x_BxTxE, _ = self.layers(x_BxTxE, encoded_BxSxE, self_pattern, cross_pattern, deterministic)
        return x_BxTxE


class T5(nn.Module):
    """T5 v1.0, v1.1 or umT5, as the configuration says.

    Padding is hidden as a key in the encoder and in cross-attention. The decoder is causal only, so
    the logits after a target's end must be ignored by the loss.
    """

    config: T5Config

    def setup(self) -> None:
        vocab_size = self.config.vocab_size
        if vocab_size is None:
            raise UsageError(
                "T5Config.vocab_size is None, which means the vocabulary's size: set it from the "
                "vocabulary before the model is built (dataclasses.replace)."
            )
        self.token_embedder = self.encoder_embedder = Embed(vocab_size, self.config)
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config, vocab_size)

    def __call__(
        self,
        encoder_input_tokens: jax.Array,
        decoder_input_tokens: jax.Array,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """int32 [B, S], int32 [B, T] (targets shifted right) -> logits [B, T, V] in float32.

        Without `deterministic` it needs a key named "dropout".
        """
        block = Block(encoder_input_tokens, decoder_input_tokens, None, None)
        return self.block_logits(block, deterministic=deterministic)

    def block_logits(
        self,
        block: Block,
        *,
        deterministic: bool = True,
        positions_BxT: jax.Array | None = None,
        sees_BxTxT: jax.Array | None = None,
    ) -> jax.Array:
        """Logits of a block's targets, in any layout: [R, T, V] in float32.

        Targets that share their beginnings may come in any order: `positions_BxT`, int32, is where
        a token stands, `sees_BxTxT`, bool, whether it (axis 1) comes after another, or is it.
        """
        own, decoder, cross = block_patterns(block, self.config)
        if sees_BxTxT is not None:
            decoder = Pattern(sees_BxTxT[:, None], None, decoder.queries, decoder.keys)
        x_BxSxE = self.encoder_embedder(block.encoder_input_tokens)
        encoded_BxSxE = self.encoder(x_BxSxE, own, deterministic)
        positions = jnp.arange(decoder_length(block)) if positions_BxT is None else positions_BxT
        x_BxTxE = self.token_embedder(block.decoder_input_tokens)
        x_BxTxE = self.decoder(x_BxTxE, encoded_BxSxE, positions, decoder, cross, deterministic)
        return self.logits(x_BxTxE, deterministic=deterministic)

    def encode(self, encoder_input_tokens: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """int32 [B, S] -> [B, S, E] in the activations' dtype."""
        pattern = Pattern(mask=padding_mask(encoder_input_tokens, self.config.pad_token_id))
        return self.encoder(self.encoder_embedder(encoder_input_tokens), pattern, deterministic)

    def logits(self, x_BxTxE: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Output of the decoder's last layer [B, T, E] -> logits [B, T, V] in float32."""
        y_BxTxE = self.decoder.dropout(self.decoder.decoder_norm(x_BxTxE), deterministic)
        if self.config.logits_via_embedding:
            # v1.0 rescales here, because the shared embedding has unit variance.
            logits_BxTxV = self.token_embedder.attend(y_BxTxE * self.config.emb_dim**-0.5)
        else:
            logits_BxTxV = self.decoder.logits_dense(y_BxTxE, accumulate_in_float32=True)
        return nn.with_logical_constraint(logits_BxTxV, ("batch", "length", "vocab"))
