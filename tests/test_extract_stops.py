"""When the engine of stage 1 stops, waits and goes on; no server needed."""

import asyncio
import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from dss_jax.core.errors import UsageError
from dss_jax.records.records import Reply
from dss_jax.teacher import client
from dss_jax.teacher.asking import ExtractionProgress, ExtractionRun, SendOptions, ServerTeacher
from dss_jax.teacher.client import Client, Fatal, Rejected, Retryable
from dss_jax.teacher.journal import Journal, Request
from dss_jax.teacher.limits import LONGEST_RETRY_AFTER

Send = Callable[[dict], Awaitable[Reply]]

GOOD = Reply(text="x", finish_reason="stop", prompt_tokens=1000, completion_tokens=100)


def requests(count: int, prompt: str = "row") -> Iterator[Request]:
    for i in range(count):
        messages = [{"role": "user", "content": f"{prompt} {i}"}]
        yield Request(str(i), 0, {"model": "m", "messages": messages})


def number(body: dict) -> int:
    return int(body["messages"][0]["content"].rsplit(" ", 1)[1])


def asked(
    folder: Path, send: Send, which: Iterator[Request], options: SendOptions, **more
) -> ExtractionProgress:
    with Journal(folder / "journal") as journal:
        teacher = ServerTeacher(send, options)
        return asyncio.run(teacher.send_all(which, ExtractionRun(journal, **more)))


async def filtered(body: dict) -> Reply:
    """Refuses every sixth row at once; an answer takes longer."""
    if number(body) % 6 == 0:
        raise Rejected("400: content filter")
    await asyncio.sleep(0.1)
    return GOOD


def test_rows_refused_one_by_one_do_not_stop_the_run(tmp_path: Path) -> None:
    summary = asked(tmp_path, filtered, requests(96), SendOptions(concurrency=32))
    assert (summary.answered, summary.failed) == (80, 16)
    # Now all that is asked is refused.
    summary = asked(tmp_path, filtered, requests(96), SendOptions(concurrency=32))
    assert (summary.reused, summary.failed) == (80, 16)


def test_nothing_is_sent_after_the_stop(tmp_path: Path) -> None:
    stopped, late = [], []

    async def send(body: dict) -> Reply:
        late.extend(stopped)
        await asyncio.sleep(0.01)
        return GOOD

    def check(summary: ExtractionProgress) -> str | None:
        stopped.append("spent")
        return "spent"

    summary = asked(tmp_path, send, requests(300), SendOptions(concurrency=16), may_go_on=check)
    assert (summary.stopped, summary.answered) == ("spent", 16), "those under way are kept"
    assert not late


def test_an_interrupt_does_not_wait_for_repetitions(tmp_path: Path) -> None:
    sent = []

    async def send(body: dict) -> Reply:
        sent.append(body)
        if number(body) == 0:
            os.kill(os.getpid(), signal.SIGINT)
            return GOOD
        raise Retryable("500", retry_after=30.0)

    start = time.monotonic()
    summary = asked(tmp_path, send, requests(50), SendOptions(concurrency=8))
    assert time.monotonic() - start < 5
    assert (summary.stopped, summary.failed) == ("interrupted", 0)
    assert len(sent) < 20, "the first of each worker; the loop hears of a signal a moment later"
    with Journal(tmp_path / "journal") as journal:
        assert len(journal.missing(list(requests(50)))) == 49
        assert len(journal.claim(list(requests(50)))) == 49


def test_a_servers_long_wish_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []

    async def pause(self: ServerTeacher, seconds: float) -> None:
        waits.append(seconds)

    async def send(body: dict) -> Reply:
        if not waits:
            raise Retryable("500", retry_after=86400.0)
        return GOOD

    monkeypatch.setattr(ServerTeacher, "pause", pause)
    assert asked(tmp_path, send, requests(1), SendOptions()).answered == 1
    assert waits == [LONGEST_RETRY_AFTER]


def test_the_first_requests_keep_to_the_tokens_a_minute(tmp_path: Path) -> None:
    sent = []

    async def send(body: dict) -> Reply:
        sent.append(body)
        await asyncio.sleep(0.05)
        return GOOD

    options = SendOptions(concurrency=32, tpm=6000)
    asked(tmp_path, send, requests(64, "word " * 700), options, may_go_on=lambda _: "enough")
    assert len(sent) == 1


def test_two_processes_may_make_the_journal_at_once(tmp_path: Path) -> None:
    """SQLite's own wait does not cover the change to the write-ahead log."""
    other = sqlite3.connect(tmp_path / "journal", check_same_thread=False, isolation_level=None)
    other.execute("create table t (a)")
    other.execute("begin immediate")

    def let_go() -> None:
        time.sleep(0.3)
        other.execute("rollback")

    thread = threading.Thread(target=let_go)
    thread.start()
    Journal(tmp_path / "journal").close()
    thread.join()
    other.close()


def chat(**choice: object) -> bytes:
    return json.dumps({"choices": [choice]}).encode()


def test_replies_that_other_servers_give() -> None:
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "yes"}]
    assert client.reply_of(chat(message={"content": parts}), True, str).text == "yes"
    with pytest.raises(Retryable):  # Else it is kept as answered, and asked again all the same.
        client.reply_of(chat(message={"content": "ha"}, finish_reason="error"), True, str)


@pytest.mark.parametrize("part", [{"text": "x"}, 3, ["x"]])
def test_text_of_another_type_is_no_completion(part: object) -> None:
    for choice in (
        {"message": {"content": part}},
        {"message": {"content": "x", "refusal": part}},
        {"message": {"content": "x"}, "finish_reason": part},
    ):
        with pytest.raises(Retryable, match="the answer is no completion"):
            client.reply_of(chat(**choice), True, str)


def test_no_part_of_a_key_is_left_where_an_answer_is_cut() -> None:
    key = "AIza-0123456789-abcdefghij"
    page = f"<html>{' ' * 60}{key}</html>".encode()
    with pytest.raises(Retryable) as raised:
        client.reply_of(page, True, lambda text: client.clean(text, key))
    assert "AIza" not in str(raised.value)


@pytest.mark.parametrize("key", ["first-0123456789\nsecond-0123456789", "“quoted-0123456789”"])
def test_a_key_that_can_be_none_is_not_shown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("SOME_KEY", key)
    with pytest.raises(UsageError, match="SOME_KEY holds a line break") as raised:
        Client("http://localhost:8000/v1", "SOME_KEY")
    assert "0123456789" not in str(raised.value)


def test_no_money_left_stops_the_run(tmp_path: Path) -> None:
    from protocol_server import REASONS, Server

    REASONS.setdefault(402, "Payment Required")

    async def work() -> None:
        server = Server(always=402)
        send = Client(f"http://127.0.0.1:{await server.start()}/v1", "NO_KEY")
        try:
            await send({"model": "m", "messages": []})
        finally:
            await send.close()

    with pytest.raises(Fatal, match="402"):
        asyncio.run(work())
