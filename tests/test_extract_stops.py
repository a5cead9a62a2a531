"""When the engine of stage 1 stops, waits and goes on; no server needed."""

import asyncio
import json
import os
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from protocol_server import answering

from dss_jax.core.errors import UsageError
from dss_jax.records.records import Reply
from dss_jax.teacher import asking, client, limits, replies
from dss_jax.teacher.asking import (
    ExtractionProgress,
    ExtractionRun,
    SendOptions,
    ServerTeacher,
    TeacherUnavailable,
)
from dss_jax.teacher.client import Client
from dss_jax.teacher.journal import Journal, Request
from dss_jax.teacher.limits import LONGEST_RETRY_AFTER
from dss_jax.teacher.replies import Fatal, Rejected, Retryable

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
    async def work() -> ExtractionProgress:
        try:
            return await teacher.send_all(which, ExtractionRun(journal, **more))
        finally:
            if isinstance(send, Client):
                await send.close()

    with Journal(folder / "journal") as journal:
        teacher = ServerTeacher(send, options)
        return asyncio.run(work())


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


def test_where_nothing_listens_it_ends_within_seconds(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # Which does not listen.
        send = Client(f"http://127.0.0.1:{unused.getsockname()[1]}/v1", "NO_KEY")
        start = time.monotonic()
        with pytest.raises(TeacherUnavailable, match=r"no connection: .*is it started, at that"):
            asked(tmp_path, send, requests(50), SendOptions())
    assert time.monotonic() - start < 8
    with Journal(tmp_path / "journal") as journal:
        assert len(journal.missing(list(requests(50)), only_failed=True)) == 0, "no row is given up"


@pytest.mark.parametrize("first", [GOOD, Rejected("400"), Retryable("503: loading", overload=True)])
def test_a_server_that_was_there_may_be_away_for_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: Reply | Exception
) -> None:
    monkeypatch.setattr(asking, "UNREACHED", 0.0)
    said = [first, *[Retryable("refused", unreachable=True)] * 4]

    async def send(body: dict) -> Reply:
        found = said.pop(0) if said else GOOD
        if isinstance(found, Exception):
            raise found
        return found

    options = SendOptions(concurrency=1, first_wait=0.001)
    summary = asked(tmp_path, send, requests(3), options)
    assert summary.answered == 3 - isinstance(first, Rejected)


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
    assert replies.reply_of(chat(message={"content": parts}), True, str).text == "yes"
    with pytest.raises(Retryable):  # Else it is kept as answered, and asked again all the same.
        replies.reply_of(chat(message={"content": "ha"}, finish_reason="error"), True, str)


@pytest.mark.parametrize("part", [{"text": "x"}, 3, ["x"]])
def test_text_of_another_type_is_no_completion(part: object) -> None:
    for choice in (
        {"message": {"content": part}},
        {"message": {"content": "x", "refusal": part}},
        {"message": {"content": "x"}, "finish_reason": part},
    ):
        with pytest.raises(Retryable, match="the answer is no completion"):
            replies.reply_of(chat(**choice), True, str)


def test_no_part_of_a_key_is_left_where_an_answer_is_cut() -> None:
    key = "AIza-0123456789-abcdefghij"
    page = f"<html>{' ' * 60}{key}</html>".encode()
    with pytest.raises(Retryable) as raised:
        replies.reply_of(page, True, lambda text: client.clean(text, key))
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


FILTERED = [
    (403, {"code": 403, "message": 'Your input was flagged for "violence".'}),
    (400, {"code": "content_filter", "message": "The response was filtered"}),
    (400, {"code": "invalid_prompt", "message": "flagged as violating our usage policy"}),
    (400, {"message": "Content Exists Risk", "type": "invalid_request_error"}),
    (400, {"code": "x", "innererror": {"code": "ResponsibleAIPolicyViolation"}, "message": "no"}),
    (403, {"message": "Content violates usage guidelines."}),
]


USAGE = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
QUICK = SendOptions(concurrency=1, first_wait=0.001)


def completion(content: object, finish: str = "stop", usage: object = USAGE) -> dict:
    message = {"role": "assistant", "content": content}
    return {"choices": [{"message": message, "finish_reason": finish}], "usage": usage}


@pytest.mark.parametrize(("status", "error"), FILTERED)
def test_a_row_that_a_filter_took_is_refused_and_the_rest_goes_on(
    tmp_path: Path, status: int, error: dict
) -> None:
    with answering((status, {"error": error}, {}), (200, completion("yes"), {})) as url:
        summary = asked(tmp_path, Client(url, "NO_KEY"), requests(3), QUICK)
        assert (summary.answered, summary.failed, summary.stopped) == (3, 0, "")
        with Journal(tmp_path / "journal") as journal:
            replies = [journal.reply(request.key) for request in requests(3)]
        assert replies[0].finish_reason == "content_filter"
        assert str(error.get("message")) in replies[0].refusal
        assert [reply.text for reply in replies[1:]] == ["yes", "yes"]


def test_no_error_is_too_deep_to_be_read() -> None:
    for depth in (10, *range(800, 1100)):
        text = '{"error": {"message": "no", "metadata": ' + "[" * depth + "]" * depth + "}}"
        assert str(replies.failure_of(400, text, str)).startswith("400: ")


@pytest.mark.parametrize("message", ["Forbidden", "Your account was flagged for abuse"])
def test_other_403s_stop_the_run(tmp_path: Path, message: str) -> None:
    refused = pytest.raises(TeacherUnavailable, match="403")
    with answering((403, {"error": {"message": message}}, {})) as url, refused:
        asked(tmp_path, Client(url, "NO_KEY"), requests(3), QUICK)


def test_what_cannot_be_used_is_asked_once_more_and_counted(tmp_path: Path) -> None:
    with answering((200, completion(3), {})) as url:
        summary = asked(tmp_path, Client(url, "NO_KEY"), requests(1), QUICK)
    assert (summary.failed, summary.retries) == (1, 1)
    assert (summary.prompt_tokens, summary.completion_tokens) == (2000, 200)
    with answering((200, completion("yes"), {})) as url:
        asked(tmp_path, Client(url, "NO_KEY"), requests(1), QUICK)
    with Journal(tmp_path / "journal") as journal:
        reply = journal.reply(next(requests(1)).key)
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens) == ("yes", 3000, 300)


@pytest.mark.parametrize("finish", ["abort", "insufficient_system_resource", "error"])
def test_what_a_server_did_not_finish_is_asked_again(tmp_path: Path, finish: str) -> None:
    lost = (200, completion("The answer is 4", finish), {})
    with answering(lost, lost, lost, (200, completion("yes"), {})) as url:
        summary = asked(tmp_path, Client(url, "NO_KEY"), requests(1), QUICK)
    assert (summary.answered, summary.retries) == (1, 3)
    assert summary.prompt_tokens == 4000, "all were paid for"


def test_nothing_is_given_away_where_the_text_is_null(tmp_path: Path) -> None:
    with answering((200, completion(None), {})) as url:
        summary = asked(tmp_path, Client(url, "NO_KEY"), requests(2), QUICK)
    assert (summary.answered, summary.retries, summary.prompt_tokens) == (2, 0, 2000)


def test_the_budget_holds_against_what_cannot_be_used(tmp_path: Path) -> None:
    def check(summary: ExtractionProgress) -> str | None:
        return "spent" if summary.prompt_tokens >= 1500 else None

    with answering((200, completion("x", "abort"), {})) as url:
        summary = asked(tmp_path, Client(url, "NO_KEY"), requests(9), QUICK, may_go_on=check)
    assert (summary.stopped, summary.prompt_tokens) == ("spent", 2000)
    with Journal(tmp_path / "journal") as journal:
        kept = [journal.reply(request.key) for request in requests(9)]
        assert sum(reply.prompt_tokens for reply in kept if reply) == 2000


def test_the_budget_holds_against_estimates(tmp_path: Path) -> None:
    def check(summary: ExtractionProgress) -> str | None:
        return "spent" if summary.prompt_tokens >= 1500 else None

    with answering((200, completion("yes", usage=None), {})) as url:
        send = Client(url, "NO_KEY")
        summary = asked(tmp_path, send, requests(9, "word " * 700), QUICK, may_go_on=check)
    assert (summary.stopped, summary.answered, summary.estimated) == ("spent", 2, 2)


def test_tokens_without_usage_are_estimated(tmp_path: Path) -> None:
    with answering((200, completion("x" * 350, usage=None), {})) as url:
        summary = asked(tmp_path, Client(url, "NO_KEY"), requests(1, "word " * 700), QUICK)
    assert (summary.estimated, summary.completion_tokens) == (1, 100)
    assert summary.prompt_tokens > 900


def test_any_text_is_sent_and_kept(tmp_path: Path) -> None:
    odd = Request("\ud83d", 0, {"model": "m", "messages": [{"role": "u", "content": "\ud83d x"}]})
    with answering((200, completion("y \ud83d"), {})) as url:
        assert asked(tmp_path, Client(url, "NO_KEY"), iter([odd]), QUICK).answered == 1
    with Journal(tmp_path / "journal") as journal:
        assert journal.reply(odd.key).text == "y \ufffd"
        journal.put(odd, Reply(text="z \ud83d"))


DAILY = [
    (
        {"message": "Rate limit reached on requests per day (RPD). Try again in 7h12m0s."},
        {},
        "Go on",
    ),
    ({"message": "slow down"}, {"retry-after": "7200"}, "Go on after"),
    (
        {"message": "quota", "details": [{"quotaId": "GenerateRequestsPerDayPerProject"}]},
        {},
        "00:00 UTC",
    ),
]


@pytest.mark.parametrize(("error", "headers", "said"), DAILY)
def test_a_quota_of_a_day_ends_the_run(
    tmp_path: Path, error: dict, headers: dict, said: str
) -> None:
    with answering((200, completion("yes"), {}), (429, {"error": error}, headers)) as url:
        summary = asked(tmp_path, Client(url, "NO_KEY"), requests(9), QUICK)
    assert (summary.answered, summary.failed) == (1, 0)
    assert said in summary.stopped
    with Journal(tmp_path / "journal") as journal:
        assert len(journal.claim(list(requests(9)))) == 8, "no row is given up"


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"x-ratelimit-reset-requests": "120ms"}, "", 0.12),
        ({"x-ratelimit-reset-tokens": "6m0s", "x-ratelimit-remaining-tokens": "0"}, "", 360),
        ({"x-ratelimit-reset-requests": "1m2.5s"}, "", 62.5),
        ({"X-RateLimit-Reset": "1445412480000"}, "", 10),
        ({"X-RateLimit-Reset": "1445412480"}, "", 10),
        ({"x-ratelimit-reset": "59"}, "", 59),
        ({"anthropic-ratelimit-requests-reset": "2015-10-21T07:28:00Z"}, "", 10),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "8s",
                "x-ratelimit-remaining-tokens": "900",
                "x-ratelimit-reset-tokens": "90s",
            },
            "",
            8,
        ),
        ({}, '{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34s"}', 34),
        ({}, "Please retry in 34.5s.", 34.5),
        ({}, "Please try again in 1m30s. Visit", 90),
        ({}, "Please retry after 6 seconds.", 6),
        ({"retry-after": "3"}, "Please try again in 20s.", 3),
        ({}, "slow down", None),
        ({"x-ratelimit-reset-requests": "soon"}, "", None),
    ],
)
def test_how_long_a_server_asks_to_wait(headers: dict, body: str, seconds: float | None) -> None:
    assert limits.retry_after(headers, 1445412470.0, body) == pytest.approx(seconds)


def test_a_proxy_of_the_environment_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering((200, completion("yes"), {})) as url:
        monkeypatch.setenv("http_proxy", url.removesuffix("/v1"))
        monkeypatch.setenv("no_proxy", "localhost")
        # No such host: only the proxy can answer.
        send = Client("http://teacher.invalid:80/v1", "NO_KEY")
        assert asked(tmp_path, send, requests(1), QUICK).answered == 1
