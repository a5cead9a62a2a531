"""dss sweep with real runs: killed with -9, its runs too, and continued."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_cli import ONE_DEVICE, SMALL

from dss_jax.core import locks
from dss_jax.run import run_folder

GRID = shlex.split(
    "sweep --tasks word_problems --methods standard --models t5_1_1_tiny --fractions 1 --seeds 0,1"
)
LENGTH = "--gin.Train.steps=30", "--gin.Evaluate.every=5", "--gin.Task.train_count=None"
SWEEP = [*GRID, "--output_dir", "s", *SMALL, *LENGTH]
RUNS = "word_problems/t5_1_1_tiny/standard/frac_1"


def _start(cwd: Path, *words: str, log: Path) -> subprocess.Popen:
    with log.open("w") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "dss_jax.cli.main", *words],
            cwd=cwd,
            env=ONE_DEVICE,
            stdout=out,
            stderr=out,
        )


def _results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_gives_what_single_runs_give(tmp_path: Path) -> None:
    sweep = _start(tmp_path, *SWEEP, log=tmp_path / "log")
    first = tmp_path / "s" / RUNS / "seed_0"
    checkpoints = first / "checkpoints"
    while not (checkpoints.exists() and any(p.name.isdigit() for p in checkpoints.iterdir())):
        assert sweep.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.05)
    owner = locks.owner_of(first / run_folder.LOCK)
    assert owner is not None
    child = owner["pid"]
    sweep.kill()
    sweep.wait()
    os.kill(child, signal.SIGKILL)
    again = _start(tmp_path, *SWEEP, log=tmp_path / "log2")
    assert again.wait(500) == 0, (tmp_path / "log2").read_text()
    assert (tmp_path / "s/report/report.md").exists()
    log = (first / "train.log").read_text()
    assert log.count("going on from the checkpoint of step") == 1
    assert (tmp_path / "s/word_problems/teacher/results.json").exists()
    train = "train --task word_problems --method standard --model t5_1_1_tiny --output_dir alone"
    seeds = ["--gin.Train.seed=1", "--gin.Data.seed=1"]
    words = [*shlex.split(train), *SMALL, *LENGTH, *seeds]
    alone = _start(tmp_path, *words, log=tmp_path / "log3")
    assert alone.wait(500) == 0, (tmp_path / "log3").read_text()
    assert _results(tmp_path / "s" / RUNS / "seed_1") == _results(tmp_path / "alone")
