"""What students say for each gold label, where there are few: which labels are taken for which."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from dss_jax.core.scoring import folded_text
from dss_jax.core.words import word_in
from dss_jax.report.found_runs import FoundRuns, View, closed_labels
from dss_jax.report.tables import Table, share_of

OTHER = "no label"


def named(rationale: str | None, labels: Sequence[str]) -> str | None:
    """The label that a rationale names, where it names one alone, as a word of its own."""
    text = folded_text(rationale or "")
    found = [label for label in labels if word_in(folded_text(label), text)]
    return found[0] if len(found) == 1 else None


def named_other(rationale: str | None, prediction: str, labels: Sequence[str]) -> str | None:
    """The label that a rationale names alone, where another one was predicted."""
    return found if (found := named(rationale, labels)) != prediction else None


def tables(found: FoundRuns, view: View) -> Iterator[Table]:
    """A confusion matrix, with precision and recall of each label: for each task, model and method,
    of its cell with the most data.
    """
    for task in found.tasks:
        for cell in found.with_most_data(task, view.split):
            runs = [answers for run in cell.runs if (answers := run.predictions(view.split))]
            predictions = [p for answers in runs for p in answers]
            if labels := closed_labels(predictions):
                title = f"{task}: labels, {cell.method}, {cell.model}, {share_of(cell)}"
                yield _of_labels(title, predictions, [*labels], len(runs))


def _of_labels(
    title: str, predictions: Sequence[dict[str, Any]], labels: Sequence[str], seeds: int
) -> Table:
    """With the scorer's own judgement of what is right, which may take other spellings."""
    pairs: Counter[tuple[str, str]] = Counter()
    for p in predictions:
        said = p["prediction"] if p["prediction"] in labels else OTHER
        pairs[p["target"], p["target"] if p["correct"] else said] += 1
    rows = []
    for gold in labels:
        right = pairs[gold, gold]
        said = sum(pairs[other, gold] for other in labels)
        there = sum(pairs[gold, other] for other in (*labels, OTHER))
        precision = f"{100 * right / said:.1f}" if said else "-"
        counts = (f"{pairs[gold, other] / seeds:.4g}" for other in (*labels, OTHER))
        rows.append(
            (gold, f"{there / seeds:.4g}", precision, f"{100 * right / there:.1f}", *counts)
        )
    header = ("gold", "items", "precision, %", "recall, %", *(f"said {x}" for x in labels), OTHER)
    several = f", mean of {seeds} seeds" if seeds > 1 else ""
    return Table(title, header, tuple(rows), f"A row a gold label; counts of answers{several}.")
