"""Many clients of `dss serve` at once, good and bad ones; `benchmarks/serve.py` has them too."""

import asyncio
import contextlib
import json
import os
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

Body = dict[str, Any]

GARBAGE = (
    b"",
    b"{",
    b"[" * 10_000,
    b'{"input": 3}',
    b'{"input": "\\ud800"}',
    b"\xff" * 100,
    b'{"input": "a", "labels": [[]]}',
)


@dataclass
class Load:
    """What becomes of requests.

    Attributes:
      url: of the server.
      questions: bodies of `/v1/predict` with the answers that they must get.
      same: whether an answer is the one that it must be.
      ends: time (`time.monotonic`) after which no client begins anything.
      going: False once the server has been asked to stop: connections that it closes before they
        have brought a byte of an answer took nothing.
    """

    url: str
    questions: Sequence[tuple[Body, Any]]
    same: Callable[[Any, Any], bool]
    ends: float
    going: bool = True
    seconds: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.ends or not self.going

    async def good(self, seed: int, session: aiohttp.ClientSession) -> None:
        """Asks one question after another, on connections that are kept."""
        draw = random.Random(seed)
        while not self.over:
            body, wanted = draw.choice(self.questions)
            start = time.monotonic()
            try:
                async with session.post(f"{self.url}/v1/predict", json=body) as answer:
                    found = await answer.json()
            except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
                if self.going:
                    self.wrong.append(f"lost: {error!r}")
                self.counts["not taken"] += 1
                continue
            if answer.status in (429, 503):
                self.counts[f"told {answer.status}"] += 1
                await asyncio.sleep(0.05)
            elif answer.status != 200 or not self.same(found["predictions"], wanted):
                self.wrong.append(f"{answer.status}: {found} for {body}")
            else:
                self.counts["answered"] += 1
                self.seconds.append(time.monotonic() - start)

    async def malformed(self, seed: int, session: aiohttp.ClientSession) -> None:
        """Sends what is no request; each must be refused in words."""
        draw = random.Random(seed)
        kind = {"Content-Type": "application/json"}
        while not self.over:
            data = draw.choice((*GARBAGE, b"x" * 2_000_000))
            with contextlib.suppress(aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
                url = f"{self.url}/v1/{draw.choice(('predict', 'completions'))}"
                async with session.post(url, data=data, headers=kind) as answer:
                    found = await answer.json()
                if answer.status not in (400, 413) or not found["error"]["message"]:
                    self.wrong.append(f"{answer.status} for {data[:40]!r}")
                self.counts[f"malformed {answer.status}"] += 1
            await asyncio.sleep(0.01)

    async def no_http(self, seed: int) -> None:
        """Opens connections and writes what is no HTTP, or less than a request, and waits."""
        draw = random.Random(seed)
        while not self.over:
            reader, writer = await self._connect()
            writer.write(draw.choice((b"\0" * 100, b"GET / HTTP/9\r\n\r\n", b"POST /v1/pre", b"")))
            with contextlib.suppress(TimeoutError, OSError):
                await asyncio.wait_for(reader.read(), draw.choice((0.01, 0.3)))
            await _closed(writer)
            self.counts["no HTTP"] += 1

    async def hangs_up(self, seed: int) -> None:
        """Goes away in the middle of its body, or before its answer."""
        draw = random.Random(seed)
        while not self.over:
            _, writer = await self._connect()
            request = as_http(draw.choice(self.questions)[0])
            writer.write(request[: draw.choice((len(request), len(request) - 5, 30))])
            await asyncio.sleep(draw.choice((0, 0.005, 0.02)))
            if draw.random() < 0.5:  # By a reset.
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, linger
                )
            await _closed(writer)
            self.counts["hung up"] += 1

    async def slow(self, seed: int) -> None:
        """Writes its body byte by byte, and reads its answer so, or not at all."""
        draw = random.Random(seed)
        while not self.over:
            reader, writer = await self._connect()
            body, wanted = draw.choice(self.questions)
            request = as_http(body)
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                writer.write(request[:-8])
                for at in range(len(request) - 8, len(request)):
                    writer.write(request[at : at + 1])
                    await asyncio.sleep(0.01)
                if draw.random() < 0.5:
                    head = (await reader.readuntil(b"\r\n\r\n")).lower()
                    length = int(head.partition(b"content-length: ")[2].split()[0])
                    content = b""
                    while len(content) < length:
                        content += await reader.readexactly(min(64, length - len(content)))
                        await asyncio.sleep(0.001)
                    found = json.loads(content)
                    if not self.same(found["predictions"], wanted):
                        self.wrong.append(f"slow: {found} for {body}")
                    self.counts["slow, answered"] += 1
                else:
                    await asyncio.sleep(0.2)
            await _closed(writer)
            self.counts["slow"] += 1

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        place = urlsplit(self.url)
        while True:
            try:
                return await asyncio.open_connection(place.hostname, place.port)
            except OSError:
                if self.over:
                    raise asyncio.CancelledError from None
                await asyncio.sleep(0.05)

    async def run(self, good: int, bad: int) -> None:
        """`good` clients, and `bad` of each bad kind, until it is over."""
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=300)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            kinds = (self.no_http, self.hangs_up, self.slow)
            work = [self.good(n, session) for n in range(good)]
            work += [self.malformed(n, session) for n in range(bad)]
            work += [kind(n) for kind in kinds for n in range(bad)]
            done = await asyncio.gather(*work, return_exceptions=True)
        for error in done:
            if isinstance(error, Exception):
                raise error


def as_http(body: Body) -> bytes:
    """A whole request."""
    content = json.dumps(body).encode()
    head = (
        "POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def memory_of(pid: int) -> int:
    """Resident bytes of a process (Linux)."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


def files_of(pid: int) -> int:
    """How many files and sockets a process has open (Linux)."""
    return len(os.listdir(f"/proc/{pid}/fd"))
