"""Stage 1 from end to end: rows of a task -> requests -> journal -> rationale records."""

import datetime
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dss_jax.core.checks import shard_numbers
from dss_jax.core.errors import UsageError
from dss_jax.core.prompt import Prompt
from dss_jax.core.types import DistillationTask, Example
from dss_jax.records.files import write_records
from dss_jax.records.records import Header, Record, Reply, record_of
from dss_jax.teacher.journal import Journal, Request
from dss_jax.teacher.parsing import read_reply
from dss_jax.teacher.prompting import PromptOptions, prompt_sha256, request_body

RELEASED_TEACHER = "PaLM 540B (released completions)"

NOT_ASKED = Reply.failure("not asked yet")
NOT_RELEASED = Reply.failure("there is no completion for this row")

FEW_LABELS = 20
"""At most so many different gold labels are all that a teacher may answer."""

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
      labels: allowed in the answers about rows that have none of their own, where the task names
        none either (`learned_labels`).
    """

    task: DistillationTask
    split: str
    model: str
    options: PromptOptions = field(default_factory=PromptOptions)
    samples: int = 1
    sampling: dict[str, Any] = field(default_factory=dict)
    omit: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

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
            # Not the learned ones: more rows would be other requests.
            asked = request_body(self.prompt, _limited(example, self.task.labels), self.options)
            body = {"model": self.model, **asked, **self.sampling}
            for sample in range(self.samples):
                if "seed" in self.sampling:
                    body["seed"] = self.sampling["seed"] + sample
                sent = {name: value for name, value in body.items() if name not in self.omit}
                yield Request(example.id, sample, sent)

    def record(self, example: Example, replies: Iterable[Reply]) -> Record:
        """The record of a row, from the replies to its requests."""
        row = _limited(example, self.task.labels or self.labels)
        samples = [read_reply(r, row, self.prompt, self.options) for r in replies]
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


def _limited(example: Example, labels: tuple[str, ...]) -> Example:
    """The row with these allowed labels, unless it has its own."""
    return example if example.allowed_labels else replace(example, allowed_labels=labels)


def learned_labels(task: DistillationTask, examples: Iterable[Example]) -> tuple[str, ...]:
    """The gold labels of rows, where they are few enough to be all; else ().

    Without them "not float" is as good a label as "float".
    """
    if task.labels or task.prompt is None or task.prompt.valid is not bool:
        return ()
    counts = Counter(e.label for e in examples if e.label and not e.allowed_labels)
    few = 1 < len(counts) <= FEW_LABELS and counts.total() >= 2 * len(counts)
    return tuple(sorted(counts)) if few else ()


def shard_of(examples: Sequence[Example], shard: str | None) -> Sequence[Example]:
    """Every n-th row from the i-th on, for `shard` = "i/n" with i from 0.

    Raises:
      UsageError: `shard` has another form.
    """
    if shard is None:
        return examples
    index, count = shard_numbers(shard)
    return examples[index::count]


def answered(
    extraction: Extraction, examples: Iterable[Example], journal: Journal
) -> Iterator[tuple[Record, dict[str, Reply]]]:
    """The records of all rows, in order, from what the journal has; and by key the replies."""
    for example in examples:
        keys = [request.key for request in extraction.requests([example])]
        replies = {key: journal.reply(key) or NOT_ASKED for key in keys}
        yield extraction.record(example, [replies[key] for key in keys]), replies


def _totals(answers: Iterable[tuple[Record, dict[str, Reply]]], price: Price) -> dict[str, Any]:
    """What the header says of records and their replies by key.

    Rows with one text share a request, which was paid for once.
    """
    counts = Counter(rows=0, requests=0, prompt_tokens=0, completion_tokens=0)
    estimated = 0
    statuses: Counter[str] = Counter()
    seen: set[bytes] = set()
    for record, replies in answers:
        counts["rows"] += 1
        statuses[record.status] += 1
        new = {bytes.fromhex(key): reply for key, reply in replies.items()}
        for key in new.keys() - seen:
            counts["requests"] += 1
            counts["prompt_tokens"] += new[key].prompt_tokens
            counts["completion_tokens"] += new[key].completion_tokens
            estimated += new[key].estimated
        seen |= new.keys()
    cost = price(counts["prompt_tokens"], counts["completion_tokens"])
    costs: dict[str, Any] = {} if cost is None else {"cost_usd": round(cost, 6)}
    if estimated:
        costs["requests_estimated"] = estimated
    return {**counts, "statuses": dict(sorted(statuses.items())), **costs}


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
    # The header comes first and needs the totals, so the replies are read twice.
    totals = _totals(answered(extraction, examples, journal), price)
    seconds, retries = journal.effort(extraction.sha256)
    effort = {"retries": retries, "seconds": round(seconds, 1)} if seconds else {}
    header = _header(
        extraction,
        totals | effort,
        prompt_sha256=prompt_sha256(extraction.prompt, extraction.options),
        sampling={**extraction.settings, "samples": extraction.samples},
        **provenance,
    )
    write_records(out, header, (record for record, _ in answered(extraction, examples, journal)))
    return header


def from_release(
    task: DistillationTask, split: str, completions: Iterable[tuple[Example, str | None]]
) -> tuple[Header, list[Record]]:
    """Records of completions that exist already, as the authors' release has them. No request.

    Args:
      task: its prompt says how a completion is read.
      split: of the rows.
      completions: each row with its raw completion, None where there is none (status "error").

    Raises:
      UsageError: the task has no prompt.
    """
    options = PromptOptions(form="completion")
    extraction = Extraction(task=task, split=split, model=RELEASED_TEACHER, options=options)
    replies = ((e, NOT_RELEASED if text is None else Reply(text=text)) for e, text in completions)
    records = [extraction.record(example, [reply]) for example, reply in replies]
    totals = _totals(((record, {}) for record in records), lambda *_: None)
    return _header(extraction, totals, terms=f"data: {task.licence}"), records


def _header(extraction: Extraction, totals: dict[str, Any], **provenance: Any) -> Header:
    return Header(
        task=extraction.task.name,
        split=extraction.split,
        teacher=extraction.model,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        totals=totals,
        **provenance,
    )
