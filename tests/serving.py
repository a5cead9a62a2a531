"""A student whose arithmetic is quick and plain, and a server with it, for tests of the server.

Run by itself it serves that student on a free port, with limits as flags of `dss serve`.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dss_jax.core import log
from dss_jax.core.paths import shipped
from dss_jax.core.student_card import StudentCard
from dss_jax.data.vocabulary import SentencePiece
from dss_jax.serve.app import create_app
from dss_jax.serve.limits import ServeLimits
from dss_jax.serve.server import bind, run, start_student, url_of
from dss_jax.serve.service import Served, Service
from dss_jax.student.student import GeneratedIds, Ids, Student

VOCABULARY = shipped("tasks") / "vocabularies" / "word_problems.model"

EXAMPLES = tuple(
    {
        "input": f"Tom has {n} apples and finds {n + 1} more. How many are there?",
        "label": f"({n} + {n + 1})",
        "allowed_labels": [f"({n} + {n + 1})", f"({n} - {n + 1})", f"({n} * {n + 1})"],
        "teacher_label": f"({n} + {n + 1})",
        "rationale": f"Tom finds {n + 1} more, so they are added.",
    }
    for n in range(3, 8)
)

CARD = StudentCard(
    task="word_problems",
    description="Equations of word problems",
    method="dss",
    label_prefix="predict: ",
    rationale_prefix="explain: ",
    row_labels=True,
    input_length=128,
    max_decode_length=16,
    max_rationale_length=24,
    examples=EXAMPLES,
)


class DigestEngine:
    """Answers that depend on all of an input and on nothing else, so that one that has gone to
    another client would be seen.

    Attributes:
      calls: rows of each call.
      ranked: of these, where labels were ranked.
      seconds: that a call takes, however many rows it has.
    """

    name = "digest"

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.calls, self.threads = seconds, list[int](), set[int]()
        self.ranked = list[int]()
        self.hold = threading.Event()
        self.hold.set()

    def _called(self, rows: int) -> None:
        self.calls.append(rows)
        self.threads.add(threading.get_ident())
        assert self.hold.wait(20)
        time.sleep(self.seconds)

    def generate(self, inputs: Sequence[Ids], longest: int) -> list[GeneratedIds]:
        self._called(len(inputs))
        return [_written(ids, longest) for ids in inputs]

    def rank(self, inputs: Sequence[Ids], labels: Sequence[Sequence[Ids]]) -> list[np.ndarray]:
        self._called(len(inputs))
        self.ranked.append(len(inputs))
        return [
            np.array([-_draw((*ids, 0, *label)) for label in row], np.float32)
            for ids, row in zip(inputs, labels, strict=True)
        ]


def _draw(ids: Sequence[int]) -> float:
    """From 0 to 6."""
    digest = hashlib.sha256(repr(list(map(int, ids))).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 * 6


def _written(ids: Ids, longest: int) -> GeneratedIds:
    """The input's last tokens, backwards."""
    text = [i for i in reversed(list(ids)) if i > 2][:12]
    ended = len(text) < longest
    return GeneratedIds(text[:longest], -_draw(ids), ended)


def make_student(card: StudentCard = CARD, seconds: float = 0.0) -> tuple[Student, DigestEngine]:
    engine = DigestEngine(seconds)
    return Student(card, engine, SentencePiece(VOCABULARY), Path("runs/words")), engine


@contextlib.contextmanager
def client_of(
    student: Student,
    *,
    token: str = "",
    hosts: Sequence[str] = ("testserver",),
    warm_batches: bool = False,
    **limits: int,
) -> Iterator[Any]:
    """A client of an app in this process, with its service as `client.service`."""
    from starlette.testclient import TestClient

    service = Service(
        Served(student, "words", token, tuple(hosts), ServeLimits(**limits), warm_batches)
    )
    start_student(service, lambda: None)
    try:
        with TestClient(create_app(service)) as client:
            client.service = service
            yield client
    finally:
        service.batcher.stop()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=0.0, help="of a call of the student")
    for own in dataclasses.fields(ServeLimits):
        parser.add_argument(f"--{own.name}", type=int, default=own.default)
    args = vars(parser.parse_args())
    student, _ = make_student(seconds=args.pop("seconds"))
    with log.shown(), bind("127.0.0.1", 0) as listening:
        print(url_of(listening), flush=True)
        served = Served(student, "words", "", ("127.0.0.1",), ServeLimits(**args))
        run(Service(served), listening)


if __name__ == "__main__":
    main()
