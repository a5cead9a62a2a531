"""Several processes that train one run: equal to one process, stopped together, told apart."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import FAST_COMPILE

from dss_jax.train.metric_log import read_metrics

DEVICES = 4
"""Of all processes together, simulated."""

TASK = """
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.types import DistillationTask, plain_example

TASK = DistillationTask(
    name="toy", description="", licence="", sources=(), to_example=plain_example,
    scorer=TEXT_ACCURACY,
)
"""

SETTINGS = {
    "Data.layout": "padded",  # Its dropout masks do not depend on the mesh.
    "T5Config.emb_dim": 16,
    "T5Config.num_heads": 4,
    "T5Config.head_dim": 4,
    "T5Config.mlp_dim": 32,
    "T5Config.num_encoder_layers": 1,
    "T5Config.num_decoder_layers": 1,
    "Vocabulary.extra_ids": 0,
    "Data.batch_size": 8,
    "Optimizer.learning_rate": 1e-2,
    "Evaluate.every": 30,
    "Evaluate.batch_size": 4,
    "Evaluate.max_decode_length": 5,
    "Train.steps": 60,
    "Train.log_every": 1,
}

SLOW = """
import sys, time
from dss_jax.cli.main import main
from dss_jax.layouts.batches import TrainBatches
real = TrainBatches.__call__
TrainBatches.__call__ = lambda self, step: time.sleep(0.1) or real(self, step)
sys.exit(main())
"""
"""`dss` with steps that are long enough to be interrupted."""

EXACT = {"rtol": 1e-4, "atol": 1e-5}
"""Sums over devices are taken in another order."""


OF_GLOO = re.compile(
    r"\[Gloo\] Rank | is connected to | peer ranks\. |Expected number of connected peer ranks is : "
    r"|\d+|\n"
)
"""Pieces of what Gloo prints; threads that print at once mix them."""


@dataclass
class Place:
    """Where the tests' runs, task and store are."""

    folder: Path
    store: Path

    def arguments(self, command: str, name: str, **settings: object) -> list[str]:
        bindings = {k.replace("__", "."): v for k, v in settings.items()}
        bindings = (SETTINGS | bindings) if command == "train" else bindings
        given = [] if command == "eval" else ["--task", "toy", "--model", "t5_1_1_tiny"]
        return [
            command,
            *given,
            "--task_dir",
            str(self.folder / "tasks"),
            "--store",
            str(self.store),
            "--output_dir",
            str(self.folder / name),
            *(f"--gin.{k}={v!r}" for k, v in bindings.items()),
        ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, toy_store) -> Place:
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "tasks").mkdir()
    (folder / "tasks" / "toy.py").write_text(TASK)
    return Place(folder, toy_store.path)


def _start(
    count: int,
    arguments: list[list[str]],
    program: str = "from dss_jax.cli.main import main; raise SystemExit(main())",
) -> list[subprocess.Popen]:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    flags = FAST_COMPILE.replace("device_count=4", f"device_count={DEVICES // count}")
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    started = []
    for index, own in enumerate(arguments):
        among = [
            "--coordinator_address",
            f"localhost:{port}",
            "--process_count",
            str(count),
            "--process_index",
            str(index),
        ]
        command = [sys.executable, "-c", program, *own]
        started.append(
            subprocess.Popen(
                command + (among if count > 1 else []),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=env,
            )
        )
    return started


def _end(started: list[subprocess.Popen], status: int = 0) -> list[tuple[str, str]]:
    """(stdout, stderr) of each process; all must end with this status."""
    try:
        said = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (out, err) in zip(started, said, strict=True):
        assert process.returncode == status, f"{out}\n{err}"
    return said


def _run(count: int, arguments: list[str], status: int = 0) -> list[tuple[str, str]]:
    return _end(_start(count, [arguments] * count), status)


def _params(run: Path, step: int) -> list[np.ndarray]:
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.restore(
            run / "checkpoints" / str(step) / "params",
            args=ocp.args.PyTreeRestore(
                restore_args=jax.tree.map(
                    lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
                    dict(
                        reader.metadata(
                            run / "checkpoints" / str(step) / "params"
                        ).item_metadata.tree
                    ),
                )
            ),
        )
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def _numbers(run: Path) -> list[dict]:
    lines = read_metrics(run / "metrics.jsonl")
    timing = ("_per_second", "_seconds", "utilization", "mfu")
    return [{k: v for k, v in line.items() if not k.endswith(timing)} for line in lines]


def _assert_same_run(one: Path, other: Path, steps: int) -> None:
    lines = _numbers(one), _numbers(other)
    assert len(lines[0]) == len(lines[1]) > steps
    for a, b in zip(*lines, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"group"}:
            assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-5), (a["step"], key)
    results = [json.loads((run / "results.json").read_text()) for run in (one, other)]
    assert results[0]["best_step"] == results[1]["best_step"]
    for split in ("validation", "test"):
        for key, value in results[0][split].items():
            assert results[1][split][key] == pytest.approx(value, rel=1e-4), (split, key)
    files = [(run / "predictions" / "test-best.jsonl").read_text() for run in (one, other)]
    texts = [[json.loads(line)["prediction"] for line in f.splitlines()] for f in files]
    assert texts[0] == texts[1]
    pairs = list(zip(_params(one, steps), _params(other, steps), strict=True))
    assert len(pairs) > 10
    for a, b in pairs:
        np.testing.assert_allclose(a, b, **EXACT)


@pytest.fixture(scope="module")
def alone(place: Place) -> Path:
    """The run of one process with as many devices."""
    _run(1, place.arguments("train", "alone"))
    return place.folder / "alone"


@pytest.fixture(scope="module")
def changed(place: Place) -> tuple[Path, list[tuple[str, str]], list[tuple[str, str]]]:
    """A run of four processes that is preempted on one of them, and goes on with two."""
    arguments = place.arguments("train", "changed", Mesh__data=2, Mesh__model=2)
    started = _start(4, [arguments] * 4, program=SLOW)
    log = place.folder / "changed" / "metrics.jsonl"
    while not (log.exists() and read_metrics(log)):
        if any(process.poll() is not None for process in started):
            _end(started, 185)  # Fails, and shows what they said.
            pytest.fail("all processes ended before the first step was logged")
        time.sleep(0.05)
    started[2].send_signal(signal.SIGTERM)
    stopped = _end(started, 185)
    return place.folder / "changed", stopped, _run(2, place.arguments("train", "changed"))


@pytest.mark.slow
def test_a_signal_for_one_process_saves_the_same_step_on_all(changed) -> None:
    _, stopped, resumed = changed
    found = re.search(r"interrupted after (\d+) steps; the state is saved", stopped[0][0])
    assert found is not None
    assert 1 < int(found[1]) < SETTINGS["Train.steps"]
    assert "dss train --task toy" in stopped[0][0]
    assert f"going on from the checkpoint of step {found[1]}" in resumed[0][0]
    # Nobody but process 0 prints.
    for out, _ in stopped[1:] + resumed[1:]:
        assert not OF_GLOO.sub("", out)


@pytest.mark.slow
def test_four_processes_then_two_give_the_run_of_one(changed, alone: Path) -> None:
    run, _, resumed = changed
    _assert_same_run(alone, run, SETTINGS["Train.steps"])
    assert "mesh: data 4 x fsdp 1 x model 1" in resumed[0][0]
    assert re.search(r"process 1 \(.*\): 2 x cpu", resumed[0][0])
    assert "memory of a step on each device, GB: parameters 0.00" in resumed[0][0]


@pytest.mark.slow
def test_two_processes_score_as_one(place: Place, changed) -> None:
    run, *_ = changed
    file = run / "predictions" / "test-best.jsonl"
    results = json.loads((run / "results.json").read_text())
    expected = [json.loads(line) for line in file.read_text().splitlines()]
    ((out, _), _) = _run(2, place.arguments("eval", "changed"))
    found = re.search(r"predictions: (.*)", out)
    assert found is not None
    assert found[1].endswith(f"test-{results['best_step']}.jsonl")
    predictions = [json.loads(line) for line in Path(found[1]).read_text().splitlines()]
    for one, other in zip(predictions, expected, strict=True):
        assert one.pop("log_prob") == pytest.approx(other.pop("log_prob"), rel=1e-4)
        assert one == other


@pytest.mark.slow
def test_hosts_that_disagree_stop_at_once_and_say_who_has_what(place: Place) -> None:
    arguments = [place.arguments("train", "other", Train__steps=n) for n in (6, 7)]
    for _, error in _end(_start(2, arguments), 2):
        assert "the processes have not the same configuration" in error
        assert re.search(r"--- process 0 .*\n\+\+\+ process 1 .*\n", error)
        assert "-Train.steps = 6\n+Train.steps = 7" in error
    assert not (place.folder / "other").exists()
