"""A T5 model: its shape, its low-rank adaptation, how it decodes. Standard library only."""

from dataclasses import dataclass, fields

from dss_jax.core.checks import Section, setting
from dss_jax.core.errors import UsageError

VOCAB_SIZE = 32_128
"""Of T5's public vocabulary, rounded up; it stands for one that is not known yet."""

REMAT_POLICIES = ("none", "minimal", "full")
"""From the most memory to the least."""

LORA_TARGETS = ("query", "key", "value", "out", "wi", "wi_0", "wi_1", "wo")
"""Linear maps of a T5 layer: attention, and feed-forward (wi: v1.0; wi_0, wi_1: v1.1)."""


@dataclass(frozen=True, kw_only=True)
class T5Config(Section):
    """The T5 model; names as in T5X's `network.T5Config`.

    Attributes:
      vocab_size: rows of the embedding; None: the vocabulary's size, up to a multiple of 128.
      emb_dim: width of the residual stream (Hugging Face: d_model).
      num_heads, head_dim: attention heads and their width (num_heads, d_kv).
      mlp_dim: width of the feed-forward layer (d_ff).
      num_encoder_layers, num_decoder_layers: layers.
      mlp_activations: ("relu",) for v1.0, ("gelu", "linear") for v1.1.
      logits_via_embedding: v1.0: logits are the scaled product with the input embedding.
      gemma: of a T5Gemma, whose decoder has the sizes above: names and values of `core.t5gemma`.
      relative_attention_num_buckets, relative_attention_max_distance: of the position bias.
      relative_attention_per_layer: each layer has its own bias (umT5, Pile-T5, scalable_t5).
      layer_norm_epsilon: of the RMS norm.
      pad_token_id, eos_token_id, decoder_start_token_id: ids of padding, of the end of a text, and
        of what the decoder begins with: a checkpoint's, else the vocabulary's (T5's own values
        count as not given; a T5Gemma may begin with any other id). Others are refused.
      dropout_rate: in [0, 1).
      dtype: of activations, "float32" or "bfloat16"; all else (parameters, softmax) is float32.
      attention: "xla", or "cudnn": one kernel on NVIDIA GPUs, for rows of 256 tokens and more; it
        needs bfloat16 and has no dropout of attention weights.
      remat_policy: what the backward pass computes again instead of keeping it, as in T5X's
        scalable_t5: "none" (on GPUs and TPUs: what is cheaper than to keep); "minimal": all but
        the layers' products with their kernels; "full": all but each layer's input.
      scan_unroll: layers in a turn of the loop over them; more compiles longer, may be faster.
        None: on TPUs all of them where remat_policy is "none", else 1.
    """

    vocab_size: int | None = setting(VOCAB_SIZE, low=3)
    emb_dim: int = setting(768, low=1)
    num_heads: int = setting(12, low=1)
    head_dim: int = setting(64, low=1)
    mlp_dim: int = setting(2048, low=1)
    num_encoder_layers: int = setting(12, low=1)
    num_decoder_layers: int = setting(12, low=1)
    mlp_activations: tuple[str, ...] = setting(
        ("gelu", "linear"), among=("relu", "gelu", "silu", "linear")
    )
    logits_via_embedding: bool = False
    gemma: tuple[tuple[str, float | None], ...] | None = None
    relative_attention_num_buckets: int = setting(32, low=4)
    relative_attention_max_distance: int = 128
    relative_attention_per_layer: bool = False
    layer_norm_epsilon: float = 1e-6
    pad_token_id: int = setting(0, low=0)
    eos_token_id: int = setting(1, low=0)
    decoder_start_token_id: int = setting(0, low=0)
    dropout_rate: float = setting(0.1, low=0, high=0.999)
    dtype: str = setting("float32", among=("float32", "bfloat16"))
    attention: str = setting("xla", among=("xla", "cudnn"))
    remat_policy: str = setting("none", among=REMAT_POLICIES, free=True)
    scan_unroll: int | None = setting(None, low=1, free=True)

    @property
    def pad_and_start(self) -> tuple[int, int]:
        """What a batch is filled up with, and what comes before its targets."""
        return self.pad_token_id, self.decoder_start_token_id

    @property
    def drops(self) -> bool:
        """Whether training draws anything: dropout, or T5Gemma's of attention."""
        return bool(self.dropout_rate or dict(self.gemma or ()).get("attention_dropout"))

    def check(self) -> None:
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
        if self.attention == "cudnn" and self.dtype != "bfloat16":
            raise UsageError(
                f'T5Config.attention = "cudnn" needs T5Config.dtype = "bfloat16", not '
                f"{self.dtype!r}: cuDNN's kernel has no float32."
            )
        if self.gemma is not None:
            from dss_jax.core import t5gemma

            t5gemma.of(self)


OF_A_RUN = ("dropout_rate", "dtype", "attention", "remat_policy", "scan_unroll")

SHAPE_FIELDS = tuple(f.name for f in fields(T5Config) if f.name not in OF_A_RUN)
"""The fields of `T5Config` that belong to a checkpoint; the others belong to a run."""

LATER = {"relative_attention_per_layer", "gemma"} | {n for n in SHAPE_FIELDS if n[-3:] == "_id"}
"""Those that a `t5_config.json` of an older version lacks, and has the defaults of."""


@dataclass(frozen=True, kw_only=True)
class Lora(Section):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): only `A B` of `W + A B` is trained.

    The paper's alpha is the rank, so that the scale alpha / rank is 1: the learning rate does its
    work.

    Attributes:
      rank: of A B; 0 is off: all parameters are trained.
      targets: names of the linear maps that get an A B, in every layer of both stacks and, for
        attention, in cross-attention too.
      learning_rate: peak; takes the place of Optimizer.learning_rate.
    """

    rank: int = setting(0, low=0)
    targets: tuple[str, ...] = setting(("query", "value"), among=LORA_TARGETS)
    learning_rate: float = setting(1e-3, low=0, high=10)

    def check(self) -> None:
        if not self.targets:
            raise UsageError(f"Lora.targets is empty. Known: {', '.join(LORA_TARGETS)}.")


DECODE_METHODS = ("greedy", "beam", "sample", "rank")


@dataclass(frozen=True, kw_only=True)
class Beam(Section):
    """Beam search.

    Attributes:
      num_beams: beginnings that are kept, and sequences that come out.
      rule: "hf", as Hugging Face's `generate`: a score is log-probability /
        length^length_penalty; at the longest length all beams count as ended. "t5x", as T5X:
        log-probability / ((5 + length) / 6)^length_penalty (Wu et al. 2016, arXiv 1609.08144);
        beams that have not ended count only where none has.
      length_penalty: above 0 favours long sequences (Hugging Face's default 1.0, T5X's 0.6).
      early_stopping: of rule "hf". True: stop when `num_beams` sequences have ended. False: when
        the best live beam, at its present length, is no better than the worst of them. "never":
        the same, at the longest length where that is better.
      min_decode_length: tokens before the end is allowed.
    """

    num_beams: int = setting(4, low=1)
    rule: str = setting("hf", among=("hf", "t5x"))
    length_penalty: float = setting(1.0, low=-100, high=100)
    early_stopping: bool | str = False
    min_decode_length: int = setting(0, low=0)

    def check(self) -> None:
        if self.early_stopping not in (True, False, "never"):
            raise UsageError(
                f'Beam.early_stopping must be True, False or "never", not {self.early_stopping!r}.'
            )


@dataclass(frozen=True, kw_only=True)
class Sample(Section):
    """Sampling. Temperature, top-k and top-p apply in this order, as in Hugging Face's `generate`.

    Attributes:
      num_samples: sequences an input.
      temperature: the logits are divided by it; 0 takes the most likely token.
      top_k: only the k most likely tokens are drawn from; 0: all.
      top_p: only the most likely tokens that together have this probability; 1: all
        (Holtzman et al. 2020, arXiv 1904.09751).
      min_decode_length: tokens before the end is allowed.
      seed: of the draws. A sequence depends on it, on its input's number and on its own number
        alone, so it is the same in whatever batch it is decoded.
    """

    num_samples: int = setting(1, low=1)
    temperature: float = setting(1.0, low=0, high=1000)
    top_k: int = setting(0, low=0)
    top_p: float = setting(1.0, low=0, high=1)
    min_decode_length: int = setting(0, low=0)
    seed: int = setting(0, low=0, high=2**32 - 1)


GREEDY = Sample(temperature=0.0)
"""The most likely token at each position."""
