"""Hugging Face's T5Gemma: the names of its tensors, and `config.json` <-> our model's shape."""

from collections.abc import Mapping
from typing import Any

from dss_jax.core.config import T5Config
from dss_jax.core.errors import UsageError
from dss_jax.core.student_card import StudentCard
from dss_jax.core.t5gemma import Gemma, encoder_of, of
from dss_jax.interop import hf_config

EMBEDDING, HEAD = "model.decoder.embed_tokens.weight", "lm_head.out_proj.weight"

STACKS = ("encoder", "decoder")

generation_json = hf_config.generation_json

_SIZES = {
    "emb_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "head_dim": "head_dim",
    "mlp_dim": "intermediate_size",
}
"""Our field -> that of `T5GemmaModuleConfig`, of those that the stacks may differ in."""

_OWN = (
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "sliding_window",
)
"""Fields that have the same name in `core.t5gemma`."""

_FIXED = {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}
"""What a T5Gemma here has, whatever its size."""

_DEFAULTS: dict[str, Any] = {
    **{theirs: getattr(Gemma(), f"encoder_{ours}") for ours, theirs in _SIZES.items()},
    **{name: getattr(Gemma(), name) for name in _OWN},
    **_FIXED,
    "num_hidden_layers": 26,
    "num_key_value_heads": Gemma().num_kv_heads,
    "vocab_size": 256_000,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
"""What `transformers` leaves out of a file where it is so."""

_SAME = (*_OWN, "rope_theta", "vocab_size", "rms_norm_eps", "pad_token_id")
"""Fields that the stacks must not differ in."""

_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}
_MLP = {"wi_0": "gate_proj", "wi_1": "up_proj", "wo": "down_proj"}
_PARTS = {
    "encoder": [
        ("attention", "attention", "self_attn", "self_attn"),
        ("mlp", "mlp", "mlp", "feedforward"),
    ],
    "decoder": [
        ("self_attention", "self_attention", "self_attn", "self_attn"),
        ("encoder_decoder_attention", "cross_attention", "cross_attn", "cross_attn"),
        ("mlp", "mlp", "mlp", "feedforward"),
    ],
}
"""Stack -> of each part of a layer, in order: our name and that in its norm's, and theirs."""


def names() -> dict[str, str]:
    """Our path -> Hugging Face's name; "{i}" is the layer."""
    found = {
        "encoder_embedder/embedding": "model.encoder.embed_tokens.weight",
        "token_embedder/embedding": EMBEDDING,
    }
    for stack, parts in _PARTS.items():
        layer = f"model.{stack}.layers.{{i}}"
        for ours, our_norm, theirs, norm in parts:
            path = f"{stack}/layers/{ours}"
            before = f"{stack}/layers/pre_{our_norm}_layer_norm/scale"
            found[before] = f"{layer}.pre_{norm}_layernorm.weight"
            found[f"{path}/post_norm/scale"] = f"{layer}.post_{norm}_layernorm.weight"
            for kernel, name in (_MLP if ours == "mlp" else _ATTENTION).items():
                found[f"{path}/{kernel}/kernel"] = f"{layer}.{theirs}.{name}.weight"
        found[f"{stack}/{stack}_norm/scale"] = f"model.{stack}.norm.weight"
    return found | {"decoder/logits_dense/kernel": HEAD}


def _types(layers: int) -> list[str]:
    return [("sliding_attention", "full_attention")[i % 2] for i in range(layers)]


def _stack(fields: Mapping[str, Any], name: str, origin: str) -> dict[str, Any]:
    """The configuration of a stack, with `rope_theta`."""
    if not isinstance(given := fields.get(name), dict):
        raise UsageError(f"{origin}: {hf_config.CONFIG} has no table {name!r}.")
    found = _DEFAULTS | given
    rope = found.get("rope_parameters") or found.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UsageError(f"{origin}: {hf_config.CONFIG} has rope_parameters {rope!r}, no table.")
    # transformers 4 has it beside the others.
    found["rope_theta"] = rope.get("rope_theta", found.get("rope_theta", 10_000.0))
    _check_kinds(found, name, origin)
    types = _types(found["num_hidden_layers"])
    wanted = {
        **{field: (found[field], known) for field, known in _FIXED.items()},
        "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
        "layer_types": (found.get("layer_types") or types, types),
    }
    for field, (value, known) in wanted.items():
        if value != known:
            raise UsageError(
                f"{origin}: {field} of the {name} is {value!r}; a T5Gemma here has {known!r}."
            )
    return found


def _check_kinds(fields: Mapping[str, Any], name: str, origin: str) -> None:
    """The numbers that a T5Gemma here is made from are numbers."""
    counts = [*_SIZES.values(), "num_hidden_layers", "num_key_value_heads", "sliding_window"]
    for field in [*counts, "vocab_size", "rms_norm_eps", "query_pre_attn_scalar", "rope_theta"]:
        kinds = (int,) if field in [*counts, "vocab_size"] else (int, float)
        if type(fields[field]) not in kinds or not fields[field] > 0:
            raise UsageError(
                f"{origin}: {hf_config.CONFIG} has {field} = {fields[field]!r} in {name}; it must "
                f"be a {'whole ' * (kinds == (int,))}number above 0."
            )


def shape_of(fields: Mapping[str, Any], origin: str) -> T5Config:
    """Our configuration from the contents of `config.json`. UsageError: something that our model
    does not have.
    """
    encoder, decoder = (_stack(fields, name, origin) for name in STACKS)
    if differ := [name for name in _SAME if encoder[name] != decoder[name]]:
        values = "; ".join(f"{n}: {encoder[n]!r} and {decoder[n]!r}" for n in differ)
        raise UsageError(f"{origin}: the encoder and the decoder must not differ in {values}.")
    ids: dict[str, Any] = {**decoder, "decoder_start_token_id": decoder["bos_token_id"]}
    ids["eos_token_id"] = fields.get("eos_token_id") or decoder["eos_token_id"]
    rows = decoder["vocab_size"]
    ids = {name: hf_config.token_id(ids, name, rows, origin) for name in hf_config.TOKEN_IDS}
    dropout = {n: fields.get(n, 0.0) for n in ("dropout_rate", "attention_dropout")}
    for name, rate in dropout.items():
        if type(rate) not in (int, float):
            raise UsageError(f"{origin}: {hf_config.CONFIG} has {name} = {rate!r}, no number.")
    gemma = Gemma(
        **{name: decoder[name] for name in (*_OWN, "rope_theta")},
        **{f"encoder_{ours}": encoder[theirs] for ours, theirs in _SIZES.items()},
        num_kv_heads=decoder["num_key_value_heads"],
        encoder_num_kv_heads=encoder["num_key_value_heads"],
        attention_dropout=dropout["attention_dropout"],
    )
    return T5Config(
        **{ours: decoder[theirs] for ours, theirs in _SIZES.items()},
        **ids,
        vocab_size=decoder["vocab_size"],
        num_encoder_layers=encoder["num_hidden_layers"],
        num_decoder_layers=decoder["num_hidden_layers"],
        layer_norm_epsilon=decoder["rms_norm_eps"],
        logits_via_embedding=fields.get("tie_word_embeddings", True),
        dropout_rate=dropout["dropout_rate"],
        gemma=gemma.values,
    )


def _check_written(sides: Mapping[str, T5Config]) -> None:
    """`transformers` takes these sizes and this scale."""
    for name, side in sides.items():
        if side.emb_dim % side.num_heads:
            raise UsageError(
                f"Hugging Face's T5Gemma must have a width that is a multiple of its heads; the "
                f"{name}'s is {side.emb_dim}, with {side.num_heads} heads."
            )
    if (scale := of(sides["encoder"]).query_pre_attn_scalar) % 1:
        raise UsageError(
            f"Hugging Face's T5Gemma must have a whole query_pre_attn_scalar, not {scale}."
        )


def config_json(config: T5Config, dtype: str, card: StudentCard | None = None) -> dict[str, Any]:
    """As `hf_config.config_json`. UsageError: `transformers` takes no such sizes, or no such scale
    of attention.
    """
    gemma, sides = of(config), dict(zip(STACKS, (encoder_of(config), config), strict=True))
    _check_written(sides)
    dropout = {"dropout_rate": config.dropout_rate, "attention_dropout": gemma.attention_dropout}
    ids = hf_config.token_ids(config)
    theta = gemma.rope_theta
    stacks = {
        name: {
            "model_type": "t5_gemma_module",
            **_DEFAULTS,
            **{theirs: getattr(side, ours) for ours, theirs in _SIZES.items()},
            **{field: getattr(gemma, field) for field in _OWN},
            "query_pre_attn_scalar": int(gemma.query_pre_attn_scalar),
            "num_hidden_layers": (layers := getattr(config, f"num_{name}_layers")),
            "num_key_value_heads": of(side).num_kv_heads,
            "layer_types": _types(layers),
            "vocab_size": config.vocab_size,
            "rms_norm_eps": config.layer_norm_epsilon,
            "rope_theta": theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
            "is_decoder": name == "decoder",
            "cross_attention_hidden_size": gemma.encoder_emb_dim if name == "decoder" else None,
            **dropout,
            **{field: ids[field] for field in ids.keys() & _DEFAULTS.keys()},
        }
        for name, side in sides.items()
    }
    return {
        "architectures": ["T5GemmaForConditionalGeneration"],
        "model_type": "t5gemma",
        "is_encoder_decoder": True,
        **stacks,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.logits_via_embedding,
        "dtype": dtype,
        **dropout,
        **ids,
        **hf_config.task_params(card),
    }
