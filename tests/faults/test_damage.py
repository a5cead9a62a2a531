"""Files of ours that a disk or a copy has damaged: one line says which, and what to do."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import test_predict_rows
from results_maker import accuracy_of, write_run
from test_odd_rows import task_of

from dss_jax.core.errors import UsageError
from dss_jax.core.types import Csv
from dss_jax.data.rows import examples
from dss_jax.records.records import Reply
from dss_jax.run import run_folder
from dss_jax.student import load, predict
from dss_jax.sweep.plan import read_grid
from dss_jax.teacher.journal import Journal, Request

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "a bit": lambda content: content[:40] + bytes([content[40] ^ 1]) + content[41:],
    "no UTF-8": lambda content: content[:20] + b"\xee" + content[21:],
}

damaged = pytest.mark.parametrize("damage", DAMAGES)


@damaged
@pytest.mark.parametrize("name", ["out.jsonl.partial", "out.jsonl.partial.json"])
def test_a_table_does_not_go_on_after_rows_that_are_damaged(
    name: str,
    damage: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    student = test_predict_rows.Echo()
    monkeypatch.setattr(load, "load", lambda folder, **options: student)
    monkeypatch.setattr(predict, "CHUNK", 10)
    monkeypatch.chdir(tmp_path)
    test_predict_rows.write_rows("in.jsonl", test_predict_rows.ROWS)
    real = student.predict
    monkeypatch.setattr(
        student, "predict", lambda *a, **o: 1 / 0 if student.asked else real(*a, **o)
    )
    with pytest.raises(ZeroDivisionError):
        test_predict_rows.command("in.jsonl", "out.jsonl")
    monkeypatch.setattr(student, "predict", real)
    file, content = tmp_path / name, (tmp_path / name).read_bytes()
    file.write_bytes(DAMAGES[damage](content))
    assert test_predict_rows.command("in.jsonl", "out.jsonl") == 2
    error = capsys.readouterr().err
    assert error.startswith("dss: error: out.jsonl.partial")
    assert not Path("out.jsonl").exists()
    file.write_bytes(content)
    assert test_predict_rows.command("in.jsonl", "out.jsonl") == 0
    assert len(test_predict_rows.read_rows("out.jsonl")) == len(test_predict_rows.ROWS)


@pytest.mark.parametrize("damage", ["empty", "cut", "zeros", "no UTF-8"])
def test_a_grid_and_results_that_are_damaged_are_named(damage: str, tmp_path: Path) -> None:
    write_run(tmp_path, accuracy_of(50))
    (tmp_path / "sweep.json").write_text('{"format": 1, "cells": [], "gin_files": []}')
    for name, read in (("results.json", run_folder.read_results), ("sweep.json", read_grid)):
        assert read(tmp_path)
        file = tmp_path / name
        file.write_bytes(DAMAGES[damage](file.read_bytes()))
        with pytest.raises(UsageError, match=rf"{name} is damaged: .*[Rr]emove it"):
            read(tmp_path)


def test_a_reply_that_is_damaged_is_named_and_the_others_stay(tmp_path: Path) -> None:
    asked = [Request(str(n), 0, {"prompt": f"row {n}"}) for n in range(3)]
    with Journal(tmp_path / "journal") as journal:
        for request in asked:
            journal.put(request, Reply(text="yes", finish_reason="stop"))
    with sqlite3.connect(tmp_path / "journal") as db:
        db.execute("update replies set reply = '{\"text\": \"ye' where id = '1'")
    with Journal(tmp_path / "journal") as journal:
        assert journal.reply(asked[0].key).text == "yes"
        with pytest.raises(UsageError, match=r"the journal .* cannot be used: .*whole copy"):
            journal.reply(asked[1].key)


def test_a_journal_whose_pages_are_damaged_is_named(tmp_path: Path) -> None:
    asked = [Request(str(n), 0, {"prompt": f"row {n}"}) for n in range(300)]
    with Journal(tmp_path / "journal") as journal:
        for request in asked:
            journal.put(request, Reply(text="yes " * 50, finish_reason="stop"))
    content = (tmp_path / "journal").read_bytes()
    (tmp_path / "journal").write_bytes(content[:12288] + bytes(len(content) - 12288))

    def read() -> None:
        with Journal(tmp_path / "journal") as journal:
            journal.missing(asked)
            [journal.reply(request.key) for request in asked]

    with pytest.raises(UsageError, match=r"the journal .* cannot be used: .*malformed"):
        read()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"input,label\nx\0,y\n", "t.csv, line 2: not UTF-8 text, or a NUL byte"),
        (bytes(100), r"t.csv, line 1: not UTF-8 text\. Is it a CSV file"),
        (b"\x1f\x8b\x08\xff\xfe,x\n", r"t.csv, line 1: not UTF-8 text\. Is it a CSV file"),
        (b"", r"the train split of task 'mine' \(t.csv\) has no rows"),
    ],
)
def test_what_is_no_csv_is_named(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UsageError, match=says):
        examples(task_of(tmp_path, Csv(files={"train": "t.csv"})), "train")
