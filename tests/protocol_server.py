"""A real HTTP server that speaks OpenAI's protocol and fails on purpose, in a process of its own.

  python tests/protocol_server.py LOG --delay 0.01 --faults 0.3 --seed 0

It prints its port. Each request with an answer that the client can use is a line of LOG (the row's
text), written before the answer is sent. No third-party code.
"""

import argparse
import asyncio
import json
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FAULTS = ("429", "500", "503", "hang", "cut", "not_json", "no_choices")
"""Failures after which the same request is worth sending again."""

REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}

HANG_SECONDS = 30.0


def kind_of(text: str) -> str:
    """What becomes of a row's text in the end: a function of the text alone."""
    number = text.rsplit(" ", 1)[-1]
    kinds = {3: "length", 7: "refusal", 11: "drip"}
    return kinds.get(int(number) % 20, "answer") if number.isdigit() else "answer"


class Server:
    """Answers `/v1/chat/completions` and `/v1/completions`.

    Attributes:
      good: row texts that were answered for good, in order.
    """

    def __init__(
        self,
        *,
        delay: float = 0.0,
        faults: float = 0.0,
        seed: int = 0,
        key: str = "",
        log: Path | None = None,
        answer: Callable[[str], str] | None = None,
        always: int | None = None,
    ) -> None:
        self.delay, self.faults, self.key, self.always = delay, faults, key, always
        self.drip_seconds = 0.01
        self.dice = random.Random(seed)
        self.log = log.open("a", buffering=1) if log else None
        self.answer = answer or (lambda text: f"Because of {text}. So the answer is yes.")
        self.good: list[str] = []
        self.requests = self.most_at_once = self.at_once = 0

    async def start(self) -> int:
        """Listens; returns the port."""
        self.server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=1024)
        return self.server.sockets[0].getsockname()[1]

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                headers = dict(x.lower().split(": ", 1) for x in lines[1:] if ": " in x)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.requests += 1
                self.at_once += 1
                self.most_at_once = max(self.most_at_once, self.at_once)
                try:
                    if not await self._respond(lines[0], headers, body, writer):
                        break
                finally:
                    self.at_once -= 1
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _respond(
        self, line: str, headers: dict, body: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        """Answers one request; False: the connection is to be closed."""
        await asyncio.sleep(self.delay)
        request = json.loads(body)
        chat = "chat" in line
        if self.always:
            return await self._error(writer, self.always, headers)
        if self.key and headers.get("authorization") != f"bearer {self.key}":
            return await self._error(writer, 401, headers)
        fault = self.dice.choice(FAULTS) if self.dice.random() < self.faults else None
        if fault in ("429", "500", "503"):
            return await self._error(writer, int(fault), headers)
        if fault == "hang":
            await asyncio.sleep(HANG_SECONDS)
            return False
        content = request["messages"][-1]["content"] if chat else request["prompt"]
        text = content.strip().splitlines()[0].removeprefix("Q: ")
        data = json.dumps(self._completion(text, chat)).encode()
        if fault == "cut":
            await self._send(writer, 200, data[: len(data) // 2], length=len(data))
            return False
        if fault == "not_json":
            return await self._send(writer, 200, b"<html>upstream error</html>")
        if fault == "no_choices":
            return await self._send(writer, 200, b'{"object": "chat.completion", "choices": []}')
        self.good.append(text)
        if self.log:
            self.log.write(text + "\n")
        return await self._send(writer, 200, data, slowly=kind_of(text) == "drip")

    def _completion(self, text: str, chat: bool) -> dict:
        kind = kind_of(text)
        answer, reason, refusal = self.answer(text), "stop", None
        if kind == "length":
            answer, reason = answer[:12], "length"
        if kind == "refusal" and chat:
            answer, refusal = None, "I cannot help with that."
        choice = {"index": 0, "finish_reason": reason}
        if chat:
            choice["message"] = {"role": "assistant", "content": answer, "refusal": refusal}
        else:
            choice["text"] = answer
        usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
        return {
            "id": "x",
            "object": "chat.completion",
            "created": 1,
            "model": "teacher-1",
            "choices": [choice],
            "usage": usage,
        }

    async def _error(self, writer: asyncio.StreamWriter, status: int, headers: dict) -> bool:
        # Some servers repeat the key in what they say.
        said = f"status {status} for {headers.get('authorization')}"
        data = json.dumps({"error": {"message": said, "type": "t", "code": None}}).encode()
        extra = "Retry-After: 0.05\r\n" if status == 429 else ""
        return await self._send(writer, status, data, extra=extra)

    async def _send(
        self,
        writer: asyncio.StreamWriter,
        status: int,
        data: bytes,
        *,
        length: int | None = None,
        slowly: bool = False,
        extra: str = "",
    ) -> bool:
        writer.write(
            f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: application/json\r\n{extra}"
            f"Content-Length: {len(data) if length is None else length}\r\n\r\n".encode()
        )
        size = max(1, len(data) // 10) if slowly else len(data)
        for at in range(0, len(data), size):
            writer.write(data[at : at + size])
            await writer.drain()
            if slowly:
                await asyncio.sleep(self.drip_seconds)
        return True


def completing(answer: Callable[[str], str]) -> Callable[[dict], tuple[int, object, dict]]:
    """For `answering`: what a chat request's last message is answered with."""

    def completion(request: dict) -> tuple[int, object, dict]:
        text = answer(request["messages"][-1]["content"])
        choice = {"index": 0, "finish_reason": "stop", "message": {"content": text}}
        usage = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
        return 200, {"id": "x", "model": "m", "choices": [choice], "usage": usage}, {}

    return completion


@contextmanager
def answering(*answers: tuple[int, object, dict] | Callable) -> Iterator[str]:
    """A server of these answers (status, body, headers), the last again and again: its URL. One may
    be a function of the request.
    """
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers["content-length"]))
            answer = left.pop(0) if len(left) > 1 else left[0]
            status, body, headers = answer(json.loads(asked)) if callable(answer) else answer
            data = json.dumps(body).encode()
            self.send_response(status)
            for name, value in ({"content-length": str(len(data))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


async def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("log", type=Path)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    server = Server(delay=args.delay, faults=args.faults, seed=args.seed, log=args.log)
    print(await server.start(), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main())
