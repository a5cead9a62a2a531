"""Ctrl-C and SIGTERM in all phases of a command: how soon it ends, and with which status."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import toy

from dss_jax.cli import ending, tasks
from dss_jax.cli.main import main
from dss_jax.core import processes, signals
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.evaluate.evaluator import Evaluator
from dss_jax.run import run_folder, single
from dss_jax.train import loop
from dss_jax.train.compile import Compiled

PROGRAM = """
import hashlib, sys, threading, time
from pathlib import Path
from dss_jax.cli import main, tasks

def compile():
    # In C, as XLA's compiler: no handler of Python's is called before it returns.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000_000)

def work(args):
    try:
        print("working", flush=True)
        if "{where}" == "here":
            compile()
        if "{where}" == "thread":
            threading.Thread(target=compile).start()
        time.sleep(60)
    finally:
        Path("cleaned").touch()

tasks.main = work
sys.argv = ["dss", "tasks"]
sys.exit(main.main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["sleep", "thread", "here"])
def test_a_command_ends_within_a_second_also_while_it_compiles(
    where: str, number: int, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", PROGRAM.format(where=where)]
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, env=path, stdout=pipe, stderr=pipe) as process:
        assert process.stdout.readline() == b"working\n"
        time.sleep(0.1)
        began = time.monotonic()
        process.send_signal(number)
        said = process.communicate(timeout=30)[1]
        assert time.monotonic() - began < 1.0
    assert process.returncode == 128 + number
    assert said.startswith(b"dss: stopped")
    assert b"Traceback" not in said
    # What is in a library cannot clean up; `write_whole` and the like leave nothing half written.
    assert (tmp_path / "cleaned").exists() == (where != "here")


@pytest.mark.parametrize(
    ("told", "count", "left"), [([], 2, []), ([], 1, [130]), ([signal.SIGINT], 2, [130])]
)
def test_who_has_saved_ends_as_others_do(
    told: list[int], count: int, left: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several processes, JAX's end would not be waited for, and abort the others; one alone
    waits for no compiler."""
    found: list[int] = []

    def work(args: object) -> int:
        signals.told.extend(told)
        return signals.INTERRUPTED

    monkeypatch.setattr(ending, "leave", found.append)
    monkeypatch.setattr(processes, "count", lambda: count)
    monkeypatch.setattr(tasks, "main", work)
    monkeypatch.setattr(sys, "argv", ["dss", "tasks"])
    assert main() == 130
    assert found == left


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_library_may_make_another_error_of_a_signal(
    number: int, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """JAX does where it compares trees: ValueError, and a traceback with status 1."""

    def work(args: object) -> None:
        try:
            signals.end(number)
        except BaseException as error:
            raise ValueError("Exception raised while checking equality") from error

    monkeypatch.setattr(tasks, "main", work)
    assert main(["tasks"]) == status
    assert capsys.readouterr().err.startswith("dss: stopped")
    monkeypatch.setattr(tasks, "main", lambda args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["tasks"])


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, signals.INTERRUPTED), (signal.SIGTERM, signals.SAVED)]
)
def test_a_saved_run_says_by_its_status_whether_to_start_again(number: int, status: int) -> None:
    with loop.stop_on_signals() as stop:
        os.kill(os.getpid(), number)
        assert stop.after(3)
    assert loop.Interrupted(3, stop.number).status == status


def test_nobody_waits_for_the_compiler(
    tmp_path: Path, toy_store, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiling, go_on, told = threading.Event(), threading.Event(), list[float]()

    def slow(self: Compiled, batch: object) -> object:
        compiling.set()
        go_on.wait(20)
        raise RuntimeError("stopped")

    def stop() -> None:
        compiling.wait()
        time.sleep(1.0)
        told.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Compiled, "_compile", slow)
    thread = threading.Thread(target=stop)
    thread.start()
    try:
        with toy.linear_programs(), pytest.raises(KeyboardInterrupt):
            single.train(_run(tmp_path), toy_store, TEXT_ACCURACY)
        assert time.monotonic() - told[0] < 5.0
    finally:
        go_on.set()
        thread.join()


def test_who_has_saved_does_not_wait_for_the_compiler_of_the_evaluation(
    tmp_path: Path, toy_store, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, compiling = threading.Event(), list[Future]()

    def ahead(self: object, split: str, limit: int | None, pool: ThreadPoolExecutor) -> None:
        compiling.append(pool.submit(go_on.wait, 60))

    monkeypatch.setattr(Evaluator, "compile_ahead", ahead)
    toy.interrupt_before(monkeypatch, 1)
    try:
        with toy.linear_programs(), pytest.raises(loop.Interrupted):
            single.train(_run(tmp_path), toy_store, TEXT_ACCURACY)
        assert compiling[0].running()
    finally:
        go_on.set()


@pytest.mark.parametrize("when", ["steps", "scoring"])
def test_a_signal_at_the_end_is_heard(
    when: str, tmp_path: Path, toy_store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the last steps: saved, and not scored. In the final scoring: at once."""
    run = _run(tmp_path)

    def tell(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        raise AssertionError("scored")

    if when == "steps":
        toy.interrupt_before(monkeypatch, run.train.steps - 1)
    monkeypatch.setattr(single, "finish", tell)
    expected = loop.Interrupted if when == "steps" else KeyboardInterrupt
    with toy.linear_programs():
        with pytest.raises(expected):
            single.train(run, toy_store, TEXT_ACCURACY)
        monkeypatch.undo()
        results = single.train(run, toy_store, TEXT_ACCURACY)
    assert results == run_folder.read_results(tmp_path)


def _run(folder: Path):
    train = toy.config.Train(steps=4, log_every=1, output_dir=str(folder))
    return toy.make_run(train=train, evaluate=toy.config.Evaluate(every=2, max_decode_length=5))
