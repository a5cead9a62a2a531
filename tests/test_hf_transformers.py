"""Folders of Hugging Face go both ways: `transformers` itself reads and writes them here."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from hf_arrays import from_hf, to_hf
from test_model_hf import TOLERANCE

from dss_jax.core.config import T5Config
from dss_jax.core.ids import UNK_ID
from dss_jax.data.vocabulary import SentencePiece
from dss_jax.interop.hf import read_hf, write_hf
from dss_jax.interop.weights import Weights, from_tree
from dss_jax.model.t5 import T5

torch = pytest.importorskip("torch", reason="parity with Hugging Face needs torch")
transformers = pytest.importorskip("transformers", reason="parity needs transformers")
import record_hf_reference as hf  # noqa: E402 - it imports torch

pytestmark = pytest.mark.slow

SHARED_VOCABULARY = (
    Path(__file__).parents[2] / "shared" / "data" / "vocab" / "t5_sentencepiece_32000.model"
)
V1_0, V1_1, UMT5 = (dataclasses.replace(c, vocab_size=512) for c in (hf.V1_0, hf.V1_1, hf.UMT5))
UMT5_TIED = dataclasses.replace(UMT5, logits_via_embedding=True)
# transformers 5.23 sizes the decoder's cache by the encoder's layers.
EVEN = {"num_decoder_layers": 2}


def ours(weights: Weights, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Logits of our model."""
    return np.asarray(
        T5(weights.config).apply(
            {"params": weights.tree()}, batch["encoder_input_tokens"], batch["decoder_input_tokens"]
        )
    )


def theirs(model: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Logits of a model of transformers."""
    inputs = torch.tensor(batch["encoder_input_tokens"], dtype=torch.long)
    with torch.no_grad():
        return model(
            input_ids=inputs,
            attention_mask=(inputs != 0).long(),
            decoder_input_ids=torch.tensor(batch["decoder_input_tokens"], dtype=torch.long),
        ).logits.numpy()


def assert_same_logits(weights: Weights, model: Any) -> None:
    batch = hf.random_batch(weights.config, 40, 12, seed=3)
    expected = theirs(model, batch)
    if type(model).__name__.startswith("UMT5") and not weights.config.logits_via_embedding:
        # transformers 5 scales before a head of umT5's own, too, where 4 and T5X do not.
        assert model.config.tie_word_embeddings
        expected = expected * weights.config.emb_dim**0.5
    difference = np.linalg.norm(ours(weights, batch) - expected) / np.linalg.norm(expected)
    assert difference < TOLERANCE


def random_weights(config: T5Config, vocabulary: Path, extra_ids: int) -> Weights:
    params = from_tree_of(hf.hf_model(config, seed=5), config)
    return dataclasses.replace(params, vocabulary=vocabulary, extra_ids=extra_ids)


def from_tree_of(model: Any, config: T5Config) -> Weights:
    state = {name: p.detach().numpy() for name, p in model.named_parameters()}
    return from_tree(config, from_hf(state, config), origin="a test")


@pytest.mark.parametrize(
    "config", [V1_0, V1_1, UMT5, UMT5_TIED], ids=["v1_0", "v1_1", "umt5", "umt5_tied"]
)
def test_transformers_loads_what_we_write(config: T5Config, tmp_path: Path, caplog) -> None:
    config = dataclasses.replace(config, **EVEN)
    weights = random_weights(config, toy.VOCABULARY, 96)
    write_hf(weights, tmp_path / "out")
    transformers.utils.logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        model, report = transformers.AutoModelForSeq2SeqLM.from_pretrained(
            tmp_path / "out", output_loading_info=True
        )
    assert not any(report.values()), report
    said = [r.getMessage() for r in caplog.records]
    # transformers 5 says this of every v1.1, Google's own included: its T5Config always ties. Once
    # or twice, by what else the process has loaded.
    tied = [m for m in said if "so we will NOT tie them" in m]
    assert bool(tied) == (not config.logits_via_embedding)
    assert len(tied) <= 2
    assert said == tied
    assert (model.lm_head.weight is model.shared.weight) == config.logits_via_embedding
    assert_same_logits(weights, model)
    assert model.generation_config.decoder_start_token_id == 0

    batch = hf.random_batch(config, 20, 5, seed=1)
    inputs = torch.tensor(batch["encoder_input_tokens"], dtype=torch.long)
    generated = model.generate(
        inputs, attention_mask=(inputs != 0).long(), max_new_tokens=10, do_sample=False
    )
    tokens = toy.tokens_of(
        T5(config),
        jax.tree.map(jnp.asarray, weights.tree()),
        jnp.asarray(batch["encoder_input_tokens"]),
        max_decode_length=10,
    )
    expected = np.zeros((3, 10), np.int32)
    expected[:, : generated.shape[1] - 1] = generated[:, 1:]
    np.testing.assert_array_equal(tokens, expected)


def test_transformers_loads_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dss_jax.interop import hf as ours_hf

    monkeypatch.setattr(ours_hf, "SHARD_BYTES", 40_000)
    weights = random_weights(V1_1, toy.VOCABULARY, 96)
    write_hf(weights, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    model, report = transformers.T5ForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values()), report
    assert_same_logits(weights, model)


TEXTS = [
    "Hello world.",
    "Tom had 12 apples; he gave 3 of them to Ann.",
    " double  space ",
    "tabs\tand\nnewlines",
    "naïve café ½",
    "[label] what is 3 + 4?",
    "",
    "日本語",
    "a </s> b",
]


@pytest.mark.parametrize(
    ("vocabulary", "extra_ids"),
    [(toy.VOCABULARY, 0), (toy.VOCABULARY, 100), (SHARED_VOCABULARY, 100)],
    ids=["word_problems-0", "word_problems-100", "t5"],
)
def test_the_tokenizer_gives_our_ids(vocabulary: Path, extra_ids: int, tmp_path: Path) -> None:
    if not vocabulary.is_file():
        pytest.skip("../shared has no T5 vocabulary")
    ours = SentencePiece(vocabulary, extra_ids)
    rows = -(-ours.vocab_size // 128) * 128
    config = dataclasses.replace(V1_0, vocab_size=rows)
    write_hf(random_weights(config, vocabulary, extra_ids), tmp_path / "out")
    for make in (transformers.AutoTokenizer, transformers.T5Tokenizer):
        tokenizer = make.from_pretrained(tmp_path / "out")
        assert len(tokenizer) == ours.vocab_size
        for text in TEXTS:
            ids = toy.input_ids(ours, text)
            assert tokenizer(text).input_ids == ids, text
            if UNK_ID not in ids and "</s>" not in text:  # Those are spelt in other ways.
                assert tokenizer.decode(ids[:-1]) == ours.decode(ids[:-1])
        if extra_ids:
            ids = [ours.vocab_size - 1, 1]  # <extra_id_0>
            assert tokenizer("<extra_id_0>").input_ids == ids == toy.input_ids(ours, "<extra_id_0>")


@pytest.mark.parametrize(
    "config", [V1_0, V1_1, UMT5, UMT5_TIED], ids=["v1_0", "v1_1", "umt5", "umt5_tied"]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_we_read_what_transformers_writes(config: T5Config, dtype: str, tmp_path: Path) -> None:
    model = hf.hf_model(config, seed=7).to(getattr(torch, dtype))
    model.config.tie_word_embeddings = True  # As transformers 5 makes it, see `hf_model`.
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    weights = read_hf(tmp_path)
    assert dataclasses.replace(weights.config, dropout_rate=0.1) == config
    assert len(weights.notes) == (config == UMT5)
    assert_same_logits(weights, model.float())


def test_a_square_model(tmp_path: Path) -> None:
    """As in T5 base: the check of shapes cannot see a transpose that is left out."""
    square = dataclasses.replace(V1_0, emb_dim=24, mlp_dim=24)
    assert square.emb_dim == square.num_heads * square.head_dim
    model = hf.hf_model(square, seed=7)
    model.save_pretrained(tmp_path)
    assert_same_logits(read_hf(tmp_path), model)


def test_we_read_pytorch_files(tmp_path: Path) -> None:
    model = hf.hf_model(V1_0, seed=7)
    model.config.save_pretrained(tmp_path)
    # As of 2020: aliases, a tensor that nothing reads, and a format that cannot be mapped.
    state = dict(model.state_dict())
    bias = "layer.{}.relative_attention_bias.weight"
    assert "encoder.embed_tokens.weight" in state
    assert "lm_head.weight" in state
    decoder = "decoder.block.0."
    state[decoder + bias.format("1.EncDecAttention")] = torch.ones(32, 3)
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    weights = read_hf(tmp_path)
    assert "EncDecAttention.relative_attention_bias" in weights.notes[0]
    assert_same_logits(weights, model)
    names = sorted(state)
    index = {}
    for i, part in enumerate((names[:9], names[9:])):
        torch.save({n: state[n] for n in part}, tmp_path / f"part{i}.bin")
        index |= dict.fromkeys(part, f"part{i}.bin")
    (tmp_path / "pytorch_model.bin").unlink()
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    assert_same_logits(read_hf(tmp_path), model)


def test_a_pytorch_file_with_code_in_it_is_refused(tmp_path: Path) -> None:
    from dss_jax.core.errors import UsageError

    hf.hf_model(V1_0, seed=7).config.save_pretrained(tmp_path)
    torch.save({"shared.weight": Path("x")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match="weights only"):
        read_hf(tmp_path)


@pytest.mark.parametrize("kind", ["t5", "mt5"])
@pytest.mark.parametrize("own_head", [False, True], ids=["tied", "own_head"])
def test_v1_1_and_mt5_as_transformers_5_makes_them(
    kind: str, own_head: bool, tmp_path: Path
) -> None:
    """It ties the head of a new v1.1, without v1.0's scaling; a checkpoint's own head is kept."""
    names = {"t5": "T5", "mt5": "MT5"}[kind]
    made = getattr(transformers, f"{names}Config")(
        vocab_size=96,
        d_model=20,
        d_kv=8,
        d_ff=28,
        num_heads=3,
        num_layers=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    model = getattr(transformers, f"{names}ForConditionalGeneration")(made).eval()
    if own_head:
        weight = torch.randn(96, 20, generator=torch.Generator().manual_seed(0))
        model.lm_head.weight = torch.nn.Parameter(weight)
    model.save_pretrained(tmp_path)
    weights = read_hf(tmp_path)
    assert not weights.config.logits_via_embedding
    assert bool(weights.notes) == (not own_head)
    assert_same_logits(weights, model)
    state = {name: p.detach().numpy() for name, p in model.named_parameters()}
    for name, value in to_hf(weights.tree(), weights.config).items():
        np.testing.assert_array_equal(value, state.get(name, state["shared.weight"]))


@pytest.mark.parametrize("kind", ["T5 v1.0", "T5 v1.1", "mT5"])
def test_what_ctranslate2_computes_is_what_pytorch_computes(kind: str, tmp_path: Path) -> None:
    """From a folder of transformers, through `Weights`, against its own model."""
    ctranslate2 = pytest.importorskip("ctranslate2", reason="needs ctranslate2")
    from dss_jax.interop.ctranslate2 import write_ct2

    config = dataclasses.replace(V1_0 if kind == "T5 v1.0" else V1_1, **EVEN)
    weights = random_weights(config, toy.VOCABULARY, 96)
    write_hf(weights, tmp_path / "hf")
    if kind == "mT5":
        file = tmp_path / "hf" / "config.json"
        content = json.loads(file.read_text()) | {"model_type": "mt5"}
        file.write_text(json.dumps(content | {"architectures": ["MT5ForConditionalGeneration"]}))
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf").eval()
    assert type(model).__name__.startswith("MT5" if kind == "mT5" else "T5")
    again = dataclasses.replace(read_hf(tmp_path / "hf"), vocabulary=toy.VOCABULARY, extra_ids=96)
    write_ct2(again, tmp_path / "ct2")
    translator = ctranslate2.Translator(str(tmp_path / "ct2"), device="cpu")
    names = json.loads((tmp_path / "ct2" / "shared_vocabulary.json").read_text())
    batch = hf.random_batch(config, 40, 12, seed=3)
    logits = torch.log_softmax(torch.tensor(theirs(model, batch)), -1).numpy()
    for row, own in enumerate(logits):
        source = [names[i] for i in batch["encoder_input_tokens"][row] if i]
        targets = batch["decoder_input_tokens"][row, 1:]
        (scored,) = translator.score_batch([source], [[names[i] for i in targets]])
        expected = own[np.arange(len(targets)), targets]
        np.testing.assert_allclose(scored.log_probs[: len(targets)], expected, atol=1e-4)
