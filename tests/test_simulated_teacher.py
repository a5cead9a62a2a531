"""The simulated teacher: OpenAI's protocol over real sockets, answers looked up by the question."""

import http.client
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from dss_jax.core import config
from dss_jax.core.completions import parse_completion
from dss_jax.core.registry import load_task, load_task_file
from dss_jax.core.types import SPLITS, DistillationTask, Example
from dss_jax.data.rationales import join_records
from dss_jax.data.rows import examples
from dss_jax.layouts.batches import subset_rows
from dss_jax.records.ids import ids_in
from dss_jax.teacher import demo_records
from dss_jax.teacher.demo_records import simulated_records
from dss_jax.teacher.simulated import MODEL, SimulatedTeacher, last_input, simulated_teacher

TASK_FILE = """
from dss_jax.core.completions import AnswerForm
from dss_jax.core.prompt import Exemplar, Prompt
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.types import DistillationTask, Example, Generated


def rows(split):
    for i in range(20):
        yield {"id": f"{split}-{i}", "input": f"{split} has {i} cups.\\nHow many are they?",
               "label": f"( {i} + 0 )", "teacher_label": f"( {i} + {i % 2} )",
               "rationale": f"There are {i} of them."}


TASK = DistillationTask(
    name="cups", description="d", licence="l", sources=(Generated(rows=rows),),
    to_example=lambda row, _: Example(**row), scorer=TEXT_ACCURACY,
    prompt=Prompt(
        instruction="Answer.",
        exemplars=(Exemplar(input="train has 3 cups.\\nHow many are they?",
                            rationale="Three.", output="( 3 + 0 )"),),
        question="Q: {input}\\n", answer="A: {rationale} The answer is {output}.", opening="A:",
        stop=("Q:",),
        form=AnswerForm(run_on="Q:", marker="The answer is", label=r"(\\(.*\\))"),
    ),
)
"""


UNKNOWN = {"role": "user", "content": "Q: a"}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> DistillationTask:
    file = tmp_path_factory.mktemp("tasks") / "cups.py"
    file.write_text(TASK_FILE)
    return load_task_file(file)


@pytest.fixture(scope="module")
def base_url(task: DistillationTask) -> Iterator[str]:
    with SimulatedTeacher(task) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.base_url
        server.shutdown()


def call(
    base_url: str, path: str, body: Any = None, connection: http.client.HTTPConnection | None = None
) -> tuple[int, Any]:
    own = connection or http.client.HTTPConnection(urlsplit(base_url).netloc, timeout=30)
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    own.request("GET" if body is None else "POST", f"/v1/{path}", content)
    response = own.getresponse()
    found = response.status, json.loads(response.read())
    if connection is None:
        own.close()
    return found


def ask(base_url: str, *messages: tuple[str, str], **other: Any) -> tuple[int, Any]:
    body = {"model": MODEL, "messages": [{"role": r, "content": c} for r, c in messages]}
    return call(base_url, "chat/completions", body | other)


def answers(base_url: str) -> bool:
    try:
        return call(base_url, "models")[0] == 200
    except ConnectionError:
        return False


def question(example: Example) -> str:
    return f"Q: {example.input}\n"


def test_each_row_is_answered_with_its_own_label_and_rationale(
    task: DistillationTask, base_url: str
) -> None:
    assert task.prompt is not None
    for split in ("train", "test"):
        for example in examples(task, split):
            status, said = ask(base_url, ("system", "Answer."), ("user", question(example)))
            assert status == 200
            choice = said["choices"][0]
            answer = parse_completion(choice["message"]["content"], task.prompt.form)
            assert (answer.label, answer.rationale) == (example.teacher_label, example.rationale)
            assert choice["finish_reason"] == "stop"
    assert said["model"] == MODEL
    assert said["usage"] == {"prompt_tokens": 10, "completion_tokens": 13, "total_tokens": 23}


def test_the_last_question_counts_in_turns_and_in_one_text(
    task: DistillationTask, base_url: str
) -> None:
    shot, asked = examples(task, "train")[3], examples(task, "validation")[7]
    turns = [("user", question(shot)), ("assistant", "Three."), ("user", question(asked))]
    one = f"{question(shot)}A: Three.\n\n{question(asked)}A:"
    texts = [ask(base_url, *turns)[1], ask(base_url, ("system", "A."), ("user", one))[1]]
    for said in texts:
        assert said["choices"][0]["message"]["content"] == (
            "There are 7 of them. The answer is ( 7 + 1 )."
        )


@pytest.mark.parametrize("text", ["{input}", "{input}\nAnswer:", "Premise: {input}\n"])
def test_the_last_input_of_other_forms(task: DistillationTask, text: str) -> None:
    assert task.prompt is not None
    prompt = replace(task.prompt, question=text)
    asked = text.replace("{input}", "one\ntwo")
    assert last_input(f"{asked}\nA: ", prompt) == "one\ntwo"


def test_models_are_listed(base_url: str) -> None:
    status, said = call(base_url, "models")
    assert (status, [m["id"] for m in said["data"]]) == (200, [MODEL])


@pytest.mark.parametrize(
    ("status", "path", "body", "reason"),
    [
        (404, "chat/completions", {"model": "gpt", "messages": [UNKNOWN]}, "'gpt' does not exist"),
        (400, "chat/completions", {"model": MODEL, "messages": [UNKNOWN]}, "does not know 'Q: a'"),
        (400, "chat/completions", {"model": MODEL, "messages": []}, "no model or no user's"),
        (400, "chat/completions", [], "no model or no user's"),
        (400, "chat/completions", b"{", "not JSON"),
        (404, "completions", {"model": MODEL, "prompt": "Q: a"}, "unknown path"),
        (404, "files", None, "unknown path"),
    ],
)
def test_what_it_declines(base_url: str, status: int, path: str, body: Any, reason: str) -> None:
    found, said = call(base_url, path, body)
    assert found == status
    assert reason in said["error"]["message"]


def client(base_url: str, row: Example, requests: int) -> float:
    """Seconds that requests take one after another on one connection."""
    connection = http.client.HTTPConnection(urlsplit(base_url).netloc, timeout=30)
    started = time.perf_counter()
    for _ in range(requests):
        body = {"model": MODEL, "messages": [{"role": "user", "content": question(row)}]}
        status, said = call(base_url, "chat/completions", body, connection)
        assert status == 200
        assert row.teacher_label in said["choices"][0]["message"]["content"]
    connection.close()
    return time.perf_counter() - started


def test_many_clients_at_once(task: DistillationTask, base_url: str) -> None:
    rows = examples(task, "train")
    with ThreadPoolExecutor(64) as pool:
        seconds = list(pool.map(lambda n: client(base_url, rows[n % len(rows)], 10), range(64)))
    # A connection that finds the queue full tries again after a second.
    assert sorted(seconds)[32] < 1


def test_an_answer_does_not_wait_for_an_acknowledgement(
    task: DistillationTask, base_url: str
) -> None:
    # Headers and body in two packets would cost 40 ms an answer.
    assert client(base_url, examples(task, "train")[0], 50) < 1


class TestProcess:
    def test_it_serves_and_ends(self, task: DistillationTask) -> None:
        with simulated_teacher(str(task.file)) as base_url:
            asked = examples(task, "test")[2]
            assert ask(base_url, ("user", question(asked)))[0] == 200
            (process,) = multiprocessing.active_children()
        assert process.exitcode == 0
        assert not answers(base_url)

    def test_it_ends_with_a_parent_that_is_killed(self, task: DistillationTask) -> None:
        code = (
            "import sys, time\n"
            "from dss_jax.teacher.simulated import simulated_teacher\n"
            "if __name__ == '__main__':\n"
            "    with simulated_teacher(sys.argv[1]) as url:\n"
            "        print(url, flush=True)\n"
            "        time.sleep(60)\n"
        )
        script = Path(str(task.file)).with_name("_parent.py")
        script.write_text(code)
        parent = subprocess.Popen(
            [sys.executable, str(script), str(task.file)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )
        assert parent.stdout is not None
        with parent, parent.stdout:
            base_url = parent.stdout.readline().strip()
            assert call(base_url, "models")[0] == 200
            parent.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 10
        while answers(base_url):
            assert time.monotonic() < deadline
            time.sleep(0.05)


class TestDemo:
    """The way of the demo over HTTP: client, journal, parser, filter, records."""

    def test_the_records_are_what_the_rows_carry(
        self, task: DistillationTask, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "dss_jax")
        subset = config.Task(name="cups", train_count=5)
        files = simulated_records(task, subset, tmp_path)
        assert caplog.messages[1:] == [
            f"{tmp_path}/train.jsonl: 5 of 5 records are ok",
            f"{tmp_path}/validation.jsonl: 20 of 20 records are ok",
            f"{tmp_path}/test.jsonl: 20 of 20 records are ok",
        ]
        splits = {s: examples(task, s) for s in SPLITS}
        joined, _ = join_records(task, splits, files)
        asked = [e for e in joined["train"] if e.rationale]
        assert [splits["train"].index(e) for e in asked] == list(subset_rows(20, subset))
        for split in ("validation", "test"):
            assert joined[split] == splits[split]

    def test_nothing_is_asked_twice(
        self,
        task: DistillationTask,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO, "dss_jax")
        subset = config.Task(name="cups")
        files = simulated_records(task, subset, tmp_path)
        before = {file: file.read_bytes().split(b"\n", 1)[1] for file in files}

        @contextmanager
        def nobody(task_file: str) -> Iterator[str]:
            yield "http://127.0.0.1:9/v1"

        monkeypatch.setattr(demo_records, "simulated_teacher", nobody)
        files[0].unlink()
        assert simulated_records(task, subset, tmp_path) == files
        assert {file: file.read_bytes().split(b"\n", 1)[1] for file in files} == before
        caplog.clear()
        simulated_records(task, subset, tmp_path)
        assert caplog.messages == []

    def test_records_of_fewer_rows_are_made_more(
        self, task: DistillationTask, tmp_path: Path
    ) -> None:
        """A demo with more data into the folder of one before."""
        for count, there in ((5, 5), (12, 12), (5, 12)):
            files = simulated_records(task, config.Task(name="cups", train_count=count), tmp_path)
            assert len(ids_in(files[0])) == there


def test_the_rows_of_the_demo_come_back_as_they_are() -> None:
    task = load_task("word_problems")
    assert task.prompt is not None
    with SimulatedTeacher(task) as server:
        for split in ("train", "validation", "test"):
            for example in examples(task, split):
                asked = task.prompt.question.replace("{input}", task.prompt.input_of(example))
                said = server.completions[last_input(asked, task.prompt)]
                answer = parse_completion(said, task.prompt.form)
                assert answer.label == example.teacher_label
                assert answer.rationale == example.rationale
