"""docs/serve.md: each of its commands is run, against a student that it names."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_docs import blocks

pytest.importorskip("fastapi", reason='needs pip install -e ".[serve]"')

from student_maker import make_store, make_student, with_card

from dss_jax.cli import demo
from dss_jax.core.sweep_config import Cell

PAGE = Path(__file__).parents[1] / "docs" / "serve.md"
STUDENT = f"runs/demo/{Cell('word_problems', 'dss', demo.MODEL, max(demo.FRACTIONS)).folder}"
TOKEN = "a-long-random-word"

pytestmark = pytest.mark.slow


def commands(language: str) -> list[str]:
    """Each command of the page's blocks of a language."""
    texts = [text for kind, text in blocks(PAGE.read_text()) if kind == language]
    if language != "bash":
        return texts
    return [line for text in texts for line in text.replace("\\\n", " ").splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: the student is there, and `dss` is found."""
    here = tmp_path_factory.mktemp("docs")
    make_student(here / STUDENT, make_store(here / "store"))
    # Made for shorter inputs than `dss extract` sends.
    with_card(here / STUDENT, input_length=512)
    config = here / STUDENT / "config.gin"
    config.write_text(re.sub(r"(Data.input_length = )\d+", r"\g<1>512", config.read_text()))
    command = here / "bin" / "dss"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m dss_jax.cli.main "$@"\n')
    command.chmod(0o755)
    return here


def environment(folder: Path) -> dict[str, str]:
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "XLA_FLAGS": "--xla_backend_optimization_level=0"}


def started(folder: Path, line: str) -> tuple[subprocess.Popen, str]:
    """A `dss serve` of the page, on a port that is free, and its URL."""
    line = re.sub(r" --port \d+", "", line.partition("  #")[0]) + " --port 0"
    process = subprocess.Popen(
        ["sh", "-c", f"exec env {line}"],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    url = ""
    for said in process.stdout:
        if " at http" in said:
            url = said.partition(" at ")[2].split("/ ")[0]
        if said.startswith("ready"):
            return process, url
    raise AssertionError(f"{line} has ended with {process.wait()}")


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    (line,) = [one for one in commands("bash") if one.startswith("dss serve")]
    process, url = started(folder, line)
    yield url
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "requests taken" in said


def here(text: str, url: str) -> str:
    assert "http://127.0.0.1:8000" in text
    return text.replace("http://127.0.0.1:8000", url)


@pytest.mark.parametrize("line", [one for one in commands("bash") if one.startswith("curl")])
def test_curl(line: str, url: str, folder: Path) -> None:
    if not shutil.which("curl"):
        pytest.skip("needs curl")
    done = subprocess.run(
        ["sh", "-c", f"{here(line, url)} -f"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done
    if "/v1/predict" in line:
        body = json.loads(shlex.split(line)[-1])
        predictions = json.loads(done.stdout)["predictions"]
        assert len(predictions) == (len(body["input"]) if "labels" in body else 1)
        assert (predictions[0]["rationale"] is not None) == body.get("explain", False)
        if "labels" in body:
            pairs = zip(predictions, body["labels"], strict=True)
            assert all(one["label"] in own for one, own in pairs)


def test_the_openai_client(url: str, capsys: pytest.CaptureFixture) -> None:
    (text,) = commands("python")
    exec(compile(here(text, url), "docs/serve.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_dss_extract_asks_a_student(url: str, folder: Path) -> None:
    (line,) = [one for one in commands("bash") if one.startswith("dss extract")]
    done = subprocess.run(
        ["sh", "-c", here(line, url)],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=300,
    )
    # Its weights are random, so it answers every request, and none of it is an answer.
    assert done.returncode in (0, 1), done.stderr
    records = [json.loads(one) for one in (folder / "answers.jsonl").read_text().splitlines()[1:]]
    assert len(records) == 5
    assert "error" not in {one["status"] for one in records}


def test_a_server_with_a_token(folder: Path) -> None:
    (line,) = [one for one in commands("bash") if one.startswith("DSS_SERVE_TOKEN")]
    process, url = started(folder, line)
    try:
        url = url.replace("0.0.0.0", "127.0.0.1")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{url}/v1/model", timeout=20)
        assert refused.value.code == 401
        headers = {"Authorization": f"Bearer {TOKEN}"}
        request = urllib.request.Request(f"{url}/v1/model", headers=headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert json.load(answer)["task"] == "choices"
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert time.monotonic() - start < 20
        assert TOKEN not in said
    finally:
        process.kill()


def test_every_command_of_the_page_is_run_here() -> None:
    known = ("pip install", "dss serve", "curl ", "dss extract", "DSS_SERVE_TOKEN=")
    assert all(one.startswith(known) for one in commands("bash"))
    assert {kind for kind, _ in blocks(PAGE.read_text())} == {"bash", "python", "json"}
