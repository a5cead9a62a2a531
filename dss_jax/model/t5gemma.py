"""T5Gemma in Flax Linen (Zhang et al. 2025, arXiv 2504.06225), behind the interface of T5.

The stacks, the layouts and decoding are T5's. Here are the parts that differ, which stand where
T5's do; their arithmetic follows Hugging Face's PyTorch T5Gemma, against which the tests hold it.
Parameters have T5's names; a norm's scale is what is added to 1. Beside them there are

  encoder_embedder/embedding         (token_embedder is the decoder's, which also gives the logits)
  */layers/{attention, self_attention, encoder_decoder_attention, mlp}/post_norm/scale

Shape letters are those of `dss_jax.model.layers`, and U heads of keys and values, W queries' heads
for each: H = U * W.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from dss_jax.core.config import T5Config
from dss_jax.core.t5gemma import encoder_of, of
from dss_jax.model import t5
from dss_jax.model.attention import MASKED, Attention, KeyValue, Pattern
from dss_jax.model.layers import FAN_IN_NORMAL, Dense, Dropout, Embed, Mlp, RMSNorm
from dss_jax.model.matmul import MIXED

OFFSET = 1.0
"""Of the scale of every norm."""


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """`cap * tanh(x / cap)`; None: x."""
    return x if cap is None else cap * jnp.tanh(x / cap)


class Places(NamedTuple):
    """What self-attention knows of where its tokens are; in `Pattern.bias`. B is 1 where all rows
    have the same positions.

    Attributes:
      near: bool [B, 1, T, T], whether a query of a sliding layer sees a key.
      cos, sin: float32 [B, 1, T, D].
      sliding: bool, whether the layer slides: [1, 1, 1, 1], or of a whole stack [L, 1, 1, 1, 1].
    """

    near: jax.Array
    cos: jax.Array
    sin: jax.Array
    sliding: jax.Array


class Rotary(nn.Module):
    """Makes the `Places` of a stack; stands where T5 has its position bias."""

    config: T5Config
    bidirectional: bool = False

    def __call__(self, positions: jax.Array) -> Places:
        """Of queries and keys at these positions, int32 [T] or [B, T]."""
        config, gemma = self.config, of(self.config)
        positions_BxT = positions.reshape(-1, positions.shape[-1])
        back_BxTxT = positions_BxT[:, :, None] - positions_BxT[:, None, :]
        near_BxTxT = back_BxTxT < gemma.sliding_window
        if self.bidirectional:
            near_BxTxT = jnp.abs(back_BxTxT) <= gemma.sliding_window
        exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
        frequencies = (1.0 / np.float32(gemma.rope_theta) ** exponents).reshape(1, 1, 1, -1)
        angles = positions_BxT[:, None, :, None].astype(jnp.float32) * frequencies
        angles_Bx1xTxD = jnp.concatenate([angles, angles], axis=-1)
        layers = config.num_encoder_layers if self.bidirectional else config.num_decoder_layers
        sliding_L = jnp.arange(layers) % 2 == 0
        return Places(
            near_BxTxT[:, None],
            jnp.cos(angles_Bx1xTxD),
            jnp.sin(angles_Bx1xTxD),
            sliding_L[:, None, None, None, None],
        )

    def of_layer(self, places: Places, layer: int) -> Places:
        """A layer's part of what a call gives."""
        return places._replace(sliding=places.sliding[layer])


def rotated(x_BxHxTxD: jax.Array, places: Places | None) -> jax.Array:
    """Queries or keys turned by their positions; None, as in cross-attention: as they are."""
    if places is None:
        return x_BxHxTxD
    wide = x_BxHxTxD.astype(jnp.float32)
    first, second = jnp.split(wide, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (wide * places.cos + turned * places.sin).astype(x_BxHxTxD.dtype)


class GroupedAttention(Attention):
    """Attention whose keys and values serve several heads of queries each, with rotary positions,
    soft caps, and a norm of what it gives.
    """

    def setup(self) -> None:
        config, gemma = self.config, of(self.config)
        joined, shared = (n * config.head_dim for n in (config.num_heads, gemma.num_kv_heads))
        self.query, self.key, self.value = (
            Dense(size, ("embed", "joined_kv"), config.dtype, FAN_IN_NORMAL)
            for size in (joined, shared, shared)
        )
        self.out = Dense(config.emb_dim, ("joined_kv", "embed"), config.dtype, FAN_IN_NORMAL)
        self.dropout = Dropout(gemma.attention_dropout)
        self.post_norm = RMSNorm(config.layer_norm_epsilon, OFFSET)

    def key_value(self, x_BxSxE: jax.Array, pattern: Pattern) -> KeyValue:
        """As T5's; with U heads, the keys turned by their positions."""
        key, value = super().key_value(x_BxSxE, pattern)
        return KeyValue(rotated(key, pattern.bias), value)

    def __call__(
        self, x_BxTxE: jax.Array, key_value: KeyValue, pattern: Pattern, deterministic: bool
    ) -> jax.Array:
        """As T5's; `pattern.bias` are `Places`, or None in cross-attention."""
        return self.post_norm(super().__call__(x_BxTxE, key_value, pattern, deterministic))

    def _attend(
        self, q_BxHxTxD: jax.Array, key_value: KeyValue, pattern: Pattern, deterministic: bool
    ) -> jax.Array:
        gemma, (b, h, t, d) = of(self.config), q_BxHxTxD.shape
        q_BxUxWxTxD = rotated(q_BxHxTxD, pattern.bias).reshape(b, gemma.num_kv_heads, -1, t, d)
        scores_BxUxWxTxS = jnp.einsum(
            "buwtd,busd->buwts", q_BxUxWxTxD, key_value.key, preferred_element_type=jnp.float32
        )
        scores_BxHxTxS = scores_BxUxWxTxS.reshape(b, h, t, -1) * gemma.query_pre_attn_scalar**-0.5
        scores_BxHxTxS = soft_cap(scores_BxHxTxS, gemma.attn_logit_softcapping)
        scores_BxHxTxS = jnp.where(pattern.mask, scores_BxHxTxS, MASKED)
        weights_BxHxTxS = jax.nn.softmax(scores_BxHxTxS, axis=-1).astype(q_BxHxTxD.dtype)
        weights_BxHxTxS = self.dropout(weights_BxHxTxS, deterministic)
        weights_BxUxWxTxS = weights_BxHxTxS.reshape(scores_BxUxWxTxS.shape)
        mixed_BxUxWxTxD = jnp.einsum("buwts,busd->buwtd", weights_BxUxWxTxS, key_value.value)
        return checkpoint_name(mixed_BxUxWxTxD.reshape(b, h, t, d).swapaxes(1, 2), MIXED)


class NormedMlp(Mlp):
    """T5's feed-forward layer, and a norm of what it gives."""

    def setup(self) -> None:
        self.post_norm = RMSNorm(self.config.layer_norm_epsilon, OFFSET)

    def __call__(self, x_BxTxE: jax.Array, deterministic: bool) -> jax.Array:
        """[B, T, E] -> [B, T, E]."""
        return self.post_norm(super().__call__(x_BxTxE, deterministic))


class _Parts:
    """What the layers of both stacks have in the places of T5's parts."""

    attention_type, mlp_type, offset = GroupedAttention, NormedMlp, OFFSET

    def _biased(self, pattern: Pattern) -> Pattern:
        near = pattern.bias.near | ~pattern.bias.sliding
        return pattern._replace(mask=pattern.mask & near)


class GemmaEncoderLayer(_Parts, t5.EncoderLayer):
    """T5's, of these parts."""


class GemmaDecoderLayer(_Parts, t5.DecoderLayer):
    """T5's, of these parts."""


_SAME: Any = nn.broadcast
_OWN: Any = 0
_PATTERN = Pattern(*[_SAME] * 6)._replace(bias=Places(_SAME, _SAME, _SAME, _OWN))
"""How the loop over the layers takes a pattern of self-attention: each layer its own `sliding`."""


class GemmaEncoder(t5.Encoder):
    """T5's, of these layers. Its configuration has the encoder's sizes."""

    layer, bias, in_axes = GemmaEncoderLayer, Rotary, (_PATTERN, _SAME)


class GemmaDecoder(t5.Decoder):
    """T5's, of these layers."""

    layer, bias, in_axes = GemmaDecoderLayer, Rotary, (_SAME, _PATTERN, _SAME, _SAME)


class ScaledEmbed(Embed):
    """Embeddings times sqrt(E) as inputs, and as they are for logits."""

    stddev: float = 0.02

    def __call__(self, tokens_BxT: jax.Array) -> jax.Array:
        """int32 [B, T] -> [B, T, E] in the activations' dtype; NaN for ids >= V."""
        x_BxTxE = super().__call__(tokens_BxT)
        return x_BxTxE * jnp.asarray(self.config.emb_dim**0.5, x_BxTxE.dtype)


class T5Gemma(t5.T5):
    """T5Gemma of the first generation; see `T5`."""

    def setup(self) -> None:
        config, of_encoder = self.config, encoder_of(self.config)
        assert config.vocab_size is not None
        self.token_embedder = ScaledEmbed(config.vocab_size, config)
        self.encoder_embedder = ScaledEmbed(config.vocab_size, of_encoder)
        self.encoder = GemmaEncoder(of_encoder)
        self.decoder = GemmaDecoder(config, config.vocab_size)

    def logits(self, x_BxTxE: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Output of the decoder's last layer [B, T, E] -> logits [B, T, V] in float32."""
        y_BxTxE = self.decoder.dropout(self.decoder.decoder_norm(x_BxTxE), deterministic)
        if self.config.logits_via_embedding:
            logits_BxTxV = self.token_embedder.attend(y_BxTxE)
        else:
            logits_BxTxV = self.decoder.logits_dense(y_BxTxE, accumulate_in_float32=True)
        capped_BxTxV = soft_cap(logits_BxTxV, of(self.config).final_logit_softcapping)
        return nn.with_logical_constraint(capped_BxTxV, ("batch", "length", "vocab"))
