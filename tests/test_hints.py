"""What people try: each answer names the command that does it, and none is a traceback."""

import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import t5_weights
from safetensors.numpy import load_file, save_file

from dss_jax.cli.main import main
from dss_jax.core.errors import UsageError
from dss_jax.core.lfs import MARK
from dss_jax.core.log import shown
from dss_jax.data import rows
from dss_jax.data.vocabulary import SentencePiece
from dss_jax.interop.formats import read_weights
from dss_jax.interop.hf import write_hf
from dss_jax.interop.pieces import read_model
from dss_jax.student.tables import open_table

TRAIN = "train --task word_problems --model t5_1_1_tiny --output_dir runs/x"
POINTER = f"{MARK}v1\noid sha256:{'0' * 64}\nsize 990345061\n"

TRIED = [
    ("train --task my.csv", "dss init my --from my.csv --input COLUMN --label COLUMN"),
    ("train --task 'a b/my rows.jsonl'", "dss init my_rows --from 'a b/my rows.jsonl' --input"),
    ("train --task tickets", "A task of a table of yours is made by dss init"),
    ("tasks show tasks/mine.py", "--task mine --task_dir tasks"),
    ("--data my.csv", "dss init my --from my.csv"),
    ("my.csv", "dss init my --from my.csv"),
    ("2026.csv", "dss init my_2026 --from 2026.csv"),
    (f"{TRAIN} my.csv", "dss init my --from my.csv"),
    ("--task cqa train --model t5_1_1_tiny", "dss train --task cqa --model t5_1_1_tiny"),
    ("--task cqa", "a command comes first: dss train --task cqa"),
    ("predict", "For example: dss predict --student runs/cqa --input new.csv"),
    ("predict --student a --input b --out c --threads two", "--threads: invalid int value: 'two'"),
    (f"{TRAIN} --steps 10", "--gin.Train.steps=10 (Train.steps: optimiser updates, not epochs)"),
    (f"{TRAIN} --epochs 3", "give --gin.Train.steps=VALUE, epochs x rows / Data.batch_size (Train"),
    (f"{TRAIN} --optim=adamw_torch", "--gin.Optimizer.name=VALUE, 'adamw' or 'adafactor'."),
    ("init", "dss init: the following arguments are required: name, --from."),
    ("init --from my.csv", "dss init: the following arguments are required: name."),
    ("extract", "are required: --task."),
    (f"{TRAIN} --lr 1e-4", "give --gin.Optimizer.learning_rate=1e-4."),
    (f"{TRAIN} --lr=1e-4", "give --gin.Optimizer.learning_rate=1e-4."),
    (f"{TRAIN} --learning-rate 1e-4", "give --gin.Optimizer.learning_rate=1e-4."),
    (f"{TRAIN} --steps", "--gin.Train.steps=VALUE"),
    (f"{TRAIN} --steps --engine jax", "--gin.Train.steps=VALUE"),
    (f"{TRAIN} --Train.steps=10", "give --gin.Train.steps=10"),
    (f"{TRAIN} Train.steps=10", "give --gin.Train.steps=10"),
    (f"{TRAIN} --output-dir y", "Did you mean --output_dir?"),
    (f"{TRAIN} --gin.Train.steps=ten", "Train.steps = ten is no value"),
    (f"{TRAIN} --gin.Train.steps=\"'ten'\"", "Train.steps must be a whole number, not 'ten'"),
    (f"{TRAIN[:-7]} file", "file is a file. Give a folder"),
    (f"{TRAIN[:-7]} file/x", "file is a file. Give a folder"),
    ("convert --from hf nowhere --to orbax x", "Names of the Hugging Face hub are OWNER/NAME"),
]


@pytest.mark.parametrize(("words", "says"), TRIED)
def test_the_answer_names_what_does_it(
    words: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks").mkdir()
    for name in ("file", "my.csv", "tasks/mine.py"):
        (tmp_path / name).touch()
    assert main(shlex.split(words)) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("words", ["prepare --task word_problems --store_dir", "demo --output_dir"])
def test_a_file_in_the_place_of_a_folder(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main([*words.split(), "file"]) == 1
    assert "Give another path, or remove that file" in capsys.readouterr().err


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["-h", "train -h"])
def test_a_reader_that_goes_is_no_error(words: str, unbuffered: str) -> None:
    command = f"{shlex.quote(sys.executable)} -m dss_jax.cli.main {words}; echo $? >&2"
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    done = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        stdout=reader.stdin,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.stderr == "0\n"


def test_what_is_said_to_a_reader_that_has_gone_is_dropped(
    monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    class Gone:
        def write(self, _: str) -> None:
            raise BrokenPipeError

    with shown():
        monkeypatch.setattr(sys, "stdout", Gone())
        logging.getLogger("dss_jax.test").info("step 1")
    assert capsys.readouterr().err == ""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_hf(t5_weights.random_weights(t5_weights.BASE), tmp_path / "model")
    return tmp_path / "model"


def test_pointers_of_git_lfs_are_named(folder: Path, tmp_path: Path) -> None:
    says = r"is a Git LFS pointer, not the file itself.*cd .* && git lfs install && git lfs pull"
    (folder / "spiece.model").write_text(POINTER)
    (tmp_path / "rows.csv").write_text(POINTER)
    readers = [
        lambda: SentencePiece(folder / "spiece.model"),
        lambda: read_model(folder / "spiece.model"),
        lambda: list(rows.jsonl_rows(tmp_path / "rows.csv")),
        lambda: list(rows.csv_rows(tmp_path / "rows.csv")),
        lambda: open_table(str(tmp_path / "rows.parquet")),
    ]
    (tmp_path / "rows.parquet").write_text(POINTER)
    for read in readers:
        with pytest.raises(UsageError, match=says):
            read()
    (folder / "model.safetensors").write_text(POINTER)
    with pytest.raises(UsageError, match=says):
        read_weights(str(folder))
    os.rename(folder / "model.safetensors", folder / "pytorch_model.bin")
    pytest.importorskip("torch")
    with pytest.raises(UsageError, match=says):
        read_weights(str(folder))


def test_an_adapter_is_no_model(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"is an adapter of PEFT .*merge_and_unload\(\)"):
        read_weights(str(folder))


@pytest.mark.parametrize("wrapped", ["_orig_mod.{}", "module.{}", "module._orig_mod.{}", "block"])
def test_names_of_a_compiled_model_are_read(wrapped: str, folder: Path) -> None:
    """torch.compile(model).state_dict() begins them so; compiled layers have it in the middle."""
    arrays = load_file(folder / "model.safetensors")

    def name(old: str) -> str:
        middle = wrapped == "block"
        return old.replace("layer.", "_orig_mod.layer.") if middle else wrapped.format(old)

    save_file({name(n): a for n, a in arrays.items()}, folder / "model.safetensors")
    found, wanted = read_weights(str(folder)), t5_weights.random_weights(t5_weights.BASE)
    for path, leaf in found.leaves.items():
        np.testing.assert_array_equal(leaf.read(), wanted.leaves[path].read())
    assert "names were read without" in found.notes[0]
    both = arrays | {f"_orig_mod.{n}": a for n, a in arrays.items()}
    save_file(both, folder / "model.safetensors")
    with pytest.raises(UsageError, match="both with and without"):
        read_weights(str(folder))
