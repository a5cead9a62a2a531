"""Dynamic batching: one thread answers rows that many requests have put into a queue.

A batch is what is waiting when the thread is free, so a lone request waits for nothing. Rows of one
batch have a key in common (what is asked of them). The oldest request decides which; one that is
larger than a batch goes behind the others after each part, so that small ones pass it.
"""

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dss_jax.core.errors import UsageError

log = logging.getLogger(__name__)

LONGEST_WAIT = 60
"""Seconds that a client is asked to wait at most."""

NEW_SHARE = 0.2
"""Of the last batch, in the moving mean of rows a second."""


class QueueFull(Exception):  # noqa: N818
    """No room for a request; `retry_after`: whole seconds until there may be."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


class NotServing(Exception):  # noqa: N818
    """The thread that answers has ended."""


@dataclass(eq=False)
class _Job:
    """Rows of one request, and what has become of them."""

    key: Hashable
    rows: Sequence[Any]
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[list[Any]]"
    taken: int = 0
    answers: list[Any] = field(default_factory=list)

    def give(self, answers: Sequence[Any]) -> None:
        """Notes answers of the next rows; in the thread."""
        self.answers.extend(answers)
        if len(self.answers) == len(self.rows):
            self._tell(lambda: self.future.set_result(self.answers))

    def fail(self, error: Exception) -> None:
        """Ends the request with an error; in the thread."""
        self._tell(lambda: self.future.set_exception(error))

    def _tell(self, setting: Callable[[], None]) -> None:
        def tell() -> None:
            if not self.future.done():  # The client has not gone.
                setting()

        with contextlib.suppress(RuntimeError):  # The event loop has been closed.
            self.loop.call_soon_threadsafe(tell)


_Part = tuple[_Job, Sequence[Any]]


class Batcher:
    """A queue and the thread that empties it.

    Args:
      answer: (key, rows) -> one answer a row; called in the thread alone.
      rows_at_once: most rows of a batch.
      max_waiting: most rows in the queue.
      on_batch: called in the thread with key, rows and seconds of each batch.
    """

    def __init__(
        self,
        answer: Callable[[Any, list[Any]], Sequence[Any]],
        *,
        rows_at_once: int,
        max_waiting: int,
        on_batch: Callable[[Any, int, float], None],
    ) -> None:
        self._answer, self._on_batch = answer, on_batch
        self._rows_at_once, self._max_waiting = rows_at_once, max_waiting
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._rows_a_second = 0.0
        self.waiting = 0
        """Rows in the queue."""
        self.ready = False
        """Whether the first step of the thread is done."""
        self.failure: BaseException | None = None
        """What has ended the thread, where it was not asked to."""

    def start(self, first: Callable[[], None], on_failure: Callable[[], None]) -> None:
        """Starts the thread. `first`: what it does before it answers; `on_failure`: called from it
        where that, or the thread itself, has failed.
        """
        self._thread = threading.Thread(
            target=self._run, args=(first, on_failure), name="student", daemon=True
        )
        self._thread.start()

    def stop(self, seconds: float | None = None) -> None:
        """Answers what is in the queue, and ends the thread; waits so long for it at most, and not
        for its first step where nothing is in the queue.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(seconds if self.ready or self._jobs or seconds is None else 0)

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    async def ask(self, key: Hashable, rows: Sequence[Any]) -> list[Any]:
        """The answers to rows, in their order. Cancelled, it takes the rows out of the queue.

        Raises:
          QueueFull, NotServing: nothing was asked.
          Exception: what `answer` has raised for these rows.
        """
        loop = asyncio.get_running_loop()
        job = _Job(key, rows, loop, loop.create_future())
        with self._changed:
            if self._closing or self.failure is not None:
                raise NotServing("the server is stopping")
            if self.waiting + len(rows) > self._max_waiting:
                seconds = self.waiting / self._rows_a_second if self._rows_a_second else 1
                raise QueueFull(min(max(1, math.ceil(seconds)), LONGEST_WAIT))
            self._jobs.append(job)
            self.waiting += len(rows)
            self._changed.notify()
        try:
            return await job.future
        finally:
            self._forget(job)

    def _forget(self, job: _Job) -> None:
        with self._changed, contextlib.suppress(ValueError):
            self._jobs.remove(job)
            self.waiting -= len(job.rows) - job.taken

    def _run(self, first: Callable[[], None], on_failure: Callable[[], None]) -> None:
        try:
            first()
            self.ready = True
            while parts := self._take():
                self._answer_parts(parts)
        except BaseException as error:
            self.failure = error
            on_failure()
        finally:
            self.ready = False
            with self._changed:
                left, self.waiting = list(self._jobs), 0
                self._jobs.clear()
            for job in left:
                job.fail(NotServing("the server has stopped"))

    def _take(self) -> list[_Part]:
        """The next batch; waits for one. [] when there is none left and the thread should end."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closing)
            parts: list[_Part] = []
            room, others, begun = self._rows_at_once, deque[_Job](), list[_Job]()
            key = self._jobs[0].key if self._jobs else None
            for job in self._jobs:
                if job.key != key or not room:
                    others.append(job)
                    continue
                rows = job.rows[job.taken : job.taken + room]
                parts.append((job, rows))
                job.taken += len(rows)
                room -= len(rows)
                if job.taken < len(job.rows):
                    begun.append(job)
            others.extend(begun)
            self._jobs = others
            self.waiting -= self._rows_at_once - room
            return parts

    def _answer_parts(self, parts: Sequence[_Part]) -> None:
        """Answers a batch. Where it fails, each request by itself: a bad one harms no other."""
        rows = [row for _, own in parts for row in own]
        key, start = parts[0][0].key, time.perf_counter()
        try:
            answers = self._answer(key, rows)
            assert len(answers) == len(rows), f"{len(answers)} answers to {len(rows)} rows"
        except Exception as error:
            if len(parts) > 1:
                for part in parts:
                    self._answer_parts([part])
                return
            if not isinstance(error, UsageError):
                log.error("a batch of %d rows has failed", len(rows), exc_info=error)
            self._forget(parts[0][0])  # The rest of a large request.
            parts[0][0].fail(error)
            return
        seconds = time.perf_counter() - start
        rate = len(rows) / max(seconds, 1e-6)
        self._rows_a_second += (rate - self._rows_a_second) * (
            NEW_SHARE if self._rows_a_second else 1
        )
        self._on_batch(key, len(rows), seconds)
        at = 0
        for job, own in parts:
            job.give(answers[at : at + len(own)])
            at += len(own)
