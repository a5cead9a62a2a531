"""Stage 1 against a real HTTP server that fails on purpose: `protocol_server`."""

import asyncio
import json
import os
import random
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from protocol_server import Server, kind_of

from dss_jax.cli.main import main
from dss_jax.core.errors import UsageError
from dss_jax.core.registry import load_task
from dss_jax.core.types import Example
from dss_jax.records.records import Reply
from dss_jax.teacher import asking, limits
from dss_jax.teacher.asking import (
    ExtractionProgress,
    ExtractionRun,
    SendOptions,
    ServerTeacher,
    TeacherUnavailable,
)
from dss_jax.teacher.client import Client
from dss_jax.teacher.extraction import Extraction
from dss_jax.teacher.journal import LEASE_SECONDS, Journal, Request
from dss_jax.teacher.limits import Bucket, Limiter, backoff

SECRET = "very-secret-0123456789"  # Of no known form, so that it is found as it is alone.

TASK = """
from dss_jax.core.completions import UP_TO_FINAL_STOP, AnswerForm
from dss_jax.core.prompt import Exemplar, Prompt
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.types import DistillationTask, Example, Jsonl

TASK = DistillationTask(
    name="rows", description="rows", licence="none",
    sources=(Jsonl(files={"train": "rows.jsonl"}),),
    to_example=lambda row, _: Example(
        id=row["id"], input=row["input"], label="yes", allowed_labels=("yes", "no")),
    scorer=TEXT_ACCURACY,
    prompt=Prompt(
        instruction="Answer.", question="Q: {input}", opening="A:", stop=("Q:",),
        answer="A: {rationale} So the answer is {output}.",
        exemplars=(Exemplar(input="a row", rationale="It is.", output="yes"),),
        form=AnswerForm(run_on="Q:", marker="So the answer is", label=UP_TO_FINAL_STOP),
    ),
)
"""


def requests(count: int) -> Iterator[Request]:
    for i in range(count):
        messages = [{"role": "user", "content": f"row {i}"}]
        yield Request(str(i), 0, {"model": "m", "messages": messages})


def asked(
    journal: Path, server: Server, count: int, options: SendOptions, timeout: float = 0.5, **more
) -> ExtractionProgress:
    """Runs server and client in one loop."""

    async def work() -> ExtractionProgress:
        port = await server.start()
        send = Client(f"http://127.0.0.1:{port}/v1", "NO_KEY", timeout, options.concurrency)
        with Journal(journal) as kept:
            try:
                run = ExtractionRun(kept, **more)
                return await ServerTeacher(send, options).send_all(requests(count), run)
            finally:
                await send.close()

    return asyncio.run(work())


QUICK = SendOptions(concurrency=64, max_attempts=30, first_wait=0.01, jitter_seed=0)


@pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_with_thirty_per_cent_faults_each_row_ends_once(tmp_path: Path, count: int) -> None:
    server = Server(delay=0.005, faults=0.3)
    # Long enough for a machine with other work: an answer after it would be asked for twice.
    timeout = 3.0 if count < 1000 else 8.0
    summary = asked(tmp_path / "journal", server, count, QUICK, timeout=timeout)
    assert (summary.answered, summary.failed, summary.stopped) == (count, 0, "")
    assert summary.retries > 0.2 * count
    assert Counter(server.good) == {f"row {i}": 1 for i in range(count)}
    with Journal(tmp_path / "journal") as journal:
        for request in requests(count):
            reply = journal.reply(request.key)
            assert reply is not None
            kind = kind_of(f"row {request.id}")
            assert reply.finish_reason == ("length" if kind == "length" else "stop")
            assert bool(reply.refusal) == (kind == "refusal")
            assert bool(reply.text) == (kind != "refusal")
    again = Server()
    summary = asked(tmp_path / "journal", again, count, QUICK)
    assert (summary.reused, summary.answered, again.requests) == (count, 0, 0)


def test_what_is_given_up_is_told_and_asked_again(tmp_path: Path) -> None:
    options = SendOptions(concurrency=8, max_attempts=3, first_wait=0.001)
    broken = Server(always=503)
    summary = asked(tmp_path / "journal", broken, 4, options)
    assert (summary.failed, summary.answered, broken.requests) == (4, 0, 12)
    with Journal(tmp_path / "journal") as journal:
        failed = [journal.reply(request.key) for request in requests(4)]
        assert all(reply.failed for reply in failed)
        assert "given up after 3 attempts: 503" in failed[0].refusal
    options = SendOptions(concurrency=8)
    summary = asked(tmp_path / "journal", Server(), 15, options, only_failed=True)
    assert summary.answered == 4, "rows that were never asked stay so"
    assert asked(tmp_path / "journal", Server(), 15, QUICK).answered == 11


@pytest.mark.parametrize("status", [401, 404])
def test_a_server_that_refuses_everything_stops_the_run(tmp_path: Path, status: int) -> None:
    server = Server(always=status)
    with pytest.raises(TeacherUnavailable, match=f"the server does not answer: {status}"):
        asked(tmp_path / "journal", server, 500, SendOptions(concurrency=8))
    assert server.requests <= 16


@pytest.mark.parametrize("status", [400, 503])
def test_a_server_that_answers_nothing_stops_the_run(tmp_path: Path, status: int) -> None:
    server = Server(always=status)
    options = SendOptions(concurrency=2, max_attempts=2, first_wait=0.001)
    with pytest.raises(TeacherUnavailable, match=f"none of the first 5 requests .*: {status}"):
        asked(tmp_path / "journal", server, 500, options)
    assert server.requests <= 20


def test_a_budget_stops_in_the_middle(tmp_path: Path) -> None:
    def check(summary: ExtractionProgress) -> str | None:
        return "spent" if summary.answered >= 20 else None

    summary = asked(
        tmp_path / "journal", Server(), 500, SendOptions(concurrency=4), may_go_on=check
    )
    assert summary.stopped == "spent"
    assert 20 <= summary.answered <= 28
    assert asked(tmp_path / "journal", Server(), 500, QUICK).reused == summary.answered


def test_two_runs_at_once_ask_nothing_twice(tmp_path: Path) -> None:
    async def work() -> None:
        port = await server.start()
        sends = [Client(f"http://127.0.0.1:{port}/v1", "NO_KEY", 60, 16) for _ in range(2)]
        with Journal(tmp_path / "journal") as one, Journal(tmp_path / "journal") as other:
            teachers = [ServerTeacher(send, SendOptions(concurrency=16)) for send in sends]
            runs = [ExtractionRun(journal) for journal in (one, other)]
            done = await asyncio.gather(
                *(t.send_all(requests(1500), run) for t, run in zip(teachers, runs, strict=True))
            )
        assert sum(s.answered for s in done) == 1500
        assert all(s.answered > 100 for s in done), "both had work"
        assert all(s.done == 1500 for s in done)
        for send in sends:
            await send.close()

    server = Server(delay=0.002)
    asyncio.run(work())
    assert Counter(server.good) == {f"row {i}": 1 for i in range(1500)}


def test_an_answer_that_drips_in_too_slowly_ends(tmp_path: Path) -> None:
    server = Server()
    server.drip_seconds = 0.2
    summary = asked(tmp_path / "journal", server, 12, SendOptions(max_attempts=1))
    assert summary.reasons == {"given up after 1 attempts: no answer within 0.5 seconds": 1}


def test_overload_is_told_to_the_limiter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    class Watched(Limiter):
        def overloaded(self, retry_after: float | None) -> None:
            told.append(retry_after)

    monkeypatch.setattr(asking, "Limiter", Watched)
    options = SendOptions(max_attempts=2, first_wait=0.001)
    asked(tmp_path / "journal", Server(always=429), 3, options)
    asked(tmp_path / "journal", Server(always=500), 3, options)
    assert told == [0.05] * 6


def test_what_another_process_has_answered_is_not_claimed(tmp_path: Path) -> None:
    (request,) = requests(1)
    with Journal(tmp_path / "journal") as mine, Journal(tmp_path / "journal") as theirs:
        assert mine.missing([request]) == [request]
        theirs.put(request, Reply(text="good"))
        theirs.flush()
        assert mine.claim([request]) == []


def test_equal_requests_are_sent_once(tmp_path: Path) -> None:
    async def work() -> ExtractionProgress:
        url = f"http://127.0.0.1:{await server.start()}/v1"
        send = Client(url, "NO_KEY", 5, 8)
        with Journal(tmp_path / "journal") as journal:
            twice = [Request(f"{r.id}-{i}", 0, r.body) for r in requests(30) for i in range(2)]
            try:
                teacher = ServerTeacher(send, SendOptions(concurrency=8))
                return await teacher.send_all(twice, ExtractionRun(journal))
            finally:
                await send.close()

    server = Server(delay=0.01)
    summary = asyncio.run(work())
    assert (summary.answered, summary.reused, summary.failed) == (30, 30, 0)
    assert len(server.good) == 30


def test_each_sample_has_its_key_and_its_seed(task_dir: Path) -> None:
    task = load_task("rows", [task_dir])
    what = Extraction(task=task, split="train", model="m", samples=3, sampling={"seed": 5})
    asked_for = list(what.requests([Example(id="r", input="row 1")]))
    assert [request.body["seed"] for request in asked_for] == [5, 6, 7]
    assert len({Request("r", sample, asked_for[0].body).key for sample in range(3)}) == 3


@pytest.mark.parametrize("owner", ["another-machine:1:x", f"{socket.gethostname()}:999999999:x"])
def test_claims_of_another_machine_or_container_run_out(tmp_path: Path, owner: str) -> None:
    now = [1000.0]
    mine, theirs = (Journal(tmp_path / "journal", clock=lambda: now[0]) for _ in range(2))
    theirs.owner = owner
    some = list(requests(3))
    assert theirs.claim(some[:2]) == some[:2]
    assert mine.claim(some) == some[2:]
    mine.drop_claims_of_the_dead()
    assert mine.claim(some[:2]) == []
    now[0] += LEASE_SECONDS + 1
    assert mine.claim(some[:2]) == some[:2]


def test_an_answer_is_never_replaced_by_a_failure(tmp_path: Path) -> None:
    (request,) = requests(1)
    with Journal(tmp_path / "journal") as journal:
        journal.put(request, Reply(text="good", finish_reason="stop"))
        journal.flush()
        journal.put(request, Reply(text="", finish_reason="error", refusal="late"))
        journal.flush()
        assert journal.reply(request.key).text == "good"


def test_a_full_disk_ends_the_run_and_loses_nothing(tmp_path: Path) -> None:
    class Full(Journal):
        def flush(self) -> None:
            pages = self._db.execute("pragma page_count").fetchone()[0]
            if pages > 200:
                self._db.execute(f"pragma max_page_count = {pages}")
            super().flush()

    async def send(body: dict) -> Reply:
        await asyncio.sleep(0.001)
        return Reply(text="x" * 2000)

    run = ExtractionRun(Full(tmp_path / "journal"))
    teacher = ServerTeacher(send, SendOptions(concurrency=8))
    with pytest.raises(UsageError, match=r"is full.*Make room on the disk"):
        asyncio.run(teacher.send_all(requests(2000), run))
    with Journal(tmp_path / "journal") as kept:
        assert 0 < 2000 - len(kept.missing(list(requests(2000)))) < 2000


OLD_JOURNAL = """
create table replies (
  key text primary key, id text not null, sample integer not null, failed integer not null,
  prompt_tokens integer not null, completion_tokens integer not null, time real not null,
  reply text not null
) without rowid;
create index failures on replies (id) where failed;
pragma user_version = 1;
insert into replies values (
  'a5ba8f6a6cbfada361d2dd944d4b5ad92c903ba31dbb26e73e9c9d101b16c505', 'r', 1, 0, 3, 0, 1e9,
  '{"text": "é", "finish_reason": "stop", "refusal": "", "prompt_tokens": 3,
    "completion_tokens": 0, "model": "m"}'
);
"""
"""As version 0.1.0 has written it."""


def test_what_an_earlier_version_has_paid_for_is_not_asked_again(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "journal")
    db.executescript(OLD_JOURNAL)
    db.close()
    request = Request("r", 1, {"temperature": 0.0, "prompt": "é x", "model": "m"})
    with Journal(tmp_path / "journal") as journal:
        assert journal.missing([request]) == []
        kept = Reply(text="é", finish_reason="stop", prompt_tokens=3, model="m")
        assert journal.reply(request.key) == kept


def test_a_file_that_is_no_journal_is_not_touched(tmp_path: Path) -> None:
    file = tmp_path / "journal"
    file.write_text("my notes\n" * 100)
    with pytest.raises(UsageError, match="cannot be used"):
        Journal(file)
    assert file.read_text() == "my notes\n" * 100


def test_retry_after() -> None:
    assert limits.retry_after({"retry-after": "7"}) == 7
    assert limits.retry_after({"retry-after-ms": "250", "retry-after": "7"}) == 0.25
    date = {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}
    assert limits.retry_after(date, now=1445412470.0) == 10
    assert limits.retry_after(date, now=1445412490.0) == 0
    assert limits.retry_after({"retry-after": "soon"}) is None
    assert limits.retry_after({}) is None


def test_limits_of_requests_and_tokens() -> None:
    now = [0.0]
    bucket = Bucket(600, lambda: now[0])
    waits = [bucket.wait_for(1) for _ in range(30)]
    assert waits[9] == 0
    assert waits[-1] == pytest.approx(1.9)
    assert Bucket(None).wait_for(1e9) == 0
    dice = random.Random(0)
    assert max(backoff(3, 0.5, dice) for _ in range(100)) <= 4
    assert max(backoff(20, 0.5, dice) for _ in range(100)) <= 60


def test_overload_takes_away_and_answers_give_back() -> None:
    now = [0.0]
    limiter = Limiter(10, clock=lambda: now[0])
    for _ in range(5):
        limiter.overloaded(None)
    assert limiter.allowed == 7, "once a second: they were all sent before"
    for _ in range(100):
        limiter.answered()
    assert limiter.allowed == 10


def test_retry_after_holds_everybody_back() -> None:
    now, slept = [0.0], []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    async def work() -> None:
        limiter = Limiter(4, clock=lambda: now[0], sleep=sleep)
        limiter.overloaded(3.0)
        await limiter.acquire(1)

    asyncio.run(work())
    assert slept == [3.0]


def test_who_asks_first_goes_first() -> None:
    order: list[str] = []

    async def worker(limiter: Limiter, name: str) -> None:
        for _ in range(3):
            await limiter.acquire(1)
            order.append(name)
            await asyncio.sleep(0)
            limiter.release()

    async def work() -> None:
        limiter = Limiter(1)
        await asyncio.gather(*(worker(limiter, name) for name in "abc"))

    asyncio.run(work())
    assert order == list("abcabcabc")


def test_who_gives_up_waiting_takes_no_place() -> None:
    async def work() -> None:
        limiter = Limiter(1)
        await limiter.acquire(1)
        queued, woken = (asyncio.create_task(limiter.acquire(1)) for _ in range(2))
        await asyncio.sleep(0)
        queued.cancel()
        limiter.release()
        woken.cancel()
        assert await asyncio.gather(queued, woken, return_exceptions=True)
        await asyncio.wait_for(limiter.acquire(1), 5)

    asyncio.run(work())


def test_a_key_is_wanted_by_hosted_servers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(UsageError, match="SOME_KEY is not set"):
        Client("https://api.example.com/v1", "SOME_KEY")
    Client("http://localhost:8000/v1", "SOME_KEY")
    with pytest.raises(UsageError, match="must begin with http"):
        Client("localhost:8000", "SOME_KEY")


@pytest.fixture
def task_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "rows.py").write_text(TASK)
    lines = [json.dumps({"id": f"r{i}", "input": f"row {i}"}) for i in range(400)]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return folder


@contextmanager
def serving(log: Path, *flags: str) -> Iterator[str]:
    """The server in a process of its own: its base URL."""
    script = Path(__file__).with_name("protocol_server.py")
    start = [sys.executable, str(script), str(log), *flags]
    process = subprocess.Popen(start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
    finally:
        process.kill()
        process.communicate()


def command(task_dir: Path, url: str, out: Path, *more: str) -> list[str]:
    what = ["--task", "rows", "--task_dir", str(task_dir), "--model", "teacher-1"]
    how = ["--timeout", "2", "--concurrency", "16", "--max_attempts", "30"]
    return ["extract", *what, "--base_url", url, "--out", str(out), *how, *more]


def test_the_command_writes_records(tmp_path: Path, task_dir: Path, capsys) -> None:
    out = tmp_path / "records.jsonl"
    with serving(tmp_path / "log") as url:
        assert main(command(task_dir, url, out, "--limit", "40")) == 0
        shown = capsys.readouterr().out
        assert re.search(r"rows: ok +36", shown)
        first = out.read_bytes()
        assert main(command(task_dir, url, out, "--limit", "40")) == 0
    assert out.read_bytes() == first
    assert len((tmp_path / "log").read_text().splitlines()) == 40
    lines = [json.loads(line) for line in first.decode().splitlines()]
    assert lines[0]["totals"]["statuses"] == {"ok": 36, "refused": 2, "truncated": 2}
    assert lines[0]["totals"]["prompt_tokens"] == 4000
    assert [line["id"] for line in lines[1:]] == [f"r{i}" for i in range(40)]
    assert lines[1]["teacher_label"] == "yes"
    assert lines[1]["rationale"] == "Because of row 0."


def test_shards_samples_and_dry_run(tmp_path: Path, task_dir: Path, capsys) -> None:
    out = tmp_path / "records.jsonl"
    with serving(tmp_path / "log") as url:
        more = ("--limit", "9", "--shard", "1/3", "--samples", "2")
        priced = ("--price_in", "10", "--price_out", "30")
        assert main(command(task_dir, url, out, *more, "--dry_run", *priced)) == 0
        assert re.search(r"requests to send +6", capsys.readouterr().out)
        assert not (tmp_path / "log").read_text()
        assert main(command(task_dir, url, out, *more, *priced, "--budget", "0.000001")) == 2
        assert "more than --budget" in capsys.readouterr().err
        assert main(command(task_dir, url, out, *more, *priced)) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines[1:]] == ["r1", "r4", "r7"]
    assert [len(line["samples"]) for line in lines[1:]] == [2, 2, 2]
    assert lines[0]["totals"]["cost_usd"] == pytest.approx(6 * (100 * 10 + 20 * 30) / 1e6)
    assert lines[0]["prices"] == "10 USD in, 30 USD out a million tokens, as given"


def test_labels_that_were_renamed_are_found_before_anything_is_paid(
    tmp_path: Path, task_dir: Path, capsys
) -> None:
    (task_dir / "rows.py").write_text(
        TASK.replace("prompt=", 'labels=("yesses", "no"), prompt=', 1)
    )
    assert main(command(task_dir, "http://127.0.0.1:9/v1", tmp_path / "r.jsonl")) == 2
    said = capsys.readouterr().err
    assert "exemplars answer with no allowed label: 'yes'. " in said
    assert said.endswith("Nothing was sent.\n")
    assert not list(tmp_path.glob("r.jsonl*"))
    shown = command(task_dir, "http://127.0.0.1:9/v1", tmp_path / "r.jsonl", "--show_prompt", "1")
    assert main(shown) == 0
    # In the rows alone, where the worked examples are not shown.
    renamed = TASK.replace('label="yes", allowed_labels=("yes", "no")', 'label="aye"')
    (task_dir / "rows.py").write_text(
        renamed.replace("prompt=", 'labels=("yes", "no"), prompt=', 1)
    )
    bare = command(
        task_dir, "http://127.0.0.1:9/v1", tmp_path / "r.jsonl", "--exemplars", "0", "--dry_run"
    )
    assert main(bare) == 2
    assert "'aye' (400), and none has its 'yes', 'no': was a label" in capsys.readouterr().err


class TestSeveralSplits:
    def both(self, task_dir: Path) -> None:
        source = TASK.replace('"train": "rows.jsonl"', '"train": "rows.jsonl", "test": "new.jsonl"')
        (task_dir / "rows.py").write_text(source)
        lines = [json.dumps({"id": f"n{i}", "input": f"new row {i}"}) for i in range(3)]
        (task_dir / "new.jsonl").write_text("\n".join(lines))

    def test_each_has_a_file_and_the_next_command_is_said(
        self, tmp_path: Path, task_dir: Path, capsys
    ) -> None:
        self.both(task_dir)
        more = ("--split", "train,test", "--limit", "3")
        with serving(tmp_path / "log") as url:
            assert main(command(task_dir, url, tmp_path / "r.jsonl", *more)) == 0
        files = [tmp_path / f"r_{split}.jsonl" for split in ("train", "test")]
        for split, file in zip(("train", "test"), files, strict=True):
            header, *records = map(json.loads, file.read_text().splitlines())
            assert (header["split"], len(records)) == (split, 3)
        assert f"--rationales {files[0]},{files[1]}" in capsys.readouterr().out

    def test_they_share_a_budget(self, tmp_path: Path, task_dir: Path, capsys) -> None:
        self.both(task_dir)
        # Each row takes 100 tokens, 0.001 USD; less by the estimate.
        priced = ("--price_in", "10", "--price_out", "0", "--budget", "0.0031")
        more = ("--split", "train,test", "--limit", "3", *priced)
        with serving(tmp_path / "log") as url:
            assert main(command(task_dir, url, tmp_path / "r.jsonl", *more)) == 2
        said = capsys.readouterr().err
        assert "more than --budget 0.0001" in said
        assert "Nothing of test was sent" in said
        assert (tmp_path / "r_train.jsonl").is_file()
        assert not (tmp_path / "r_test.jsonl").exists()

    def test_what_they_cost_together_is_known_before_the_first_is_paid(
        self, tmp_path: Path, task_dir: Path, capsys
    ) -> None:
        self.both(task_dir)
        more = ("--split", "train,test", "--price_in", "10", "--price_out", "0")
        out = tmp_path / "r.jsonl"
        assert main(command(task_dir, "http://127.0.0.1:9/v1", out, *more, "--dry_run")) == 0
        costs = [
            float(x) for x in re.findall(r"cost, about +([\d.]+) USD", capsys.readouterr().out)
        ]
        assert len(costs) == 2
        more += ("--budget", f"{costs[0] + costs[1] / 2:.4f}")  # Enough for the first alone.
        assert main(command(task_dir, "http://127.0.0.1:9/v1", out, *more)) == 2
        assert "Nothing was sent." in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("split", "says"),
        [
            ("train,train", "has a split twice"),
            ("train,tset", "Did you mean 'test'?"),
            ("train,validation", "has no validation split"),
        ],
    )
    def test_nothing_is_asked_where_one_is_wrong(
        self, tmp_path: Path, task_dir: Path, capsys, split: str, says: str
    ) -> None:
        out = tmp_path / "r.jsonl"
        assert main(command(task_dir, "http://127.0.0.1:9/v1", out, "--split", split)) == 2
        assert says in capsys.readouterr().err
        assert not list(tmp_path.glob("r_*"))


def test_the_key_is_nowhere(tmp_path: Path, task_dir: Path) -> None:
    """The server repeats the key in its errors."""
    out = tmp_path / "out" / "records.jsonl"
    shown = ""
    with serving(tmp_path / "log", "--faults", "0.5") as url:
        for more in (("--limit", "30"), ("--limit", "60", "--max_attempts", "1")):
            done = subprocess.run(
                [sys.executable, "-m", "dss_jax.cli.main", *command(task_dir, url, out, *more)],
                env={**os.environ, "OPENAI_API_KEY": SECRET, "OPENAI_LOG": "debug"},
                capture_output=True,
                text=True,
                timeout=100,
            )
            assert done.returncode == 0, done.stderr
            shown += done.stdout + done.stderr
    assert re.search(r"status (429|500|503) for bearer \[key\]", shown), "errors were shown"
    assert SECRET not in shown
    files = [file for file in out.parent.iterdir() if file.is_file()]
    assert len(files) >= 2
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_points_the_records_are_the_same(
    tmp_path: Path, task_dir: Path, kills: int
) -> None:
    dice = random.Random(kills)
    flags = ("--delay", "0.05", "--faults", "0.1")
    with serving(tmp_path / "log", *flags) as url:
        out = tmp_path / "killed.jsonl"
        start = [sys.executable, "-m", "dss_jax.cli.main", *command(task_dir, url, out)]
        killed = 0
        for _ in range(kills):
            with (tmp_path / "shown").open("w") as shown:
                process = subprocess.Popen(start, stdout=shown, stderr=shown)
            seen = _lines(tmp_path / "log")
            while _lines(tmp_path / "log") <= seen and process.poll() is None:
                time.sleep(0.02)
            time.sleep(dice.random() * 4 / kills)
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
        assert killed == kills
        done = subprocess.run(start, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        whole = tmp_path / "whole.jsonl"
        twice = _lines(tmp_path / "log") - 400
        # Only what was under way when the process died is asked again.
        assert 0 <= twice <= 16 * kills
        assert main(command(task_dir, url, whole)) == 0
    records = [file.read_text().splitlines() for file in (out, whole)]
    assert records[0][1:] == records[1][1:]
    totals = [json.loads(lines[0])["totals"] for lines in records]
    for each in totals:
        assert each.pop("seconds") > 0, "what all runs took"
        assert each.pop("retries") > 0, "10 % faults"
    assert totals[0] == totals[1]


def _lines(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.exists() else 0
