"""The batch API against a real HTTP server with files and batches."""

import json
import logging
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dss_jax.core.errors import UsageError
from dss_jax.teacher import batch as batch_api
from dss_jax.teacher.asking import ExtractionProgress, ExtractionRun
from dss_jax.teacher.batch import BatchTeacher
from dss_jax.teacher.journal import Journal, Request

SECRET = "sk-very-secret-0123456789"
DAILY = "Rate limit reached on batch requests per day (RPD). Please try again in 7h12m0s."


class Provider(ThreadingHTTPServer):
    """Files and batches in memory.

    Attributes:
      looks: polls before a batch has ended.
      ends: the state in which batches end.
      status_of: row text -> HTTP status of its answer.
      answered: row texts, each as often as it was paid for.
      fail_create: the next batch is made, but its answer is lost.
      away: looks at batches that are answered with 503 before one is answered well.
      spoilt: what stands in the place of the last line of an output file; KEY becomes its id.
      gone: batches that the provider has no more.
      change: changes a line of the answers.
      failure: the reason of failed batches.
      quota: batches before a day's quota is used up; looks and downloads go on.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict] = {}
        self.looks, self.ends, self.fail_create = 2, "completed", False
        self.status_of = lambda text: 200
        self.answered: list[str] = []
        self.away, self.spoilt = 0, b""
        self.gone: set[str] = set()
        self.change: Callable[[dict], object] = lambda line: None
        self.quota, self.failure = 1_000, f"bad line, {SECRET}"

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
            batch["errors"] = {"data": [{"message": self.failure, "code": "x"}]}
            return
        lines = self.files[batch["input_file_id"]].splitlines()
        good, bad = [], []
        ids = [json.loads(line)["custom_id"] for line in lines]
        if len(set(ids)) < len(ids):
            batch["status"] = "failed"
            batch["errors"] = {"data": [{"message": "a custom_id is there twice", "code": "x"}]}
            return
        for line in lines if self.ends == "completed" else lines[:2]:
            request = json.loads(line)
            text = request["body"]["messages"][-1]["content"]
            status = self.status_of(text)
            body = {"error": {"message": f"no: {SECRET}"}}
            if status == 200:
                self.answered.append(text)
                message = {"role": "assistant", "content": f"answer to {text}"}
                choice = {"message": message, "finish_reason": "stop"}
                body = {
                    "model": "m",
                    "choices": [choice],
                    "usage": {"prompt_tokens": 5, "completion_tokens": 2},
                }
            response = {"status_code": status, "body": body}
            line = {"custom_id": request["custom_id"], "response": response, "error": None}
            self.change(line)
            (good if status == 200 else bad).append(json.dumps(line))
        for name, part in (("output", good), ("error", bad)):
            if part:
                if self.spoilt and name == "output":
                    part[-1] = self.spoilt.decode()
                self.files[f"{batch['id']}-{name}"] = "\n".join(part).encode()
                batch[f"{name}_file_id"] = f"{batch['id']}-{name}"


class _Handler(BaseHTTPRequestHandler):
    server: Provider
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if len(self.server.batches) >= self.server.quota:
            self._send({"error": {"message": DAILY, "code": "rate_limit_exceeded"}}, 429)
            return
        if self.path == "/v1/files":
            name = f"file-{len(self.server.files)}"
            part = next(p for p in body.split(b"--" + self._boundary()) if b"filename=" in p)
            self.server.files[name] = part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
            self._send({"id": name, "object": "file"})
            return
        batch = json.loads(body) | {
            "id": f"batch-{len(self.server.batches)}",
            "looks": 0,
            "status": "validating",
            "object": "batch",
        }
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
            if self.server.away:
                self.server.away -= 1
                self.send_error(503)
                return
            if match.group(1) in self.server.gone:
                self.send_error(404)
                return
            batch = self.server.batches[match.group(1)]
            self.server.work(batch)
            self._send(batch)
        else:
            found = list(self.server.batches.values())
            self._send({"object": "list", "data": found, "has_more": False})

    def _boundary(self) -> bytes:
        return self.headers["content-type"].partition("boundary=")[2].encode()

    def _send(self, answer: dict | bytes, status: int = 200) -> None:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
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


def requests(count: int = 5) -> list[Request]:
    return [
        Request(f"r{i}", 0, {"model": "m", "messages": [{"role": "user", "content": f"row {i}"}]})
        for i in range(count)
    ]


def asked(
    provider: Provider,
    journal: Journal,
    which: list[Request] | None = None,
    *,
    only_failed: bool = False,
    sleep: Callable[[float], None] = lambda _: None,
    **more: int,
) -> ExtractionProgress:
    teacher = BatchTeacher(provider.url, "BATCH_KEY", sleep=sleep, **more)
    run = ExtractionRun(journal, only_failed=only_failed)
    return teacher.ask(requests() if which is None else which, run)


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    monkeypatch.setenv("BATCH_KEY", SECRET)
    with Journal(tmp_path / "journal") as opened:
        yield opened


def test_answers_come_and_nothing_is_asked_twice(
    provider: Provider, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dss_jax")
    summary = asked(provider, journal, max_requests=2)
    handed_in = [f"batch batch-{i}: {n} requests handed in" for i, n in enumerate((2, 2, 1))]
    ended = [f"batch batch-{i}: completed" for i in range(3)]
    assert caplog.messages == [*handed_in, *ended]
    assert (summary.answered, summary.failed, summary.prompt_tokens) == (5, 0, 25)
    assert len(provider.batches) == 3, "two requests a batch at most"
    assert [journal.reply(r.key).text for r in requests()] == [
        f"answer to row {i}" for i in range(5)
    ]
    assert asked(provider, journal, requests(7)).reused == 5
    assert sorted(provider.answered) == [f"row {i}" for i in range(7)]


def test_a_server_that_is_not_there_is_known_soon(journal: Journal) -> None:
    """As soon as where requests are sent one by one: the client by itself tries for long."""
    began = time.monotonic()
    with pytest.raises(UsageError, match="the batch API failed: APIConnectionError"):
        BatchTeacher("http://127.0.0.1:9/v1", "BATCH_KEY").ask(requests(), ExtractionRun(journal))
    assert time.monotonic() - began < batch_api.UNREACHED + 3.0


def test_a_run_killed_while_it_waits_goes_on(provider: Provider, journal: Journal) -> None:
    def killed(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asked(provider, journal, sleep=killed)
    assert not provider.answered
    # The form of the notes: those of an earlier version must be found again.
    (noted,) = json.loads(journal.path.with_name("journal.batches.json").read_text())["batches"]
    assert noted["requests"] == [[r.key, r.id, r.sample] for r in requests()]
    assert (noted["id"], len(noted["tag"])) == ("batch-0", 32)
    assert asked(provider, journal).answered == 5
    assert len(provider.batches) == 1


def test_a_batch_whose_creation_was_not_confirmed_is_found(
    provider: Provider, journal: Journal
) -> None:
    provider.fail_create = True
    with pytest.raises(UsageError, match="the batch API failed"):
        asked(provider, journal)
    assert asked(provider, journal).answered == 5
    assert len(provider.batches) == 1
    assert len(provider.answered) == 5


def test_refused_rows_are_kept_as_failed_and_others_are_missing(
    provider: Provider, journal: Journal
) -> None:
    provider.status_of = lambda text: {"row 1": 400, "row 2": 500}.get(text, 200)
    summary = asked(provider, journal)
    assert (summary.answered, summary.failed) == (3, 1)
    replies = {request.id: journal.reply(request.key) for request in requests()}
    assert [row for row, reply in replies.items() if reply and reply.failed] == ["r1"]
    provider.status_of = lambda text: 200
    assert asked(provider, journal).answered == 2


def test_what_an_expired_batch_has_is_taken(provider: Provider, journal: Journal) -> None:
    provider.ends = "expired"
    assert asked(provider, journal).answered == 2
    provider.ends = "completed"
    assert asked(provider, journal).answered == 3
    assert sorted(provider.answered) == [f"row {i}" for i in range(5)]


def test_a_refused_batch_is_told_without_the_key(provider: Provider, journal: Journal) -> None:
    provider.ends = "failed"
    with pytest.raises(UsageError, match="refused batch batch-0: bad line") as caught:
        asked(provider, journal)
    assert SECRET not in str(caught.value)
    provider.ends = "completed"
    provider.status_of = lambda text: 400
    asked(provider, journal)
    journal.flush()
    folder = journal.path.parent
    assert not [f for f in folder.iterdir() if SECRET.encode() in f.read_bytes()]


def test_notes_that_cannot_be_read_are_not_thrown_away(
    provider: Provider, journal: Journal
) -> None:
    notes = journal.path.with_name("journal.batches.json")
    notes.write_text("{")
    with pytest.raises(UsageError, match="lists the batches under way"):
        asked(provider, journal)
    assert notes.read_text() == "{"


def test_rows_with_one_text_are_one_request(provider: Provider, journal: Journal) -> None:
    twins = [*requests(3), Request("twin", 0, requests(1)[0].body)]
    assert asked(provider, journal, twins).answered == 3
    assert len(provider.answered) == 3


def test_a_provider_that_is_away_for_a_while_is_waited_for(
    provider: Provider, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_api, "RETRIES", 0)
    provider.away = 3
    assert asked(provider, journal).answered == 5
    provider.away = 100
    with pytest.raises(UsageError, match="the same command fetches them"):
        asked(provider, journal, requests(6))
    provider.away = 0
    assert asked(provider, journal, requests(6)).answered == 1
    assert len(provider.batches) == 2


def test_a_second_process_is_refused(provider: Provider, journal: Journal) -> None:
    said: list[str] = []

    def second(_: float) -> None:
        with pytest.raises(UsageError, match="another process waits") as caught:
            asked(provider, journal)
        said.append(str(caught.value))

    assert asked(provider, journal, sleep=second).answered == 5
    assert said
    assert len(provider.batches) == 1


def test_a_line_that_cannot_be_read_is_missing(provider: Provider, journal: Journal) -> None:
    provider.spoilt = b'{"custom_id": "cut off'
    assert asked(provider, journal).answered == 4
    provider.spoilt = b""
    assert asked(provider, journal).answered == 1


def test_only_the_failed_are_asked_again(provider: Provider, journal: Journal) -> None:
    provider.status_of = lambda text: 400 if text == "row 1" else 200
    asked(provider, journal, requests(2))
    provider.status_of = lambda text: 200
    assert asked(provider, journal, only_failed=True).answered == 1
    assert sorted(provider.answered) == ["row 0", "row 1"]


KILLED = """
import os, sys
from pathlib import Path
from dss_jax.teacher import batch
from dss_jax.teacher.asking import ExtractionRun
from dss_jax.teacher.journal import Journal, Request

url, folder, when, texts = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
calls = 0


def dies(then):
    def call(*args, **more):
        global calls
        calls += 1
        if calls == when:
            os.kill(os.getpid(), 9)
        return then(*args, **more)

    return call


batch.write_whole = dies(batch.write_whole)
batch.openai.resources.files.Files.create = dies(batch.openai.resources.files.Files.create)
batch.openai.resources.batches.Batches.create = dies(batch.openai.resources.batches.Batches.create)
batch.openai.resources.batches.Batches.retrieve = dies(
    batch.openai.resources.batches.Batches.retrieve
)
Journal.put = dies(Journal.put)
body = lambda text: {"model": "m", "messages": [{"role": "user", "content": text}]}
with Journal(folder / "journal") as journal:
    asked = [Request(text, 0, body(text)) for text in texts]
    teacher = batch.BatchTeacher(url, "BATCH_KEY", max_requests=2, sleep=lambda _: None)
    teacher.ask(asked, ExtractionRun(journal))
"""


def test_killed_at_any_point_each_row_is_paid_for_once(
    provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCH_KEY", SECRET)
    texts = ["row 0", "row 1", "row 2"]
    # Each life dies one step later than the one before began: uploads, notes, creations, replies.
    for when in (*range(1, 12, 2), 1_000):
        command = [sys.executable, "-c", KILLED, provider.url, str(tmp_path), str(when), *texts]
        code = subprocess.run(command, check=False, capture_output=True).returncode
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert code == 0
    assert when > 3, "no life was cut short: this test tells nothing"
    assert sorted(provider.answered) == texts


ODD_LINES = {
    "as vLLM writes it": (
        {"response": {"status_code": 400, "body": None}, "error": "Must not stream"},
        "error",
        "400: Must not stream",
    ),
    "body is a text": (
        {"response": {"status_code": 422, "body": "no such field"}},
        "error",
        "422: no such field",
    ),
    "no response": (
        {"response": None, "error": {"code": "bad", "message": "Bad request"}},
        "error",
        "error: Bad request",
    ),
    "a filter": (
        {"response": {"status_code": 400, "body": {"error": {"code": "content_filter"}}}},
        "content_filter",
        "400: ",
    ),
    "no completion": ({"response": {"status_code": 200, "body": 3}}, "error", "no completion"),
    "a null": (
        {"response": {"status_code": 200, "body": {"choices": [{"message": {"content": None}}]}}},
        "",
        "",
    ),
}


@pytest.mark.parametrize("name", list(ODD_LINES))
def test_an_odd_line_is_a_reply_with_a_reason(
    provider: Provider, journal: Journal, name: str
) -> None:
    line, finish, reason = ODD_LINES[name]
    first = requests(1)[0].key
    provider.change = lambda sent: sent["custom_id"] == first and sent.update(line)
    asked(provider, journal)
    reply = journal.reply(first)
    assert reply.finish_reason == finish
    assert reason in reply.refusal
    assert all(journal.reply(r.key).text for r in requests()[1:]), "the others are kept"


def test_what_did_not_run_is_missing(provider: Provider, journal: Journal) -> None:
    expired = {"response": None, "error": {"code": "batch_expired", "message": "not in time"}}
    provider.change = lambda line: line.update(expired)
    assert asked(provider, journal).done == 0
    assert journal.reply(requests(1)[0].key) is None


def test_a_batch_that_is_gone_is_asked_again(provider: Provider, journal: Journal) -> None:
    provider.gone = {"batch-0"}
    assert asked(provider, journal, requests(4), max_requests=2).answered == 2
    assert asked(provider, journal, requests(4)).answered == 2
    assert sorted(provider.answered) == [f"row {i}" for i in range(4)]


def test_tokens_that_a_batch_does_not_tell_are_estimated(
    provider: Provider, journal: Journal
) -> None:
    provider.change = lambda line: line["response"]["body"].update(usage=None)
    summary = asked(provider, journal)
    assert (summary.answered, summary.estimated) == (5, 5)
    assert summary.prompt_tokens > 0 < summary.completion_tokens


def test_any_text_is_sent_in_a_batch(provider: Provider, journal: Journal) -> None:
    message = {"role": "user", "content": "half \ud83d of it"}
    odd = Request("\ud83d", 0, {"model": "m", "messages": [message]})
    assert asked(provider, journal, [odd]).answered == 1
    assert provider.answered == ["half \ud83d of it"]


@pytest.mark.parametrize("quota", [0, 1])
def test_a_quota_of_a_day_ends_the_run_after_what_is_under_way(
    provider: Provider, journal: Journal, monkeypatch: pytest.MonkeyPatch, quota: int
) -> None:
    monkeypatch.setattr(batch_api, "RETRIES", 0)
    provider.quota = quota
    summary = asked(provider, journal, requests(4), max_requests=2)
    assert (summary.answered, summary.failed) == (2 * quota, 0)
    assert re.search(
        r"429: Rate limit .*\. Go on after \d{4}-\d\d-\d\d \d\d:\d\d UTC", summary.stopped
    )
    provider.quota = 1_000
    assert asked(provider, journal, requests(4)).answered == 4 - 2 * quota
    assert sorted(provider.answered) == [f"row {i}" for i in range(4)]


def test_a_quota_of_a_day_in_the_answers_ends_the_run(provider: Provider, journal: Journal) -> None:
    first = requests(1)[0].key
    error = {"status_code": 429, "body": {"error": {"message": DAILY}}}
    provider.change = lambda line: line["custom_id"] == first and line.update(response=error)
    summary = asked(provider, journal)
    assert (summary.answered, summary.failed) == (4, 0)
    assert "Go on after" in summary.stopped
    assert journal.reply(first) is None


def test_a_batch_that_a_quota_of_a_day_stopped(provider: Provider, journal: Journal) -> None:
    provider.ends = "failed"
    provider.failure = DAILY
    assert "Go on after" in asked(provider, journal).stopped
