"""The command line: quick refusals, help, and whole commands in fresh processes."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import FAST_COMPILE

from dss_jax.cli.main import COMMANDS, main

TRAIN = ["train", "--task", "word_problems", "--method", "dss", "--model", "t5_1_1_tiny"]

WRONG = [
    (["tarin"], "Did you mean 'train'?"),
    (["train", "--tsk", "cqa"], "Did you mean --task?"),
    (["train", "--task", "cqaa", "--model", "t5_1_1_tiny"], "Did you mean 'cqa'?"),
    (["train", "--task", "cqa", "--model", "t5_1_1_bass"], "Did you mean 't5_1_1_base'?"),
    ([*TRAIN, "--method", "dsss"], "Did you mean 'dss'?"),
    ([*TRAIN, "--gin.Train.stepz=3"], "Did you mean 'Train.steps'?"),
    ([*TRAIN, "--gin.Train.steps=-3"], "at least 1, not -3"),
    ([*TRAIN, "--gin.Train.steps"], "needs a value"),
    ([*TRAIN, "--gin_file", "nowhere.gin"], "no gin file"),
    (TRAIN, "give --output_dir"),
    (["train", "--task", "word_problems", "--output_dir", "x"], "no model: give --model"),
    (["train", "--model", "t5_1_1_tiny", "--output_dir", "x"], "no task: give --task"),
    (["tasks", "shows"], "Did you mean 'show'?"),
    (["tasks", "show"], "which task?"),
    (["eval", "--output_dir", "nowhere"], "holds no run"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG)
def test_a_mistake_is_named_with_the_fix(arguments, says, capsys) -> None:
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


def test_help_names_every_command(capsys) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"dss {command}" in capsys.readouterr().out


def test_the_resolved_configuration_gives_the_same_run_again(capsys, tmp_path: Path) -> None:
    assert main(["config", *TRAIN[1:], "--gin.Train.steps=7"]) == 0
    first = capsys.readouterr().out
    file = tmp_path / "run.gin"
    file.write_text(first)
    assert main(["config", "--gin_file", str(file)]) == 0
    assert capsys.readouterr().out == first
    assert "Train.steps = 7" in first


ONE_DEVICE = {**os.environ, "XLA_FLAGS": FAST_COMPILE.replace("=4", "=1")}


def _dss(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    env = {**ONE_DEVICE, **environment}
    return subprocess.run(
        [sys.executable, "-m", "dss_jax.cli.main", *arguments],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=500,
    )


def test_a_wrong_name_fails_before_jax_and_numpy_are_imported(tmp_path: Path) -> None:
    done = _dss(*TRAIN, "--gin.Optimizer.name='adamv'", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 2
    assert "Did you mean 'adamw'?" in done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {"jax", "numpy", "flax", "tensorflow"}
    assert not list(tmp_path.iterdir())


SMALL = shlex.split(
    "--gin.T5Config.emb_dim=16 --gin.T5Config.head_dim=4 --gin.T5Config.mlp_dim=16 "
    "--gin.T5Config.dropout_rate=0.0 --gin.Data.batch_size=8 --gin.Task.train_count=40 "
    "--gin.Evaluate.max_decode_length=6 --gin.Evaluate.validation_examples=8"
)


@pytest.mark.slow
def test_train_killed_half_way_then_continued_then_scored(tmp_path: Path) -> None:
    train = [*TRAIN, *SMALL, "--gin.Train.steps=40", "--gin.Evaluate.every=5"]
    whole = _dss(*train, "--output_dir", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert "equation_accuracy" in whole.stdout
    command = [sys.executable, "-m", "dss_jax.cli.main", *train, "--output_dir", "killed"]
    with (tmp_path / "log").open("w") as log:
        # As many devices as the runs it is compared with: sums over four of them round otherwise.
        process = subprocess.Popen(command, cwd=tmp_path, env=ONE_DEVICE, stdout=log, stderr=log)
        checkpoints = tmp_path / "killed" / "checkpoints"
        while not (checkpoints.exists() and any(p.name.isdigit() for p in checkpoints.iterdir())):
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        process.kill()
        process.wait()
    resumed = _dss(*train, "--output_dir", "killed", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on from the checkpoint of step" in resumed.stdout
    results = [json.loads((tmp_path / d / "results.json").read_text()) for d in ("whole", "killed")]
    assert results[0] == results[1]
    words = "eval --output_dir killed --split validation --rationales --limit 5 --checkpoint latest"
    scored = _dss(*shlex.split(words), cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr
    lines = (
        (tmp_path / "killed" / "predictions" / "validation-40-first5.jsonl")
        .read_text()
        .splitlines()
    )
    assert len(lines) == 5
    assert "rationale" in json.loads(lines[0])


@pytest.mark.slow
def test_the_demo_shrunk(tmp_path: Path) -> None:
    demo = ["demo", "--output_dir", "demo", *SMALL, "--gin.Train.steps=4", "--gin.Evaluate.every=2"]
    first = _dss(*demo, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    for name in ("standard", "dss", "simulated teacher"):
        assert name in first.stdout
    assert (tmp_path / "demo" / "curves.png").read_bytes().startswith(b"\x89PNG")
    for name in ("by_data.png", "report.md"):
        assert (tmp_path / "demo" / "report" / name).exists()
    runs = {file: file.stat().st_mtime_ns for file in tmp_path.glob("demo/**/train.log")}
    assert len(runs) == 7
    again = _dss(*demo, cwd=tmp_path)
    assert again.returncode == 0
    table = first.stdout[first.stdout.index("word_problems: equation_accuracy") :]
    assert again.stdout.endswith(table)
    assert {file: file.stat().st_mtime_ns for file in runs} == runs  # Nothing was started.
