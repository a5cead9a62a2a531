"""Stage 1 from end to end: rows of a task -> requests -> journal -> rationale records."""

import asyncio
import datetime
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dss_jax.core.errors import UsageError
from dss_jax.core.prompt import Prompt
from dss_jax.core.types import DistillationTask, Example
from dss_jax.data import rows
from dss_jax.records.files import write_records
from dss_jax.records.records import Header, Record, Reply
from dss_jax.records.voting import record_of
from dss_jax.teacher.client import Client
from dss_jax.teacher.extract import CHUNK, Progress, RunOptions, Summary, run
from dss_jax.teacher.jobs import Job
from dss_jax.teacher.journal import Journal
from dss_jax.teacher.parsing import read_reply
from dss_jax.teacher.prompting import PromptOptions, prompt_sha256, request_body
from dss_jax.teacher.release import from_release as records_of_release
from dss_jax.teacher.release import prompt_of

RELEASED_TEACHER = "PaLM 540B (released completions)"

NOT_ASKED = Reply(text="", finish_reason="error", refusal="not asked yet")

Price = Callable[[int, int], float | None]
"""(prompt tokens, completion tokens) -> cost in USD; None where the price is not known."""


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """What is asked of which teacher.

    Attributes:
      task: whose prompt and scorer are used.
      split: of the rows.
      model: the teacher's name, as its server knows it.
      options: how the prompt is laid out.
      samples: completions a row.
      sampling: fields of the request besides the prompt: temperature, max_tokens, top_p, seed, and
        what else its server knows. With a seed, sample i is sent seed + i.
      omit: fields that are left out of the requests, for a model that does not have them.
    """

    task: DistillationTask
    split: str
    model: str
    options: PromptOptions = field(default_factory=PromptOptions)
    samples: int = 1
    sampling: dict[str, Any] = field(default_factory=dict)
    omit: tuple[str, ...] = ()

    @property
    def prompt(self) -> Prompt:
        """The task's prompt.

        Raises:
          UsageError: it has none.
        """
        return prompt_of(self.task)

    def jobs_of(self, example: Example) -> Iterator[Job]:
        """The requests of one row, one a sample."""
        shared = {"model": self.model, **request_body(self.prompt, example, self.options)}
        for sample in range(self.samples):
            own = dict(self.sampling)
            if "seed" in own:
                own["seed"] += sample
            body = {**shared, **own}
            yield Job(example.id, sample, {k: v for k, v in body.items() if k not in self.omit})

    def jobs(self, examples: Iterable[Example]) -> Iterator[Job]:
        """The requests of all rows, in order."""
        for example in examples:
            yield from self.jobs_of(example)

    @property
    def settings(self) -> dict[str, Any]:
        """`sampling` as sent, but for the number of samples."""
        sent = {name: value for name, value in self.sampling.items() if name not in self.omit}
        return {**sent, "omit": list(self.omit)} if self.omit else sent

    @property
    def sha256(self) -> str:
        """Of what is asked, whatever rows and however many samples, in hex."""
        what = [self.task.name, self.split, self.model, self.settings,
                prompt_sha256(self.prompt, self.options)]  # fmt: skip
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def shard_of(examples: Sequence[Example], shard: str | None) -> Sequence[Example]:
    """Every n-th row from the i-th on, for `shard` = "i/n" with i from 0.

    Raises:
      UsageError: `shard` has another form.
    """
    if shard is None:
        return examples
    index, _, count = shard.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UsageError(f"--shard must be i/n with i from 0 to n - 1, not {shard!r}.")
    return examples[int(index) :: int(count)]


class Totals:
    """Counts of what the records are made from."""

    def __init__(self) -> None:
        self.rows = self.requests = self.prompt_tokens = self.completion_tokens = 0
        self.statuses: dict[str, int] = {}
        self._keys: set[bytes] = set()

    def add_reply(self, job: Job, reply: Reply) -> None:
        """One sample's reply; rows with the same text share one, which was paid for once."""
        key = bytes.fromhex(job.key)
        if key in self._keys:
            return
        self._keys.add(key)
        self.requests += 1
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens

    def add_record(self, record: Record) -> None:
        """One row."""
        self.rows += 1
        self.statuses[record.status] = self.statuses.get(record.status, 0) + 1

    def as_dict(self, price: Price) -> dict[str, Any]:
        """As the header has it."""
        counts = {"rows": self.rows, "requests": self.requests,
                  "prompt_tokens": self.prompt_tokens,
                  "completion_tokens": self.completion_tokens}  # fmt: skip
        cost = price(self.prompt_tokens, self.completion_tokens)
        return {
            **counts,
            "statuses": dict(sorted(self.statuses.items())),
            **({} if cost is None else {"cost_usd": round(cost, 6)}),
        }


def records(
    extraction: Extraction, examples: Iterable[Example], journal: Journal, totals: Totals
) -> Iterator[Record]:
    """The records of all rows, in order, from what the journal has."""
    for example in examples:
        samples = []
        for job in extraction.jobs_of(example):
            reply = journal.reply(job.key) or NOT_ASKED
            totals.add_reply(job, reply)
            samples.append(read_reply(reply, example, extraction.prompt, extraction.options))
        record = record_of(example, samples, same=extraction.task.scorer.correct)
        totals.add_record(record)
        yield record


def write(
    extraction: Extraction,
    examples: Sequence[Example],
    journal: Journal,
    out: Path,
    *,
    price: Price,
    prices: str = "",
    endpoint: str = "",
    terms: str = "",
) -> Header:
    """Writes the record file of all rows, whole or not at all, and returns its header.

    Args:
      extraction: what was asked.
      examples: the rows.
      journal: has the replies.
      out: the file.
      price: of the tokens.
      prices, endpoint, terms: as of `Header`.
    """
    totals = Totals()
    # The header comes first and needs the totals, so the replies are read twice.
    for _ in records(extraction, examples, journal, totals):
        pass
    seconds, retries = journal.effort(extraction.sha256)
    effort = {"retries": retries, "seconds": round(seconds, 1)} if seconds else {}
    header = Header(
        task=extraction.task.name,
        split=extraction.split,
        teacher=extraction.model,
        endpoint=endpoint,
        prompt_sha256=prompt_sha256(extraction.prompt, extraction.options),
        sampling={**extraction.settings, "samples": extraction.samples},
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        terms=terms,
        prices=prices,
        totals=totals.as_dict(price) | effort,
    )
    write_records(out, header, records(extraction, examples, journal, Totals()))
    return header


def missing(
    extraction: Extraction,
    examples: Iterable[Example],
    journal: Journal,
    *,
    only_failed: bool = False,
) -> Iterator[Job]:
    """The requests that `ask` would send, in order."""
    jobs = extraction.jobs(examples)
    while chunk := list(itertools.islice(jobs, CHUNK)):
        yield from journal.missing(chunk, only_failed=only_failed)


def noting(extraction: Extraction, journal: Journal, progress: Progress | None = None) -> Progress:
    """`progress`, which also has the journal keep what the run takes, once it got a reply."""

    def told(summary: Summary) -> None:
        if summary.answered or summary.failed:
            journal.note_run(extraction.sha256, summary.seconds, summary.retries)
        if progress is not None:
            progress(summary)

    return told


def ask(
    extraction: Extraction,
    examples: Sequence[Example],
    journal: Journal,
    send: Client,
    options: RunOptions,
    progress: Progress | None = None,
    may_go_on: Callable[[Summary], str | None] | None = None,
) -> Summary:
    """Asks for every sample that the journal does not have, and closes the client."""

    async def work() -> Summary:
        try:
            return await run(extraction.jobs(examples), send, journal, options, progress, may_go_on)
        finally:
            await send.close()

    return asyncio.run(work())


def from_release(task: DistillationTask, split: str, data_dir: str, out: Path) -> Header:
    """Writes records of the completions that came with the authors' release."""
    totals = Totals()
    made = []
    for record in records_of_release(task, rows.examples_with_completions(task, split, data_dir)):
        totals.add_record(record)
        made.append(record)
    header = Header(
        task=task.name,
        split=split,
        teacher=RELEASED_TEACHER,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        terms=f"data: {task.licence}",
        totals=totals.as_dict(lambda *_: None),
    )
    write_records(out, header, made)
    return header
