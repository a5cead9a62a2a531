"""T5Gemma behind T5's interface: its folders, what is refused, layouts, steps. Its arithmetic is
held against Hugging Face's with T5's, in test_model_hf.py; runs are in test_tokenizer_runs.py.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from hf_arrays import from_hf, to_hf
from safetensors.numpy import load_file, save_file
from test_hf import check_logits, recorded
from test_layouts import _batches, _loss_and_gradients
from test_model_hf import assert_close, loss_and_logits, recorded_batch

from dss_jax.core.config import Lora, T5Config
from dss_jax.core.errors import UsageError
from dss_jax.core.flops import Work, forward_flops
from dss_jax.core.t5gemma import Gemma
from dss_jax.interop.ctranslate2 import write_ct2
from dss_jax.interop.extend import extended
from dss_jax.interop.formats import read_weights, write_weights
from dss_jax.interop.hf import _family, read_hf, write_hf
from dss_jax.interop.hf_t5gemma import EMBEDDING, HEAD, config_json, names
from dss_jax.interop.weights import Weights, from_tree
from dss_jax.layouts.blocks import Block
from dss_jax.model.build import model_of
from dss_jax.model.t5gemma import Rotary
from dss_jax.run.session import with_vocab_size
from dss_jax.train.sharding import make_mesh
from dss_jax.train.step import Program

State = Mapping[str, np.ndarray]
FIELDS = config_json(recorded("t5gemma")[0], "float32")


def write_folder(folder: Path, more: State = MappingProxyType({}), **fields: Any) -> Path:
    """The recorded model, with more tensors, and other fields in its `config.json`."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(FIELDS | fields))
    save_file({**recorded("t5gemma")[1], **more}, folder / "model.safetensors")
    return folder


def changed(stack: str, **fields: Any) -> dict[str, Any]:
    """The field of `config.json` that holds a stack, changed; None: left out."""
    return {stack: {k: v for k, v in (FIELDS[stack] | fields).items() if v is not None}}


def test_there_and_back(tmp_path: Path) -> None:
    config, state, arrays = recorded("t5gemma")
    folder = write_folder(tmp_path / "in")
    check_logits(folder, arrays)
    write_weights(read_hf(folder), str(tmp_path / "orbax"), "orbax")
    weights = read_weights(str(tmp_path / "orbax"))
    assert weights.config == config
    write_hf(weights, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors.keys() == state.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(value, state[name], name)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == FIELDS
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["bos_token_id"] == generation["decoder_start_token_id"] == 2


@pytest.mark.usefixtures("strict")
def test_bfloat16_gives_what_float32_gives() -> None:
    config, state, arrays = recorded("t5gemma")
    model = model_of(dataclasses.replace(config, dtype="bfloat16"))
    params = jax.tree.map(jnp.asarray, from_hf(state, config))
    both = jax.jit(loss_and_logits, static_argnums=1)(params, model, recorded_batch(arrays))
    loss, logits = both
    assert {x.dtype for x in both} == {jnp.dtype("float32")}
    difference = np.linalg.norm(logits - arrays["logits"]) / np.linalg.norm(arrays["logits"])
    assert 1e-3 < difference < 2e-2, "the activations were in bfloat16, and right"
    np.testing.assert_allclose(loss, arrays["loss"], rtol=1e-3)
    # In bfloat16 the last position's angle would be wrong by turns.
    at = np.array([0, 1, 4999])
    angles = at[:, None] * 100.0 ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    places = Rotary(model.config).apply({}, jnp.asarray(at))
    np.testing.assert_allclose(places.cos[0, 0, :, : angles.shape[1]], np.cos(angles), atol=2e-3)


def test_the_head(tmp_path: Path) -> None:
    """Of its own, it must be in the file; tied, it may be, and its logits are scaled by nothing."""
    _, state, arrays = recorded("t5gemma")
    batch = recorded_batch(arrays)

    def logits(weights: Weights) -> np.ndarray:
        inputs = batch["encoder_input_tokens"], batch["decoder_input_tokens"]
        model, params = model_of(weights.config), weights.tree()
        first = np.asarray(model.apply({"params": params}, *inputs))
        again = model.apply({"params": params}, *inputs)
        np.testing.assert_array_equal(first, again, "parameters of NumPy stay as they are")
        return first

    same = {HEAD: state[EMBEDDING]}
    own = read_hf(write_folder(tmp_path / "own", same))
    tied = read_hf(write_folder(tmp_path / "tied", same, tie_word_embeddings=True))
    assert HEAD not in to_hf(tied.tree(), tied.config)
    np.testing.assert_allclose(logits(tied), logits(own), atol=1e-5)
    with pytest.raises(UsageError, match=r"tie_word_embeddings\), but lm_head\.out_proj"):
        read_hf(write_folder(tmp_path / "tied", tie_word_embeddings=True))
    write_folder(tmp_path / "own")
    save_file({n: x for n, x in state.items() if n != HEAD}, tmp_path / "own" / "model.safetensors")
    with pytest.raises(UsageError, match=r"missing: lm_head\.out_proj\.weight"):
        read_hf(tmp_path / "own")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (changed("encoder", layer_types=["full_attention"] * 3), "layer_types of the encoder"),
        (changed("decoder", hidden_activation="gelu"), "hidden_activation of the decoder"),
        (changed("decoder", attention_bias=True), "attention_bias"),
        (
            changed("encoder", rope_parameters={"rope_type": "yarn", "rope_theta": 100.0}),
            "rope_type of the encoder is 'yarn'",
        ),
        (changed("encoder", sliding_window=6), "must not differ in sliding_window: 6 and 5"),
        (changed("encoder", num_key_value_heads=2), "3 heads must be a multiple of its 2"),
        ({"eos_token_id": [1, 107]}, "eos_token_id is"),
        (changed("encoder", hidden_size="24"), r"config\.json has hidden_size = '24' in encoder"),
        (changed("decoder", num_hidden_layers="2"), r"config\.json has num_hidden_layers = '2'"),
        (changed("decoder", rope_parameters=[1]), r"config\.json has rope_parameters \[1\]"),
        (changed("decoder", rms_norm_eps="1e-6"), r"config\.json has rms_norm_eps"),
        ({"decoder": FIELDS["decoder"] | {"sliding_window": None}}, "sliding_window = None in dec"),
        ({"attention_dropout": None}, r"config\.json has attention_dropout = None"),
        ({"decoder": None}, "no table 'decoder'"),
        ({"model_type": "t5gemma2"}, "model_type 't5gemma2'.*it sees images"),
    ],
)
def test_what_it_does_not_have_is_refused_by_name(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        read_hf(write_folder(tmp_path, **fields))


def test_a_file_of_transformers_4_and_one_that_leaves_defaults_out(tmp_path: Path) -> None:
    config = recorded("t5gemma")[0]
    out = dict.fromkeys(("rope_parameters", "layer_types", "pad_token_id", "attention_bias"))
    folder = write_folder(tmp_path, **changed("encoder", **out), **changed("decoder", **out))
    assert read_hf(folder).config == config


def gemma_weights() -> Weights:
    config = dataclasses.replace(toy.GEMMA, vocab_size=448, decoder_start_token_id=0)
    tokens = jnp.ones((1, 2), jnp.int32)
    params = model_of(config).init(jax.random.key(0), tokens, tokens)["params"]
    params = jax.tree.map(lambda leaf: leaf.unbox(), params, is_leaf=lambda x: hasattr(x, "unbox"))
    files = {"vocabulary": toy.VOCABULARY, "extra_ids": 0}
    return from_tree(config, params, origin="a test", **files)


def test_forms_that_have_no_such_model(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    with pytest.raises(UsageError, match="T5Gemma, which CTranslate2 does not have"):
        write_ct2(gemma_weights(), tmp_path / "ct2")
    with pytest.raises(UsageError, match="T5X has gemma = None in its code"):
        write_weights(gemma_weights(), str(tmp_path / "checkpoint_0"), "t5x")
    with pytest.raises(UsageError, match="its scores have soft caps"):
        dataclasses.replace(toy.GEMMA, attention="cudnn", dtype="bfloat16")
    with pytest.raises(UsageError, match="'num_kv_head'"):
        T5Config(gemma=(("num_kv_head", 2),))


def test_what_transformers_would_not_take_is_not_written() -> None:
    def scaled(by: float) -> T5Config:
        gemma = {**dict(toy.GEMMA.gemma or ()), "query_pre_attn_scalar": by}
        return dataclasses.replace(toy.GEMMA, gemma=tuple(gemma.items()))

    written = config_json(scaled(4.0), "float32")["encoder"]["query_pre_attn_scalar"]
    assert (written, type(written)) == (4, int)
    with pytest.raises(UsageError, match=r"whole query_pre_attn_scalar, not 4\.5"):
        config_json(scaled(4.5), "float32")
    gemma = tuple({**dict(toy.GEMMA.gemma or ()), "encoder_emb_dim": 25}.items())
    with pytest.raises(UsageError, match="the encoder's is 25, with 3 heads"):
        config_json(dataclasses.replace(toy.GEMMA, gemma=gemma), "float32")


def test_a_token_that_is_added_has_a_row_in_both_embeddings() -> None:
    weights = extended(gemma_weights(), ["{{"])
    rows = weights.config.vocab_size
    for name, width in (("token_embedder", 16), ("encoder_embedder", 24)):
        leaf = weights.leaves[f"{name}/embedding"]
        assert leaf.read().shape == leaf.shape == (rows, width)


@pytest.fixture(scope="module")
def run_and_params(toy_store) -> Any:
    model = dataclasses.replace(toy.GEMMA, dropout_rate=0.0)
    run = with_vocab_size(toy.make_run(model=model), toy_store)
    tokens = jnp.ones((1, 2), jnp.int32)
    return run, jax.jit(model_of(run.model).init)(jax.random.key(0), tokens, tokens)["params"]


@pytest.mark.parametrize(("layout", "devices"), [("flat", 4), ("packed", 1)])
def test_gradients_are_those_of_the_padded_layout(
    toy_store, run_and_params, layout: str, devices: int
) -> None:
    run, params = run_and_params
    model = model_of(run.model)
    expected = _loss_and_gradients(run, model, params, _batches(toy_store, "padded")(3))
    batch = _batches(toy_store, layout, shares=devices)(3)
    got = _loss_and_gradients(run, model, params, batch, devices)
    # Packed rows begin at other positions, whose angles are rounded in other ways.
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert_close(x, np.asarray(y), layout)


def test_what_a_t5gemma_begins_with_and_drops(toy_store) -> None:
    model = dataclasses.replace(toy.GEMMA, decoder_start_token_id=2, dropout_rate=0.0)
    assert with_vocab_size(toy.make_run(model=model), toy_store).model.decoder_start_token_id == 2
    for other, begin in ((model, 10**7), (toy.MODEL, 2)):
        wrong = toy.make_run(model=dataclasses.replace(other, decoder_start_token_id=begin))
        with pytest.raises(UsageError, match=f"decoder_start_token_id is {begin},"):
            with_vocab_size(wrong, toy_store)
    gemma = tuple({**dict(toy.GEMMA.gemma or ()), "attention_dropout": 0.5}.items())
    assert not model.drops
    assert toy.MODEL.drops == bool(toy.MODEL.dropout_rate)
    losses = []
    for own in (model, dataclasses.replace(model, gemma=gemma)):
        run = with_vocab_size(toy.make_run(model=own), toy_store)
        program = Program(run, make_mesh(run.mesh, jax.devices()[:1]))
        _, metrics = program.train_step(program.init(), _batches(toy_store, "padded")(0))
        losses.append(float(metrics["loss"]))
    assert losses[0] != losses[1], "attention alone drops too"


def test_no_pairs_are_a_t5gemma_of_its_defaults() -> None:
    config = T5Config(num_heads=8, gemma=())
    fields = config_json(dataclasses.replace(config, gemma=Gemma().values), "float32")
    assert config_json(config, "float32") == fields
    assert _family(config.gemma is not None).names() == names()
    assert type(model_of(config)).__name__ == "T5Gemma"
    with pytest.raises(UsageError, match="must be a multiple"):
        T5Config(num_heads=6, gemma=())
    sizes = Work(1, 1, 1, 1, 1)
    own = dataclasses.replace(config, gemma=Gemma().values)
    assert forward_flops(config, sizes) == forward_flops(own, sizes)


def test_targets_in_any_order(run_and_params) -> None:
    """As labels are ranked: a token knows where it stands and whom it comes after."""
    run, params = run_and_params
    rng = np.random.default_rng(0)
    inputs, targets = (jnp.asarray(rng.integers(3, 300, (2, n))) for n in (9, 7))
    order, at = rng.permutation(7), jnp.arange(7)
    bound = model_of(run.model).bind({"params": jax.tree.map(jnp.asarray, params)})
    expected = bound.block_logits(Block(inputs, targets, None, None))
    positions = jnp.broadcast_to(at[order], (2, 7))
    sees = jnp.broadcast_to((at[:, None] >= at)[order][:, order], (2, 7, 7))
    block = Block(inputs, targets[:, order], None, None)
    got = bound.block_logits(block, positions_BxT=positions, sees_BxTxT=sees)
    np.testing.assert_allclose(got, expected[:, order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lora", [0, 2])
def test_a_step_trains_it(toy_store, lora: int) -> None:
    model = dataclasses.replace(toy.GEMMA, dropout_rate=0.0)
    run = with_vocab_size(toy.make_run(model=model, lora=Lora(rank=lora)), toy_store)
    program = Program(run, make_mesh(run.mesh, jax.devices()[:1]))
    state, lost = program.init(), []
    for _ in range(8):
        state, metrics = program.train_step(state, _batches(toy_store, "padded")(0))
        lost.append(float(metrics["loss"]))
    assert np.isfinite(lost).all()
    assert lost[-1] < lost[0]
