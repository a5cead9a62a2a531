"""A simulated teacher: an HTTP server on this machine that speaks OpenAI's protocol.

It knows the rows of one generated task by heart and answers with the label and the rationale that
they carry, so extraction can be run and tested without a language model, a key or a network.
"""

import json
import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dss_jax.core.prompt import Prompt
from dss_jax.core.registry import load_task_file
from dss_jax.core.types import DistillationTask, Generated

MODEL = "simulated"  # The only model that the server has.
QUEUE = 128  # Connections that may wait to be accepted.


def completions(task: DistillationTask, prompt: Prompt) -> dict[str, str]:
    """Input as it is asked -> completion in the form of the prompt's answers, for each row."""
    form = prompt.answer.removeprefix(prompt.opening)
    known = {}
    for source in task.sources:
        assert isinstance(source, Generated), "only rows that are computed can be simulated"
        for row in (row for split in source.splits for row in source.rows(split)):
            example = task.to_example(row, None)
            output = prompt.output_of(replace(example, label=example.teacher_label))
            text = form.replace("{output}", output).replace("{rationale}", example.rationale)
            known[prompt.input_of(example).strip()] = text.strip()
    return known


def last_input(message: str, prompt: Prompt) -> str:
    """The input of the last question in a message; earlier ones are exemplars."""
    head, _, tail = prompt.question.partition("{input}")
    text = message.strip()
    text = text.removesuffix(prompt.opening.strip()).strip().removesuffix(tail.strip()).strip()
    return text.rpartition(head.strip())[2].strip() if head.strip() else text


class DeclinedError(Exception):
    """A request that the server declines: HTTP status and reason."""


class SimulatedTeacher(ThreadingHTTPServer):
    """`/v1/chat/completions` and `/v1/models` on a free port of 127.0.0.1."""

    request_queue_size = QUEUE

    def __init__(self, task: DistillationTask) -> None:
        assert task.prompt is not None
        self.prompt = task.prompt
        self.completions = completions(task, task.prompt)
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def base_url(self) -> str:
        """As `--base_url` takes it."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    def reply(self, path: str, content: bytes) -> dict[str, Any]:
        """The answer to a request. Tokens are counted as words.

        Raises:
          DeclinedError: an unknown path, no JSON, another model, no user's message, a question that
            is none of the rows'.
        """
        if path == "/v1/models":
            model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "dss-jax"}
            return {"object": "list", "data": [model]}
        if path != "/v1/chat/completions":
            raise DeclinedError(404, f"unknown path {path}")
        try:
            body = json.loads(content)
            model, messages = body["model"], body["messages"]
            question = [m["content"] for m in messages if m["role"] == "user"][-1]
        except ValueError as error:
            raise DeclinedError(400, f"not JSON: {error}") from error
        except (KeyError, TypeError, IndexError) as error:
            raise DeclinedError(400, f"no model or no user's message: {error!r}") from error
        if model != MODEL:
            raise DeclinedError(404, f"the model {model!r} does not exist; there is {MODEL!r}")
        text = self.completions.get(last_input(question, self.prompt))
        if text is None:
            raise DeclinedError(400, f"the simulated teacher does not know {question[-80:]!r}")
        sent = sum(len(str(m["content"]).split()) for m in messages)
        said = len(text.split())
        message = {"role": "assistant", "content": text}
        tokens = {"prompt_tokens": sent, "completion_tokens": said, "total_tokens": sent + said}
        return {
            "id": "chatcmpl-simulated",
            "object": "chat.completion",
            "created": 0,
            "model": MODEL,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": tokens,
        }


class _Handler(BaseHTTPRequestHandler):
    server: SimulatedTeacher
    protocol_version = "HTTP/1.1"
    # Headers and body leave in one packet, or each answer waits 40 ms for the client's ACK.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            status, body = 200, self.server.reply(self.path, content)
        except DeclinedError as declined:
            status, reason = declined.args
            body = {"error": {"message": reason, "type": "invalid_request_error"}}
        answer = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@contextmanager
def simulated_teacher(task_file: str) -> Iterator[str]:
    """Runs the server of a task in a process of its own; yields its `--base_url`.

    A process, because a thread would share the interpreter lock with the client.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(task_file, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield str(ours.recv())
    finally:
        ours.close()
        process.join()


def _serve(task_file: str, parent: Connection) -> None:
    # Ctrl-C is for the parent; its end of the pipe closes when it ends, however it does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with SimulatedTeacher(load_task_file(Path(task_file))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        parent.send(server.base_url)
        with suppress(EOFError):
            parent.recv()
        server.shutdown()
