"""The provider's batch API: requests as a file, answers within a day, for half the price.

As OpenAI's protocol has it: upload a JSONL file, create a batch, poll, fetch the output. Nothing is
handed in twice: what a batch holds is noted in a file beside the journal before it is created, with
a tag that the batch carries too, so that one made just before a crash is found again.
"""

import functools
import hashlib
import io
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import openai

from dss_jax.core import locks, strict_json
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import write_whole
from dss_jax.records.files import as_json
from dss_jax.records.records import Reply
from dss_jax.teacher.asking import UNREACHED, ExtractionProgress, ExtractionRun
from dss_jax.teacher.client import OWN_SERVER_KEY, clean, key_from
from dss_jax.teacher.journal import Asked, Request
from dss_jax.teacher.prices import HOSTED, tokens_of
from dss_jax.teacher.replies import Exhausted, Retryable, error_of, failure_of, reply_of

log = logging.getLogger(__name__)

MAX_REQUESTS, MAX_BYTES = 50_000, 190_000_000  # Of one batch: OpenAI takes 50,000 and 200 MB.
ENDED = ("completed", "failed", "expired", "cancelled")  # A batch does not change after these.
TAG = "dss_jax"  # Name of the tag in the batch's metadata.
RETRIES = 5  # Of a request that changes nothing at the provider, by the client, seconds apart.
FIRST_WAIT, LONGEST_WAIT = 15.0, 300.0  # Seconds between two looks; they double.
LOOKS_WITHOUT_ANSWER = 12  # One after another, then waiting is given up: an hour at the longest.

PASSING = (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError)
"""Errors that a provider has for a while."""


@dataclass
class _Batch:
    """A batch as it is noted: digest of its keys, what it asks, the provider's id once known."""

    tag: str
    requests: list[Asked]
    id: str = ""


class BatchTeacher:
    """Hands in at most `max_requests` a batch, waits by `sleep` (seconds -> None), fetches."""

    def __init__(
        self,
        base_url: str = HOSTED,
        api_key_env: str = "OPENAI_API_KEY",
        *,
        max_requests: int = MAX_REQUESTS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        key = key_from(base_url, api_key_env)
        self._clean = functools.partial(clean, key=key)
        self._max_requests, self._sleep = max_requests, sleep
        self._client = openai.OpenAI(
            api_key=key or OWN_SERVER_KEY, base_url=base_url, max_retries=RETRIES
        )

    @functools.cached_property
    def _openai(self) -> openai.OpenAI:
        """The client, once its server has answered at all; APIConnectionError: none is there."""
        once, began = self._client.with_options(max_retries=0), time.monotonic()
        while True:
            try:
                once.batches.list(limit=1)
            except openai.APITimeoutError:
                pass  # It was connected to, or is waited for by the requests themselves.
            except openai.APIConnectionError:
                if time.monotonic() - began > UNREACHED:
                    raise
                time.sleep(UNREACHED / 3)
                continue
            except openai.OpenAIError:
                pass  # It answers.
            return self._client

    def ask(self, requests: Iterable[Request], run: ExtractionRun) -> ExtractionProgress:
        """As `Teacher.ask`; waits for the answers. The notes are beside the file of the journal.

        Requests without an answer (a batch that expired, an error of the server) are missing again
        at the next run. Where a day's quota is used up, what is under way is waited for, and the
        run has `stopped`.

        Raises:
          UsageError: the server refuses or cannot be reached, or another process is at it.
        """
        journal = run.journal.path
        self._run, self._notes = run, journal.with_name(f"{journal.name}.batches.json")
        taken = f"another process waits for the batches in {self._notes}: {{owner}}. Let it "
        taken += "finish, or stop it: this command then goes on from there."
        try:
            with locks.held(self._notes.with_suffix(".lock"), taken):
                self._load()
                self._find_lost()
                try:
                    for chunk in self._chunks(requests):
                        self._hand_in(chunk)
                except openai.RateLimitError as error:
                    if not self._exhausted(error):
                        raise
                    self._drop_refused()
                self._wait()
        except openai.OpenAIError as error:
            if not self._exhausted(error):
                text = self._clean(f"{type(error).__name__}: {error}")
                raise UsageError(
                    f"the batch API failed: {text}. Batches that were handed in go on at the "
                    "provider; the same command fetches them."
                ) from None
        finally:
            self._client.close()
        run.report()
        return run.progress

    def _exhausted(self, found: Reply | Exception) -> bool:
        """Whether a day's quota is used up, which ends the run; then says so."""
        if isinstance(found, openai.RateLimitError):
            answer = found.response
            found = failure_of(found.status_code, answer.text, self._clean, answer.headers)
        if isinstance(found, Exhausted):
            self._run.progress.stopped = self._run.progress.stopped or str(found)
        return isinstance(found, Exhausted)

    def _load(self) -> None:
        """Reads the notes on batches under way, a JSON file that is replaced whole."""
        self._batches: list[_Batch] = []
        if not self._notes.exists():
            return
        try:
            for noted in strict_json.loads(self._notes.read_text())["batches"]:
                asked = [Asked(*request) for request in noted["requests"]]
                self._batches.append(_Batch(**noted | {"requests": asked}))
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{self._notes} cannot be read: {error}. It lists the batches under way; remove "
                "it only if there are none, or they are paid for twice."
            ) from error

    def _save(self) -> None:
        write_whole(self._notes, json.dumps({"batches": [asdict(b) for b in self._batches]}))

    def _chunks(self, requests: Iterable[Request]) -> Iterator[list[tuple[Request, bytes]]]:
        """Requests to hand in and their lines, within the provider's limits.

        Rows with one text share a request: a batch may not hold it twice.
        """
        self._prompt_tokens: dict[str, int] = {}
        seen = {asked.key for batch in self._batches for asked in batch.requests}
        chunk: list[tuple[Request, bytes]] = []
        size = 0
        for request in itertools.chain.from_iterable(self._run.missing(requests)):
            self._prompt_tokens[request.key] = tokens_of(request.body)
            if request.key in seen:
                continue
            seen.add(request.key)
            line = {"custom_id": request.key, "method": "POST", "url": _endpoint(request)}
            text = as_json({**line, "body": dict(request.body)}) + b"\n"
            if chunk and (len(chunk) == self._max_requests or size + len(text) > MAX_BYTES):
                yield chunk
                chunk, size = [], 0
            chunk.append((request, text))
            size += len(text)
        if chunk:
            yield chunk

    def _find_lost(self) -> None:
        """Batches that were noted but not confirmed: made at the provider, or not."""
        lost = [batch for batch in self._batches if not batch.id]
        if lost:
            made = {(b.metadata or {}).get(TAG): b.id for b in self._openai.batches.list(limit=100)}
            for batch in lost:
                batch.id = made.get(batch.tag, "")
            self._drop_refused()

    def _drop_refused(self) -> None:
        self._batches = [batch for batch in self._batches if batch.id]
        self._save()

    def _hand_in(self, chunk: list[tuple[Request, bytes]]) -> None:
        requests = [Asked(request.key, request.id, request.sample) for request, _ in chunk]
        # A second try at the same requests must not be taken for the first.
        tag = hashlib.sha256(f"{time.time_ns()}{requests}".encode()).hexdigest()[:32]
        batch = _Batch(tag, requests)
        file = io.BytesIO(b"".join(line for _, line in chunk))
        uploaded = self._openai.files.create(file=(f"{tag}.jsonl", file), purpose="batch")
        # Noted before it is made: a crash between the two must not have it made, and paid, twice.
        self._batches.append(batch)
        self._save()
        # Not repeated by the client: the first may have come through.
        made = self._openai.with_options(max_retries=0).batches.create(
            input_file_id=uploaded.id,
            endpoint=_endpoint(chunk[0][0]),  # type: ignore[arg-type]
            completion_window="24h",
            metadata={TAG: tag},
        )
        batch.id = made.id
        self._save()
        log.info(f"batch {made.id}: {len(chunk):,} requests handed in")

    def _wait(self) -> None:
        wait, unanswered = FIRST_WAIT, 0
        while self._batches:
            try:
                for batch in list(self._batches):
                    self._look(batch)
                unanswered = 0
            except PASSING as error:
                # A batch takes up to a day: a provider that is away for minutes must not end it.
                unanswered += 1
                if unanswered == LOOKS_WITHOUT_ANSWER or self._exhausted(error):
                    raise
                log.info(f"no answer, waiting: {self._clean(str(error))}")
            if self._batches:
                self._sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)

    def _look(self, batch: _Batch) -> None:
        """Fetches a batch that has ended; forgets one that the provider has no more."""
        try:
            state = self._openai.batches.retrieve(batch.id)
        except openai.NotFoundError:
            log.warning(f"batch {batch.id} is gone; the next run asks its rows again")
            return self._forget(batch)
        if state.status in ENDED:
            return self._fetch(batch, state)
        if (counts := state.request_counts) is not None:
            done = f"{counts.completed:,} of {counts.total or len(batch.requests):,}"
            log.info(f"batch {batch.id}: {state.status}, {done}")

    def _forget(self, batch: _Batch) -> None:
        # The journal first: a batch that is noted no more is not fetched again.
        self._run.journal.flush()
        self._batches.remove(batch)
        self._save()

    def _fetch(self, batch: _Batch, state: Any) -> None:
        # What an earlier life has taken was paid for once.
        missing = self._run.journal.missing(batch.requests)
        wanted = {asked.key: asked for asked in missing}
        files = [file for file in (state.output_file_id, state.error_file_id) if file]
        try:
            # All are there before the first is taken, so that a broken one is not counted twice.
            contents = [self._openai.files.content(file).content for file in files]
        except openai.NotFoundError:
            log.warning(f"the answers of batch {batch.id} are gone")
            contents = []
        for line in itertools.chain.from_iterable(map(bytes.splitlines, contents)):
            self._take(line, wanted)
        self._forget(batch)
        if state.status == "failed":
            reasons = [f"{e.message}" for e in (state.errors.data if state.errors else None) or ()]
            reason = "; ".join(reasons)
            if not self._exhausted(failure_of(429, reason, self._clean)):
                said = self._clean(reason or "no reason given")
                raise UsageError(f"the provider refused batch {batch.id}: {said}")
        left = f"; {len(wanted):,} without an answer, for the next run" if wanted else ""
        log.info(f"batch {batch.id}: {state.status}{left}")

    def _take(self, line: bytes, wanted: dict[str, Asked]) -> None:
        """One line of an output or error file; one that cannot be read is no answer."""
        try:
            answer = strict_json.loads(line)
            asked = wanted[answer["custom_id"]]
            response = answer.get("response")
            response = response if isinstance(response, dict) else {}
            reply = self._reply(asked, response, answer.get("error"))
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        if reply is not None:
            del wanted[asked.key]
            self._run.keep(asked, reply)

    def _reply(self, asked: Asked, response: dict[str, Any], error: Any) -> Reply | None:
        """What a line holds; None for nothing, so that the row is missing."""
        status, body = response.get("status_code"), response.get("body")
        if status == 200:
            content, estimate = json.dumps(body).encode(), self._prompt_tokens.get(asked.key, 0)
            try:
                return reply_of(content, b'"message"' in content, self._clean, estimate)
            except Retryable as lost:
                # Paid for, and the batch will not hold another.
                prompt, completion = lost.paid
                reply = Reply.failure(str(lost))
                return replace(reply, prompt_tokens=prompt, completion_tokens=completion)
        said = body if error_of(body) or (isinstance(body, str) and body) else error
        kind = str(error_of(said).get("code"))  # "batch_expired", "batch_cancelled".
        if status is None and (not said or kind.startswith("batch_")):
            return None
        text = json.dumps(said) if said and not isinstance(said, str) else said or ""
        found = failure_of(status, text, self._clean)
        if isinstance(found, Reply):
            return found
        again = self._exhausted(found) or isinstance(found, Retryable)
        return None if again else Reply.failure(str(found))


def _endpoint(request: Request) -> str:
    return "/v1/chat/completions" if "messages" in request.body else "/v1/completions"
