"""A full disk, a folder that is read-only, moved away or removed: what was whole stays, one line
says what is the matter, and the same command goes on.
"""

import dataclasses
import errno
import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import t5_weights
import test_predict_rows
import toy
from test_record_files import HEADER, record

from dss_jax.cli import tasks
from dss_jax.cli.main import main
from dss_jax.core import config
from dss_jax.core.disk import trouble
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import write_whole
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.interop.hf import write_hf
from dss_jax.records.files import write_records
from dss_jax.records.records import Reply
from dss_jax.run import rescore, run_folder, single
from dss_jax.run.session import open_session
from dss_jax.student import load, predict
from dss_jax.sweep.plan import Job, Times, write_grid
from dss_jax.sweep.runner import Runner
from dss_jax.teacher.journal import Journal, Request
from dss_jax.train.compile import Compiled
from dss_jax.train.step import TrainState

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_bad: list[tuple[Path, int]] = []


def _watch(event: str, given: tuple) -> None:
    """An audit hook: Python asks it before it touches a file; it cannot be taken out again."""
    if not _bad or event not in ("open", "os.mkdir", "os.rename"):
        return
    name = given[1] if event == "os.rename" else given[0]
    if event == "open" and not (isinstance(given[2], int) and given[2] & WRITES):
        return
    for folder, code in _bad:
        if isinstance(name, str | bytes | os.PathLike):
            path = Path(os.path.abspath(os.fsdecode(name)))
            # What is not whole yet is called NAME.RANDOM.new.
            whole = path.with_suffix("").with_suffix("") if path.suffix == ".new" else path
            below = path.is_relative_to(folder) or whole == folder
            if below and not (event == "os.mkdir" and path.exists()):
                raise OSError(code, os.strerror(code), os.fsdecode(name))


sys.addaudithook(_watch)


@contextmanager
def bad(folder: Path, code: int) -> Iterator[None]:
    """Within it nothing below the folder, nor the file of that name, can be written by Python:
    `code` is the system's error.
    """
    _bad.append((folder.absolute(), code))
    try:
        yield
    finally:
        _bad.clear()


def _content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def _run(folder: Path) -> config.Run:
    run = toy.make_run()
    train = dataclasses.replace(run.train, steps=6, output_dir=str(folder))
    return dataclasses.replace(run, train=train, evaluate=config.Evaluate(every=2))


@contextmanager
def room(size: int) -> Iterator[None]:
    """Within it no file grows beyond so many bytes, whoever writes it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _store(folder: Path) -> None:
    toy.make_store(folder / "store", np.random.default_rng(0))


def _records(folder: Path) -> None:
    write_records(folder / "r.jsonl", HEADER, [record(f"row-{i}") for i in range(50)])


def _text(folder: Path) -> None:
    write_whole(folder / "text", "x" * 5000)


def _export(folder: Path) -> None:
    write_hf(t5_weights.random_weights(t5_weights.BASE), folder / "hf")


@pytest.mark.parametrize("write", [_store, _records, _text, _export])
def test_a_full_disk_leaves_nothing_half_written(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    with room(1000), pytest.raises(UsageError) as error:
        write(out)
    assert re.search(
        rf"{out}/\S+ could not be written: (File too large|No space left on device)\. "
        r"There: [\d,.]+ MB free.*give the same command again",
        str(error.value),
    )
    assert not _content(out)
    assert list(out.iterdir()) == [], "nor is a folder left"
    write(out)
    write(whole)
    assert _content(out).keys() == _content(whole).keys()


@pytest.mark.parametrize("write", [_records, _text])
def test_a_full_disk_leaves_what_was_there(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    before = _content(tmp_path)
    with room(1000), pytest.raises(UsageError, match="What was whole is as it was"):
        write(tmp_path)
    assert _content(tmp_path) == before


def _run_folder(folder: Path) -> None:
    with run_folder.locked(folder / "run"):
        pass


def _journal(folder: Path) -> None:
    with Journal(folder / "journal"):
        pass


def _sweep(folder: Path) -> None:
    Runner(folder, [{}], lambda text: None)._spawn(Job((), "task", ("--x",)), 0)


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EROFS])
@pytest.mark.parametrize("write", [_store, _records, _text, _export, _run_folder, _journal, _sweep])
def test_a_folder_that_cannot_be_made(
    write: Callable[[Path], None], code: int, tmp_path: Path
) -> None:
    """ENOENT: below /proc."""
    with bad(tmp_path / "out", code), pytest.raises((OSError, UsageError)) as error:
        write(tmp_path / "out")
    said = trouble(error.value, None) or str(error.value)
    assert re.search(rf"{tmp_path}/out.* (made|written|used): .*{os.strerror(code)}", said, re.I)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, toy_store) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    with toy.linear_programs():
        single.train(_run(folder), toy_store, TEXT_ACCURACY)
    return folder


@pytest.mark.usefixtures("linear_programs")
class TestRuns:
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
    def test_a_disk_that_is_full_at_the_start_makes_no_folder_unusable(
        self, code: int, tmp_path: Path, finished: Path, toy_store
    ) -> None:
        run = _run(tmp_path / "run")
        with (
            bad(tmp_path / "run" / "config.gin", code),
            pytest.raises(UsageError, match=os.strerror(code)),
        ):
            single.train(run, toy_store, TEXT_ACCURACY)
        # What a kill at this moment leaves.
        (tmp_path / "run" / "config.gin.123.new").write_text("Train.st")
        results = single.train(run, toy_store, TEXT_ACCURACY)
        assert results == run_folder.read_results(finished)

    @pytest.mark.parametrize("how", ["moved", "removed", "emptied"])
    @pytest.mark.parametrize("at", [3, 5, "scoring"])
    def test_a_folder_that_is_taken_away_is_not_made_again(
        self, how: str, at: object, tmp_path: Path, finished: Path, toy_store, monkeypatch
    ) -> None:
        folder, away = tmp_path / "run", tmp_path / "away"
        run = _run(folder)

        def take_away() -> None:
            taken.append(at)
            # What is being written would be made again, by libraries.
            while any("tmp" in f.name for f in (folder / "checkpoints").iterdir()):
                time.sleep(0.01)
            if how == "moved":
                folder.rename(away)
            else:
                while folder.exists():  # Old checkpoints are deleted at the same time.
                    shutil.rmtree(folder, ignore_errors=True)
            if how == "emptied":
                folder.mkdir()

        step, finish = Compiled.__call__, single.finish

        def call(self: Compiled, state: object, batch: object) -> object:
            if not taken and isinstance(state, TrainState) and int(state.step) == at:
                take_away()
            return step(self, state, batch)

        def scored(*args: object) -> object:
            take_away()
            return finish(*args)

        taken: list[object] = []
        with monkeypatch.context() as patch:
            patch.setattr(Compiled, "__call__", call)
            if at == "scoring":
                patch.setattr(single, "finish", scored)
            with pytest.raises(UsageError, match=r"is gone: .* Move it back"):
                single.train(run, toy_store, TEXT_ACCURACY)
        assert not folder.exists() if how != "emptied" else not any(folder.iterdir())
        if how == "moved":
            away.rename(folder)
            assert single.train(run, toy_store, TEXT_ACCURACY) == run_folder.read_results(finished)

    def test_results_are_shown_from_a_folder_that_is_read_only(
        self, finished: Path, toy_store
    ) -> None:
        before = _content(finished)
        with bad(finished, errno.EROFS):
            results = single.train(_run(finished), toy_store, TEXT_ACCURACY)
        assert results == run_folder.read_results(finished)
        assert _content(finished) == before

    def test_predictions_that_cannot_be_kept_are_not_made(self, finished: Path, toy_store) -> None:
        session = open_session(_run(finished), finished, toy_store, TEXT_ACCURACY)
        before = _content(finished)
        with (
            bad(finished / "predictions", errno.EROFS),
            pytest.raises(UsageError, match=r"predictions could not be written: Read-only"),
        ):
            rescore.score(session, ["test"])
        assert _content(finished) == before

    def test_a_report_says_where_it_cannot_be_written(
        self, finished: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with bad(finished.parent, errno.EROFS):
            assert main(["report", str(finished)]) == 2
        error = capsys.readouterr().err
        assert "could not be written: Read-only file system" in error


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_a_table_that_is_half_answered_goes_on(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    student = test_predict_rows.Echo()
    monkeypatch.setattr(load, "load", lambda folder, **options: student)
    monkeypatch.setattr(predict, "CHUNK", 10)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(97, 123, 50 if n < 20 else 900))) for n in range(40)]
    test_predict_rows.write_rows("in.jsonl", [{"id": n, "input": t} for n, t in enumerate(texts)])
    assert test_predict_rows.command("in.jsonl", f"whole.{form}") == 0
    with room(6000):
        assert test_predict_rows.command("in.jsonl", f"out.{form}") in (1, 2)
    error = capsys.readouterr().err
    assert re.search(r"could not be written: (File too large|No space).*same command", error)
    assert "Traceback" not in error
    asked = len(student.asked)
    assert test_predict_rows.command("in.jsonl", f"out.{form}") == 0
    assert len(student.asked) == asked + 2, "what was answered before is not asked again"
    assert Path(f"out.{form}").read_bytes() == Path(f"whole.{form}").read_bytes()
    assert not [*tmp_path.glob("*.partial*")]


def test_replies_that_find_no_room_are_asked_again_and_no_others(tmp_path: Path) -> None:
    asked = [Request(str(n), 0, {"model": "m", "prompt": f"row {n}"}) for n in range(300)]
    reply = Reply(text="because " * 100, finish_reason="stop")
    clock = iter(range(10**6))  # So that each reply is brought to the disk.
    with Journal(tmp_path / "journal", clock=lambda: next(clock)):
        pass

    def put() -> None:
        with Journal(tmp_path / "journal", clock=lambda: next(clock)) as journal, room(100_000):
            for request in asked:
                journal.put(request, reply)

    with pytest.raises(UsageError, match=r"the journal .* cannot be used: .* Make room"):
        put()
    with Journal(tmp_path / "journal") as journal:
        left = journal.missing(asked)
        assert 0 < len(left) < len(asked), "what was flushed is there"
        assert left == asked[-len(left) :]
        assert journal.claim(left) == left
        for request in left:
            journal.put(request, reply)
        journal.flush()
        assert not journal.missing(asked)
        assert journal.reply(asked[0].key) == reply


@pytest.mark.parametrize("what", ["sweep.json", "sweep_times.jsonl", "task"])
def test_a_sweep_that_finds_no_room_says_so(what: str, tmp_path: Path) -> None:
    job = Job((), "task", ("--x",))

    def work() -> None:
        if what == "sweep.json":
            write_grid(tmp_path, [], [], [])
        elif what == "task":
            Runner(tmp_path, [{}], lambda text: None)._spawn(job, 0)
        else:
            Times(tmp_path).add(job, "done", 1.0, 1e12)

    with bad(tmp_path, errno.ENOSPC), pytest.raises((OSError, UsageError)) as error:
        work()
    assert trouble(error.value, None) or "could not be written" in str(error.value)
    assert not _content(tmp_path)


def test_what_the_command_line_says_of_a_full_disk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no writer has said more: a line, and no traceback."""

    def full(args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tasks, "main", full)
    assert main(["tasks"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("dss: error: a file could not be written: No space left on device.")
    assert error.count("\n") == 1
