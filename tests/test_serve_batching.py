"""The queue: what becomes one batch, and what becomes of errors, cancelled requests and the end."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from dss_jax.core.errors import UsageError
from dss_jax.serve.batching import Batcher, NotServing, QueueFull


class Doubling:
    """Answers twice a row, when it may; notes its batches."""

    def __init__(self) -> None:
        self.batches: list[tuple[Any, list[Any]]] = []
        self.may = threading.Event()
        self.may.set()

    def __call__(self, key: Any, rows: list[Any]) -> Sequence[Any]:
        assert self.may.wait(10)
        self.batches.append((key, list(rows)))
        if "bad" in rows:
            raise UsageError("a bad row")
        if "broken" in rows:
            raise RuntimeError("our fault")
        return [2 * row for row in rows]


@contextmanager
def started(
    answer: Doubling, first: Callable[[], None] = lambda: None, **options: int
) -> Iterator[Batcher]:
    batcher = Batcher(
        answer, **({"rows_at_once": 4, "max_waiting": 20} | options), on_batch=lambda *_: None
    )
    batcher.start(first, lambda: None)
    try:
        yield batcher
    finally:
        answer.may.set()
        batcher.stop()


async def asked(batcher: Batcher, *requests: tuple[Any, list[Any]]) -> list[asyncio.Task]:
    """Requests that are in the queue, but for the first, which the thread has taken."""
    tasks = []
    for key, rows in requests:
        waiting = batcher.waiting
        tasks.append(asyncio.create_task(batcher.ask(key, rows)))
        await asyncio.sleep(0)
        while len(tasks) == 1 and batcher.waiting > waiting:
            await asyncio.sleep(0.001)
    return tasks


def run(answer: Doubling, work: Callable[[Batcher], Any], **options: int) -> None:
    with started(answer, **options) as batcher:
        asyncio.run(work(batcher))


def test_what_waits_becomes_one_batch() -> None:
    answer = Doubling()

    async def work(batcher: Batcher) -> None:
        answer.may.clear()
        tasks = await asked(batcher, ("a", [1]), ("a", [2, 3]), ("b", [4]), ("a", [5]))
        answer.may.set()
        assert await asyncio.gather(*tasks) == [[2], [4, 6], [8], [10]]

    run(answer, work)
    assert answer.batches == [("a", [1]), ("a", [2, 3, 5]), ("b", [4])]


def test_small_requests_pass_one_that_is_larger_than_a_batch() -> None:
    answer = Doubling()

    async def work(batcher: Batcher) -> None:
        answer.may.clear()
        tasks = await asked(batcher, ("a", [0]), ("a", [*range(1, 11)]), ("a", [20]), ("a", [21]))
        answer.may.set()
        found = await asyncio.gather(*tasks)
        assert found[1:] == [[2 * n for n in range(1, 11)], [40], [42]]

    run(answer, work)
    rows = [rows for _, rows in answer.batches]
    assert rows == [[0], [1, 2, 3, 4], [20, 21, 5, 6], [7, 8, 9, 10]]


def test_a_bad_request_harms_no_other() -> None:
    answer = Doubling()

    async def work(batcher: Batcher) -> None:
        answer.may.clear()
        requests = ("a", [1]), ("a", [2]), ("a", ["bad"]), ("a", ["broken"])
        tasks = await asked(batcher, *requests)
        answer.may.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert found[:2] == [[2], [4]]
        assert [type(e) for e in found[2:]] == [UsageError, RuntimeError]
        assert await batcher.ask("a", [3]) == [6]

    run(answer, work)


def test_a_large_request_fails_whole() -> None:
    answer = Doubling()

    async def work(batcher: Batcher) -> None:
        with pytest.raises(UsageError, match="a bad row"):
            await batcher.ask("a", [1, 2, 3, 4, "bad", 5, 6, 7, 8, 9])
        assert batcher.waiting == 0

    run(answer, work)
    assert len(answer.batches) == 2, "what comes after the bad part is not asked"


def test_a_full_queue_says_when_to_come_again() -> None:
    answer = Doubling()

    async def work(batcher: Batcher) -> None:
        answer.may.clear()
        tasks = await asked(batcher, ("a", [0]), ("a", [1] * 20))
        with pytest.raises(QueueFull) as error:
            await batcher.ask("a", [1])
        assert 1 <= error.value.retry_after <= 60
        answer.may.set()
        await asyncio.gather(*tasks)
        assert await batcher.ask("a", [1]) == [2]

    run(answer, work)


def test_a_request_whose_client_has_gone_is_not_asked() -> None:
    answer = Doubling()

    async def work(batcher: Batcher) -> None:
        answer.may.clear()
        tasks = await asked(batcher, ("a", [0]), ("a", [1, 2]), ("a", [3]))
        tasks[1].cancel()
        tasks[0].cancel()  # It is being answered: its answer goes nowhere.
        await asyncio.sleep(0)
        assert batcher.waiting == 1
        answer.may.set()
        assert await tasks[2] == [6]

    run(answer, work)
    assert [rows for _, rows in answer.batches] == [[0], [3]]


def test_the_end_answers_what_waits() -> None:
    answer = Doubling()

    async def work(batcher: Batcher) -> None:
        answer.may.clear()
        tasks = await asked(batcher, ("a", [0]), ("b", [1]), ("c", [2]))
        stopping = asyncio.create_task(asyncio.to_thread(batcher.stop))
        while not batcher._closing:
            await asyncio.sleep(0.001)
        with pytest.raises(NotServing):
            await batcher.ask("a", [3])
        answer.may.set()
        assert await asyncio.gather(*tasks) == [[0], [2], [4]]
        await stopping

    run(answer, work)


def test_a_thread_that_fails_leaves_nobody_waiting() -> None:
    answer, ended = Doubling(), threading.Event()
    batcher = Batcher(answer, rows_at_once=4, max_waiting=20, on_batch=lambda *_: None)
    may = threading.Event()

    def first() -> None:
        assert may.wait(10)
        raise MemoryError("no room for the student")

    async def work() -> None:
        task = asyncio.create_task(batcher.ask("a", [1]))
        await asyncio.sleep(0)
        may.set()
        with pytest.raises(NotServing):
            await task
        with pytest.raises(NotServing):
            await batcher.ask("a", [1])

    batcher.start(first, ended.set)
    asyncio.run(work())
    assert ended.wait(10)
    assert isinstance(batcher.failure, MemoryError)
    assert not batcher.ready
    batcher.stop()


def test_who_has_nothing_to_answer_does_not_wait_for_the_warm_up() -> None:
    go_on = threading.Event()
    batcher = Batcher(Doubling(), rows_at_once=4, max_waiting=20, on_batch=lambda *_: None)
    batcher.start(lambda: go_on.wait(20) and None, lambda: None)
    try:
        began = time.monotonic()
        batcher.stop(20)
        assert time.monotonic() - began < 5
        assert batcher.alive
    finally:
        go_on.set()
