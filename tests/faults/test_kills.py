"""What is left when a process is killed at any moment."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dss_jax.train.metric_log import MetricLog, read_metrics

PARENT = """
from dss_jax.data import prepare_child
prepare_child.run({"pid": %r}, "sleeper")
"""
CHILD = """
import os, time
from pathlib import Path

def answer(request):
    file = Path(request["pid"])
    try:
        Path(f"{file}.new").write_text(str(os.getpid()))
        os.replace(f"{file}.new", file)
        while True:
            time.sleep(0.01)
    finally:
        file.with_name("cleaned").touch()
"""

HERE = Path(__file__).parent


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments_ends_as_if_it_were_not(tmp_path: Path) -> None:
    """A longer one: python tests/faults/killing.py FOLDER --kills 200."""
    command = [sys.executable, str(HERE / "killing.py"), str(tmp_path / "runs"), "--kills", "8"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sum(json.loads(done.stdout)["kills"].values()) >= 8


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_child_ends_with_its_parent_and_cleans_up(number: int, tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text(CHILD)
    pid = tmp_path / "pid"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    command = [sys.executable, "-c", PARENT % str(pid)]
    quiet = subprocess.DEVNULL
    parent = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stderr=quiet)
    until(pid.exists)
    parent.send_signal(number)
    parent.wait(30)
    until((tmp_path / "cleaned").exists)
    child = int(pid.read_text())
    until(lambda: not running(child))


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(true: object, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_kill_in_final_scoring_leaves_one_line_of_test(tmp_path: Path) -> None:
    for _ in range(2):
        log = MetricLog(tmp_path, 6)
        log(6, "test", {"accuracy": 50.0})
        log.close()
    assert [line["group"] for line in read_metrics(tmp_path / "metrics.jsonl")] == ["test"]
