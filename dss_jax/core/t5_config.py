"""The shape of a T5 model. Standard library only."""

from dataclasses import dataclass

from dss_jax.core.checks import among, at_least, between, flag, free
from dss_jax.core.errors import UsageError

REMAT_POLICIES = ("none", "minimal", "full")
"""From the most memory to the least."""

SHAPE_FIELDS = (
    "vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim", "num_encoder_layers",
    "num_decoder_layers", "mlp_activations", "logits_via_embedding",
    "relative_attention_num_buckets", "relative_attention_max_distance", "layer_norm_epsilon",
)  # fmt: skip
"""The fields of `T5Config` that belong to a checkpoint; the others belong to a run."""


@dataclass(frozen=True, kw_only=True)
class T5Config:
    """The T5 model; names as in T5X's `network.T5Config`.

    Attributes:
      vocab_size: rows of the embedding; None: the vocabulary's size, rounded up to a multiple of
        128 as T5's is.
      emb_dim: width of the residual stream (Hugging Face: d_model).
      num_heads, head_dim: attention heads and their width (num_heads, d_kv).
      mlp_dim: width of the feed-forward layer (d_ff).
      num_encoder_layers, num_decoder_layers: layers.
      mlp_activations: ("relu",) for v1.0, ("gelu", "linear") for v1.1.
      logits_via_embedding: v1.0: logits are the scaled product with the input embedding.
      relative_attention_num_buckets, relative_attention_max_distance: of the position bias.
      layer_norm_epsilon: of the RMS norm.
      dropout_rate: in [0, 1).
      dtype: of activations, "float32" or "bfloat16"; parameters, norms, softmax and loss stay
        in float32.
      attention: "xla", or "cudnn": one kernel on NVIDIA GPUs, for rows of 256 tokens and more; it
        needs bfloat16 and has no dropout of attention weights.
      remat_policy: what the backward pass computes again instead of keeping it, as in T5X's
        scalable_t5: "none"; "minimal": all but the layers' products with their kernels;
        "full": all but each layer's input.
      scan_unroll: layers that one turn of the loop over the layers runs; more is longer to
        compile and may be faster.
    """

    vocab_size: int | None = 32128
    emb_dim: int = 768
    num_heads: int = 12
    head_dim: int = 64
    mlp_dim: int = 2048
    num_encoder_layers: int = 12
    num_decoder_layers: int = 12
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    logits_via_embedding: bool = False
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    dropout_rate: float = 0.1
    dtype: str = "float32"
    attention: str = "xla"
    remat_policy: str = free("none")
    scan_unroll: int = free(1)

    def __post_init__(self) -> None:
        if self.vocab_size is not None:
            at_least("T5Config.vocab_size", self.vocab_size, 3)
        for name in ("emb_dim", "num_heads", "head_dim", "mlp_dim"):
            at_least(f"T5Config.{name}", getattr(self, name), 1)
        for name in ("num_encoder_layers", "num_decoder_layers"):
            at_least(f"T5Config.{name}", getattr(self, name), 1)
        at_least("T5Config.relative_attention_num_buckets", self.relative_attention_num_buckets, 4)
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets // 2:
            raise UsageError(
                "T5Config.relative_attention_max_distance must be above half of "
                f"relative_attention_num_buckets ({self.relative_attention_num_buckets}), not "
                f"{self.relative_attention_max_distance}."
            )
        if not 1 <= len(self.mlp_activations) <= 2:
            raise UsageError(
                "T5Config.mlp_activations must name one activation, or two for a gated layer, "
                f"not {self.mlp_activations!r}."
            )
        for activation in self.mlp_activations:
            among("T5Config.mlp_activations", activation, ("relu", "gelu", "silu", "linear"))
        flag("T5Config.logits_via_embedding", self.logits_via_embedding)
        between("T5Config.dropout_rate", self.dropout_rate, 0, 0.999)
        among("T5Config.dtype", self.dtype, ("float32", "bfloat16"))
        among("T5Config.attention", self.attention, ("xla", "cudnn"))
        if self.attention == "cudnn" and self.dtype != "bfloat16":
            raise UsageError(
                f'T5Config.attention = "cudnn" needs T5Config.dtype = "bfloat16", not '
                f"{self.dtype!r}: cuDNN's kernel has no float32."
            )
        among("T5Config.remat_policy", self.remat_policy, REMAT_POLICIES)
        at_least("T5Config.scan_unroll", self.scan_unroll, 1)
