"""One process at a time writes into a run's folder; its lock ends with it, however that ends."""

import errno
import fcntl
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dss_jax.cli.main import main
from dss_jax.core import config, locks
from dss_jax.data import prepare_child
from dss_jax.run import other_engine, run_folder, seeds, single, teacher_run

HOLDER = """
import sys, time
from pathlib import Path
from dss_jax.core import locks
with locks.held(Path(sys.argv[1]), "no"):
    print("has it", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Callable[[Path], subprocess.Popen]]:
    """Starts a process that holds a lock."""
    begun: list[subprocess.Popen] = []

    def start(file: Path) -> subprocess.Popen:
        words = [sys.executable, "-c", HOLDER, str(file)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        begun.append(process)
        assert process.stdout
        assert process.stdout.readline() == "has it\n"
        return process

    yield start
    for process in begun:
        process.kill()
        process.wait()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.1)


def test_the_second_process_is_told_who_has_it_until_that_is_gone(
    tmp_path: Path, holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    file = tmp_path / "new" / "run.lock"
    assert locks.owner_of(file) is None
    process = holder(file)
    owner = locks.owner_of(file)
    assert owner is not None
    assert (owner["pid"], owner["devices"]) == (process.pid, "7")
    with (
        pytest.raises(locks.Taken, match=rf"in use: process {process.pid} on \S+ \(since 20"),
        locks.held(file, "in use: {owner}"),
    ):
        pass
    assert json.loads(file.read_text()) == owner, "who has failed has changed nothing"
    process.kill()
    process.wait()
    assert locks.owner_of(file) is None
    with locks.held(file, "in use"):
        assert (locks.owner_of(file) or {})["pid"] == os.getpid()
    assert not list(file.parent.iterdir())


def test_whoever_waits_has_it_next(tmp_path: Path, holder, caplog) -> None:
    caplog.set_level(logging.INFO, "dss_jax")
    process = holder(tmp_path / "x.lock")
    killed = []

    def kill() -> None:
        killed.append(process.pid)
        process.kill()

    threading.Timer(0.5, kill).start()
    with locks.held(tmp_path / "x.lock", "{owner} is at work; waiting", wait=True):
        assert killed
    assert f"process {process.pid} on" in caplog.text
    assert "is at work; waiting" in caplog.text


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK])
def test_where_the_file_system_has_no_locks_it_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog, code: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locks.held(tmp_path / "x.lock", "no"):
        assert "no lock on" in caplog.text
        assert locks.owner_of(tmp_path / "x.lock") is None


def test_a_bucket_has_no_locks() -> None:
    with locks.held("gs://nowhere/run.lock", "no"):  # type: ignore[arg-type]
        pass


def runs_in(tmp_path: Path) -> list[config.Run]:
    return [
        config.Run(train=config.Train(seed=s, output_dir=str(tmp_path / f"seed_{s}")))
        for s in (0, 1)
    ]


def test_everything_that_trains_has_the_lock_of_its_folder(tmp_path: Path, holder) -> None:
    runs = runs_in(tmp_path)
    process = holder(tmp_path / "seed_0" / run_folder.LOCK)
    ways: list[Callable[[], object]] = [
        lambda: single.train(runs[0], None, None),  # type: ignore[arg-type]
        lambda: teacher_run.score(runs[0], None, None),  # type: ignore[arg-type]
        lambda: seeds.train(runs, None, None),  # type: ignore[arg-type]
    ]
    for way in ways:
        with pytest.raises(locks.Taken, match=rf"seed_0 is in use: process {process.pid} on"):
            way()


def test_the_lock_is_there_while_it_trains_and_then_gone(tmp_path: Path) -> None:
    seen = []

    @run_folder.alone
    def train(run: config.Run) -> None:
        seen.append(locks.owner_of(tmp_path / "seed_1" / run_folder.LOCK))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(runs_in(tmp_path)[1])
    assert seen[0] is not None
    assert not list((tmp_path / "seed_1").iterdir())


def test_t5x_says_it_as_our_own_loop_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_child, "run", lambda *_, **__: {"taken": "in use"})
    run = runs_in(tmp_path)[0]

    class Store:
        path = tmp_path

    with pytest.raises(locks.Taken, match="in use"):
        other_engine.train(run, Store, (), {})  # type: ignore[arg-type]
    text = Path(run_folder.__file__).with_name("t5x_engine.py").read_text()
    assert "@run_folder.alone\ndef train(" in text


def test_a_run_that_is_scored_has_the_lock_too(tmp_path: Path, holder, capsys) -> None:
    run = runs_in(tmp_path)[0]
    folder = run_folder.open_run_folder(run, "key")
    process = holder(folder / run_folder.LOCK)
    assert main(["eval", "--output_dir", str(folder)]) == locks.Taken.status == 75
    assert f"is in use: process {process.pid} on" in capsys.readouterr().err


def test_a_folder_with_a_lock_only_is_a_new_one(tmp_path: Path) -> None:
    run = runs_in(tmp_path)[0]
    with run_folder.locked(tmp_path / "seed_0"):
        run_folder.open_run_folder(run, "key")
    began = time.monotonic()
    with run_folder.locked(tmp_path / "seed_0"):
        assert time.monotonic() - began < 5
