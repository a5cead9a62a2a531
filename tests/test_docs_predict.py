"""Every command and every line of Python of docs/predict.md runs."""

import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import student_maker
from test_docs import ROOT, blocks

from dss_jax.cli.main import main

PAGE = (ROOT / "docs" / "predict.md").read_text()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a student, and the files that the page names."""
    base = tmp_path_factory.mktemp("docs")
    student_maker.make_student(base / "runs" / "cqa", student_maker.make_store(base / "store"))
    rows = [
        {"input": e.input, "allowed_labels": list(e.allowed_labels)}
        for e in student_maker.examples(5)
    ]
    (base / "new.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (base / "new.csv").write_text("input,note\nWhere?,x\nWhy?,y\n")
    choices = ["sea", "lake", "river", "pond", "well"]
    raw = {"id": "1", "question": "Where?", "choices": choices, "answer": "sea"}
    (base / "cqa_test.jsonl").write_text(f"{json.dumps(raw)}\n")
    return base


def run(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of the shell: `dss` runs here, perhaps with something piped into it."""
    before, pipe, after = line.partition(" | dss ")
    command = after if pipe else line.removeprefix("dss ")
    if not pipe and command == line:
        subprocess.run(["bash", "-c", line], check=True)
        return
    if pipe:
        text = subprocess.run(["bash", "-c", before], check=True, capture_output=True, text=True)
        monkeypatch.setattr(sys, "stdin", io.StringIO(text.stdout))
    assert main(shlex.split(command, comments=True)) == 0, line


def test_each_command_runs(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(here)
    lines = [x for language, text in blocks(PAGE) if language == "bash" for x in text.splitlines()]
    assert len(lines) >= 7
    for line in lines:
        capsys.readouterr()
        run(line, monkeypatch)
        if "--out -" in line:
            (answer,) = map(json.loads, capsys.readouterr().out.splitlines())
            assert answer["label"] in ("office", "school")
    whole, parts = Path("labelled.jsonl").read_text(), Path("all.jsonl").read_text()
    labels = [[json.loads(x)["label"] for x in text.splitlines()] for text in (whole, parts)]
    assert labels[0] == labels[1]
    assert Path("labelled.csv").read_text().startswith("input,note,label,probability,rationale\n")
    (test,) = map(json.loads, Path("labelled_test.jsonl").read_text().splitlines())
    assert test["label"] in test["choices"]


def test_the_python_runs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    first = next(text for language, text in blocks(PAGE) if language == "python")
    assert re.search(r"^import dss_jax$", first, re.M)
    names: dict = {}
    exec(first, names)
    assert names["answers"][0].label in ("office", "school")
    assert names["explained"][0].rationale is not None
