"""`dss convert` from end to end, our Orbax folders, and how a format is found."""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import toy
from test_hf import recorded, write_folder

from dss_jax.cli.main import main
from dss_jax.core import config, partial, student_card
from dss_jax.core.errors import UsageError
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.interop.formats import read_weights
from dss_jax.interop.model_files import ModelFiles, write_model_files
from dss_jax.interop.orbax_folder import read_orbax
from dss_jax.interop.weights import flat
from dss_jax.model import lora
from dss_jax.run import single
from dss_jax.run.session import open_session


def convert(*arguments: object) -> int:
    return main(["convert", *map(str, arguments)])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    config, state, _ = recorded("v1_1")
    return write_folder(tmp_path / "source", config, state)


def test_there_and_back_bit_for_bit(source: Path, tmp_path: Path, capsys) -> None:
    _, state, _ = recorded("v1_1")
    orbax, back = tmp_path / "models" / "orbax", tmp_path / "back"
    assert convert("--from", "hf", source, "--to", "orbax", orbax) == 0
    said = capsys.readouterr().out
    assert "2 + 3 layers" in said
    assert f"{sum(x.size for x in state.values()):,}" in said
    assert sorted(f.name for f in orbax.iterdir()) == ["params", "sums.json", "t5_config.json"]
    assert read_weights(str(orbax)).config == read_weights(str(source)).config
    assert convert("--from", "orbax", orbax, "--to", "hf", back) == 0
    files = ["config.json", "generation_config.json", "model.safetensors", "sums.json"]
    assert sorted(f.name for f in back.iterdir()) == files
    from safetensors.numpy import load_file

    again = load_file(back / "model.safetensors")
    assert again.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(again[name], value)


def test_a_mistake_is_named(source: Path, tmp_path: Path, capsys) -> None:
    new = tmp_path / "new"
    wrong = [
        (["--from", "hff", source, "--to", "orbax", new], "Did you mean 'hf'?"),
        (["--from", "orbax", source, "--to", "hf", new], "is no Orbax checkpoint"),
        (["--from", "hf", tmp_path / "x", "--to", "hf", new], "there is no folder"),
        (["--from", "hf", source, "--to", "orbax", source], "is not empty"),
        (["--from", "hf", source, "--to", "hf", new, "--dtype", "float16"], "--dtype"),
        (["--from", "hf", source, "--to", "orbax", new, "--dtype", "bfloat16"], "in float32"),
        (["--from", "hf", source, "--to", "hf", new, "--checkpoint", "3"], "several checkpoints"),
        # The golden model has 60 rows.
        (["--from", "hf", source, "--to", "hf", new, "--vocabulary", toy.VOCABULARY], "60 rows"),
    ]
    for arguments, says in wrong:
        assert convert(*arguments) == 2
        assert says in capsys.readouterr().err
        assert not new.exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from dss_jax.core.partial import whole_folder
with whole_folder(Path(sys.argv[1])) as folder:
    (folder / "part").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_export_clears_what_a_killed_one_left(source: Path, tmp_path: Path) -> None:
    out, host, old = tmp_path / "a[1]" / "out", socket.gethostname(), 2.0 * partial.IDLE
    done = subprocess.run([sys.executable, "-c", KILLED, str(out)], check=False)
    assert done.returncode == -9
    (left,) = out.parent.iterdir()
    others = {
        f".partial-out-{host}-{os.getpid()}-00000000": 0.0,  # At work.
        f".partial-out-{host}-999999999-00000000": 0.0,  # In a container of the same name.
        ".partial-out-elsewhere-1-00000000": 0.0,
        ".partial-out-elsewhere-1-00000001": old,
        f".partial-out_2-{host}-999999999-00000000": 0.0,  # Of another place.
        ".partial-out-mine": old,
    }
    for name, age in others.items():
        (out.parent / name).mkdir()
        (out.parent / name / "file").touch()
        now = left.stat().st_mtime
        for file in (out.parent / name / "file", out.parent / name):
            os.utime(file, (now - age, now - age))
    assert convert("--from", "hf", source, "--to", "hf", out) == 0
    kept = {name for name in others if not name.endswith("1")}
    assert {folder.name for folder in out.parent.iterdir()} == {"out", *kept}


def test_a_folder_of_no_known_format(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)no known format. Looked for: hf: .*orbax: .*t5x: "):
        read_weights(str(tmp_path))
    with pytest.raises(UsageError, match="there is no folder"):
        read_weights(str(tmp_path / "nowhere"))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, toy_store) -> Path:
    """A finished run of 6 steps; kept are its best and its last checkpoint."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    run = toy.make_run()
    train = dataclasses.replace(run.train, output_dir=str(folder), keep_checkpoints=3)
    single.train(dataclasses.replace(run, train=train), toy_store, TEXT_ACCURACY)
    return folder


def test_a_run_becomes_a_hugging_face_folder(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "student"
    assert convert("--from", "orbax", run_folder, "--to", "hf", out, "--checkpoint", "latest") == 0
    student = read_weights(str(out))
    assert student.vocabulary is not None
    assert student.vocabulary.read_bytes() == toy.VOCABULARY.read_bytes()
    assert student.extra_ids == 0
    last = read_orbax(run_folder / "checkpoints" / "6")
    assert student.config == last.config
    for path, leaf in last.leaves.items():
        np.testing.assert_array_equal(student.leaves[path].read(), leaf.read())
    # Another step has other parameters.
    early = read_orbax(run_folder, step=2)
    norm = "decoder/decoder_norm/scale"
    assert not np.array_equal(early.leaves[norm].read(), last.leaves[norm].read())


def test_checkpoints_of_a_run(run_folder: Path) -> None:
    import json

    best = json.loads((run_folder / "results.json").read_text())["best_step"]
    assert read_orbax(run_folder).origin.endswith(f"/checkpoints/{best}/params")
    assert read_orbax(run_folder, "latest").origin.endswith("/checkpoints/6/params")
    with pytest.raises(UsageError, match=r"no checkpoint of step 5\. There: 2, 4, 6"):
        read_orbax(run_folder, 5)
    with pytest.raises(UsageError, match="best, latest or a step"):
        read_orbax(run_folder, "bst")
    with pytest.raises(UsageError, match="no 'best' to choose"):
        read_orbax(run_folder / "checkpoints" / "6", "best")
    with pytest.raises(UsageError, match="there is no checkpoint"):
        read_orbax(run_folder / "checkpoints" / "5")


def test_a_run_with_lora_is_read_merged(toy_store, tmp_path: Path) -> None:
    run = toy.make_run(lora=config.Lora(rank=2, targets=("query", "wo")))
    session = open_session(run, tmp_path / "run", toy_store, TEXT_ACCURACY)
    state = session.program.init()
    # B is 0 at first, which would hide a merge that is left out.
    params = jax.tree.map(lambda x: x + 0.1, state.params)
    checkpoints = session.checkpoints()
    checkpoints.save(dataclasses.replace(state, params=params), 3, None)
    checkpoints.close()
    write_model_files(tmp_path / "run", ModelFiles(session.run.model, toy.VOCABULARY, 0))
    expected, plain = flat(lora.merge(params)), flat(lora.base(params))
    read = read_orbax(tmp_path / "run", "latest").leaves
    assert read.keys() == expected.keys()
    for path, leaf in read.items():
        np.testing.assert_allclose(leaf.read(), expected[path], rtol=1e-6, atol=1e-6)
    changed = [p for p in plain if not np.allclose(plain[p], expected[p])]
    assert {p.split("/")[-2] for p in changed} == {"query", "wo"}


def test_parameters_of_another_model(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "orbax"
    assert convert("--from", "hf", source, "--to", "orbax", out) == 0
    (out / "sums.json").unlink()
    file = out / "t5_config.json"
    file.write_text(file.read_text().replace('"mlp_dim": 28', '"mlp_dim": 29'))
    with pytest.raises(UsageError, match=r"misshapen: encoder/layers/mlp/wo/kernel is \[2, 28, 20"):
        read_orbax(out)
    file.write_text('{"extra_ids": 0, "mlp_activations": []}')
    with pytest.raises(UsageError, match="cannot be read"):
        read_orbax(out)


def test_a_run_says_how_its_student_is_asked(run_folder: Path) -> None:
    card = student_card.read(run_folder)
    assert card is not None
    assert (card.task, card.method, card.metric) == ("toy", "dss", "text_accuracy")
    assert (card.labels, card.row_labels) == (("label 0", "label 1", "label 2"), False)
    assert card.rationale_prefix == "[rationale] "
    assert [row["input"] for row in card.examples] == [f"input {n}" for n in range(7)]
