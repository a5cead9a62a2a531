"""Records golden arrays from Hugging Face's PyTorch T5: `python tests/record_hf_reference.py`, or
those of the cases that are named after it.

Recorded with torch 2.13.0 and transformers 5.23.0 (also in each file's `meta`):
`pip install torch==2.13.0 transformers==5.23.0`. The slow tests use the same functions live.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from dss_jax.core.config import T5Config
from dss_jax.core.t5gemma import Gemma
from dss_jax.interop.hf import parameters

GOLDEN = Path(__file__).parent / "golden"

V1_0 = T5Config(
    vocab_size=60,
    emb_dim=20,
    num_heads=3,
    head_dim=8,
    mlp_dim=28,
    num_encoder_layers=2,
    num_decoder_layers=3,
    mlp_activations=("relu",),
    logits_via_embedding=True,
)
V1_1 = dataclasses.replace(
    V1_0,
    mlp_activations=("gelu", "linear"),
    logits_via_embedding=False,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=20,
)
UMT5 = dataclasses.replace(V1_1, relative_attention_per_layer=True)
# UL2's feed-forward layer; CodeT5's end, and what its decoder begins with is not padding.
SILU = dataclasses.replace(
    V1_1, mlp_activations=("silu", "linear"), eos_token_id=2, decoder_start_token_id=3
)
# Sizes that all differ; soft caps and windows that matter. Its layers slide, see all, slide.
T5GEMMA = dataclasses.replace(
    V1_0,
    mlp_activations=("gelu", "linear"),
    logits_via_embedding=False,
    num_heads=4,
    num_encoder_layers=3,
    decoder_start_token_id=2,
    gemma=Gemma(
        num_kv_heads=2,
        encoder_num_kv_heads=1,
        encoder_emb_dim=24,
        encoder_num_heads=3,
        encoder_head_dim=6,
        encoder_mlp_dim=32,
        query_pre_attn_scalar=6,
        attn_logit_softcapping=1.5,
        final_logit_softcapping=2.5,
        rope_theta=100.0,
        sliding_window=5,
    ).values,
)
# Lengths beyond relative_attention_max_distance in the encoder (v1.0) and the decoder (the others).
CASES = {
    "v1_0": (V1_0, 150, 12),
    "v1_1": (V1_1, 24, 40),
    "umt5": (UMT5, 24, 40),
    "silu": (SILU, 24, 40),
    "t5gemma": (T5GEMMA, 24, 40),
}
MAX_DECODE_LENGTH = 12


def t5gemma_config(config: T5Config) -> transformers.PreTrainedConfig:
    """Spelt out, so that `dss_jax.interop.hf_t5gemma` can be held against it."""
    gemma = Gemma(**dict(config.gemma or ()))
    both = {
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.layer_norm_epsilon,
        "query_pre_attn_scalar": gemma.query_pre_attn_scalar,
        "attn_logit_softcapping": gemma.attn_logit_softcapping,
        "final_logit_softcapping": gemma.final_logit_softcapping,
        "rope_parameters": {"rope_type": "default", "rope_theta": gemma.rope_theta},
        "sliding_window": gemma.sliding_window,
        "bos_token_id": config.decoder_start_token_id,
        "eos_token_id": config.eos_token_id,
    }
    encoder = {
        "hidden_size": gemma.encoder_emb_dim,
        "num_attention_heads": gemma.encoder_num_heads,
        "num_key_value_heads": gemma.encoder_num_kv_heads,
        "head_dim": gemma.encoder_head_dim,
        "intermediate_size": gemma.encoder_mlp_dim,
        "num_hidden_layers": config.num_encoder_layers,
    }
    decoder = {
        "hidden_size": config.emb_dim,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": gemma.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_decoder_layers,
    }
    return transformers.T5GemmaConfig(
        encoder=both | encoder,
        decoder=both | decoder,
        vocab_size=config.vocab_size,
        tie_word_embeddings=config.logits_via_embedding,
    )


def t5gemma_model(config: T5Config, seed: int) -> transformers.PreTrainedModel:
    """As `hf_model`."""
    model = transformers.T5GemmaForConditionalGeneration(t5gemma_config(config)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            scale = 0.2 if name.endswith("norm.weight") else weight.shape[-1] ** -0.5
            weight.copy_(noise * scale)
    return model


def hf_model(config: T5Config, seed: int) -> transformers.PreTrainedModel:
    """A float32 model without dropout whose weights are random at the scale of training."""
    if config.gemma:
        return t5gemma_model(config, seed)
    kind = "UMT5" if config.relative_attention_per_layer else "T5"
    gated = len(config.mlp_activations) > 1
    hf_config = getattr(transformers, f"{kind}Config")(
        vocab_size=config.vocab_size,
        d_model=config.emb_dim,
        d_kv=config.head_dim,
        d_ff=config.mlp_dim,
        num_heads=config.num_heads,
        num_layers=config.num_encoder_layers,
        num_decoder_layers=config.num_decoder_layers,
        relative_attention_num_buckets=config.relative_attention_num_buckets,
        relative_attention_max_distance=config.relative_attention_max_distance,
        layer_norm_epsilon=config.layer_norm_epsilon,
        feed_forward_proj=f"gated-{config.mlp_activations[0]}" if gated else "relu",
        tie_word_embeddings=config.logits_via_embedding,
        decoder_start_token_id=config.decoder_start_token_id,
        pad_token_id=0,
        eos_token_id=config.eos_token_id,
    )
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(hf_config).eval()
    if not config.logits_via_embedding:
        # transformers 5 ties lm_head whatever the configuration says, unless a checkpoint has it;
        # and scales what umT5 gives it, where 4 and T5X do not.
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            if name.endswith("norm.weight"):
                weight.copy_(1 + 0.2 * noise)
            elif "relative_attention_bias" in name or name == "shared.weight":
                weight.copy_(noise)
            elif name.endswith("Attention.q.weight"):
                weight.copy_(noise * (weight.shape[1] * config.head_dim) ** -0.5)
            else:
                weight.copy_(noise * weight.shape[1] ** -0.5)
    assert (model.lm_head.weight is model.shared.weight) == config.logits_via_embedding
    return model


def random_batch(
    config: T5Config, input_length: int, target_length: int, seed: int
) -> dict[str, np.ndarray]:
    """Three rows of different lengths, padded with 0, EOS at the end of the input and target."""
    rng, end = np.random.default_rng(seed), config.eos_token_id

    def rows(length: int) -> np.ndarray:
        tokens = rng.integers(end + 1, config.vocab_size, (3, length)).astype(np.int32)
        for row, real in zip(tokens, (length, length // 2, 5), strict=True):
            row[real - 1], row[real:] = end, 0
        return tokens

    inputs, targets = rows(input_length), rows(target_length)
    shifted = np.pad(targets, ((0, 0), (1, 0)), constant_values=config.decoder_start_token_id)
    return {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": shifted[:, :-1],
        "decoder_target_tokens": targets,
    }


def reference(
    config: T5Config, model: transformers.PreTrainedModel, batch: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Logits, loss (mean over real target tokens), parameters, gradients and greedy tokens."""
    model.zero_grad()
    out = forward(model, batch)
    out.loss.backward()
    recorded = {"logits": out.logits.detach().numpy(), "loss": out.loss.detach().numpy()}
    named = dict(model.named_parameters())
    for name in [name for p in parameters(config) for name in p.names]:
        recorded[f"param/{name}"] = named[name].detach().numpy()
        recorded[f"grad/{name}"] = named[name].grad.numpy()
    inputs = torch.tensor(batch["encoder_input_tokens"], dtype=torch.long)
    recorded["greedy"], recorded["greedy_margin"] = greedy(model, inputs)
    return recorded


def forward(model: transformers.PreTrainedModel, batch: dict[str, np.ndarray]) -> Any:
    """What the model gives: `logits` and `loss`."""
    inputs, begins, targets = (
        torch.tensor(batch[f"{name}_tokens"], dtype=torch.long)
        for name in ("encoder_input", "decoder_input", "decoder_target")
    )
    return model(
        input_ids=inputs,
        attention_mask=(inputs != 0).long(),
        decoder_input_ids=begins,
        # Else T5Gemma hides padding there, and the logits after a text's end are others.
        decoder_attention_mask=torch.ones_like(targets),
        labels=torch.where(targets == 0, -100, targets),
        use_cache=False,
    )


def greedy(
    model: transformers.PreTrainedModel, inputs: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [B, MAX_DECODE_LENGTH] of `generate`, and the least lead of a best token."""
    out = model.generate(
        inputs,
        attention_mask=(inputs != 0).long(),
        max_new_tokens=MAX_DECODE_LENGTH,
        do_sample=False,
        num_beams=1,
        use_cache=False,  # transformers 5.23 sizes it by the encoder's layers.
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = np.zeros((len(inputs), MAX_DECODE_LENGTH), np.int32)
    generated = out.sequences[:, 1:].numpy()
    tokens[:, : generated.shape[1]] = generated
    top = torch.stack(out.logits).topk(2, dim=-1).values
    return tokens, (top[..., 0] - top[..., 1]).min().numpy()


def _telling(tokens: np.ndarray, margin: np.ndarray, end: int) -> bool:
    """Whether rows end at different steps, one not at all, and none by a hair; and none has padding
    before its end, which `transformers`' T5Gemma hides from what follows where it has no cache.
    """
    ends = {int(np.argmax(row == end)) if end in row else None for row in tokens}
    padded = any(0 in row[: np.argmax(row == end)] for row in tokens)
    return margin > 1e-2 and len(ends) == 3 and None in ends and 0 not in ends and not padded


def record(name: str, config: T5Config, input_length: int, target_length: int) -> None:
    """Writes tests/golden/t5_hf_<name>.npz, with the first seed whose greedy tokens tell enough."""
    for seed in range(5000):
        batch = random_batch(config, input_length, target_length, seed)
        model = hf_model(config, seed)
        found = greedy(model, torch.tensor(batch["encoder_input_tokens"]).long())
        if _telling(*found, config.eos_token_id):
            break
    else:
        raise RuntimeError(f"{name}: no seed gives rows that end at different steps.")
    meta = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "seed": seed,
        "config": dataclasses.asdict(config),
    }
    arrays: dict[str, Any] = {**batch, **reference(config, model, batch)}
    path = GOLDEN / f"t5_hf_{name}.npz"
    np.savez_compressed(path, meta=np.array(json.dumps(meta)), **arrays)
    print(f"{path}: seed {seed}, {path.stat().st_size // 1024} KiB\n{arrays['greedy']}")


def record_buckets() -> None:
    """Writes tests/golden/t5_hf_buckets.npz: buckets of the distances -300 to 300."""
    from transformers.models.t5.modeling_t5 import T5Attention

    arrays = {}
    for bidirectional in (True, False):
        for buckets, furthest in ((32, 128), (8, 20), (64, 256)):
            relative = torch.arange(-300, 301)
            found = T5Attention._relative_position_bucket(
                relative, bidirectional, buckets, furthest
            )
            arrays[f"{bidirectional}/{buckets}/{furthest}"] = found.numpy().astype(np.int16)
    np.savez_compressed(GOLDEN / "t5_hf_buckets.npz", **arrays)


if __name__ == "__main__":
    torch.set_num_threads(1)
    GOLDEN.mkdir(exist_ok=True)
    record_buckets()
    for case in sys.argv[1:] or CASES:
        record(case, *CASES[case])
