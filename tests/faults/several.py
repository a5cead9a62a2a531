"""Runs of 2 and 4 processes: one killed, late, or with something else than the others."""

import atexit
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import children
import numpy as np
import pytest
import things
import toy
from children import FINE, HUNG, REFUSED, SILENT, TRACEBACK, Ended

from dss_jax.layouts.batches import TrainBatches
from dss_jax.run import hosts
from dss_jax.train.metric_log import read_metrics

PATIENCE = 300.0
"""Seconds in which all must have ended, also those whose neighbour was killed."""

CLOSE = {"rel": 1e-4, "abs": 1e-5}
"""Sums over devices are taken in another order."""

Outcome = tuple[str, str]


class Several:
    """Runs of several processes in a folder of their own."""

    def __init__(self, place: things.Place, name: str) -> None:
        self.place, self.store = place, place.store()
        self.at = place.folder / "hosts" / name
        shutil.rmtree(self.at, ignore_errors=True)
        self.at.parent.mkdir(exist_ok=True)
        self.logs = [self.at.parent / f"{n}.log" for n in range(4)]

    def start(
        self,
        count: int,
        *,
        slow: bool = False,
        own: dict[int, Callable[[list[str]], list[str]]] | None = None,
        **settings: object,
    ) -> list[int]:
        """Starts so many; `own`: process -> what changes its arguments, when it has begun."""
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        words = self.place.train(self.at, self.store, **settings)
        among = ["--coordinator_address", f"localhost:{port}", "--process_count", str(count)]

        def work(index: int) -> int:
            mine = (own or {}).get(index, lambda words: words)(words)
            if slow:
                real = TrainBatches.__call__
                TrainBatches.__call__ = lambda *a: time.sleep(0.2) or real(*a)  # type: ignore[method-assign]
            more = [*among, "--process_index", str(index)] if count > 1 else []
            hosts.describe_hosts = lambda *args: None  # It traces T5.
            try:
                return children.dss([*mine, *more], linear=True)
            finally:
                atexit._run_exitfuncs()  # JAX waits there for the others.

        started = []
        for index in range(count):
            self.logs[index].unlink(missing_ok=True)
            started.append(children.child(lambda index=index: work(index), self.logs[index]))
        return started

    def ended(self, started: list[int]) -> list[Ended]:
        end = time.monotonic() + PATIENCE
        return [
            children.wait(pid, log, max(1.0, end - time.monotonic()))
            for pid, log in zip(started, self.logs, strict=False)
        ]

    def went_on(self, count: int, **settings: object) -> Outcome:
        """The same command with so many processes: whether it ends as one process."""
        said = self.ended(self.start(count, **settings))
        for one in said:
            if one.outcome != FINE:
                return one.outcome if one.outcome in (HUNG, TRACEBACK) else SILENT, one.said
        return self.same()

    def same(self) -> Outcome:
        log = self.place.log
        # What other devices have saved, one process cannot read as it is.
        found, alone = (
            things.of(lambda at: things.run_outcome(at, read=False), at, log)
            for at in (self.at, self.place.whole())
        )
        other = _difference(alone, found)
        return (SILENT, other) if other else (FINE, "")

    def await_steps(self) -> None:
        """Returns when some steps are logged, or none will be."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if len(read_metrics(self.at / "metrics.jsonl")) > things.STEPS // 2:
                return
            time.sleep(0.05)


def _difference(one: dict, other: dict) -> str:
    """What differs between two runs; "": nothing but how sums were rounded."""
    if not one or not other or len(one["metrics"]) != len(other["metrics"]):
        return f"{len(other.get('metrics', ()))} lines of metrics"
    for a, b in zip(one["metrics"], other["metrics"], strict=True):
        for key in a.keys() | b.keys():
            if a.get(key) != b.get(key) and a[key] != pytest.approx(b[key], **CLOSE):
                return f"step {a['step']}, {key}: {a[key]} and {b[key]}"
    texts = [re.findall(r'"prediction": "([^"]*)"', str(r["predictions"])) for r in (one, other)]
    return "" if texts[0] == texts[1] else "predictions"


def _disturbed(number: signal.Signals, count: int, after: int, **settings: object) -> Callable:
    """One of several gets a signal; the same command goes on with another number of processes.
    After SIGKILL the others are ended by JAX, which has a text and a stack of its own.
    """
    expected = {signal.SIGTERM: {185}, signal.SIGINT: {130, 185}}.get(number)

    def case(one: Several) -> Outcome:
        started = one.start(count, slow=True, **settings)
        one.await_steps()

        os.kill(started[-1], number)
        began = time.monotonic()
        said = one.ended(started)
        seconds = time.monotonic() - began
        for ended in said if expected else said[:-1]:
            if ended.status is None:
                return HUNG, ended.said
            if expected and ended.status not in expected:
                return TRACEBACK, f"{ended.status}: {ended.said}"
            if not expected and ended.status == 0:
                return SILENT, ended.said
        outcome, text = one.went_on(after)
        return outcome, text or f"the others ended after {seconds:.0f} s"

    return case


def _same(count: int, **settings: object) -> Callable[[Several], Outcome]:
    return lambda one: one.went_on(count, **settings)


def _late(one: Several) -> Outcome:
    def later(words: list[str]) -> list[str]:
        time.sleep(15)
        return words

    said = one.ended(one.start(2, own={1: later}))
    wrong = next((ended for ended in said if ended.outcome != FINE), None)
    return (wrong.outcome, wrong.said) if wrong else one.same()


def _refused(text: str, change: Callable[[list[str]], list[str]]) -> Callable[[Several], Outcome]:
    """One of two has something else: both say so, with status 2."""

    def case(one: Several) -> Outcome:
        said = one.ended(one.start(2, own={1: change}))
        for ended in said:
            if ended.status != 2 or not re.search(text, ended.said):
                wrong = ended.outcome if ended.outcome in (HUNG, TRACEBACK) else SILENT
                return wrong, f"{ended.status}: {ended.said}"
        return REFUSED, said[0].said

    return case


def _other_code(words: list[str]) -> list[str]:
    hosts.code_digest = lambda: "another"  # type: ignore[attr-defined]
    return words


def _other_data(words: list[str]) -> list[str]:
    other = Path(words[words.index("--store") + 1]).with_name("other-store")
    shutil.rmtree(other, ignore_errors=True)
    toy.make_store(other, np.random.default_rng(1))
    return [str(other) if word.endswith("/store") else word for word in words]


CASES: dict[str, Callable[[Several], Outcome]] = {
    "two, nothing wrong": _same(2),
    "four, another mesh": _same(4, Mesh__data=2, Mesh__model=2),
    "two, one with other settings": _refused(
        "not the same configuration", lambda words: [*words, "--gin.Train.seed=5"]
    ),
    "two, one with other data": _refused("not the same token store", _other_data),
    "two, one with other code": _refused("not the same code of dss-jax", _other_code),
    "two, one 15 s late": _late,
    "two, SIGTERM to one, then four": _disturbed(signal.SIGTERM, 2, 4),
    "four, SIGTERM to one, then two": _disturbed(signal.SIGTERM, 4, 2, Mesh__data=2, Mesh__model=2),
    "two, Ctrl-C to one, then two": _disturbed(signal.SIGINT, 2, 2),
    "two, one killed, then one": _disturbed(signal.SIGKILL, 2, 1),
    "two, one killed, then four": _disturbed(signal.SIGKILL, 2, 4),
    "four, one killed, then two": _disturbed(signal.SIGKILL, 4, 2, Mesh__data=2, Mesh__model=2),
}


def tried(place: things.Place, name: str) -> dict:
    """What becomes of a case."""
    place.whole()
    outcome, said = CASES[name](Several(place, re.sub(r"\W+", "-", name)))
    return {"outcome": outcome, "said": said[-1500:]}
