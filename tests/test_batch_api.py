"""The batch API against a real HTTP server with files and batches."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dss_jax.core.errors import UsageError
from dss_jax.teacher.batch import Batches
from dss_jax.teacher.jobs import Job
from dss_jax.teacher.journal import Journal

SECRET = "sk-very-secret-0123456789"


class Provider(ThreadingHTTPServer):
    """Files and batches in memory.

    Attributes:
      looks: polls before a batch has ended.
      ends: the state in which batches end.
      status_of: row text -> HTTP status of its answer.
      answered: row texts, each as often as it was paid for.
      fail_create: the next batch is made, but its answer is lost.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict] = {}
        self.looks, self.ends, self.fail_create = 2, "completed", False
        self.status_of = lambda text: 200
        self.answered: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def work(self, batch: dict) -> None:
        batch["looks"] += 1
        batch["status"] = "in_progress"
        if batch["looks"] < self.looks:
            return
        batch["status"] = self.ends
        if self.ends == "failed":
            batch["errors"] = {"data": [{"message": f"bad line, {SECRET}", "code": "x"}]}
            return
        lines = self.files[batch["input_file_id"]].splitlines()
        good, bad = [], []
        for line in lines if self.ends == "completed" else lines[:2]:
            request = json.loads(line)
            text = request["body"]["messages"][-1]["content"]
            status = self.status_of(text)
            body = {"error": {"message": f"no: {SECRET}"}}
            if status == 200:
                self.answered.append(text)
                message = {"role": "assistant", "content": f"answer to {text}"}
                choice = {"message": message, "finish_reason": "stop"}
                body = {"model": "m", "choices": [choice],
                        "usage": {"prompt_tokens": 5, "completion_tokens": 2}}  # fmt: skip
            response = {"status_code": status, "body": body}
            line = {"custom_id": request["custom_id"], "response": response, "error": None}
            (good if status == 200 else bad).append(json.dumps(line))
        for name, part in (("output", good), ("error", bad)):
            if part:
                self.files[f"{batch['id']}-{name}"] = "\n".join(part).encode()
                batch[f"{name}_file_id"] = f"{batch['id']}-{name}"


class _Handler(BaseHTTPRequestHandler):
    server: Provider
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v1/files":
            name = f"file-{len(self.server.files)}"
            part = next(p for p in body.split(b"--" + self._boundary()) if b"filename=" in p)
            self.server.files[name] = part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
            self._send({"id": name, "object": "file"})
            return
        batch = json.loads(body) | {"id": f"batch-{len(self.server.batches)}", "looks": 0,
                                    "status": "validating", "object": "batch"}  # fmt: skip
        self.server.batches[batch["id"]] = batch
        if self.server.fail_create:
            self.server.fail_create = False
            self.close_connection = True
            return
        self._send(batch)

    def do_GET(self) -> None:
        if match := re.fullmatch(r"/v1/files/(.+)/content", self.path):
            self._send(self.server.files[match.group(1)])
        elif match := re.fullmatch(r"/v1/batches/([\w-]+)", self.path):
            batch = self.server.batches[match.group(1)]
            self.server.work(batch)
            self._send(batch)
        else:
            found = list(self.server.batches.values())
            self._send({"object": "list", "data": found, "has_more": False})

    def _boundary(self) -> bytes:
        return self.headers["content-type"].partition("boundary=")[2].encode()

    def _send(self, answer: dict | bytes) -> None:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def provider() -> Iterator[Provider]:
    server = Provider()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def jobs(count: int = 5) -> list[Job]:
    return [
        Job(f"r{i}", 0, {"model": "m", "messages": [{"role": "user", "content": f"row {i}"}]})
        for i in range(count)
    ]


def batches(journal: Journal, provider: Provider, sleep=lambda _: None, **more) -> Batches:
    return Batches(journal, provider.url, "BATCH_KEY", sleep=sleep, say=lambda _: None, **more)


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    monkeypatch.setenv("BATCH_KEY", SECRET)
    with Journal(tmp_path / "journal") as opened:
        yield opened


def test_answers_come_and_nothing_is_asked_twice(provider: Provider, journal: Journal) -> None:
    summary = batches(journal, provider, max_requests=2).run(jobs())
    assert (summary.answered, summary.failed, summary.prompt_tokens) == (5, 0, 25)
    assert len(provider.batches) == 3, "two requests a batch at most"
    assert [journal.reply(j.key).text for j in jobs()] == [f"answer to row {i}" for i in range(5)]
    assert batches(journal, provider).run(jobs(7)).reused == 5
    assert sorted(provider.answered) == [f"row {i}" for i in range(7)]


def test_a_run_killed_while_it_waits_goes_on(provider: Provider, journal: Journal) -> None:
    def killed(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batches(journal, provider, sleep=killed).run(jobs())
    assert not provider.answered
    assert batches(journal, provider).run(jobs()).answered == 5
    assert len(provider.batches) == 1


def test_a_batch_whose_creation_was_not_confirmed_is_found(
    provider: Provider, journal: Journal
) -> None:
    provider.fail_create = True
    with pytest.raises(UsageError, match="the batch API failed"):
        batches(journal, provider).run(jobs())
    assert batches(journal, provider).run(jobs()).answered == 5
    assert len(provider.batches) == 1
    assert len(provider.answered) == 5


def test_refused_rows_are_kept_as_failed_and_others_are_missing(
    provider: Provider, journal: Journal
) -> None:
    provider.status_of = lambda text: {"row 1": 400, "row 2": 500}.get(text, 200)
    summary = batches(journal, provider).run(jobs())
    assert (summary.answered, summary.failed) == (3, 1)
    assert [row for row, _, _ in journal.failed()] == ["r1"]
    provider.status_of = lambda text: 200
    assert batches(journal, provider).run(jobs()).answered == 2


def test_what_an_expired_batch_has_is_taken(provider: Provider, journal: Journal) -> None:
    provider.ends = "expired"
    assert batches(journal, provider).run(jobs()).answered == 2
    provider.ends = "completed"
    assert batches(journal, provider).run(jobs()).answered == 3
    assert sorted(provider.answered) == [f"row {i}" for i in range(5)]


def test_a_refused_batch_is_told_without_the_key(provider: Provider, journal: Journal) -> None:
    provider.ends = "failed"
    with pytest.raises(UsageError, match="refused batch batch-0: bad line") as caught:
        batches(journal, provider).run(jobs())
    assert SECRET not in str(caught.value)
    provider.ends = "completed"
    provider.status_of = lambda text: 400
    batches(journal, provider).run(jobs())
    journal.flush()
    folder = journal.path.parent
    assert not [f for f in folder.iterdir() if SECRET.encode() in f.read_bytes()]


def test_notes_that_cannot_be_read_are_not_thrown_away(
    provider: Provider, journal: Journal
) -> None:
    notes = journal.path.with_name("journal.batches.json")
    notes.write_text("{")
    with pytest.raises(UsageError, match="lists the batches under way"):
        batches(journal, provider).run(jobs())
    assert notes.read_text() == "{"
