"""Hugging Face's `config.json` <-> the shape of our model.

`tie_word_embeddings` meant two things in `transformers` 4: that `lm_head` is the embedding, and
that the decoder's output is scaled by d_model^-0.5 before it (v1.0). `transformers` 5 always ties,
unless the checkpoint has an `lm_head` of its own, and keeps the scaling in
`scale_decoder_outputs`; its umT5 always scales too, whatever the checkpoint. Only `scaled` is read
from the configuration here; the tensors say whether the head is tied.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dss_jax.core.config import T5Config
from dss_jax.core.errors import UsageError
from dss_jax.core.ids import EOS_ID, PAD_ID, UNK_ID
from dss_jax.core.student_card import StudentCard

CONFIG = "config.json"

EMBEDDING, HEAD = "shared.weight", "lm_head.weight"

MODEL_TYPES = ("t5", "mt5", "umt5")
"""Whose models are ours."""

REFUSED = {
    "longt5": "its encoder has local or transient-global attention",
    "switch_transformers": "its feed-forward layers are mixtures of experts",
    "t5gemma2": "its decoder attends to inputs and outputs in one, and it sees images",
}
"""Relatives of T5 whose model is another one, and why."""

SHAPE = {
    "vocab_size": "vocab_size",
    "emb_dim": "d_model",
    "num_heads": "num_heads",
    "head_dim": "d_kv",
    "mlp_dim": "d_ff",
    "num_encoder_layers": "num_layers",
}
"""Our field -> Hugging Face's, of those that every `config.json` of T5 has."""

OPTIONAL = {
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "dropout_rate": 0.1,
}
"""Fields of the same name on both sides -> `transformers`' value where the file lacks it."""

FEED_FORWARD = {("relu",): "relu", ("silu",): "silu", ("gelu",): "gelu_new"} | {
    (name, "linear"): f"gated-{name}" for name in ("relu", "silu", "gelu")
}
"""Our activations -> Hugging Face's name of the layer that has them."""

ACTIVATIONS = {"relu": "relu", "silu": "silu", "swish": "silu", "gelu_new": "gelu"}
"""Hugging Face's activation -> ours. Ours of "gelu" is the tanh approximation, as T5's is."""

_SUBLAYERS = {
    "encoder": [
        ("pre_attention_layer_norm", "attention", "SelfAttention"),
        ("pre_mlp_layer_norm", "mlp", "DenseReluDense"),
    ],
    "decoder": [
        ("pre_self_attention_layer_norm", "self_attention", "SelfAttention"),
        ("pre_cross_attention_layer_norm", "encoder_decoder_attention", "EncDecAttention"),
        ("pre_mlp_layer_norm", "mlp", "DenseReluDense"),
    ],
}
"""Stack -> of each part of a layer, in order: our norm, our name, Hugging Face's."""

_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
_MLP = {name: name for name in ("wi", "wi_0", "wi_1", "wo")}

TOKEN_IDS = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
"""Fields of the same name on both sides -> T5's value, where the file lacks it."""


def names() -> dict[str, str]:
    """Our path -> Hugging Face's name, of the parameters of every T5; "{i}" is the layer."""
    names = {"token_embedder/embedding": EMBEDDING}
    for stack, sublayers in _SUBLAYERS.items():
        for number, (norm, ours, theirs) in enumerate(sublayers):
            block = f"{stack}.block.{{i}}.layer.{number}"
            names[f"{stack}/layers/{norm}/scale"] = f"{block}.layer_norm.weight"
            for kernel, letter in (_MLP if ours == "mlp" else _ATTENTION).items():
                name = f"{block}.{theirs}.{letter}.weight"
                names[f"{stack}/layers/{ours}/{kernel}/kernel"] = name
        bias = f"{stack}.block.{{i}}.layer.0.SelfAttention.relative_attention_bias.weight"
        names[f"{stack}/layers/relpos_bias/rel_embedding"] = bias
        names[f"{stack}/relpos_bias/rel_embedding"] = bias.format(i=0)
        names[f"{stack}/{stack}_norm/scale"] = f"{stack}.final_layer_norm.weight"
    return names | {"decoder/logits_dense/kernel": HEAD}


def shape_of(fields: Mapping[str, Any], origin: str) -> T5Config:
    """Our configuration from the contents of `config.json`, scaled logits by `is_scaled`. Raises
    UsageError: another architecture, a missing field, an activation or a token id that our model
    does not have.
    """
    model_type = fields.get("model_type")
    if model_type not in MODEL_TYPES:
        why = REFUSED.get(str(model_type))
        raise UsageError(
            f"{origin} is of model_type {model_type!r}, which this T5 cannot hold"
            f"{f': {why}' if why else ''}. "
            f"Allowed: {', '.join(MODEL_TYPES)}, t5gemma."
        )
    missing = [name for name in SHAPE.values() if name not in fields]
    if missing:
        raise UsageError(f"{origin}: {CONFIG} lacks {', '.join(missing)}.")
    found = T5Config(
        **{ours: fields[theirs] for ours, theirs in SHAPE.items()},
        **{name: fields.get(name, default) for name, default in OPTIONAL.items()},
        num_decoder_layers=fields.get("num_decoder_layers") or fields["num_layers"],
        mlp_activations=_activations(fields, origin),
        logits_via_embedding=is_scaled(fields),
        relative_attention_per_layer=model_type == "umt5",
    )
    rows = found.vocab_size or 0
    ids: dict[str, Any] = {n: token_id(fields, n, rows, origin) for n in TOKEN_IDS}
    return replace(found, **ids)


def token_id(fields: Mapping[str, Any], name: str, rows: int, origin: str) -> int:
    """A field of `TOKEN_IDS`; UsageError: it is no id below `rows`, or several."""
    given = fields.get(name)
    if isinstance(given, list) and len(given) == 1:
        [given] = given
    if given is None:
        return TOKEN_IDS[name]
    if not isinstance(given, int) or not 0 <= given < rows:
        raise UsageError(
            f"{origin}: {name} is {given}; it must be one id, from 0 to below vocab_size ({rows})."
        )
    return given


def is_scaled(fields: Mapping[str, Any]) -> bool:
    """Whether the decoder's output is scaled by d_model^-0.5 before the logits, as in v1.0."""
    if "scale_decoder_outputs" in fields:
        return bool(fields["scale_decoder_outputs"])
    if fields.get("model_type") == "mt5" and written_by_transformers_5(fields):
        return False  # Its mT5 never scales, and ties where there is no head, whatever is set.
    return fields.get("tie_word_embeddings") is not False


def written_by_transformers_5(fields: Mapping[str, Any]) -> bool:
    """It makes models of a v1.1 or mT5 configuration whose head is the embedding, not scaled."""
    major = str(fields.get("transformers_version", "")).partition(".")[0]
    return major.isdigit() and int(major) >= 5


def _activations(fields: Mapping[str, Any], origin: str) -> tuple[str, ...]:
    default = "relu" if fields["model_type"] == "t5" else "gated-gelu"
    layer = str(fields.get("feed_forward_proj", default))
    gated = layer.startswith("gated-")
    # `transformers` takes "gated-gelu" for T5 v1.1's tanh approximation, "gelu" for the exact one.
    name = "gelu_new" if layer == "gated-gelu" else layer.removeprefix("gated-")
    name = str(fields.get("dense_act_fn", name))
    if name not in ACTIVATIONS or fields.get("is_gated_act", gated) != gated:
        raise UsageError(
            f"{origin}: the feed-forward layer {layer!r} (activation {name!r}) is none of this "
            f"T5's: {', '.join(ACTIVATIONS)}, plain or gated. The exact gelu is none either."
        )
    return (ACTIVATIONS[name], "linear") if gated else (ACTIVATIONS[name],)


def config_json(config: T5Config, dtype: str, card: StudentCard | None = None) -> dict[str, Any]:
    """The contents of `config.json` for a model whose tensors are of a dtype; a student's prefixes
    are where T5's own are, in `task_specific_params`. Raises UsageError: `transformers` has no such
    feed-forward layer.
    """
    if config.mlp_activations not in FEED_FORWARD:
        raise UsageError(
            f"Hugging Face's T5 has no feed-forward layer {config.mlp_activations}. It has: "
            f"{', '.join(map(str, FEED_FORWARD))}."
        )
    own_bias = config.relative_attention_per_layer
    return {
        "architectures": [f"{'UMT5' if own_bias else 'T5'}ForConditionalGeneration"],
        "model_type": "umt5" if own_bias else "t5",
        "is_encoder_decoder": True,
        **{theirs: getattr(config, ours) for ours, theirs in SHAPE.items()},
        "num_decoder_layers": config.num_decoder_layers,
        **{name: getattr(config, name) for name in OPTIONAL},
        "feed_forward_proj": FEED_FORWARD[config.mlp_activations],
        "tie_word_embeddings": config.logits_via_embedding,
        "dtype": dtype,
        **token_ids(config),
        **task_params(card),
    }


def token_ids(config: T5Config) -> dict[str, Any]:
    """The fields of `TOKEN_IDS`; in T5Gemma, what the decoder begins with has a name of its own."""
    begin = {"bos_token_id": config.decoder_start_token_id} if config.gemma is not None else {}
    return {name: getattr(config, name) for name in TOKEN_IDS} | begin


def task_params(card: StudentCard | None) -> dict[str, Any]:
    """The field `task_specific_params`, where there is a card."""
    if card is None:
        return {}
    longest = {"label": card.longest_label, "rationale": card.max_rationale_length}
    prefixes = {"label": card.label_prefix, "rationale": card.rationale_prefix}
    own = {
        name: {"prefix": prefix, "max_length": longest[name]}
        for name, prefix in prefixes.items()
        if prefix is not None
    }
    # The pipelines of transformers 4 look for their own name.
    return {"task_specific_params": {**own, "text2text-generation": own["label"]}}


def generation_json(config: T5Config, card: StudentCard | None) -> dict[str, Any]:
    """The contents of `generation_config.json`: greedy, as long as a student's longest text may be;
    without a length `generate` stops at 20 tokens.
    """
    if card is None:
        return token_ids(config)
    explains = card.rationale_prefix is not None
    longest = max(card.longest_label, card.max_rationale_length if explains else 0)
    return {**token_ids(config), "max_new_tokens": longest}


def tokenizer_config_json(names: Sequence[str], extra_ids: int, fast: bool) -> dict[str, Any]:
    """The contents of `tokenizer_config.json`, for a `spiece.model` beside it whose first pieces
    have these names, and, where it is `fast`, a `tokenizer.json`. That is then taken as it is: the
    class T5Tokenizer of transformers 5 would cut texts at other spaces than SentencePiece does.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast" if fast else "T5Tokenizer",
        "eos_token": names[EOS_ID],
        "unk_token": names[UNK_ID],
        "pad_token": names[PAD_ID],
        "extra_ids": extra_ids,
        "additional_special_tokens": [f"<extra_id_{i}>" for i in range(extra_ids)],
        "clean_up_tokenization_spaces": False,
    }
