"""Stage 1 from end to end: rows of a task -> requests -> journal -> rationale records."""

import datetime
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

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

FEW_LABELS = 20  # At most so many different gold labels are all that a teacher may answer.

Price = Callable[[int, int], float | None]
"""(prompt tokens, completion tokens) -> cost in USD; None where the price is not known."""


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """What is asked of which teacher."""

    task: DistillationTask  # Whose prompt and scorer are used.
    split: str  # Of the rows.
    model: str  # The teacher's name, as its server knows it.
    options: PromptOptions = field(default_factory=PromptOptions)
    samples: int = 1  # Completions a row.
    # Fields of the request besides the prompt: temperature, max_tokens, top_p, seed, and what else
    # its server knows. With a seed, sample i is sent seed + i.
    sampling: dict[str, Any] = field(default_factory=dict)
    omit: tuple[str, ...] = ()  # Fields that are left out, for a model that does not have them.
    # Allowed in the answers about rows that have none of their own, where the task names none
    # either (`learned_labels`).
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
        sampling = self._kept(self.sampling)
        for example in examples:
            # Not the learned ones: more rows would be other requests.
            asked = request_body(self.prompt, _limited(example, self.task.labels), self.options)
            for sample in range(self.samples):
                seed = {"seed": sampling["seed"] + sample} if "seed" in sampling else {}
                body = {"model": self.model, **self._kept(asked), **sampling, **seed}
                yield Request(example.id, sample, body)

    def _kept(self, fields: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in fields.items() if name not in self.omit}

    def record(self, example: Example, replies: Iterable[Reply]) -> Record:
        """The record of a row, from the replies to its requests."""
        row = _limited(example, self.task.labels or self.labels)
        samples = [read_reply(r, row, self.prompt, self.options) for r in replies]
        return record_of(example, samples, same=self.task.scorer.correct)

    @property
    def settings(self) -> dict[str, Any]:
        """`sampling` as sent, but for the number of samples."""
        return self._kept(self.sampling) | ({"omit": list(self.omit)} if self.omit else {})

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
    rows = prompt = completion = estimated = 0
    statuses: Counter[str] = Counter()
    seen: set[bytes] = set()
    for record, replies in answers:
        rows += 1
        statuses[record.status] += 1
        new = {bytes.fromhex(key): reply for key, reply in replies.items()}
        for key in new.keys() - seen:
            prompt += new[key].prompt_tokens
            completion += new[key].completion_tokens
            estimated += new[key].estimated
        seen |= new.keys()
    totals: dict[str, Any] = {"rows": rows, "requests": len(seen), "prompt_tokens": prompt}
    totals |= {"completion_tokens": completion, "statuses": dict(sorted(statuses.items()))}
    if (cost := price(prompt, completion)) is not None:
        totals["cost_usd"] = round(cost, 6)
    return totals | ({"requests_estimated": estimated} if estimated else {})


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

    `provenance` are prices, endpoint and terms, as of `Header`.
    """
    # The header comes first and needs the totals, so the replies are read twice.
    totals = _totals(answered(extraction, examples, journal), price)
    seconds, retries = journal.effort(extraction.sha256)
    effort = {"retries": retries, "seconds": round(seconds, 1)} if seconds else {}
    header = _header(
        extraction,
        totals | effort,
        prompt_sha256=prompt_sha256(extraction.prompt, extraction.options),
        prompt=asdict(extraction.options),
        sampling={**extraction.settings, "samples": extraction.samples},
        **provenance,
    )
    write_records(out, header, (record for record, _ in answered(extraction, examples, journal)))
    return header


def from_release(
    task: DistillationTask, split: str, completions: Iterable[tuple[Example, str | None]]
) -> tuple[Header, list[Record]]:
    """Records of completions that exist already, as the authors' release has them. No request.

    A completion that is None has the status "error". Raises `UsageError` without a prompt.
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
