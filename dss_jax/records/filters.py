"""Which records a student is trained on. `dss records filter`; docs/records.md."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dss_jax.core.checks import among, between
from dss_jax.core.errors import UsageError
from dss_jax.core.scoring import folded_text
from dss_jax.records.files import row_totals
from dss_jax.records.near import near_duplicates
from dss_jax.records.records import STATUSES, Header, Record, RecordSample

Correct = Callable[[str, str], bool]
"""(gold, label) -> whether the label is right: the `correct` of the task's scorer."""

DUPLICATES_OF = ("input", "rationale", "both")


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What stays. Applied in this order; each to what the one before it left."""

    ids: tuple[str, frozenset[str]] | None = None  # Rows with these, and whose choice it was.
    only: tuple[str, ...] = ()  # Statuses of rows; (): all.
    # Rows whose vote is right by the task's scorer. Rows without a gold label stay: there is
    # nothing to hold against them.
    label_equals_gold: bool = False
    # Of each row, the samples that have its label; rows without a vote go.
    label_equals_vote: bool = False
    min_agreement: float = 0.0  # Least `Record.agreement`; 0: any.
    # (least, most) words of a sample's rationale; None: no bound.
    rationale_words: tuple[int | None, int | None] | None = None
    # Drop what is the same as one before it, but for case and white space.
    exact_duplicates: bool = False
    # Drop what has at least this Jaccard similarity, of word triples, to one before it; 0: off.
    near_duplicates: float = 0.0
    # What both compare: "input" (drops rows), "rationale" (drops samples) or "both".
    duplicates_of: str = "both"

    def __post_init__(self) -> None:
        for status in self.only:
            among("--only", status, STATUSES)
        between("--min_agreement", self.min_agreement, 0, 1)
        between("--near_duplicates", self.near_duplicates, 0, 1)
        among("--duplicates_of", self.duplicates_of, DUPLICATES_OF)
        least, most = self.rationale_words or (None, None)
        if least is not None and most is not None and least > most:
            raise UsageError(f"--rationale_words {least}:{most}: the least is above the most.")


def apply_filters(
    header: Header, records: Sequence[Record], filters: Filters, correct: Correct
) -> tuple[Header, list[Record]]:
    """Applies filters to the records of a file.

    A sample that goes takes its row with it if the row has no other sample with its label, or no
    sample at all. `agreement` and `teacher_label` stay those of all samples that were asked for.

    Returns:
      The header, with `rows` and `statuses` of what stays in its totals, and for each filter an
      entry in `filters`: filter, value, rows_left_out, samples_left_out, rows_kept; and what stays.
    """
    kept = list(records)
    entries = []
    for name, value, stage in _stages(filters, correct):
        rows, samples = len(kept), _samples_of(kept)
        kept = stage(kept)
        out = {"rows_left_out": rows - len(kept), "samples_left_out": samples - _samples_of(kept)}
        entries.append({"filter": name, "value": value, **out, "rows_kept": len(kept)})
    totals = {**header.totals, **row_totals(kept)}
    return replace(header, totals=totals, filters=(*header.filters, *entries)), kept


def _samples_of(records: Sequence[Record]) -> int:
    return sum(len(record.samples) for record in records)


Stage = Callable[[list[Record]], list[Record]]
Duplicates = Callable[[Sequence[str]], Iterable[bool]]
"""texts -> for each, whether one before it is the same, or near."""


def _stages(filters: Filters, correct: Correct) -> Iterator[tuple[str, Any, Stage]]:
    if filters.ids is not None:
        whose, ids = filters.ids
        yield "ids", whose, _rows(lambda r: r.id in ids)
    if filters.only:
        yield "only", list(filters.only), _rows(lambda r: r.status in filters.only)
    if filters.label_equals_gold:
        right = _rows(lambda r: not r.gold or correct(r.gold, r.teacher_label))
        yield "label_equals_gold", True, right
    if filters.label_equals_vote:
        yield "label_equals_vote", True, _samples(lambda r, s: r.votes(s))
    if filters.min_agreement:
        agree = _rows(lambda r: r.agreement >= filters.min_agreement)
        yield "min_agreement", filters.min_agreement, agree
    if filters.rationale_words:
        low, high = filters.rationale_words
        least, most = low or 0, math.inf if high is None else high
        fits = _samples(lambda _, s: least <= len(s.rationale.split()) <= most)
        yield "rationale_words", [low, high], fits
    near = filters.near_duplicates
    kinds: dict[str, Duplicates] = {
        "exact_duplicates": _repeated,
        "near_duplicates": lambda texts: (n is not None for n in near_duplicates(texts, near)),
    }
    for name, duplicates in kinds.items():
        for of in ("input", "rationale"):
            value = getattr(filters, name)
            if value and filters.duplicates_of in (of, "both"):
                yield f"{name}: {of}", value, _without_duplicates(duplicates, of)


def _rows(keep: Callable[[Record], bool]) -> Stage:
    return lambda records: [r for r in records if keep(r)]


def _samples(keep: Callable[[Record, RecordSample], bool]) -> Stage:
    def stage(records: list[Record]) -> list[Record]:
        reduced = (_with(r, tuple(s for s in r.samples if keep(r, s))) for r in records)
        return [r for r in reduced if r is not None]

    return stage


def _with(record: Record, samples: tuple[RecordSample, ...]) -> Record | None:
    """The record with these of its samples; None where it cannot stand with them."""
    voted = any(map(record.votes, record.samples))
    if not samples or (voted and not any(map(record.votes, samples))):
        return None
    status = record.status if voted else samples[0].status
    return replace(record, samples=samples, status=status)


def _repeated(texts: Sequence[str]) -> Iterator[bool]:
    seen: set[str] = set()
    for text in map(folded_text, texts):
        yield text in seen
        seen.add(text)


def _without_duplicates(duplicates: Duplicates, of: str) -> Stage:
    """Samples without a rationale are no duplicates of each other."""

    def stage(records: list[Record]) -> list[Record]:
        if of == "input":
            gone = iter(duplicates([r.input for r in records]))
            return _rows(lambda _: not next(gone))(records)
        gone = iter(duplicates([s.rationale for r in records for s in r.samples if s.rationale]))
        return _samples(lambda _, s: not (s.rationale and next(gone)))(records)

    return stage
