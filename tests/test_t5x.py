"""T5X checkpoints: every form and every refusal, against layouts made by hand."""

import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import t5x_maker
import tensorstore as ts
from fake_gcs import FakeGcs
from flax import serialization, traverse_util

from dss_jax.core.errors import UsageError
from dss_jax.core.t5_config import Beam
from dss_jax.interop.t5x import is_t5x, read_t5x, write_t5x
from dss_jax.interop.weights import Weights, expected_shapes, flat, from_tree, nested
from dss_jax.model.beam import BeamSearch
from dss_jax.model.decoding import decode
from dss_jax.model.t5 import T5

VERSIONS = [{"gated": True, "tied": False}, {"gated": False, "tied": True}]


def ours(arrays: Mapping[str, np.ndarray], path: str) -> np.ndarray:
    """Our parameter from T5X's unscanned arrays."""
    if "/layers/" not in path:
        return arrays[path]
    names = (path.replace("/layers/", f"/layers_{i}/") for i in range(len(arrays)))
    return np.stack([arrays[name] for name in names if name in arrays])


def assert_reads(weights: Weights, arrays: Mapping[str, np.ndarray]) -> None:
    """All parameters of `weights` are `arrays`, T5X's unscanned ones, bit for bit."""
    assert {p: leaf.shape for p, leaf in weights.leaves.items()} == expected_shapes(weights.config)
    for path, value in flat(weights.tree()).items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, ours(arrays, path), path)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("scanned", [False, True])
def test_reads_the_legacy_form(tmp_path: Path, version: dict[str, bool], scanned: bool) -> None:
    arrays = t5x_maker.unscanned(**version)
    stored = t5x_maker.scanned(arrays) if scanned else arrays
    folder = t5x_maker.write_legacy(tmp_path / "checkpoint_7", stored)
    assert is_t5x(str(folder))
    weights = read_t5x(f"{folder}/")
    assert weights.config == t5x_maker.config(**version)
    assert_reads(weights, arrays)


@pytest.mark.parametrize(
    "stored",
    [
        {"inline": t5x_maker.unscanned().keys()},
        {"inline": t5x_maker.BIASES},
        {"path_outside": True},
        {"version": 2},
        {"kvstore": {"driver": "gcs", "bucket": "t5x-dummy-bucket", "path": ""}},
        {"kvstore": {"driver": "gfile", "path": "/of/another/machine/checkpoint_7/"}},
    ],
)
def test_reads_what_older_t5x_wrote(tmp_path: Path, stored: dict[str, Any]) -> None:
    arrays = t5x_maker.unscanned()
    folder = t5x_maker.write_legacy(tmp_path / "checkpoint_7", arrays, **stored)
    assert_reads(read_t5x(str(folder)), arrays)


def test_bfloat16_becomes_float32(tmp_path: Path) -> None:
    arrays = t5x_maker.unscanned()
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()}
    folder = t5x_maker.write_legacy(tmp_path / "checkpoint_7", half, inline=t5x_maker.BIASES)
    assert_reads(read_t5x(str(folder)), arrays)


def write_orbax(folder: Path, arrays: Mapping[str, np.ndarray], **kinds: bool) -> Path:
    """As T5X's `OrbaxCheckpointManagerInterface` lays it out."""
    state = {
        "target": traverse_util.unflatten_dict(dict(arrays), sep="/"),
        "state": {"step": np.int32(7)},
    }
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**kinds)).save(folder / "state", state)
    return folder


@pytest.mark.parametrize(
    "kinds",
    [
        {"use_ocdbt": True, "use_zarr3": False},
        {"use_ocdbt": True, "use_zarr3": True},
        {"use_ocdbt": False, "use_zarr3": False},
    ],
)
@pytest.mark.parametrize("scanned", [False, True])
def test_reads_the_orbax_form(tmp_path: Path, kinds: dict[str, bool], scanned: bool) -> None:
    arrays = t5x_maker.unscanned()
    stored = t5x_maker.scanned(arrays) if scanned else arrays
    folder = write_orbax(tmp_path / "checkpoint_7", stored, **kinds)
    assert is_t5x(str(folder))
    weights = read_t5x(str(folder))
    assert weights.config == t5x_maker.config()
    assert_reads(weights, arrays)


def target_of(folder: Path) -> dict[str, np.ndarray]:
    """All parameters of a legacy checkpoint, by T5X's names, past our reader."""
    content = serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    specs = traverse_util.flatten_dict(
        content["optimizer"]["target"], is_leaf=lambda _, x: "driver" in x, sep="/"
    )
    found = {}
    for name, spec in specs.items():
        store = {"driver": "file", "path": f"{folder / spec['kvstore']['path']}/"}
        found[name] = ts.open({"driver": "zarr", "kvstore": store}).result().read().result()
    return found


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("version", VERSIONS)
def test_there_and_back(tmp_path: Path, version: dict[str, bool], scanned: bool) -> None:
    """Of T5, and of umT5, in which each layer has its own position bias."""
    stored = t5x_maker.unscanned(**version)
    stored = t5x_maker.scanned(stored, own_bias=True) if scanned else stored
    folder = t5x_maker.write_legacy(tmp_path / "checkpoint_7", stored)
    weights = read_t5x(str(folder))
    config = t5x_maker.config(**version)
    assert weights.config == dataclasses.replace(config, relative_attention_per_layer=scanned)
    if scanned:
        for stack in ("encoder", "decoder"):
            bias = stored[f"{stack}/{stack}/relpos_bias/rel_embedding"]
            read = weights.leaves[f"{stack}/layers/relpos_bias/rel_embedding"].read()
            np.testing.assert_array_equal(read, bias.swapaxes(0, 1))
    write_t5x(weights, str(tmp_path / "again" / "checkpoint_7"))
    again = target_of(tmp_path / "again" / "checkpoint_7")
    assert again.keys() == stored.keys()
    for name, value in again.items():
        np.testing.assert_array_equal(value, stored[name], name)


def test_one_layer_with_another_position_bias_is_enough(tmp_path: Path) -> None:
    stored = t5x_maker.scanned(t5x_maker.unscanned())
    name = "decoder/decoder/relpos_bias/rel_embedding"
    stored[name] = stored[name].copy()
    stored[name][1, 2, 30] += 1
    folder = t5x_maker.write_legacy(tmp_path / "checkpoint_7", stored)
    assert read_t5x(str(folder)).config.relative_attention_per_layer


@pytest.mark.parametrize("scanned", [False, True])
def test_every_wrong_parameter_is_named(tmp_path: Path, scanned: bool) -> None:
    arrays = t5x_maker.unscanned()
    arrays = t5x_maker.scanned(arrays) if scanned else arrays
    block = "encoder/encoder" if scanned else "encoder/layers_1"
    del arrays["decoder/decoder_norm/scale"]
    arrays["encoder/side_adapter/kernel"] = np.zeros((3, 4), np.float32)
    wo = arrays[f"{block}/mlp/wo/kernel"]
    arrays[f"{block}/mlp/wo/kernel"] = wo[:-1]
    folder = t5x_maker.write_legacy(tmp_path / "checkpoint_7", arrays)
    with pytest.raises(UsageError) as error:
        read_t5x(str(folder))
    text = str(error.value)
    assert "missing: target/decoder/decoder_norm/scale, needed as [6]" in text
    assert "unexpected: target/encoder/side_adapter/kernel [3, 4]" in text
    found, needed = list(wo[:-1].shape), list(wo.shape)
    assert f"misshapen: target/{block}/mlp/wo/kernel is {found}, needed as {needed}" in text


@pytest.mark.parametrize(
    "name",
    [
        "token_embedder/embedding",
        "encoder/relpos_bias/rel_embedding",
        "encoder/layers_0/attention/query/kernel",
        "encoder/layers_0/mlp/wi_0/kernel",
    ],
)
def test_what_shows_the_sizes_is_needed(tmp_path: Path, name: str) -> None:
    arrays = t5x_maker.unscanned()
    kept = arrays.pop(name)
    without = t5x_maker.write_legacy(tmp_path / "a" / "checkpoint_7", arrays)
    with pytest.raises(UsageError, match="missing: target/"):
        read_t5x(str(without))
    other = t5x_maker.write_legacy(tmp_path / "b" / "checkpoint_7", {**arrays, name: kept[None]})
    with pytest.raises(UsageError, match=f"misshapen: target/{name}"):
        read_t5x(str(other))


def test_parameters_that_are_no_floats_are_refused(tmp_path: Path) -> None:
    arrays = t5x_maker.unscanned()
    name = "encoder/encoder_norm/scale"
    arrays[name] = arrays[name].astype(np.uint16)
    folder = t5x_maker.write_legacy(tmp_path / "checkpoint_7", arrays)
    with pytest.raises(UsageError, match=f"target/{name} is uint16"):
        read_t5x(str(folder))


def test_what_is_no_readable_checkpoint(tmp_path: Path) -> None:
    assert not is_t5x(str(tmp_path))
    with pytest.raises(UsageError, match=r"no T5X checkpoint.*checkpoint_1000000"):
        read_t5x(str(tmp_path))
    assert not is_t5x(str(tmp_path / "absent"))
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-1"')
    assert not is_t5x(str(tmp_path))

    state_only = t5x_maker.write_legacy(tmp_path / "checkpoint_1", {})
    with pytest.raises(UsageError, match="holds no parameters"):
        read_t5x(str(state_only))
    arrays = t5x_maker.unscanned()
    old = t5x_maker.write_legacy(tmp_path / "checkpoint_2", arrays, version=1)
    with pytest.raises(UsageError, match="of version 1; T5X reads and writes version 2"):
        read_t5x(str(old))
    cut = t5x_maker.write_legacy(tmp_path / "checkpoint_3", arrays)
    (cut / "checkpoint").write_bytes((cut / "checkpoint").read_bytes()[:-40])
    with pytest.raises(UsageError, match="broken or cut short"):
        read_t5x(str(cut))


def test_arrays_are_read_when_asked_for(tmp_path: Path) -> None:
    arrays = t5x_maker.unscanned()
    folder = t5x_maker.write_legacy(tmp_path / "checkpoint_7", arrays)
    weights = read_t5x(str(folder))
    path = "decoder/layers/mlp/wo/kernel"
    (folder / "target.decoder.layers_2.mlp.wo.kernel" / "0.0").unlink()
    shutil.rmtree(folder / "target.encoder.encoder_norm.scale")
    with pytest.raises(UsageError, match=r"target/decoder/layers_2/mlp/wo/kernel.* is missing"):
        weights.leaves[path].read()
    with pytest.raises(UsageError, match="target/encoder/encoder_norm/scale"):
        weights.leaves["encoder/encoder_norm/scale"].read()
    bias = weights.leaves[t5x_maker.BIASES[0]].read()
    np.testing.assert_array_equal(bias, arrays[t5x_maker.BIASES[0]])


def test_an_array_must_be_as_the_index_says(tmp_path: Path) -> None:
    arrays = t5x_maker.unscanned()
    folder = t5x_maker.write_legacy(tmp_path / "checkpoint_7", arrays)
    name = "target.token_embedder.embedding"
    other = {"token_embedder/embedding": arrays["token_embedder/embedding"][:-1]}
    t5x_maker.write_legacy(tmp_path / "other", other)
    shutil.rmtree(folder / name)
    shutil.copytree(tmp_path / "other" / name, folder / name)
    with pytest.raises(UsageError, match=r"embedding: it is \[31, 6\], and \[32, 6\]"):
        read_t5x(str(folder)).tree()


@pytest.mark.parametrize("name", ["..", "."])
def test_an_index_names_arrays_beside_it_only(tmp_path: Path, name: str) -> None:
    arrays = t5x_maker.unscanned()
    folder = t5x_maker.write_legacy(tmp_path / "checkpoint_7", arrays)
    index = serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    spec = index["optimizer"]["target"]["token_embedder"]["embedding"]
    spec["kvstore"]["path"] = f"/of/another/machine/{name}/"
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(index))
    with pytest.raises(UsageError, match="outside of its folder"):
        read_t5x(str(folder))


def random_weights(**changes: Any) -> Weights:
    config = dataclasses.replace(t5x_maker.config(), **changes)
    rng = np.random.default_rng(1)
    arrays = {
        path: rng.normal(size=shape).astype(np.float32)
        for path, shape in expected_shapes(config).items()
    }
    arrays["encoder/encoder_norm/scale"][:] = 0
    return from_tree(config, nested(arrays), origin="a test")


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_written_is_read(tmp_path: Path, version: dict[str, bool]) -> None:
    config = t5x_maker.config(**version)
    weights = random_weights(**dataclasses.asdict(config))
    write_t5x(weights, str(tmp_path / "new" / "checkpoint_20"))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["checkpoint_20"]
    # The paths in it are relative.
    moved = shutil.move(tmp_path / "new" / "checkpoint_20", tmp_path / "checkpoint_20")
    again = read_t5x(str(moved))
    assert again.config == config
    for path, value in flat(weights.tree()).items():
        np.testing.assert_array_equal(again.leaves[path].read(), value, path)


def test_optimizer_state_is_that_of_a_fresh_adafactor(tmp_path: Path) -> None:
    weights = random_weights(vocab_size=200, emb_dim=130, mlp_dim=128)
    write_t5x(weights, str(tmp_path / "checkpoint_20"))
    content = serialization.msgpack_restore((tmp_path / "checkpoint_20/checkpoint").read_bytes())
    assert content["version"] == 3
    state = content["optimizer"]["state"]
    assert state["step"].dtype == np.int32
    assert state["step"] == 20
    assert all(not array.any() for array in flat(state["param_states"]).values())
    states = traverse_util.flatten_dict(state["param_states"], sep="/")

    def shapes(name: str) -> list[tuple[int, ...]]:
        return [states[f"{name}/{kind}"].shape for kind in ("m", "v", "v_row", "v_col")]

    one = (1,)
    assert shapes("token_embedder/embedding") == [one, one, (130,), (200,)]
    assert shapes("encoder/layers_1/mlp/wi_0/kernel") == [one, one, (128,), (130,)]
    assert shapes("encoder/layers_1/attention/query/kernel") == [one, (130, 10), one, one]
    assert shapes("decoder/decoder_norm/scale") == [one, (130,), one, one]


def test_optimizer_state_of_scanned_parameters(tmp_path: Path) -> None:
    """As `adafactor.standard_logical_factor_rules` of T5X make it: tests/test_t5x_live.py."""
    weights = random_weights(relative_attention_per_layer=True)
    write_t5x(weights, str(tmp_path / "checkpoint_20"))
    content = serialization.msgpack_restore((tmp_path / "checkpoint_20/checkpoint").read_bytes())
    states = flat(content["optimizer"]["state"]["param_states"])

    def shapes(name: str) -> list[tuple[int, ...]]:
        return [states[f"decoder/decoder/{name}/{k}"].shape for k in ("m", "v", "v_row", "v_col")]

    one, (e, h, d, f, n, layers) = (1,), (6, 2, 5, 14, 32, 3)
    assert shapes("self_attention/query/kernel") == [one, one, (e, layers), (layers, h, d)]
    assert shapes("self_attention/out/kernel") == [one, one, (layers, e), (h, layers, d)]
    assert shapes("mlp/wi_0/kernel") == [one, one, (e, layers), (layers, f)]
    assert shapes("mlp/wo/kernel") == [one, one, (layers, e), (f, layers)]
    assert shapes("pre_mlp_layer_norm/scale") == [one, (e, layers), one, one]
    assert shapes("relpos_bias/rel_embedding") == [one, (h, layers, n), one, one]


def test_large_arrays_are_written_in_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dss_jax.interop.t5x_store._CHUNK_BYTES", 5 * 6 * 4)
    weights = random_weights()
    write_t5x(weights, str(tmp_path / "checkpoint_0"))
    chunks = list((tmp_path / "checkpoint_0/target.token_embedder.embedding").glob("[0-9]*"))
    assert len(chunks) == 7  # 32 rows, 5 in a chunk
    again = read_t5x(str(tmp_path / "checkpoint_0"))
    for path, value in flat(weights.tree()).items():
        np.testing.assert_array_equal(again.leaves[path].read(), value, path)


def test_what_is_not_written(tmp_path: Path) -> None:
    weights = random_weights()
    with pytest.raises(UsageError, match=r"model/checkpoint_0, not to"):
        write_t5x(weights, str(tmp_path / "model"))
    with pytest.raises(UsageError, match="T5X has layer_norm_epsilon = 1e-06"):
        write_t5x(random_weights(layer_norm_epsilon=1e-5), str(tmp_path / "checkpoint_0"))
    (tmp_path / "checkpoint_1").mkdir()
    with pytest.raises(UsageError, match="is there already"):
        write_t5x(weights, str(tmp_path / "checkpoint_1"))


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    folder = t5x_maker.write_legacy(tmp_path / "in" / "checkpoint_7", t5x_maker.unscanned())
    weights = read_t5x(str(folder))
    shutil.rmtree(folder / "target.encoder.encoder_norm.scale")
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="encoder_norm"):
        write_t5x(weights, str(tmp_path / "out" / "checkpoint_7"))
    assert not list((tmp_path / "out").iterdir())


@pytest.fixture(scope="module")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGcs]:
    server = FakeGcs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", server.url)
        # No credentials of the machine's user.
        patch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
        patch.setenv("CLOUDSDK_CONFIG", str(tmp_path_factory.mktemp("gcloud")))
        yield server
    server.close()


def test_reads_public_buckets(tmp_path: Path, gcs: FakeGcs) -> None:
    arrays = t5x_maker.unscanned()
    legacy = t5x_maker.write_legacy(tmp_path / "checkpoint_7", arrays)
    gcs.upload(legacy, "t5-data/t5x/small/checkpoint_7")
    orbax = write_orbax(tmp_path / "checkpoint_8", arrays)
    gcs.upload(orbax, "t5-data/t5x/small/checkpoint_8")
    for step in (7, 8):
        place = f"gs://t5-data/t5x/small/checkpoint_{step}"
        assert is_t5x(place)
        gcs.asked.clear()
        weights = read_t5x(f"{place}/")
        before = len(gcs.asked)
        assert_reads(weights, arrays)
        assert len(gcs.asked) > before, "the arrays were read before they were asked for"
        assert all(authorization is None for _, _, authorization in gcs.asked)


def test_buckets_without_a_checkpoint(gcs: FakeGcs) -> None:
    assert not is_t5x("gs://t5-data/t5x/nothing")
    gcs.forbidden.add("private")
    with pytest.raises(UsageError, match=r"cannot read gs://private/.*PERMISSION_DENIED.*gcloud"):
        is_t5x("gs://private/checkpoint_1")


def test_writes_to_buckets(tmp_path: Path, gcs: FakeGcs) -> None:
    weights = random_weights()
    write_t5x(weights, "gs://mine/model/checkpoint_5")
    written = [name for method, name, _ in gcs.asked if method == "POST"]
    assert written[-1] == "mine/model/checkpoint_5/checkpoint", "the index comes last"
    gcs.download("mine/model", tmp_path)
    for place in (str(tmp_path / "checkpoint_5"), "gs://mine/model/checkpoint_5"):
        again = read_t5x(place)
        for path, value in flat(weights.tree()).items():
            np.testing.assert_array_equal(again.leaves[path].read(), value, path)
    with pytest.raises(UsageError, match="is there already"):
        write_t5x(weights, "gs://mine/model/checkpoint_5")


REFERENCE = Path(__file__).parents[2] / "shared" / "data" / "t5x_reference"
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="what T5X wrote (../shared/data/t5x_reference) is not here"
)


@needs_reference
def test_t5x_reference_computes_the_same() -> None:
    recorded = np.load(REFERENCE / "reference.npz")
    weights = read_t5x(str(REFERENCE / "legacy_checkpoint_20"))
    model = T5(weights.config)
    params = jax.tree.map(jnp.asarray, weights.tree())
    encoder_tokens, targets = recorded["encoder_input_tokens"], recorded["decoder_target_tokens"]
    logits = model.apply({"params": params}, encoder_tokens, recorded["decoder_input_tokens"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(targets))
    # T5X hides padding in the decoder, where no loss is; the model here is causal only.
    real = targets != 0
    assert relative(logits[real], recorded["logits"][real]) < 1e-5
    assert relative(losses.sum(where=real), recorded["summed_loss"]) < 1e-5
    # `greedy_tokens` are of T5X's default too, beam search, with one beam: it prefers a second-best
    # that ends at two places, where greedy decoding goes on.
    one, four = (
        decode(
            model,
            params,
            encoder_tokens,
            BeamSearch(Beam(num_beams=beams, rule="t5x", length_penalty=0.6)),
            max_decode_length=16,
        )
        for beams in (1, 4)
    )
    np.testing.assert_array_equal(one.tokens[:, 0], recorded["greedy_tokens"])
    # T5X gives the worst first, and -1e7 for a beam that never ended.
    np.testing.assert_array_equal(four.tokens[:, ::-1], recorded["beam4_tokens"])
    ended = recorded["beam4_scores"] > -1e6
    assert relative(four.scores[:, ::-1][ended], recorded["beam4_scores"][ended]) < 1e-5


def relative(ours: Any, theirs: Any) -> float:
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def raw(folder: Path, name: str) -> np.ndarray:
    """An array of an Orbax checkpoint, past our reader."""
    store = {"driver": "ocdbt", "base": f"file://{folder.resolve()}/state/", "path": f"{name}/"}
    return ts.open({"driver": "zarr", "kvstore": store}).result().read().result()


@needs_reference
def test_t5x_reference_orbax() -> None:
    folder = REFERENCE / "orbax_checkpoint_20"
    weights = read_t5x(str(folder))
    assert weights.config == read_t5x(str(REFERENCE / "legacy_checkpoint_20")).config
    for path, value in flat(weights.tree()).items():
        names = [path.replace("/layers/", f"/layers_{i}/") for i in (0, 1)]
        stored = [raw(folder, f"target.{name.replace('/', '.')}") for name in dict.fromkeys(names)]
        np.testing.assert_array_equal(value, stored if len(stored) > 1 else stored[0], path)


@needs_reference
def test_t5x_reference_scanned(tmp_path: Path) -> None:
    folder = REFERENCE / "scanned_orbax_checkpoint_20"
    umt5 = read_t5x(str(folder))
    assert umt5.config.relative_attention_per_layer
    state = ocp.PyTreeCheckpointer().restore(folder.resolve() / "state")
    stored = {n: np.asarray(a) for n, a in flat(state["target"]).items()}
    write_t5x(umt5, str(tmp_path / "again" / "checkpoint_20"))
    again = target_of(tmp_path / "again" / "checkpoint_20")
    assert again.keys() == stored.keys()
    for name in stored:
        np.testing.assert_array_equal(again[name], stored[name], name)
        if "relpos_bias" in name:
            stored[name] = np.repeat(stored[name][:, :1], 2, axis=1)
    weights = read_t5x(str(t5x_maker.write_legacy(tmp_path / "checkpoint_20", stored)))
    tree = flat(weights.tree())
    for i in (0, 1):
        query = stored["decoder/decoder/encoder_decoder_attention/query/kernel"][:, i]
        ours = tree["decoder/layers/encoder_decoder_attention/query/kernel"][i]
        out = stored["encoder/encoder/attention/out/kernel"][:, i]
        for head in range(4):
            np.testing.assert_array_equal(ours[:, head * 16 : head * 16 + 16], query[:, head])
            rows = tree["encoder/layers/attention/out/kernel"][i][head * 16 : head * 16 + 16]
            np.testing.assert_array_equal(rows, out[head])
        np.testing.assert_array_equal(
            tree["decoder/layers/mlp/wo/kernel"][i], stored["decoder/decoder/mlp/wo/kernel"][:, i]
        )
        norm = "pre_cross_attention_layer_norm/scale"
        np.testing.assert_array_equal(
            tree[f"decoder/layers/{norm}"][i], stored[f"decoder/decoder/{norm}"][:, i]
        )
    bias = stored["decoder/decoder/relpos_bias/rel_embedding"][:, 0]
    np.testing.assert_array_equal(tree["decoder/relpos_bias/rel_embedding"], bias)
