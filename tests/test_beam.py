"""Extraction as an Apache Beam pipeline, on the direct runner, against `protocol_server`."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dss_jax.core.registry import load_task
from dss_jax.core.types import Example
from dss_jax.records.files import merge, read_records
from dss_jax.records.records import Header, Reply
from dss_jax.teacher.asking import ExtractionRun, SendOptions, ServerTeacher
from dss_jax.teacher.client import Client
from dss_jax.teacher.extraction import Extraction, answered
from dss_jax.teacher.journal import Journal
from dss_jax.teacher.replies import Fatal

beam = pytest.importorskip("apache_beam", reason='needs pip install "dss-jax[beam]"')

TASK = """
from dss_jax.core.completions import UP_TO_FINAL_STOP, AnswerForm
from dss_jax.core.prompt import Exemplar, Prompt
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.types import DistillationTask, Jsonl, plain_example
TASK = DistillationTask(
    name="rows", description="rows", licence="none", sources=(Jsonl(files={}),),
    to_example=plain_example, scorer=TEXT_ACCURACY,
    prompt=Prompt(
        instruction="", question="Q: {input}\\n", opening="", stop=("\\nQ:",),
        answer="{rationale} So the answer is {output}.",
        exemplars=(Exemplar(input="a row", rationale="It is.", output="yes"),),
        # Functions of a task file cannot be sent to a worker.
        input_of=lambda example: example.input,
        form=AnswerForm(run_on="Q:", marker="So the answer is", label=UP_TO_FINAL_STOP),
    ),
)
"""
ROWS = [
    Example(id=f"r{i}", input=f"row {i}", label="yes", allowed_labels=("yes", "no"))
    for i in range(200)
]
OPTIONS = SendOptions(concurrency=16, max_attempts=30, first_wait=0.01)


def extraction(folder: str) -> Extraction:
    task, sampling = load_task("rows", [folder]), {"temperature": 0.7, "seed": 1}
    return Extraction(task=task, split="train", model="m", sampling=sampling, samples=2)


class Refused:
    """A client whose key is wrong."""

    async def __call__(self, body: Mapping[str, Any]) -> Reply:
        raise Fatal("401: wrong key")

    async def close(self) -> None:
        """Nothing is open."""


@contextmanager
def server(log: Path, *flags: str) -> Iterator[partial[Client]]:
    """A server in a process of its own; how to make a client of it."""
    script = Path(__file__).parent / "protocol_server.py"
    process = subprocess.Popen(
        [sys.executable, str(script), str(log), *flags],
        stdin=subprocess.PIPE,  # it serves until its end
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield partial(Client, f"http://127.0.0.1:{port}/v1", "NO_KEY", 0.5, 16)
    finally:
        process.kill()
        process.wait()


def pipeline(folder: Path, make_client: Callable[[], Any], prefix: Path) -> None:
    from dss_jax.teacher.beam_pipeline import AskTeacher, WriteRecords

    what, journal = partial(extraction, str(folder)), str(folder / "journal")
    transform = AskTeacher(what, make_client, journal, OPTIONS, batch_size=64)
    header = Header(task="rows", split="train", teacher="m")
    # The runner in this process: the default one may start a Go binary that it downloads.
    with beam.Pipeline(runner="apache_beam.runners.portability.fn_api_runner.FnApiRunner") as p:
        _ = p | beam.Create(ROWS) | transform | WriteRecords(str(prefix), header, shards=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows.py").write_text(TASK)
    return tmp_path


def test_records_are_those_of_one_machine_and_nothing_is_asked_twice(folder: Path) -> None:
    log = folder / "log"
    with server(log, "--faults", "0.3") as make_client:
        pipeline(folder, make_client, folder / "out")
        assert sorted(log.read_text().splitlines()) == sorted(2 * [r.input for r in ROWS])
        pipeline(folder, make_client, folder / "again")
        assert len(log.read_text().splitlines()) == 2 * len(ROWS)
    found = {}
    for name in ("out", "again"):
        assert len(list(folder.glob(f"{name}-0000?-of-00003.jsonl"))) == 3
        merge(sorted(folder.glob(f"{name}-*.jsonl")), folder / f"{name}.jsonl")
        header, read = read_records(folder / f"{name}.jsonl")
        found[name] = sorted(read, key=lambda record: record.id)
    assert header.totals["rows"] == len(ROWS)
    with server(folder / "log2") as make_client, Journal(folder / "alone") as journal:
        what, teacher = extraction(str(folder)), ServerTeacher(make_client(), OPTIONS)
        teacher.ask(what.requests(ROWS), ExtractionRun(journal))
        alone = [record for record, _ in answered(what, ROWS, journal)]
        wanted = sorted(alone, key=lambda record: record.id)
    assert found["out"] == found["again"] == wanted
    assert {r.status for r in wanted} == {"ok", "truncated", "refused"}


def test_a_server_that_refuses_ends_the_pipeline(folder: Path) -> None:
    with pytest.raises(Exception, match="the server does not answer: 401"):
        pipeline(folder, Refused, folder / "out")
    assert not list(folder.glob("out-*"))
