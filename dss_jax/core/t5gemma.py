"""What T5Gemma (Zhang et al. 2025, arXiv 2504.06225) has beside T5: `T5Config.gemma`, read.
Standard library only.
"""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from dss_jax.core.checks import Section, setting
from dss_jax.core.errors import UsageError, unknown_name

SIZES = ("emb_dim", "num_heads", "head_dim", "mlp_dim")
"""Of `T5Config`, where they are the decoder's."""


@dataclass(frozen=True, kw_only=True)
class Gemma(Section):
    """Names as in `T5Config`, and as in Hugging Face's `T5GemmaModuleConfig`.

    Attributes:
      num_kv_heads: of keys and values in the decoder; each serves as many of the queries' heads.
      encoder_num_kv_heads, encoder_emb_dim, encoder_num_heads, encoder_head_dim, encoder_mlp_dim:
        the encoder's sizes.
      query_pre_attn_scalar: scores are divided by its square root.
      attn_logit_softcapping, final_logit_softcapping: c, where scores of attention, or logits, x
        become c * tanh(x / c); None: they stay.
      rope_theta: base of the rotary positions' wavelengths (Su et al. 2021, arXiv 2104.09864).
      sliding_window: tokens to each side that the encoder's first, third, fifth ... layer sees (as
        in transformers 5; in transformers 4 and Google's code one fewer), and tokens back, its own
        among them, that these layers of the decoder see. The others see all.
      attention_dropout: of the weights of attention; the rest has `T5Config.dropout_rate`.
    """

    num_kv_heads: int = setting(4, low=1)
    encoder_num_kv_heads: int = setting(4, low=1)
    encoder_emb_dim: int = setting(2304, low=1)
    encoder_num_heads: int = setting(8, low=1)
    encoder_head_dim: int = setting(256, low=2)
    encoder_mlp_dim: int = setting(9216, low=1)
    query_pre_attn_scalar: float = setting(256, low=0, positive=True)
    attn_logit_softcapping: float | None = setting(50.0, low=0, positive=True)
    final_logit_softcapping: float | None = setting(30.0, low=0, positive=True)
    rope_theta: float = setting(10_000.0, low=0, positive=True)
    sliding_window: int = setting(4096, low=1)
    attention_dropout: float = setting(0.0, low=0, high=0.999)

    @property
    def values(self) -> tuple[tuple[str, Any], ...]:
        """As `T5Config.gemma` holds them."""
        return tuple(asdict(self).items())


def of(config: Any) -> Gemma:
    """Of a `T5Config`. UsageError: a name or a value that is none of these; sizes, a feed-forward
    layer or a form of attention that do not go together.
    """
    given, names = dict(config.gemma), [f.name for f in fields(Gemma)]
    for name in given:
        if name not in names:
            raise unknown_name("name in T5Config.gemma", name, names)
    gemma = Gemma(**given)
    for queries, own, size in (
        (config.num_heads, gemma.num_kv_heads, config.head_dim),
        (gemma.encoder_num_heads, gemma.encoder_num_kv_heads, gemma.encoder_head_dim),
    ):
        if queries % own or size % 2:
            raise UsageError(
                f"a T5Gemma's {queries} heads must be a multiple of its {own} heads of keys and "
                f"values, and their width, {size}, must be even."
            )
    if config.mlp_activations != ("gelu", "linear"):
        raise UsageError(
            f"T5Gemma has no feed-forward layer {config.mlp_activations}. It has "
            "('gelu', 'linear')."
        )
    if config.attention != "xla":
        raise UsageError('T5Gemma needs T5Config.attention = "xla": its scores have soft caps.')
    return gemma


def encoder_of(config: Any) -> Any:
    """The `T5Config` with the encoder's sizes where the decoder's are."""
    gemma = of(config)
    own = replace(gemma, num_kv_heads=gemma.encoder_num_kv_heads)
    sizes = {name: getattr(gemma, f"encoder_{name}") for name in SIZES}
    return replace(config, **sizes, gemma=own.values)
