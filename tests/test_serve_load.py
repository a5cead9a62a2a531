"""A server on a real socket under good and bad clients at once: nothing is lost, nothing leaks; and
after SIGTERM nothing that it took is dropped. `benchmarks/serve.py` has the long form.
"""

import asyncio
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason='needs pip install -e ".[serve]"')

from load_clients import Body, Load, as_http, files_of, memory_of
from serving import EXAMPLES, make_student

SECONDS = 2.0


def questions() -> list[tuple[Body, Any]]:
    """Of mixed lengths, with the answers that `predict` gives."""
    student, found = make_student()[0], []
    for n in range(40):
        texts = [
            f"{EXAMPLES[n % 5]['input']} {'And so on. ' * (n * i % 7)}" for i in range(1 + n % 5)
        ]
        labels = [[f"{n} + {i}", f"{n} - {i}"] for i in range(len(texts))] if n % 2 else None
        wanted = student.predict(texts, explain=n % 3 == 0, labels=labels)
        body: Body = {"input": texts, "explain": n % 3 == 0}
        found.append((body | ({"labels": labels} if labels else {}), wanted))
    return found


def same(found: list[dict], wanted: Any) -> bool:
    return [(one["label"], one["rationale"]) for one in found] == [
        (one.label, one.rationale) for one in wanted
    ] and all(
        one["probability"] == other.probability for one, other in zip(found, wanted, strict=True)
    )


def received(client: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := client.recv(65536):
            found += chunk
    return found


class Running:
    """`dss serve`'s own server in another process, with a student that needs no weights."""

    def __init__(self, *flags: str) -> None:
        command = [sys.executable, str(Path(__file__).with_name("serving.py")), *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]
        assert "ready" in self.process.stdout.readline()
        self.port = int(self.url.rpartition(":")[2])

    def stop(self) -> str:
        """The exit by SIGTERM, which must be clean; gives what was said."""
        self.process.send_signal(signal.SIGTERM)
        said, _ = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, said
        return said

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """For clients that are slow, with room for an answer that is too much for two sockets."""
    flags = (
        "--client_seconds=1 --seconds=0.004 --max_inputs=4000 --max_waiting=9000 --max_tokens=9000"
    )
    started = Running(*flags.split())
    yield started
    started.process.kill()
    started.process.wait()


def test_slow_clients_are_cut_off(running: Running) -> None:
    labels = [f"{n} " * 300 for n in range(6)]
    large = as_http({"input": ["a"] * 4000, "labels": labels})
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(running.connect()) for _ in range(4)]
        start = time.monotonic()
        for client, sent in zip(clients, (b"", b"POST /v1/pred", large[:-3], large), strict=True):
            client.sendall(sent)
        assert received(clients[0]) == b"", "no request"
        assert received(clients[1]) == b"", "no whole head"
        slow_body = received(clients[2])
        assert slow_body.startswith(b"HTTP/1.1 408")
        assert json.loads(slow_body.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_slow"
        assert 0.5 < time.monotonic() - start < 5
        clients[3].recv(1, socket.MSG_PEEK)  # The answer has come, and is left there.
        time.sleep(2.5)
        head, _, content = received(clients[3]).partition(b"\r\n\r\n")
    whole = int(head.lower().partition(b"content-length: ")[2].split()[0])
    assert 0 < len(content) < whole, "it has not taken its answer"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_good_clients_among_bad_ones_lose_nothing_and_leave_nothing(running: Running) -> None:
    asked, pid = questions(), running.process.pid
    files = files_of(pid)
    warm = Load(running.url, asked, same, time.monotonic() + SECONDS / 2)
    asyncio.run(warm.run(good=8, bad=2))
    memory = memory_of(pid)
    load = Load(running.url, asked, same, time.monotonic() + SECONDS)
    asyncio.run(load.run(good=8, bad=2))
    assert not load.wrong, load.wrong[:3]
    for what in ("answered", "malformed 400", "malformed 413", "no HTTP", "hung up", "slow"):
        assert load.counts[what], load.counts
    assert load.counts["not taken"] == 0
    deadline = time.monotonic() + 10
    while files_of(pid) > files:
        assert time.monotonic() < deadline, "connections are left over"
        time.sleep(0.05)
    assert memory_of(pid) - memory < 8e6
    said = running.stop()
    taken, answered, withdrawn = map(int, re.findall(r"\d+", said.partition("stopped: ")[2]))
    assert taken == answered + withdrawn
    assert withdrawn > 0


def test_sigterm_drops_nothing_that_was_taken() -> None:
    started, asked = Running("--seconds=0.004"), questions()
    load = Load(started.url, asked, same, time.monotonic() + 30)
    (body, wanted), after = asked[3], []

    async def work() -> None:
        clients = asyncio.create_task(load.run(good=12, bad=0))
        half, idle, request = started.connect(), started.connect(), as_http(body)
        half.sendall(request[:-10])
        while load.counts["answered"] < 100:
            await asyncio.sleep(0.01)
        started.process.send_signal(signal.SIGTERM)
        load.going = False
        await asyncio.sleep(0.2)
        # Both were connected before: one has sent half of its request, the other nothing.
        half.sendall(request[-10:])
        idle.sendall(request)
        await clients
        after.extend(received(connection) for connection in (half, idle))

    try:
        asyncio.run(work())
        said, _ = started.process.communicate(timeout=30)
    finally:
        started.process.kill()
    assert started.process.returncode == 0
    assert not load.wrong, load.wrong[:3]
    assert load.counts["not taken"] == 0
    for answer in after:
        head, _, content = answer.partition(b"\r\n\r\n")
        assert b"connection: close" in head.lower()
        assert same(json.loads(content)["predictions"], wanted)
    count = load.counts["answered"] + 2
    assert f"stopped: {count} requests taken, {count} answered, 0 withdrawn" in said


def test_too_many_connections_are_told_so() -> None:
    started = Running("--max_connections=3")
    try:
        idle = [started.connect() for _ in range(3)]
        with started.connect() as one_more:
            one_more.sendall(as_http({"input": "a"}))
            assert one_more.recv(1000).startswith(b"HTTP/1.1 503")
        for connection in idle:
            connection.close()
        started.stop()
    finally:
        started.process.kill()
