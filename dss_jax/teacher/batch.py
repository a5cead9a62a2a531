"""The provider's batch API: requests as a file, answers within a day, for half the price.

As OpenAI's protocol has it: upload a JSONL file, create a batch, poll, fetch the output. Nothing is
handed in twice: what a batch holds is noted in a file beside the journal before it is created, with
a tag that the batch carries too, so that one made just before a crash is found again.
"""

import hashlib
import io
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import openai

from dss_jax.core import locks
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import write_whole
from dss_jax.records.records import Reply
from dss_jax.teacher.client import (
    HOSTED,
    OWN_SERVER_KEY,
    Rejected,
    Retryable,
    clean,
    key_from,
    reply_of,
)
from dss_jax.teacher.extract import CHUNK, Progress, Summary
from dss_jax.teacher.jobs import Job
from dss_jax.teacher.journal import GIVEN_UP, Journal

MAX_REQUESTS, MAX_BYTES = 50_000, 190_000_000
"""Of one batch: OpenAI takes 50,000 requests and 200 MB."""

ENDED = ("completed", "failed", "expired", "cancelled")
"""States after which a batch does not change."""

TAG = "dss_jax"
"""Name of the tag in the batch's metadata."""

RETRIES = 5
"""Of a request that changes nothing at the provider, by the client, some seconds apart."""

LOOKS_WITHOUT_ANSWER = 12
"""One after another, after which waiting is given up: an hour, at the longest pause."""

PASSING = (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError)
"""Errors that a provider has for a while."""


@dataclass
class _Batch:
    """A batch as it is noted.

    Attributes:
      tag: digest of its keys.
      requests: key, row id and sample of each.
      id: the provider's; "" until it is known.
    """

    tag: str
    requests: list[tuple[str, str, int]]
    id: str = ""


@dataclass
class _Notes:
    """The batches under way, in a JSON file that is replaced whole."""

    file: Path
    batches: list[_Batch] = field(default_factory=list)

    def load(self) -> None:
        if self.file.exists():
            try:
                found = json.loads(self.file.read_text())
                self.batches = [_Batch(**batch) for batch in found["batches"]]
            except (ValueError, KeyError, TypeError) as error:
                raise UsageError(
                    f"{self.file} cannot be read: {error}. It lists the batches under way; remove "
                    "it only if there are none, or they are paid for twice."
                ) from error

    def alone(self) -> AbstractContextManager[None]:
        """Within it no other process hands in batches of this journal.

        Raises:
          UsageError: another one does.
        """
        said = (
            f"another process waits for the batches in {self.file}: {{owner}}. Let it finish, or "
        )
        said += "stop it: this command then goes on from there."
        return locks.held(self.file.with_suffix(".lock"), said)

    def save(self) -> None:
        write_whole(self.file, json.dumps({"batches": [asdict(b) for b in self.batches]}))

    def drop(self, batch: _Batch) -> None:
        self.batches.remove(batch)
        self.save()


class Batches:
    """Hands in, waits, fetches.

    Args:
      journal: gets the replies; the notes are beside its file.
      base_url, api_key_env: as of `client.Client`.
      poll_seconds: between two looks, at first; grows to `longest_poll`.
      say: is given lines of progress.
      sleep: seconds -> None.
    """

    def __init__(
        self,
        journal: Journal,
        base_url: str | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        *,
        poll_seconds: float = 15.0,
        longest_poll: float = 300.0,
        max_requests: int = MAX_REQUESTS,
        say: Callable[[str], None] = print,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._key = key_from(base_url, api_key_env)
        self._journal, self._say, self._sleep = journal, say, sleep
        self._poll, self._longest_poll = poll_seconds, longest_poll
        self._max_requests = max_requests
        self._notes = _Notes(journal.path.with_name(journal.path.name + ".batches.json"))
        self._openai = openai.OpenAI(
            api_key=self._key or OWN_SERVER_KEY, base_url=base_url or HOSTED, max_retries=RETRIES
        )

    def run(
        self, jobs: Iterable[Job], progress: Progress | None = None, *, only_failed: bool = False
    ) -> Summary:
        """Asks for every job that the journal has no reply to, and waits for the answers.

        Args:
          jobs: requests of one model and one form.
          progress: called at the end.
          only_failed: only those that were asked before and given up.

        Returns:
          What was done. Requests without an answer (a batch that expired, an error of the server)
          are missing again at the next run.

        Raises:
          UsageError: the server refuses or cannot be reached, or another process is at it.
        """
        started = time.monotonic()
        summary = Summary()
        try:
            with self._notes.alone():
                self._notes.load()
                self._find_lost()
                for chunk in self._chunks(self._missing(jobs, summary, only_failed)):
                    self._hand_in(chunk)
                self._wait(summary)
        except openai.OpenAIError as error:
            text = clean(f"{type(error).__name__}: {error}", self._key)
            raise UsageError(
                f"the batch API failed: {text}. Batches that were handed in go on at the provider; "
                "the same command fetches them."
            ) from None
        finally:
            self._openai.close()
        summary.seconds = time.monotonic() - started
        if progress is not None:
            progress(summary)
        return summary

    def _missing(self, jobs: Iterable[Job], summary: Summary, only_failed: bool) -> Iterator[Job]:
        """Jobs to hand in. Rows with one text share a request: a batch may not hold it twice."""
        seen = {r[0] for batch in self._notes.batches for r in batch.requests}
        jobs = iter(jobs)
        while chunk := list(itertools.islice(jobs, CHUNK)):
            missing = self._journal.missing(chunk, only_failed=only_failed)
            summary.reused += len(chunk) - len(missing)
            for job in missing:
                if job.key not in seen:
                    seen.add(job.key)
                    yield job

    def _chunks(self, jobs: Iterable[Job]) -> Iterator[list[tuple[Job, bytes]]]:
        """Jobs and their lines, within the provider's limits."""
        chunk: list[tuple[Job, bytes]] = []
        size = 0
        for job in jobs:
            line = _line(job)
            if chunk and (len(chunk) == self._max_requests or size + len(line) > MAX_BYTES):
                yield chunk
                chunk, size = [], 0
            chunk.append((job, line))
            size += len(line)
        if chunk:
            yield chunk

    def _find_lost(self) -> None:
        """Batches that were noted but not confirmed: made at the provider, or not."""
        lost = [batch for batch in self._notes.batches if not batch.id]
        if lost:
            made = {(b.metadata or {}).get(TAG): b.id for b in self._openai.batches.list(limit=100)}
            for batch in lost:
                batch.id = made.get(batch.tag, "")
            self._notes.batches = [batch for batch in self._notes.batches if batch.id]
            self._notes.save()

    def _hand_in(self, chunk: list[tuple[Job, bytes]]) -> None:
        requests = [(job.key, job.id, job.sample) for job, _ in chunk]
        # A second try at the same requests must not be taken for the first.
        tag = hashlib.sha256(f"{time.time_ns()}{requests}".encode()).hexdigest()[:32]
        batch = _Batch(tag, requests)
        file = io.BytesIO(b"".join(line for _, line in chunk))
        uploaded = self._openai.files.create(file=(f"{tag}.jsonl", file), purpose="batch")
        self._notes.batches.append(batch)
        self._notes.save()
        # Not repeated by the client: the first may have come through.
        made = self._openai.with_options(max_retries=0).batches.create(
            input_file_id=uploaded.id,
            endpoint=_endpoint(chunk[0][0]),  # type: ignore[arg-type]
            completion_window="24h",
            metadata={TAG: tag},
        )
        batch.id = made.id
        self._notes.save()
        self._say(f"batch {made.id}: {len(chunk):,} requests handed in")

    def _wait(self, summary: Summary) -> None:
        wait, unanswered = self._poll, 0
        while self._notes.batches:
            try:
                for batch in list(self._notes.batches):
                    self._look(batch, summary)
                unanswered = 0
            except PASSING as error:
                # A batch takes up to a day: a provider that is away for minutes must not end it.
                unanswered += 1
                if unanswered == LOOKS_WITHOUT_ANSWER:
                    raise
                self._say(f"no answer, waiting: {clean(str(error), self._key)}")
            if self._notes.batches:
                self._sleep(wait)
                wait = min(2 * wait, self._longest_poll)

    def _look(self, batch: _Batch, summary: Summary) -> None:
        state = self._openai.batches.retrieve(batch.id)
        if state.status in ENDED:
            self._fetch(batch, state, summary)
        elif state.request_counts is not None:
            counts = state.request_counts
            self._say(f"batch {batch.id}: {state.status}, {counts.completed:,} of "
                      f"{counts.total or len(batch.requests):,}")  # fmt: skip

    def _fetch(self, batch: _Batch, state: Any, summary: Summary) -> None:
        wanted = {key: (row, sample) for key, row, sample in batch.requests}
        files = [file for file in (state.output_file_id, state.error_file_id) if file]
        # All are there before the first is taken, so that a broken one is not counted twice.
        for content in [self._openai.files.content(file).content for file in files]:
            for line in content.splitlines():
                self._take(line, wanted, summary)
        self._journal.flush()
        self._notes.drop(batch)
        if state.status == "failed":
            reasons = [f"{e.message}" for e in (state.errors.data if state.errors else None) or ()]
            reason = clean("; ".join(reasons) or "no reason given", self._key)
            raise UsageError(f"the provider refused batch {batch.id}: {reason}")
        left = f"; {len(wanted):,} without an answer, for the next run" if wanted else ""
        self._say(f"batch {batch.id}: {state.status}{left}")

    def _take(self, line: bytes, wanted: dict[str, tuple[str, int]], summary: Summary) -> None:
        """One line of an output or error file; one that cannot be read is no answer."""
        try:
            answer = json.loads(line)
            key = answer["custom_id"]
            response = answer.get("response") or {}
            body: dict[str, Any] = response.get("body") or {}
            status = response.get("status_code")
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        if key not in wanted:
            return
        try:
            if status != 200:
                error = body.get("error") or answer.get("error") or {}
                reason = clean(f"{status}: {error.get('message', '')}", self._key)
                raise Rejected(reason) if status in (400, 413, 422) else Retryable(reason)
            choice = (body.get("choices") or [{}])[0]
            content = json.dumps(body).encode()
            reply = reply_of(content, "message" in choice, lambda t: clean(t, self._key))
        except Retryable:
            return
        except Rejected as error:
            reply = Reply(text="", finish_reason=GIVEN_UP, refusal=str(error))
            summary.reasons[str(error)] = summary.reasons.get(str(error), 0) + 1
        failed = reply.finish_reason == GIVEN_UP
        summary.failed += failed
        summary.answered += not failed
        summary.prompt_tokens += reply.prompt_tokens
        summary.completion_tokens += reply.completion_tokens
        self._journal.keep(key, *wanted.pop(key), reply)


def _endpoint(job: Job) -> str:
    return "/v1/chat/completions" if "messages" in job.body else "/v1/completions"


def _line(job: Job) -> bytes:
    request = {
        "custom_id": job.key, "method": "POST", "url": _endpoint(job), "body": dict(job.body),
    }  # fmt: skip
    return json.dumps(request, ensure_ascii=False).encode() + b"\n"
