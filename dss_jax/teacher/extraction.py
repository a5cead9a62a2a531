"""Stage 1 from end to end: rows of a task -> requests -> journal -> rationale records."""

import datetime
import hashlib
import json
from collections import Counter
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
from dss_jax.teacher.journal import Journal, Request
from dss_jax.teacher.parsing import read_reply
from dss_jax.teacher.prompting import PromptOptions, prompt_sha256, request_body

RELEASED_TEACHER = "PaLM 540B (released completions)"

NOT_ASKED = Reply.failure("not asked yet")
NOT_RELEASED = Reply.failure("there is no completion for this row")

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
        if self.task.prompt is None:
            raise UsageError(
                f"task {self.task.name!r} has no prompt, so no teacher can be asked. Give its TASK "
                "a `prompt`, a dss_jax.core.prompt.Prompt; docs/add_a_task.md shows one."
            )
        return self.task.prompt

    def requests(self, examples: Iterable[Example]) -> Iterator[Request]:
        """The requests of rows, in order, one a sample."""
        for example in examples:
            asked = request_body(self.prompt, example, self.options)
            body = {"model": self.model, **asked, **self.sampling}
            for sample in range(self.samples):
                if "seed" in self.sampling:
                    body["seed"] = self.sampling["seed"] + sample
                sent = {name: value for name, value in body.items() if name not in self.omit}
                yield Request(example.id, sample, sent)

    def record(self, example: Example, replies: Iterable[Reply]) -> Record:
        """The record of a row, from the replies to its requests."""
        samples = [read_reply(r, example, self.prompt, self.options) for r in replies]
        return record_of(example, samples, same=self.task.scorer.correct)

    @property
    def settings(self) -> dict[str, Any]:
        """`sampling` as sent, but for the number of samples."""
        sent = {name: value for name, value in self.sampling.items() if name not in self.omit}
        return {**sent, "omit": list(self.omit)} if self.omit else sent

    @property
    def sha256(self) -> str:
        """Of what is asked, whatever rows and however many samples, in hex."""
        prompt = prompt_sha256(self.prompt, self.options)
        what = [self.task.name, self.split, self.model, self.settings, prompt]
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
    """Counts of what records are made from. Rows with one text share a request, paid for once."""

    def __init__(self) -> None:
        self._counts = Counter(rows=0, requests=0, prompt_tokens=0, completion_tokens=0)
        self._statuses: Counter[str] = Counter()
        self._keys: set[bytes] = set()

    def add(self, record: Record, replies: Iterable[tuple[str, Reply]] = ()) -> Record:
        """Counts a row and (key, reply) of each of its requests; gives the record back."""
        self._counts["rows"] += 1
        self._statuses[record.status] += 1
        for key, reply in replies:
            if (seen := bytes.fromhex(key)) not in self._keys:
                self._keys.add(seen)
                self._counts["requests"] += 1
                self._counts["prompt_tokens"] += reply.prompt_tokens
                self._counts["completion_tokens"] += reply.completion_tokens
        return record

    def as_dict(self, price: Price) -> dict[str, Any]:
        """As the header has it."""
        cost = price(self._counts["prompt_tokens"], self._counts["completion_tokens"])
        statuses = dict(sorted(self._statuses.items()))
        costs = {} if cost is None else {"cost_usd": round(cost, 6)}
        return {**self._counts, "statuses": statuses, **costs}


def records(
    extraction: Extraction, examples: Iterable[Example], journal: Journal, totals: Totals
) -> Iterator[Record]:
    """The records of all rows, in order, from what the journal has."""
    for example in examples:
        keys = [request.key for request in extraction.requests([example])]
        replies = [journal.reply(key) or NOT_ASKED for key in keys]
        yield totals.add(extraction.record(example, replies), zip(keys, replies, strict=True))


def write(
    extraction: Extraction,
    examples: Sequence[Example],
    journal: Journal,
    out: Path,
    *,
    price: Price,
    **provenance: str,
) -> Header:
    """Writes the record file of all rows, whole or not at all, and returns its header.

    Args:
      extraction: what was asked.
      examples: the rows.
      journal: has the replies.
      out: the file.
      price: of the tokens.
      provenance: prices, endpoint, terms: as of `Header`.
    """
    totals = Totals()
    # The header comes first and needs the totals, so the replies are read twice.
    for _ in records(extraction, examples, journal, totals):
        pass
    seconds, retries = journal.effort(extraction.sha256)
    effort = {"retries": retries, "seconds": round(seconds, 1)} if seconds else {}
    header = _header(
        extraction,
        totals.as_dict(price) | effort,
        prompt_sha256=prompt_sha256(extraction.prompt, extraction.options),
        sampling={**extraction.settings, "samples": extraction.samples},
        **provenance,
    )
    write_records(out, header, records(extraction, examples, journal, Totals()))
    return header


def released_records(
    task: DistillationTask, split: str, completions: Iterable[tuple[Example, str | None]]
) -> tuple[Header, list[Record]]:
    """Records of completions that exist already, as the authors' release has them. No request.

    Args:
      task: its prompt says how a completion is read.
      split: of the rows.
      completions: each row with its raw completion, None where there is none (status "error").

    Returns:
      Header and records, each of one sample.

    Raises:
      UsageError: the task has no prompt.
    """
    options = PromptOptions(form="completion")
    extraction = Extraction(task=task, split=split, model=RELEASED_TEACHER, options=options)
    totals = Totals()
    made = []
    for example, text in completions:
        reply = NOT_RELEASED if text is None else Reply(text=text)
        made.append(totals.add(extraction.record(example, [reply])))
    costs = totals.as_dict(lambda *_: None)
    return _header(extraction, costs, terms=f"data: {task.licence}"), made


def from_release(task: DistillationTask, split: str, data_dir: str, out: Path) -> Header:
    """Writes records of the completions that came with the authors' release."""
    completions = rows.examples_with_completions(task, split, data_dir)
    header, made = released_records(task, split, completions)
    write_records(out, header, made)
    return header


def _header(extraction: Extraction, totals: dict[str, Any], **provenance: Any) -> Header:
    return Header(
        task=extraction.task.name,
        split=extraction.split,
        teacher=extraction.model,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        totals=totals,
        **provenance,
    )
