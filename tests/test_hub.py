"""Models of the Hugging Face hub by name, from a stand-in of it on this machine."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import hub_server
import numpy as np
import pytest
import t5_weights
import toy
from huggingface_hub import constants

from dss_jax.cli.main import main
from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.interop import hf, hub
from dss_jax.interop.formats import read_weights
from dss_jax.run import model_card
from dss_jax.run.init_from import with_checkpoint

NAME = "them/small-t5"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A repository as others make them: with what is not needed, and what could hold code."""
    folder = tmp_path_factory.mktemp("hub") / "model"
    hf.write_hf(t5_weights.random_weights(t5_weights.BASE), folder)
    found = {file.name: file.read_bytes() for file in folder.iterdir()}
    others = ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", ".gitattributes", "run.py")
    return found | dict.fromkeys(others, b"code") | {"onnx/model.safetensors": b"x"}


@pytest.fixture
def standin(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[hub_server.Hub]:
    monkeypatch.chdir(tmp_path)
    cache = str(tmp_path / "hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # The stand-in has plain files.
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with hub_server.running() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.address)
        found.files[NAME] = dict(files)
        yield found


def fetched(standin: hub_server.Hub) -> set[str]:
    return {
        path.rpartition(f"{hub_server.COMMIT}/")[2]
        for path, _ in standin.asked
        if "/resolve/" in path
    }


@pytest.mark.parametrize("name", [NAME, f"hf:{NAME}", f"hf://{NAME}", f"hf:{NAME}@main"])
def test_a_name_is_a_model(name: str, standin: hub_server.Hub) -> None:
    weights = read_weights(name)
    wanted = t5_weights.random_weights(t5_weights.BASE)
    for path, leaf in weights.leaves.items():
        np.testing.assert_array_equal(leaf.read(), wanted.leaves[path].read())
    assert weights.vocabulary is not None
    assert weights.vocabulary.read_bytes() == toy.VOCABULARY.read_bytes()
    assert weights.extra_ids == wanted.extra_ids
    # Only what is needed; nothing that could hold code.
    assert fetched(standin) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "spiece.model",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    # The second time nothing is fetched.
    asked = len(standin.asked)
    read_weights(name)
    assert all("/resolve/" not in path for path, _ in standin.asked[asked:])


def test_shards_are_fetched(
    standin: hub_server.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf, "SHARD_BYTES", 40_000)
    hf.write_hf(t5_weights.random_weights(t5_weights.BASE), tmp_path / "shards")
    standin.files[NAME] = {f.name: f.read_bytes() for f in (tmp_path / "shards").iterdir()}
    weights = read_weights(NAME)
    assert len([n for n in fetched(standin) if n.endswith(".safetensors")]) > 2
    assert all(np.isfinite(leaf.read()).all() for leaf in weights.leaves.values())


def test_a_run_starts_from_a_name_and_knows_its_vocabulary(
    standin: hub_server.Hub, tmp_path: Path
) -> None:
    run = config.Run(train=config.Train(init_from=NAME, output_dir=str(tmp_path / "run")))
    run = with_checkpoint(run, ())
    assert run.model.emb_dim == t5_weights.BASE.emb_dim
    assert run.vocabulary.path is not None
    assert Path(run.vocabulary.path).read_bytes() == toy.VOCABULARY.read_bytes()
    assert run.vocabulary.extra_ids == 10
    # In the saved configuration it is a name wherever that is read.
    assert run.train.init_from == f"hf:{NAME}"
    assert model_card._base_model(run) == NAME
    (tmp_path / "them").mkdir()
    assert with_checkpoint(run, ()) == run


def test_predict_and_convert_take_names(standin: hub_server.Hub, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("input\nwhere do fish live?\n")
    done = main(["predict", "--student", NAME, "--input", "rows.csv", "--out", "out.jsonl"])
    assert done == 0
    assert json.loads((tmp_path / "out.jsonl").read_text())["input"] == "where do fish live?"
    assert main(["convert", "--from", "hf", NAME, "--to", "orbax", "ours"]) == 0
    assert (tmp_path / "ours" / "t5_config.json").is_file()


def test_a_folder_here_wins(standin: hub_server.Hub, tmp_path: Path, files) -> None:
    folder = tmp_path / NAME
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "spiece.model", "tokenizer_config.json"):
        (folder / name).write_bytes(files[name])
    assert read_weights(NAME).origin.endswith(NAME)
    # A slip in the name of a folder is not asked for at the hub.
    with pytest.raises(UsageError, match="there is no folder them/smal-t5"):
        read_weights("them/smal-t5")
    assert not standin.asked
    for path in ("runs", "./a/b", "../a", "/a/b", "~/a", "a/b/c", "gs://a/b", "a\\b/c"):
        assert hub.hub_name(path) is None
    assert hub.hub_name("hf:t5-base@refs/pr/3") == ("t5-base", "refs/pr/3")


def test_a_download_goes_on_where_it_was_cut(
    standin: hub_server.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    standin.cut, standin.cuts = 300_000, 1
    weights = read_weights(NAME)
    assert all(np.isfinite(leaf.read()).all() for leaf in weights.leaves.values())
    assert standin.ranges == ["bytes=300000-"]


def test_what_is_in_the_cache_is_taken_without_the_hub(
    standin: hub_server.Hub, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(
            UsageError, match=r"HF_HUB_OFFLINE is set.*not in its cache.*hf download"
        ):
            read_weights(NAME)
    assert not standin.asked
    first = read_weights(NAME)
    asked = len(standin.asked)
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert read_weights(NAME).origin == first.origin
        assert len(standin.asked) == asked
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert read_weights(NAME).origin == first.origin
    assert said[-1] == f"{NAME} is taken from the cache: the Hugging Face hub cannot be reached"
    with pytest.raises(UsageError, match=r"cannot be reached .*hf download them/other "):
        read_weights("them/other")
    # A download that was cut short.
    for file in Path(constants.HF_HUB_CACHE).glob("*/snapshots/*/*.safetensors"):
        file.unlink()
    with pytest.raises(UsageError, match=rf"cannot be reached .*hf download {NAME} "):
        read_weights(NAME)


def test_what_the_hub_does_not_have(
    standin: hub_server.Hub, monkeypatch: pytest.MonkeyPatch, files
) -> None:
    def refused(name: str, says: str) -> None:
        with pytest.raises(UsageError, match=says) as error:
            read_weights(name)
        assert "\n" not in str(error.value)
        assert error.value.__cause__ is None or "hub" in says

    refused(
        "google/flan-t5-bas",
        r"no folder google/flan-t5-bas, and .* no model.*HF_TOKEN.*flan-t5-base",
    )
    refused(f"hf:{NAME}@v2", "has no revision 'v2'")
    refused("hf:a/b/c@x", "there is no folder hf:a/b/c@x")
    standin.files[NAME].pop("model.safetensors")
    refused(NAME, "PyTorch's pickles only, which are not fetched.*refs/pr/NUMBER")
    standin.files[NAME].pop("pytorch_model.bin")
    refused(NAME, r"no model.safetensors. .* weights of Flax, TensorFlow")
    standin.files[NAME] = {"adapter_config.json": b"{}", "adapter_model.safetensors": b""}
    refused(NAME, r"adapter of PEFT .*merge_and_unload")
    standin.files[NAME] = {"README.md": b""}
    refused(NAME, "It has: README.md")
    with monkeypatch.context() as patch:
        host = os.environ["HF_ENDPOINT"].removeprefix("http://")
        patch.setenv("HF_ENDPOINT", f"http://me:secret@{host}")
        refused("them/none", rf"^(?!.*secret).*http://{host} has no model")
    standin.files[NAME] = {"model.safetensors": b""}
    refused(NAME, "has no config.json")
    assert not fetched(standin)


def test_a_gated_model_needs_a_token(
    standin: hub_server.Hub, monkeypatch: pytest.MonkeyPatch, capsys, caplog
) -> None:
    caplog.set_level("DEBUG")
    standin.gated.add(NAME)
    with pytest.raises(UsageError, match=f"is gated: agree to its terms at .*/{NAME}, and put"):
        read_weights(NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UsageError, match="with the account of HF_TOKEN"):
        read_weights(NAME)
    monkeypatch.setenv("HF_TOKEN", standin.token)
    assert read_weights(NAME).leaves
    assert "hf_wrong" not in "".join(capsys.readouterr()) + caplog.text
    assert "hf_good" not in caplog.text


def test_a_students_conversion_for_ctranslate2_is_fetched_whole(standin: hub_server.Hub) -> None:
    names = ("model.bin", "shared_vocabulary.json", "config.json", "spiece.model", "student.json")
    standin.files[NAME] = dict.fromkeys(names, b"{}")
    folder = hub.local(NAME)
    assert {file.name for file in Path(folder).iterdir()} == {*names}
    # Alone it may be a pickle.
    standin.files[NAME].pop("shared_vocabulary.json")
    shutil.rmtree(folder)
    with pytest.raises(UsageError, match=r"has no model\.safetensors"):
        hub.local(NAME)
