"""Reading and writing Hugging Face folders without torch: what is accepted, what is refused."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import toy
from hf_arrays import to_hf
from safetensors.numpy import load_file, save_file
from test_model_hf import GOLDEN, assert_close, recorded_batch

from dss_jax.core.config import T5Config
from dss_jax.core.errors import UsageError
from dss_jax.interop import hf
from dss_jax.interop.hf import EMBEDDING, EMBEDDING_ALIASES, HEAD, UNUSED, read_hf, write_hf
from dss_jax.interop.hf_config import TOKEN_IDS, config_json, shape_of
from dss_jax.interop.weights import expected_shapes, flat, from_tree, nested
from dss_jax.model.build import model_of

State = dict[str, np.ndarray]


def recorded(case: str) -> tuple[T5Config, State, dict[str, np.ndarray]]:
    """Configuration, tensors and all arrays of a golden file that PyTorch's T5 recorded."""
    arrays = dict(np.load(GOLDEN / f"t5_hf_{case}.npz"))
    fields = json.loads(str(arrays.pop("meta")))["config"]
    fields |= {"mlp_activations": tuple(fields["mlp_activations"]), "scan_unroll": None}
    config = T5Config(**fields)
    state = {k.removeprefix("param/"): v for k, v in arrays.items() if k.startswith("param/")}
    return config, state, arrays


def write_folder(folder: Path, config: T5Config, state: State, **fields: Any) -> Path:
    """A folder as `save_pretrained` writes it; a field that is None is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    values = config_json(config, "float32") | fields
    text = json.dumps({k: v for k, v in values.items() if v is not None})
    (folder / "config.json").write_text(text)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def check_logits(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    weights = read_hf(folder)
    batch = recorded_batch(arrays)
    logits = model_of(weights.config).apply(
        {"params": weights.tree()}, batch["encoder_input_tokens"], batch["decoder_input_tokens"]
    )
    assert_close(logits, arrays["logits"], "logits")


@pytest.mark.parametrize("case", ["v1_0", "v1_1", "umt5"])
def test_logits_are_those_of_pytorch(case: str, tmp_path: Path) -> None:
    config, state, arrays = recorded(case)
    folder = write_folder(tmp_path, config, state)
    assert read_hf(folder).config == config
    check_logits(folder, arrays)


@pytest.mark.parametrize("case", ["v1_0", "v1_1", "umt5", "silu"])
def test_there_and_back(case: str, tmp_path: Path) -> None:
    config, state, _ = recorded(case)
    weights = read_hf(write_folder(tmp_path / "in", config, state))
    write_hf(weights, tmp_path / "out")
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert again.keys() == state.keys()
    for name, value in again.items():
        np.testing.assert_array_equal(value, state[name], name)
    before, after = (json.loads((tmp_path / d / "config.json").read_text()) for d in ("in", "out"))
    assert after == before
    assert (after["model_type"] == "umt5") == (case == "umt5")
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {name: after[name] for name in TOKEN_IDS}


@pytest.mark.parametrize("head", ["own", "tied", "none"])
def test_umt5_as_transformers_5_writes_it(head: str, tmp_path: Path) -> None:
    """Whatever the head is, its configuration says that it is tied."""
    config, state, arrays = recorded("umt5")
    if head != "own":
        state = {**state, HEAD: state[EMBEDDING]}
    if head == "none":
        del state[HEAD]
    fields = {"tie_word_embeddings": True, "transformers_version": "5.23.0"}
    weights = read_hf(write_folder(tmp_path, config, state, **fields))
    assert weights.config.logits_via_embedding == (head != "own")
    if head == "own":
        check_logits(tmp_path, arrays)
        assert "transformers 5 scales by d_model^-0.5" in weights.notes[0]


def test_shards_and_bfloat16(tmp_path: Path) -> None:
    config, state, _ = recorded("v1_1")
    folder = write_folder(tmp_path, config, {})
    (folder / "model.safetensors").unlink()
    cast = {name: value.astype(ml_dtypes.bfloat16) for name, value in state.items()}
    cast[HEAD] = state[HEAD].astype(np.float16)
    names, index = sorted(cast), {}
    for file, part in (("a.safetensors", names[::2]), ("b.safetensors", names[1::2])):
        save_file({n: cast[n] for n in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    weights = read_hf(folder)
    for name, value in to_hf(weights.tree(), config).items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, cast[name].astype(np.float32), name)
    save_file({n: cast[n] for n in names[1:-1:2]}, folder / "b.safetensors")
    with pytest.raises(UsageError, match=r"(?s)b\.safetensors does not hold.*" + names[-1]):
        read_hf(folder)
    (folder / "b.safetensors").unlink()
    with pytest.raises(UsageError, match=r"b\.safetensors is missing"):
        read_hf(folder)


@pytest.mark.parametrize("shard", ["../a.safetensors", "/a.safetensors", "x/../../a.safetensors"])
def test_an_index_names_files_of_its_folder_only(tmp_path: Path, shard: str) -> None:
    config, state, _ = recorded("v1_1")
    folder = write_folder(tmp_path / "model", config, {})
    (folder / "model.safetensors").unlink()
    save_file(state, tmp_path / "a.safetensors")
    index = {"weight_map": dict.fromkeys(state, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match="outside of its folder"):
        read_hf(folder)


def test_every_wrong_tensor_is_named_with_both_shapes(tmp_path: Path) -> None:
    config, state, _ = recorded("v1_1")
    query = "encoder.block.1.layer.0.SelfAttention.q.weight"
    wrong = {**state, "encoder.block.0.adapter.weight": np.ones((2, 3), np.float32)}
    wrong[query] = np.ones((24, 21), np.float32)
    del wrong[HEAD], wrong["encoder.final_layer_norm.weight"]
    with pytest.raises(UsageError) as error:
        read_hf(write_folder(tmp_path, config, wrong))
    lines = str(error.value).splitlines()
    assert "  missing: lm_head.weight, needed as [60, 20]" in lines
    assert "  missing: encoder.final_layer_norm.weight, needed as [20]" in lines
    assert "  unexpected: encoder.block.0.adapter.weight [2, 3]" in lines
    assert f"  misshapen: {query} is [24, 21], needed as [24, 20]" in lines
    assert len([line for line in lines if line.startswith("  ")]) == 4


def test_aliases_are_accepted_where_they_are_equal(tmp_path: Path) -> None:
    config, state, arrays = recorded("v1_0")
    aliases = dict.fromkeys((*EMBEDDING_ALIASES, HEAD), state[EMBEDDING])
    # Files of 2020 say nothing of tying, and have a tensor that nothing reads.
    old: State = {**state, **aliases, UNUSED: np.ones((32, 3), np.float32)}
    folder = write_folder(
        tmp_path,
        config,
        old,
        tie_word_embeddings=None,
        feed_forward_proj=None,
        num_decoder_layers=3,
        relative_attention_max_distance=None,
    )
    check_logits(folder, arrays)
    assert UNUSED in read_hf(folder).notes[0]
    del old[EMBEDDING]
    check_logits(write_folder(tmp_path, config, old), arrays)
    for alias in aliases:
        with pytest.raises(UsageError, match=f"{alias} .* differs from {EMBEDDING}"):
            read_hf(write_folder(tmp_path, config, {**state, alias: state[EMBEDDING] + 1}))


def test_configuration_and_tensors_that_disagree_on_the_head(tmp_path: Path) -> None:
    config, state, _ = recorded("v1_1")
    folder = write_folder(tmp_path, config, state, tie_word_embeddings=True)
    with pytest.raises(UsageError, match='set "tie_word_embeddings": false'):
        read_hf(folder)
    headless = {name: value for name, value in state.items() if name != HEAD}
    with pytest.raises(UsageError, match=r"missing: lm_head\.weight"):
        read_hf(write_folder(tmp_path, config, headless))
    # transformers 5 writes such files itself: the head is the embedding, unscaled.
    weights = read_hf(
        write_folder(
            tmp_path,
            config,
            headless,
            tie_word_embeddings=True,
            scale_decoder_outputs=False,
            transformers_version="5.23.0",
        )
    )
    assert "training will part the two" in weights.notes[0]
    head = weights.leaves["decoder/logits_dense/kernel"].read()
    np.testing.assert_array_equal(head.T, state[EMBEDDING])


REFUSED = [
    ({"model_type": "switch_transformers"}, "mixtures of experts"),
    ({"model_type": "longt5"}, "local or transient-global"),
    ({"model_type": "bart"}, "model_type 'bart'"),
    ({"model_type": None}, "model_type None"),
    ({"model_type": ["t5"]}, r"model_type \['t5'\]"),
    ({"vocab_size": "60"}, "vocab_size must be a whole number"),
    ({"d_kv": None, "d_ff": None}, "lacks d_kv, d_ff"),
    ({"feed_forward_proj": "gelu"}, "exact gelu"),
    ({"feed_forward_proj": "gated-mish"}, "'gated-mish'"),
    ({"is_gated_act": True}, "feed-forward layer 'relu'"),
    ({"pad_token_id": -1}, "pad_token_id is -1; it must be one id"),
    ({"eos_token_id": [1, 2]}, r"eos_token_id is \[1, 2\]; it must be one id"),
    ({"decoder_start_token_id": 60}, "decoder_start_token_id is 60; it must be one id, from 0"),
]


@pytest.mark.parametrize(("fields", "says"), REFUSED, ids=lambda x: str(x)[:24])
def test_other_architectures_are_refused_by_name(
    fields: dict[str, Any], says: str, tmp_path: Path
) -> None:
    config, state, _ = recorded("v1_0")
    with pytest.raises(UsageError, match=says):
        read_hf(write_folder(tmp_path, config, state, **fields))


@pytest.mark.parametrize(
    "activations",
    [("relu",), ("silu",), ("gelu",), ("relu", "linear"), ("silu", "linear"), ("gelu", "linear")],
    ids="-".join,
)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("own_bias", [True, False])
def test_configurations_go_both_ways(
    activations: tuple[str, ...], tied: bool, own_bias: bool
) -> None:
    config = T5Config(
        vocab_size=384,
        emb_dim=12,
        num_heads=5,
        head_dim=7,
        mlp_dim=9,
        num_encoder_layers=3,
        num_decoder_layers=2,
        mlp_activations=activations,
        logits_via_embedding=tied,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=77,
        layer_norm_epsilon=1e-5,
        relative_attention_per_layer=own_bias,
        pad_token_id=3,
        eos_token_id=2,
        decoder_start_token_id=7,
    )
    assert shape_of(config_json(config, "float32"), "a test") == config


def test_no_hugging_face_form(tmp_path: Path) -> None:
    config, state, _ = recorded("v1_1")
    weights = read_hf(write_folder(tmp_path / "in", config, state))
    odd = dataclasses.replace(config, mlp_activations=("linear", "gelu"))
    with pytest.raises(UsageError, match="no feed-forward layer"):
        write_hf(dataclasses.replace(weights, config=odd), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mt5(tmp_path: Path) -> None:
    config, state, arrays = recorded("v1_1")
    fields = {"model_type": "mt5", "feed_forward_proj": None, "tie_word_embeddings": False}
    folder = write_folder(tmp_path, config, state, **fields)
    check_logits(folder, arrays)
    assert read_hf(folder).extra_ids == 0
    # transformers 5 writes True for them, and means nothing by it.
    fields |= {"tie_word_embeddings": True, "transformers_version": "5.23.0"}
    check_logits(write_folder(tmp_path, config, state, **fields), arrays)


@pytest.mark.parametrize("case", ["v1_0", "v1_1", "umt5"])
def test_what_is_written_is_read_again(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, *_ = recorded(case)
    config = dataclasses.replace(config, vocab_size=520)  # 416 pieces, and rows that pad them.
    rng = np.random.default_rng(0)
    tree = nested(
        {p: rng.standard_normal(s).astype(np.float32) for p, s in expected_shapes(config).items()}
    )
    weights = from_tree(config, tree, origin="x", vocabulary=toy.VOCABULARY, extra_ids=3)
    monkeypatch.setattr(hf, "SHARD_BYTES", 50_000)
    write_hf(weights, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    sizes = [(tmp_path / "out" / file).stat().st_size for file in files]
    assert max(sizes) < 55_000 or len(files) > 3
    assert index["metadata"]["total_size"] == 4 * sum(x.size for x in flat(tree).values())
    again = read_hf(tmp_path / "out")
    assert (again.config, again.extra_ids) == (config, 3)
    assert again.vocabulary is not None
    assert again.vocabulary.read_bytes() == toy.VOCABULARY.read_bytes()
    for path, value in flat(tree).items():
        np.testing.assert_array_equal(again.leaves[path].read(), value)
    write_hf(again, tmp_path / "half", "bfloat16")
    for path, leaf in read_hf(tmp_path / "half").leaves.items():
        rounded = flat(tree)[path].astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(leaf.read(), rounded)
    with pytest.raises(UsageError, match="is not empty"):
        write_hf(again, tmp_path / "out")


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    config, state, _ = recorded("v1_0")
    weights = read_hf(write_folder(tmp_path / "in", config, state))

    def breaks() -> np.ndarray:
        raise OSError("disk on fire")

    last = "decoder/decoder_norm/scale"
    leaves = {**weights.leaves, last: dataclasses.replace(weights.leaves[last], read=breaks)}
    with pytest.raises(OSError, match="disk on fire"):
        write_hf(dataclasses.replace(weights, leaves=leaves), tmp_path / "out")
    assert [f.name for f in tmp_path.iterdir()] == ["in"]


def _truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _quantise(folder: Path) -> None:
    save_file({"shared.weight": np.ones((4, 4), np.int8)}, folder / "model.safetensors")


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


BROKEN = [
    (_truncate, "cannot be read as safetensors"),
    (_quantise, "of type I8"),
    (_no_weights, "has no weights"),
    (_no_json, "config.json cannot be read"),
]


@pytest.mark.parametrize(("damage", "says"), BROKEN, ids=lambda x: getattr(x, "__name__", ""))
def test_a_damaged_folder(damage: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    config, state, _ = recorded("v1_0")
    folder = write_folder(tmp_path, config, state)
    damage(folder)
    with pytest.raises(UsageError, match=says):
        read_hf(folder)
