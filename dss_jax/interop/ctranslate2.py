"""CTranslate2's folders: a student for CPUs and GPUs without JAX.

    config.json, model.bin, shared_vocabulary.json   CTranslate2's own
    t5_config.json, spiece.model                     see `dss_jax.interop.model_files`
    student.json, README.md                          where the student has a card

The model is put together from our parameters with CTranslate2's own specification, so neither torch
nor transformers is needed, and nothing depends on what a `config.json` of Hugging Face's says: its
flag `tie_word_embeddings` means other things in versions 4 and 5 of transformers, and a head that
is scaled by mistake gives the same greedy tokens with wrong probabilities. So each folder that is
written is also asked for log-probabilities, which must be those of our own model.
"""

import dataclasses
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dss_jax.core import student_card, sums
from dss_jax.core.checks import among
from dss_jax.core.config import T5Config
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import write_whole
from dss_jax.data.vocabulary import open_vocabulary
from dss_jax.interop.ct2_files import MODEL, QUANTIZATIONS
from dss_jax.interop.model_files import README, ModelFiles, write_model_files
from dss_jax.interop.pieces import token_names
from dss_jax.interop.vocabularies import vocabulary_size
from dss_jax.interop.weights import Weights, whole_place
from dss_jax.model.sampling import log_probs_of
from dss_jax.model.t5 import T5

TOLERANCES = dict(zip(QUANTIZATIONS, (1e-4, 0.02, 0.05, 0.5, 0.5), strict=True))
"""Quantization -> how far log-probabilities may be from ours, see `Comparison.error`, in a model
that does not make much of rounding: enough to tell a mistake, a head that is scaled wrongly (0.75
at width 16, 0.9 at 100) or another activation, from rounding (random weights: 2e-6, 0.003, 0.014,
and 0.05 to 0.3 for int8). What fewer bits cost in accuracy is another question. bfloat16 is not
among them: CTranslate2 writes it with torch only.
"""

ROUNDING, TIMES = 2.0**-22, 30
"""Our own model is also asked with embeddings that differ by this share, one bit or two: how far
that moves its log-probabilities, so many times, is allowed too. In a deep model with sharp
attention it is much: with T5's own initial queries eight layers of 512 move by 1e-6, with queries
eight times as large by 1e-3, and two right programs differ by as much.
"""

_ACTIVATIONS = {"relu": "RELU", "gelu": "GELUTanh", "silu": "SWISH"}
"""Ours -> CTranslate2's. Ours of "gelu" is the tanh approximation, as T5's is."""


class Comparison(NamedTuple):
    """How log-probabilities of tokens, given those before, differ from our own model's.

    Attributes:
      tokens: how many were compared.
      mean, largest: absolute difference, nats.
      error: the root mean square of the differences over that of our own log-probabilities around
        their mean, so that it does not depend on how sure the model is.
      allowed: for this model and quantization.
    """

    tokens: int
    mean: float
    largest: float
    error: float
    allowed: float


def load() -> ModuleType:
    """The package; UsageError: it is not installed."""
    try:
        import ctranslate2
    except ImportError as error:
        raise UsageError(
            "CTranslate2 is not installed: pip install 'dss-jax[ctranslate2]', or pip install "
            "'ctranslate2>=4.8'."
        ) from error
    return ctranslate2


def write_ct2(
    weights: Weights, path: str | Path, quantization: str = "float32", readme: str | None = None
) -> Comparison:
    """Writes a folder, with the model card `readme`, and says how it compares with ours; it appears
    whole or not at all.

    Raises:
      UsageError: CTranslate2 is not installed; no vocabulary is known; it has no such feed-forward
        layer; or what it computes is not what our own model does.
    """
    among("--quantization", quantization, TOLERANCES)
    ctranslate2 = load()
    vocabulary, config = weights.vocabulary, weights.config
    if config.gemma is not None:
        raise UsageError(
            f"{weights.origin} is a T5Gemma, which CTranslate2 does not have. Convert it to hf or "
            "orbax."
        )
    if vocabulary is None:
        raise UsageError(
            f"{weights.origin} has no SentencePiece file beside it, and no tokenizer, and "
            "CTranslate2 names tokens by their pieces. Give it with --vocabulary FILE."
        )
    vocabulary_size(vocabulary, weights.extra_ids, config, weights.origin)
    tree = weights.tree()
    assert config.vocab_size is not None
    names = token_names(vocabulary, weights.extra_ids, config.vocab_size)
    unk_id = open_vocabulary(vocabulary, weights.extra_ids).unk_id
    spec = _spec(tree, config, names)
    spec.config.unk_token = names[config.pad_token_id if unk_id is None else unk_id]
    spec.validate()
    spec.optimize(quantization)
    with whole_place(path, MODEL) as folder:
        spec.save(str(folder))
        del spec
        write_model_files(folder, ModelFiles(config, vocabulary, weights.extra_ids))
        if weights.card is not None:
            student_card.write(folder, weights.card)
        if readme is not None:
            write_whole(folder / README, readme)
        translator = ctranslate2.Translator(str(folder), device="cpu")
        # A processor without products of 16 bits, as AMD's, takes those of 8 for them.
        computed = "int8" if translator.compute_type.startswith("int8") else quantization
        found = _compare(tree, translator, weights, names, TOLERANCES[computed])
        if not found.error <= found.allowed:
            raise UsageError(
                f"what CTranslate2 {ctranslate2.__version__} computes ({quantization}) is not what "
                f"{weights.origin} does: log-probabilities of {found.tokens} tokens differ by "
                f"{found.mean:.3g} on average, at most {found.largest:.3g}; error {found.error:.3g}"
                f", allowed {found.allowed:.3g}. Nothing was written. "
                + ("Take another --quantization." if quantization != "float32" else "")
            )
        # CTranslate2 reads a flipped bit as another number.
        sums.write_sums(folder, (README, student_card.FILE))
    return found


def _spec(tree: dict[str, Any], config: T5Config, names: list[str]) -> Any:
    """CTranslate2's specification of the model, with its tensors and its vocabulary."""
    from ctranslate2.specs import common_spec, transformer_spec

    first, *gate = config.mlp_activations
    if first not in _ACTIVATIONS or gate not in ([], ["linear"]):
        raise UsageError(
            f"CTranslate2 has no feed-forward layer {config.mlp_activations}. It has "
            f"{', '.join(_ACTIVATIONS)}, alone or with linear."
        )
    spec = transformer_spec.TransformerSpec.from_config(
        (config.num_encoder_layers, config.num_decoder_layers),
        config.num_heads,
        activation=common_spec.Activation[_ACTIVATIONS[first]],
        ffn_glu=bool(gate),
        relative_attention_bias=True,
        rms_norm=True,
    )
    embedding = np.array(tree["token_embedder"]["embedding"], np.float32)
    for name, stack in (("encoder", spec.encoder), ("decoder", spec.decoder)):
        _fill_stack(stack, tree[name], tree[name][f"{name}_norm"]["scale"], config)
    spec.encoder.embeddings[0].weight = spec.decoder.embeddings.weight = embedding
    if config.logits_via_embedding:
        spec.decoder.projection.weight = embedding
        spec.decoder.scale_outputs = config.emb_dim**-0.5
    else:
        spec.decoder.projection.weight = _linear(tree["decoder"]["logits_dense"])
    spec.register_source_vocabulary(names)
    spec.register_target_vocabulary(names)
    own = spec.config
    own.bos_token = own.decoder_start_token = names[config.decoder_start_token_id]
    own.eos_token = names[config.eos_token_id]
    own.layer_norm_epsilon = config.layer_norm_epsilon
    return spec


def _linear(*dense: dict[str, Any]) -> np.ndarray:
    """Our kernels [in, out], side by side, as one weight [out, in] of its own memory, which the
    quantizer changes in place.
    """
    return np.concatenate([np.asarray(one["kernel"], np.float32).T for one in dense])


def _fill_stack(stack: Any, tree: dict[str, Any], norm: np.ndarray, config: T5Config) -> None:
    stack.scale_embeddings = False
    stack.layer_norm.gamma = np.array(norm)
    for i, layer in enumerate(stack.layer):
        ours = jax.tree.map(lambda stacked, i=i: np.array(stacked[i], np.float32), tree["layers"])
        decoder = "self_attention" in ours
        own = ours["self_attention" if decoder else "attention"]
        attention = layer.self_attention
        attention.queries_scale = 1.0
        attention.linear[0].weight = _linear(own["query"], own["key"], own["value"])
        attention.linear[1].weight = _linear(own["out"])
        # In T5 all layers have one bias, in umT5 each its own.
        bias = ours.get("relpos_bias") or tree["relpos_bias"]
        attention.relative_attention_bias = np.ascontiguousarray(bias["rel_embedding"].T)
        distance = np.int32(config.relative_attention_max_distance)
        attention.relative_attention_max_distance = distance
        before = "pre_self_attention_layer_norm" if decoder else "pre_attention_layer_norm"
        attention.layer_norm.gamma = ours[before]["scale"]
        if decoder:
            own, cross = ours["encoder_decoder_attention"], layer.attention
            cross.queries_scale = 1.0
            cross.linear[0].weight = _linear(own["query"])
            cross.linear[1].weight = _linear(own["key"], own["value"])
            cross.linear[2].weight = _linear(own["out"])
            cross.layer_norm.gamma = ours["pre_cross_attention_layer_norm"]["scale"]
        mlp, ffn = ours["mlp"], layer.ffn
        ffn.linear_0.weight = _linear(mlp["wi_0" if "wi_0" in mlp else "wi"])
        if "wi_1" in mlp:
            ffn.linear_0_noact.weight = _linear(mlp["wi_1"])
        ffn.linear_1.weight = _linear(mlp["wo"])
        ffn.layer_norm.gamma = ours["pre_mlp_layer_norm"]["scale"]


LENGTHS = ((1, 1), (2, 3), (5, 2), (9, 8), (17, 24), (40, 5), (90, 12), (160, 140))
"""Of the random inputs and targets that are compared, tokens. The last are longer than the distance
at which T5's position bias ends."""


def _examples(weights: Weights) -> list[tuple[list[int], list[int]]]:
    """Inputs and targets that end with `</s>`: random ones, and those of the student's card."""
    rng = np.random.default_rng(0)
    rows, end, pad = (
        getattr(weights.config, n) for n in ("vocab_size", "eos_token_id", "pad_token_id")
    )
    real = np.setdiff1d(np.arange(rows), [end, pad])
    pairs = [tuple([*rng.choice(real, n - 1), end] for n in ns) for ns in LENGTHS]
    card = weights.card
    if card is not None:
        vocabulary = open_vocabulary(weights.vocabulary or "", weights.extra_ids)
        asked = [(card.label_prefix, "label")]
        if card.rationale_prefix is not None:
            asked.append((card.rationale_prefix, "rationale"))
        for prefix, target in asked:
            for one in card.examples:
                ids = vocabulary.encode(prefix + one["input"])[: card.input_length - 1]
                pairs.append(([*ids, end], [*vocabulary.encode(one[target]), end]))
    return [([*map(int, x)], [*map(int, y)]) for x, y in pairs]


def _compare(
    tree: dict[str, Any], translator: Any, weights: Weights, names: Sequence[str], tolerance: float
) -> Comparison:
    pairs = _examples(weights)
    sources, targets = (
        [[names[i] for i in ids] for ids in side] for side in zip(*pairs, strict=True)
    )
    # CTranslate2 adds </s> to a target itself, and scores it too.
    theirs = translator.score_batch(
        sources, [target[:-1] for target in targets], max_input_length=0, max_batch_size=8
    )
    a = np.concatenate([one.log_probs for one in theirs])
    embedding = tree["token_embedder"]["embedding"]
    signs = np.random.default_rng(0).choice([-1, 1], embedding.shape).astype(np.float32)
    moved = {**tree, "token_embedder": {"embedding": embedding * (1 + ROUNDING * signs)}}
    with jax.default_matmul_precision("highest"):  # A GPU's and a TPU's float32 is less.
        b, c = _own_log_probs(weights.config, pairs, tree, moved)
    spread = max(float(np.std(b)), 1e-6)
    difference = np.abs(a - b)
    return Comparison(
        tokens=len(b),
        mean=float(difference.mean()),
        largest=float(difference.max()),
        error=float(np.sqrt(np.mean(difference**2))) / spread,
        allowed=tolerance + TIMES * float(np.sqrt(np.mean((c - b) ** 2))) / spread,
    )


def _own_log_probs(
    config: T5Config, pairs: Sequence[tuple[list[int], list[int]]], *trees: dict[str, Any]
) -> list[np.ndarray]:
    """For each of some parameters, the log-probability of each token of all targets, one after
    another, by our own model in float32.
    """
    model = T5(dataclasses.replace(config, dtype="float32", attention="xla", dropout_rate=0.0))

    @jax.jit
    def score(params: Any, inputs: Any, targets: Any) -> Any:
        start = config.decoder_start_token_id
        shifted = jnp.pad(targets, ((0, 0), (1, 0)), constant_values=start)[:, :-1]
        logits: Any = model.apply({"params": params}, inputs, shifted)
        return log_probs_of(targets, logits)

    found: list[list[np.ndarray]] = [[] for _ in trees]
    # Two shapes: the random ones, of which one is long, and the card's.
    for part in filter(None, (pairs[: len(LENGTHS)], pairs[len(LENGTHS) :])):
        inputs, targets = (
            np.array([*zip_longest(*rows, fillvalue=config.pad_token_id)], np.int32).T
            for rows in zip(*part, strict=True)
        )
        for own, tree in zip(found, trees, strict=True):
            own.append(np.asarray(score(tree, inputs, targets))[targets != config.pad_token_id])
    return [np.concatenate(own) for own in found]
