"""Sends all requests that the journal has no reply to, many at once, each until it is answered."""

import asyncio
import contextlib
import itertools
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from dss_jax.core.errors import UsageError
from dss_jax.records.records import Reply
from dss_jax.teacher.client import Fatal, Rejected, Retryable
from dss_jax.teacher.jobs import Job, Send
from dss_jax.teacher.journal import GIVEN_UP, GROUP_SECONDS, Journal
from dss_jax.teacher.limits import LONGEST_RETRY_AFTER, Limiter, backoff
from dss_jax.teacher.prices import tokens_of

CHUNK = 512
"""Jobs that are looked up in the journal at once; what bounds the memory."""

HOPELESS = 5
"""The first so many requests were all given up: the mistake is in each."""

WAIT_FOR_OTHERS = 2.0
"""Seconds between looks at requests that another process has claimed."""

LOOK_FOR_STOP = 0.2
"""Seconds between looks, while waiting to send, whether the run has been stopped."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to send.

    Attributes:
      concurrency: most requests at once; fewer while the server says that it is too much.
      rpm, tpm: requests and tokens a minute; None: no limit.
      max_attempts: for one request, before it is given up.
      only_failed: ask again only for requests that were given up before.
      first_wait: seconds; the wait before repetition n is drawn from 0 to first_wait * 2^n.
      seed: of the jitter between attempts.
    """

    concurrency: int = 32
    rpm: int | None = None
    tpm: int | None = None
    max_attempts: int = 8
    only_failed: bool = False
    first_wait: float = 0.5
    seed: int | None = None


@dataclass
class Summary:
    """What has happened so far in one run."""

    answered: int = 0
    failed: int = 0
    reused: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    stopped: str = ""
    """Why it ended early: "" where it did not."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Reason -> requests given up for it."""

    @property
    def done(self) -> int:
        """Requests that need nothing more in this run."""
        return self.answered + self.failed + self.reused


Progress = Callable[[Summary], None]


class Stopped(UsageError):  # noqa: N818
    """The server will answer no request; what was answered is kept."""


class _Halted(Exception):  # noqa: N818
    """The run was stopped before a request was sent."""


class _Run:
    def __init__(
        self,
        send: Send,
        journal: Journal,
        options: RunOptions,
        progress: Progress | None,
        may_go_on: Callable[[Summary], str | None] | None,
    ) -> None:
        self.send, self.journal, self.options = send, journal, options
        self.progress, self.may_go_on = progress, may_go_on
        self.limiter = Limiter(options.concurrency, options.rpm, options.tpm, sleep=self.pause)
        self.dice = random.Random(options.seed)
        self.summary = Summary()
        self.started = time.monotonic()
        self.fatal: Exception | None = None
        self.begun = self.first_lost = 0

    async def pause(self, seconds: float) -> None:
        """Waits.

        Raises:
          _Halted: the run was stopped meanwhile.
        """
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, LOOK_FOR_STOP))
            if self.summary.stopped:
                raise _Halted

    def report(self) -> None:
        self.summary.seconds = time.monotonic() - self.started
        if self.progress is not None:
            self.progress(self.summary)
        if self.may_go_on is not None and not self.summary.stopped:
            self.summary.stopped = self.may_go_on(self.summary) or ""

    def claimed(self, jobs: Iterable[Job]) -> Iterator[list[Job]]:
        """Chunks of jobs to send. An empty one: wait, the rest is under way, here or elsewhere."""
        jobs = iter(jobs)
        held: list[Job] = []
        while chunk := list(itertools.islice(jobs, CHUNK)):
            missing = self.journal.missing(chunk, only_failed=self.options.only_failed)
            self.summary.reused += len(chunk) - len(missing)
            taken = self.journal.claim(missing)
            held += _without(missing, taken)
            if taken:
                yield taken
        while held:
            missing = self.journal.missing(held)
            self.summary.reused += len(held) - len(missing)
            taken = self.journal.claim(missing)
            held = _without(missing, taken)
            if held:
                self.journal.drop_claims_of_the_dead()
            if taken or held:
                yield taken

    async def one(self, job: Job) -> None:
        """Sends one request until there is a reply to keep."""
        reason = ""
        is_first = self.begun < HOPELESS
        self.begun += 1
        for attempt in range(1, self.options.max_attempts + 1):
            if attempt > 1:
                self.summary.retries += 1
            try:
                reply = await self.once(job)
            except Retryable as error:
                reason = str(error)
                if error.overload:
                    self.limiter.overloaded(error.retry_after)
                if attempt < self.options.max_attempts:
                    wait = backoff(attempt, self.options.first_wait, self.dice)
                    await self.pause(max(min(error.retry_after or 0.0, LONGEST_RETRY_AFTER), wait))
            except Rejected as error:
                # Where others like it were answered in an earlier run, it is this row alone.
                self.give_up(job, str(error), is_first and not self.summary.reused)
                return
            else:
                self.limiter.answered()
                self.summary.answered += 1
                self.summary.prompt_tokens += reply.prompt_tokens
                self.summary.completion_tokens += reply.completion_tokens
                self.journal.put(job, reply)
                self.report()
                return
        self.give_up(
            job, f"given up after {self.options.max_attempts} attempts: {reason}", is_first
        )

    async def once(self, job: Job) -> Reply:
        await self.limiter.acquire(self.expected_tokens(job))
        try:
            if self.summary.stopped:
                raise _Halted
            return await self.send(job.body)
        finally:
            self.limiter.release()

    def expected_tokens(self, job: Job) -> float:
        """What a request takes, from those answered so far; before, from its own length."""
        total = self.summary.prompt_tokens + self.summary.completion_tokens
        if total:
            return total / self.summary.answered
        return tokens_of(job.body)

    def give_up(self, job: Job, reason: str, is_first: bool) -> None:
        self.summary.failed += 1
        self.summary.reasons[reason] = self.summary.reasons.get(reason, 0) + 1
        self.journal.put(job, Reply(text="", finish_reason=GIVEN_UP, refusal=reason))
        self.report()
        # Of the first, not any: a refusal comes at once, an answer takes seconds.
        self.first_lost += is_first
        if self.first_lost == HOPELESS and not self.summary.answered:
            raise Fatal(f"none of the first {HOPELESS} requests was answered: {reason}")

    async def worker(self, queue: "asyncio.Queue[Job]") -> None:
        while True:
            job = await queue.get()
            try:
                if not self.summary.stopped:
                    await self.one(job)
            except _Halted:
                pass
            except Exception as error:
                # Of several only the first is told: the others follow from it, or are the same.
                self.fatal = self.fatal or error
                self.summary.stopped = self.summary.stopped or str(error)
            finally:
                queue.task_done()

    async def flusher(self) -> None:
        """Brings replies onto the disk also when no other comes after them."""
        while True:
            await asyncio.sleep(GROUP_SECONDS)
            try:
                self.journal.flush()
            except UsageError as error:
                self.fatal = self.fatal or error
                self.summary.stopped = str(error)
                return

    async def all(self, jobs: Iterable[Job]) -> Summary:
        # Twice what is sent at once: some wait for their next attempt, and the limiter bounds the
        # rest.
        count = 2 * self.options.concurrency
        queue: asyncio.Queue[Job] = asyncio.Queue(count)
        tasks = [asyncio.create_task(self.worker(queue)) for _ in range(count)]
        tasks.append(asyncio.create_task(self.flusher()))
        try:
            for chunk in self.claimed(jobs):
                for job in chunk:
                    if self.summary.stopped:
                        break
                    await queue.put(job)
                if self.summary.stopped:
                    break
                if not chunk:
                    await asyncio.sleep(WAIT_FOR_OTHERS)
            await queue.join()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self.report()
        return self.summary


def _without(jobs: list[Job], taken: list[Job]) -> list[Job]:
    """The others. Equal requests are different jobs, so these are told apart as objects."""
    known = set(map(id, taken))
    return [job for job in jobs if id(job) not in known]


async def run(
    jobs: Iterable[Job],
    send: Send,
    journal: Journal,
    options: RunOptions | None = None,
    progress: Progress | None = None,
    may_go_on: Callable[[Summary], str | None] | None = None,
) -> Summary:
    """Asks for every job that the journal has no reply to.

    Ctrl-C ends it after the requests that are under way, which are paid for; a second one at once.

    Args:
      jobs: consumed little by little; each at most once a run.
      send: sends one body, once.
      journal: gets every reply as it comes.
      options: how many at once, how fast, how often.
      progress: called after each reply.
      may_go_on: called after each reply; a reason to stop, or None.

    Returns:
      What was done. `stopped` says why where not all of it was.

    Raises:
      Stopped: the server refuses all requests (key, model, money).
      UsageError: the journal cannot be written.
    """
    options = options or RunOptions()
    state = _Run(send, journal, options, progress, may_go_on)
    with _stop_on_interrupt(state.summary):
        summary = await state.all(jobs)
    if not isinstance(state.fatal, UsageError):  # Else the journal cannot be written.
        journal.flush()
        journal.release_claims()
    if isinstance(state.fatal, Fatal):
        raise Stopped(
            f"the server does not answer: {state.fatal}. Nothing more was sent; {summary.answered} "
            "replies are kept. Check --model, --base_url and the key, and run the same command "
            "again."
        )
    if state.fatal is not None:
        raise state.fatal
    return summary


@contextlib.contextmanager
def _stop_on_interrupt(summary: Summary) -> Iterator[None]:
    """The first Ctrl-C only asks to stop; the second is the usual one."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        summary.stopped = "interrupted"
        loop.remove_signal_handler(signal.SIGINT)

    try:
        loop.add_signal_handler(signal.SIGINT, stop)
    except (NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread.
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
