"""Asks a teacher for all requests that the journal has no reply to.

A teacher is what answers requests: a server, asked for many at once (`ServerTeacher`), a provider's
batch API (`batch.BatchTeacher`) or a checkpoint on our devices (`jax_teacher.JaxTeacher`). They
share what is missing and what becomes of a reply: `ExtractionRun`.
"""

import asyncio
import contextlib
import itertools
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Protocol

from dss_jax.core.errors import UsageError
from dss_jax.records.records import Reply
from dss_jax.teacher.client import Client
from dss_jax.teacher.journal import GROUP_SECONDS, Asked, Journal, Request
from dss_jax.teacher.limits import LONGEST_RETRY_AFTER, Limiter, backoff
from dss_jax.teacher.prices import tokens_of
from dss_jax.teacher.replies import Exhausted, Fatal, Rejected, Retryable

CHUNK = 512  # Requests that are looked up in the journal at once; what bounds the memory.
HOPELESS = 5  # The first so many requests were all given up: the mistake is in each.
WAIT_FOR_OTHERS = 2.0  # Seconds between looks at requests that another process has claimed.
UNREACHED = 3.0  # Seconds after which a server that no connection was made to counts as not there.
LOOK_FOR_STOP = 0.2  # Seconds between looks, while waiting to send, whether the run was stopped.


@dataclass(frozen=True, kw_only=True)
class SendOptions:
    """How to send."""

    concurrency: int = 32  # Most requests at once; fewer while the server says it is too much.
    rpm: int | None = None  # Requests a minute; None: no limit.
    tpm: int | None = None  # Tokens a minute; None: no limit.
    max_attempts: int = 8  # For one request, before it is given up.
    first_wait: float = 0.5  # Seconds; that before repetition n is drawn from 0 to this * 2^n.
    jitter_seed: int | None = None  # Of the waits.


@dataclass
class ExtractionProgress:
    """What has happened so far in one run."""

    answered: int = 0
    failed: int = 0
    reused: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    estimated: int = 0  # Replies whose tokens are our estimate, for want of the server's count.
    stopped: str = ""  # Why it ended early; "" where it did not.
    reasons: Counter[str] = field(default_factory=Counter)  # Reason -> requests given up for it.

    @property
    def done(self) -> int:
        """Requests that need nothing more in this run."""
        return self.answered + self.failed + self.reused


class TeacherUnavailable(UsageError):  # noqa: N818
    """The server will answer no request; what was answered is kept."""


class _Halted(Exception):  # noqa: N818
    """The run was stopped before a request was sent."""


@dataclass(eq=False)
class ExtractionRun:
    """One run over a journal."""

    journal: Journal  # Has the replies of earlier runs, and gets each new one as it comes.
    _: KW_ONLY
    only_failed: bool = False  # Ask again only for requests that were given up before.
    extraction: str = ""  # Digest of what is asked, for the journal's notes on runs; "": none.
    # Called after each reply; the second gives a reason to stop, or None.
    on_progress: Callable[[ExtractionProgress], None] | None = None
    may_go_on: Callable[[ExtractionProgress], str | None] | None = None
    progress: ExtractionProgress = field(default_factory=ExtractionProgress)
    _started: float = field(default_factory=time.monotonic, init=False)

    def missing(self, requests: Iterable[Request]) -> Iterator[list[Request]]:
        """Those without a reply, in order and in chunks; the others count as reused."""
        requests = iter(requests)
        while chunk := list(itertools.islice(requests, CHUNK)):
            missing = self.journal.missing(chunk, only_failed=self.only_failed)
            self.progress.reused += len(chunk) - len(missing)
            yield missing

    def keep(self, request: Request | Asked, reply: Reply, lost: Sequence[Retryable] = ()) -> None:
        """Puts a reply into the journal, counts it and tells of it.

        `lost` are earlier answers that could not be used; `pay` has counted them.
        """
        progress = self.progress
        progress.estimated += reply.estimated
        progress.answered += not reply.failed
        progress.failed += reply.failed
        if reply.failed:
            progress.reasons[reply.refusal] += 1
        paid = (reply.prompt_tokens, reply.completion_tokens)
        self.pay(paid)
        prompt, completion = map(sum, zip(paid, *(error.paid for error in lost), strict=True))
        kept = replace(reply, prompt_tokens=prompt, completion_tokens=completion)
        self.journal.put(request, kept)
        self.report()

    def pay(self, tokens: tuple[int, int]) -> None:
        """Counts (prompt, completion) tokens that were paid for."""
        self.progress.prompt_tokens += tokens[0]
        self.progress.completion_tokens += tokens[1]

    def report(self) -> None:
        """Tells how far it is, and asks whether to go on."""
        progress = self.progress
        progress.seconds = time.monotonic() - self._started
        if self.extraction and (progress.answered or progress.failed):
            self.journal.note_run(self.extraction, progress.seconds, progress.retries)
        if self.on_progress is not None:
            self.on_progress(progress)
        if self.may_go_on is not None and not progress.stopped:
            progress.stopped = self.may_go_on(progress) or ""


class Teacher(Protocol):
    """What answers requests."""

    def ask(self, requests: Iterable[Request], run: ExtractionRun) -> ExtractionProgress:
        """Gives `run.keep` a reply to each request that is missing.

        They are of one model, form and sampling; consumed little by little, each at most once.

        Returns:
          What was done. `stopped` says why where not all of it was.

        Raises:
          UsageError: it can answer none, or the journal cannot be written.
        """


class ServerTeacher:
    """A server that is asked for many requests at once, each until it is answered, in one run."""

    def __init__(self, send: Client, options: SendOptions | None = None) -> None:
        self.send, self.options = send, options or SendOptions()
        limits = (self.options.concurrency, self.options.rpm, self.options.tpm)
        self.limiter = Limiter(*limits, sleep=self.pause)
        self.dice = random.Random(self.options.jitter_seed)
        self.fatal: Exception | None = None
        self.begun = self.first_lost = 0
        self.reached = False  # Whether any connection was made; later ones may fail for a while.

    def ask(self, requests: Iterable[Request], run: ExtractionRun) -> ExtractionProgress:
        """As `send_all`; closes the client."""

        async def work() -> ExtractionProgress:
            try:
                return await self.send_all(requests, run)
            finally:
                await self.send.close()

        return asyncio.run(work())

    async def send_all(self, requests: Iterable[Request], run: ExtractionRun) -> ExtractionProgress:
        """As `Teacher.ask`. Ctrl-C ends it after the requests that are under way, which are paid
        for; a second one at once.

        Raises:
          TeacherUnavailable: the server refuses all requests (key, model, money), or there is none.
        """
        self.run, self.journal, self.progress = run, run.journal, run.progress
        self.began = time.monotonic()
        # Twice what is sent at once: some wait for their next attempt, and the limiter bounds the
        # rest.
        count, claimed, turn = 2 * self.options.concurrency, self.claimed(requests), asyncio.Lock()
        flusher, loop = asyncio.create_task(self.flusher()), asyncio.get_running_loop()
        # Windows has no such handlers, and only the main thread may set one.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(signal.SIGINT, self.interrupt)
        try:
            await asyncio.gather(*(self.work(claimed, turn) for _ in range(count)))
        finally:
            flusher.cancel()
            with contextlib.suppress(NotImplementedError):
                loop.remove_signal_handler(signal.SIGINT)
        run.report()
        if not isinstance(self.fatal, UsageError):  # Else the journal cannot be written.
            run.journal.flush()
            run.journal.release_claims()
        if isinstance(self.fatal, Fatal):
            raise TeacherUnavailable(
                f"the server does not answer: {self.fatal}. Nothing more was sent; "
                f"{run.progress.answered} replies are kept. Check --model, --base_url and the key, "
                "and run the same command again."
            )
        if self.fatal is not None:
            raise self.fatal
        return run.progress

    async def pause(self, seconds: float) -> None:
        """Waits.

        Raises:
          _Halted: the run was stopped meanwhile.
        """
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, LOOK_FOR_STOP))
            if self.progress.stopped:
                raise _Halted

    async def claimed(self, requests: Iterable[Request]) -> AsyncIterator[Request]:
        """What to send; waits at the end for what is under way elsewhere."""
        while True:
            held: list[Request] = []
            for missing in self.run.missing(requests):
                taken = self.journal.claim(missing)
                # Told apart as objects: of two rows with one text the requests are equal.
                mine = set(map(id, taken))
                held += [request for request in missing if id(request) not in mine]
                for request in taken:
                    yield request
            if not held:
                return
            await self.pause(WAIT_FOR_OTHERS)
            self.journal.drop_claims_of_the_dead()
            requests = held

    async def one(self, request: Request) -> None:
        """Sends one request until there is a reply to keep."""
        lost: list[Retryable] = []
        try:
            await self.attempts(request, lost)
        except _Halted:
            if lost:  # What was paid for is in the totals; the row is missing all the same.
                self.run.keep(request, Reply.failure(f"stopped after: {lost[-1]}"), lost)
            raise

    async def attempts(self, request: Request, lost: list[Retryable]) -> None:
        is_first = self.begun < HOPELESS
        self.begun += 1
        for attempt in itertools.count(1):
            try:
                reply = await self.once(request)
                break
            except Rejected as error:
                self.reached = True
                reply = Reply.failure(str(error))
                # Where others like it were answered in an earlier run, it is this row alone.
                is_first = is_first and not self.progress.reused
                break
            except Retryable as error:
                self.check_reached(error)
                if error.overload:
                    self.limiter.overloaded(error.retry_after)
                if error.paid != (0, 0):
                    lost.append(error)
                    self.run.pay(error.paid)
                    self.run.report()
                if attempt >= min(self.options.max_attempts, error.attempts or attempt + 1):
                    reply = Reply.failure(f"given up after {attempt} attempts: {error}")
                    break
                wait = backoff(attempt, self.options.first_wait, self.dice)
                if not self.reached:
                    wait = UNREACHED / 3
                await self.pause(max(min(error.retry_after or 0.0, LONGEST_RETRY_AFTER), wait))
                self.progress.retries += 1
        self.run.keep(request, reply, lost)
        if not reply.failed:
            return self.limiter.answered()
        # Of the first, not any: a refusal comes at once, an answer takes seconds.
        self.first_lost += is_first
        if self.first_lost == HOPELESS and not self.progress.answered:
            raise Fatal(f"none of the first {HOPELESS} requests was answered: {reply.refusal}")

    def check_reached(self, error: Retryable) -> None:
        """Raises Fatal where no server is there: not one connection was made, for some seconds. One
        that has been there may be away for as long as the attempts take.
        """
        self.reached = self.reached or not error.unreachable
        if not self.reached and time.monotonic() - self.began > UNREACHED:
            raise Fatal(f"no connection: {error} (is it started, at that address and port?)")

    async def once(self, request: Request) -> Reply:
        done = self.progress
        spent = done.prompt_tokens + done.completion_tokens
        # What one takes, from those answered so far; before, from its own length.
        tokens = spent / done.answered if spent and done.answered else tokens_of(request.body)
        await self.limiter.acquire(tokens)
        try:
            if self.progress.stopped:
                raise _Halted
            reply = await self.send(request.body)
            self.reached = True
            return reply
        finally:
            self.limiter.release()

    def stop(self, error: Exception) -> None:
        """Ends the run. Of several errors the first is told: the others follow from it."""
        self.progress.stopped = self.progress.stopped or str(error)
        if not isinstance(error, Exhausted):
            self.fatal = self.fatal or error

    def interrupt(self) -> None:
        """The first Ctrl-C only asks to stop; the second is the usual one."""
        self.progress.stopped = "interrupted"
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)

    async def work(self, requests: AsyncIterator[Request], turn: asyncio.Lock) -> None:
        """Sends one request after another; several do it at once, each takes one in its turn."""
        while True:
            try:
                async with turn:
                    request = await anext(requests, None)
                if request is None or self.progress.stopped:
                    return
                await self.one(request)
            except _Halted:
                return
            except Exception as error:
                self.stop(error)

    async def flusher(self) -> None:
        """Brings replies onto the disk also when no other comes after them."""
        while True:
            await asyncio.sleep(GROUP_SECONDS)
            try:
                self.journal.flush()
            except UsageError as error:
                return self.stop(error)
