"""Whether students are as sure as they are right, whether their seeds agree, and whether their
rationales name the label that they give, or let a reader guess it: of each method and model, the
cell with the most data.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dss_jax.core.scoring import label_shares
from dss_jax.evaluate import reliability
from dss_jax.evaluate.reliability import BINS, COVERAGES, Drawn, Statistics, bootstrap, mean_of
from dss_jax.report.found_runs import BASELINES, FoundCell, FoundRuns, View, closed_labels
from dss_jax.report.labels import named
from dss_jax.report.tables import Table, share_of

Answer = dict[str, Any]

ANY = -np.inf, np.inf
SHOWN = {
    "confidence - accuracy": (*ANY, 100.0),
    "ECE": (0.0, 1.0, 100.0),
    "AURC": (0.0, 1.0, 100.0),
    "Brier": (0.0, 1.0, 1.0),
    "Brier, all labels": (0.0, 2.0, 1.0),
}
"""Statistics in tables: between what they lie, and what they are multiplied by."""

CURVE, IN_BINS = len(SHOWN), len(SHOWN) + len(COVERAGES)
"""Where the other statistics begin: risks, and each bin's items: right, confidence, number."""


def shares_of(answer: Answer) -> dict[str, float]:
    """The probabilities of the allowed labels, which add up to 1; {}: not known."""
    log_probs = answer.get("label_log_probs") or {}
    if None in log_probs.values():
        return {}
    return label_shares(log_probs)


def _vote(answer: Answer) -> float | None:
    samples = answer.get("samples")
    return samples.count(answer["prediction"]) / len(samples) if samples else None


def _text(answer: Answer) -> float | None:
    """Of a text that is the label alone."""
    log_prob = None if {"samples", "generated"} & answer.keys() else answer.get("log_prob")
    return None if log_prob is None else math.exp(min(0.0, log_prob))


KINDS: dict[str, Callable[[Answer], float | None]] = {
    "among the labels": lambda answer: shares_of(answer).get(answer["prediction"]),
    "share of the samples": _vote,
    "of the text": _text,
}
"""What confidence is: the first that all answers have."""


def confidences(answers: Sequence[Answer]) -> tuple[str, list[float]] | None:
    """How sure a student is of its answers, and of which kind that is; None: not known."""
    for kind, of in KINDS.items():
        found = [x for answer in answers if (x := of(answer)) is not None]
        if answers and len(found) == len(answers):
            return kind, found
    return None


@dataclass(frozen=True)
class MeasuredCell:
    """What a cell's answers tell.

    Attributes:
      ids: of the rows that all its runs have.
      kind, confidence: of what probability, and its statistics; "" and None where there is none.
      by_chance: see `error_by_chance`.
      agreement: share of the pairs of seeds that give a row the same answer; None for one seed.
      rationales: of those that are there the share that names one label alone, and of these the
        share that names the answer; means over the seeds that have any.
      reader, read: who has read the rationales, and how often that gives the student's answer: from
        the input and the rationale, from the input alone, the difference, and LAS; in the same way.
    """

    cell: FoundCell
    ids: tuple[str, ...]
    kind: str = ""
    confidence: Drawn | None = None
    agreement: Drawn | None = None
    rationales: Drawn | None = None
    by_chance: float = math.nan
    reader: str = ""
    read: Drawn | None = None


def measure(found: FoundRuns, view: View) -> list[MeasuredCell]:
    """All cells with answers."""
    made = []
    for cell in (c for task in found.tasks for c in found.with_most_data(task, view.split)):
        runs = [{p["id"]: p for p in run.predictions(view.split)} for run in cell.runs]
        runs = [run for run in runs if run]
        ids = tuple(i for i in (runs or [{}])[0] if all(i in run for run in runs))
        if ids:
            made.append(_measured(cell, ids, [[run[i] for i in ids] for run in runs]))
    return made


def _measured(cell: FoundCell, ids: tuple[str, ...], runs: list[list[Answer]]) -> MeasuredCell:
    every, n = [p for run in runs for p in run], len(ids)
    kind, confidence, agreement, rationales, by_chance = "", None, None, None, math.nan
    if known := confidences(every):
        kind, sure = known[0], np.reshape(known[1], (len(runs), n))
        by_chance = reliability.error_by_chance([*sure])
        pairs = zip(sure, runs, strict=True)
        confidence = bootstrap([_of_confidence(own, run) for own, run in pairs], n)
    if len(runs) > 1:
        counts = [Counter(p["prediction"] for p in row) for row in zip(*runs, strict=True)]
        same = np.array([sum(c * (c - 1) for c in row.values()) for row in counts], float)
        same /= len(runs) * (len(runs) - 1)
        agreement = bootstrap([lambda weights: mean_of(same, weights)[None]], n)
    labels = [*closed_labels(every)]
    names = [[_named(p, labels) for p in run] for run in runs]
    if any(name for run in names for name in run):
        rationales = _of_rationales(names, runs)
    made = MeasuredCell(cell, ids, kind, confidence, agreement, rationales, by_chance)
    if was_read := [run for run in runs if any("reader_agrees" in p for p in run)]:
        who = {str(p.get("reader")) for run in was_read for p in run if "reader_agrees" in p}
        read = bootstrap([*map(_of_reader, was_read)], n)
        made = replace(made, reader=", ".join(sorted(who)), read=read)
    return made


def _named(answer: Answer, labels: Sequence[str]) -> str | None:
    return named(answer.get("rationale"), [*answer.get("label_log_probs", labels)])


def _of_confidence(sure: np.ndarray, answers: Sequence[Answer]) -> Statistics:
    right = np.array([bool(p["correct"]) for p in answers])
    squares = np.array([_square(p) for p in answers])
    of_bins = reliability.in_bins(sure, right, sure, np.ones(len(sure)))

    def of(weights: np.ndarray) -> np.ndarray:
        area, curve = reliability.risk_by_coverage(sure, right, weights)
        single = [
            mean_of(sure - right, weights),
            reliability.calibration_error(sure, right, weights),
            area,
            mean_of((sure - right) ** 2, weights),
            mean_of(squares, weights),
        ]
        return np.concatenate([np.stack(single), curve, (weights @ of_bins).T])

    return of


def _square(answer: Answer) -> float:
    """Brier's score of a row over its allowed labels (1950), in [0, 2]; NaN: not known. With the
    scorer's own judgement of which one is right.
    """
    shares = shares_of(answer)
    gold = answer["prediction"] if answer["correct"] else answer["target"]
    return sum((x - (label == gold)) ** 2 for label, x in shares.items()) if shares else math.nan


def _of_rationales(names: Sequence[Sequence[str | None]], runs: Sequence[list[Answer]]) -> Drawn:
    """Seeds without any to take a share of are left out of its mean."""
    there = [np.array([p.get("rationale") is not None for p in run], float) for run in runs]
    one = [np.array([name is not None for name in own], float) for own in names]
    same = [
        np.array(
            [n is not None and n == p["prediction"] for n, p in zip(*pair, strict=True)], float
        )
        for pair in zip(names, runs, strict=True)
    ]
    shares = [
        bootstrap(
            [_share(*pair) for pair in zip(some, of, strict=True) if pair[1].any()], len(of[0])
        )
        for some, of in ((one, there), (same, one))
    ]
    return Drawn(*map(np.concatenate, zip(*shares, strict=True)))


def _of_reader(answers: Sequence[Answer]) -> Statistics:
    """LAS, leakage-adjusted simulatability (Hase et al. 2020): what the rationale adds, the mean of
    that where it alone gives the answer away and of that where it does not. NaN without either.
    """
    there = np.array(["reader_agrees" in p for p in answers], float)
    agrees = np.array([p.get("reader_agrees", [False] * 3) for p in answers], float)
    both, alone, leaks = agrees.T
    shares = [_share(some, there) for some in (both, alone, both - alone)]
    shares += [_share(of * (both - alone), of) for of in (leaks, there - leaks)]

    def statistic(weights: np.ndarray) -> np.ndarray:
        found = np.concatenate([share(weights) for share in shares])
        return np.stack([*found[:3], found[3:].mean(axis=0)])

    return statistic


def _share(some: np.ndarray, of: np.ndarray) -> Statistics:
    """NaN where a resample has none."""

    def statistic(weights: np.ndarray) -> np.ndarray:
        count = weights @ of
        return np.where(count > 0, weights @ some / np.maximum(count, 1), math.nan)[None]

    return statistic


def tables(made: Sequence[MeasuredCell], view: View) -> Iterator[Table]:
    for task in dict.fromkeys(one.cell.task for one in made):
        own = [one for one in made if one.cell.task == task]
        found = _confidence(task, own, view), _differences(task, own), _agreement(task, own, view)
        yield from (table for table in (*found, _read(task, own, view)) if table.rows)


def _place(cell: FoundCell) -> tuple[str, str, str]:
    return cell.method, cell.model, share_of(cell)


def _text_of(
    drawn: Drawn, k: int, low: float = 0.0, high: float = 1.0, times: float = 100.0, sign: str = ""
) -> str:
    """ "4.10 [3.20, 5.00]", or "-"."""
    if math.isnan(drawn.value[k]):
        return "-"
    digits = 2 if times == 100 else 4
    value, *ends = (f"{times * x:{sign}.{digits}f}" for x in drawn.interval(k, low, high))
    return f"{value} [{', '.join(ends)}]"


def _heads() -> tuple[str, ...]:
    return tuple(name if times == 1 else f"{name}, %" for name, (*_, times) in SHOWN.items())


def _confidence(task: str, made: Sequence[MeasuredCell], view: View) -> Table:
    rows, heads = [], _heads()
    for one in made:
        if drawn := one.confidence:
            own = [_text_of(drawn, k, *rule) for k, rule in enumerate(SHOWN.values())]
            own.insert(2, f"{100 * one.by_chance:.2f}")
            rows.append((*_place(one.cell), one.kind, *own))
    return Table(
        f"{task}: confidence, {view.split}",
        ("method", "model", "training data", "probability", *heads[:2], "by chance, %", *heads[2:]),
        tuple(rows),
        "Means over seeds, with 95 % intervals of a bootstrap over seeds and items. ECE: expected "
        f"calibration error in {BINS} bins of equal width; by chance: calibrated students stay "
        "below it in 97.5 % of all draws. AURC: area under the risk-coverage curve. Brier: of the "
        "answer's confidence against whether it is right; over all labels, of their distribution. "
        "Less is better, but for the first column, where 0 is.",
    )


def _differences(task: str, made: Sequence[MeasuredCell]) -> Table:
    """Each method against the baseline, on the same rows with confidence of the same kind."""
    there = [(m, drawn) for m in made if (drawn := m.confidence)]
    baseline = next((b for b in BASELINES if b in {m.cell.method for m, _ in there}), "")
    others = [pair for pair in there if pair[0].cell.method == baseline]
    rows = []
    for one, drawn in (pair for pair in there if pair[0].cell.method != baseline):
        for base, of_base in others:
            size = one.cell.examples or base.cell.examples
            own = one.cell.model, size, one.kind, one.ids
            if own == (base.cell.model, base.cell.examples, base.kind, base.ids):
                less, scales = drawn.minus(of_base), enumerate(s[-1] for s in SHOWN.values())
                texts = (_text_of(less, k, *ANY, times, "+") for k, times in scales)
                rows.append((f"{one.cell.method} - {baseline}", *_place(one.cell)[1:], *texts))
    return Table(
        f"{task}: confidence, differences from {baseline}",
        ("difference", "model", "training data", *_heads()),
        tuple(rows),
        "Of the same resamples of items, and of seeds where there are as many.",
    )


def _agreement(task: str, made: Sequence[MeasuredCell], view: View) -> Table:
    rows = []
    for one in (m for m in made if m.agreement or m.rationales):
        scores = one.cell.scores(view.split)
        spread = (np.std(scores, ddof=1), min(scores), max(scores)) if len(scores) > 1 else ()
        seeds = [f"{x:.2f}" for x in spread] or ["-"] * 3
        agree = "-" if one.agreement is None else _text_of(one.agreement, 0)
        told = [_text_of(one.rationales, k) for k in (0, 1)] if one.rationales else ["-", "-"]
        rows.append((*_place(one.cell), str(len(scores)), *seeds, agree, *told))
    columns = ("seeds", "s over seeds", "lowest", "highest", "pairs of seeds agree, %")
    of_rationales = ("rationales that name one label, %", "it is the answer, %")
    return Table(
        f"{task}: seeds and rationales, {view.split}",
        ("method", "model", "training data", *columns, *of_rationales),
        tuple(rows),
        "s: standard deviation of the accuracy, with n - 1. Pairs of seeds agree: on an item's "
        "answer, right or wrong. A rationale names a label that is in it as words of their own. "
        "95 % intervals by a bootstrap over items, and over seeds for rationales.",
    )


def _read(task: str, made: Sequence[MeasuredCell], view: View) -> Table:
    rows = []
    for one in made:
        if drawn := one.read:
            shares = [_text_of(drawn, k) for k in (0, 1)]
            gains = [_text_of(drawn, k, -1.0, 1.0, 100.0, "+") for k in (2, 3)]
            rows.append((*_place(one.cell), one.reader, *shares, *gains))
    columns = "input and rationale, %", "input alone, %", "difference", "LAS"
    return Table(
        f"{task}: what a reader says in the student's place, {view.split}",
        ("method", "model", "training data", "reader", *columns),
        tuple(rows),
        "How often the reader gives the student's answer, right or wrong. LAS, leakage-adjusted "
        "simulatability: the mean of the difference where the rationale alone gives the answer "
        "away, and where it does not; in points. 95 % intervals by a bootstrap over seeds and "
        "items.",
    )
