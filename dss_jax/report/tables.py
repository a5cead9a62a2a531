"""The tables of a report, as text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dss_jax.evaluate.statistics import (
    Difference,
    Mean,
    Reached,
    beats,
    data_to_reach,
    difference,
    holm,
    mean,
)
from dss_jax.report import published
from dss_jax.report.found_runs import BASELINES, FoundCell, FoundRuns, View, right_answers


@dataclass(frozen=True)
class Table:
    """A table of texts: the first column to the left, the others to the right."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def markdown(self) -> list[str]:
        """Its lines."""
        rule = ["---", *["---:"] * (len(self.header) - 1)]
        return [_row(self.header), _row(rule), *map(_row, self.rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def shown(m: Mean, min_seeds: int) -> str:
    """ "42.10 ± 0.80 (4)"; with a star where there are too few seeds."""
    error = "" if m.error is None else f" ± {m.error:.2f}"
    return f"{m.value:.2f}{error} ({m.n}){'*' if m.n < min_seeds else ''}"


def share_of(cell: FoundCell) -> str:
    """ "12.5 % (1,000)": a size of the training data."""
    return f"{cell.percent:.4g} % ({cell.examples:,})"


def tables(found: FoundRuns, view: View) -> list[Table]:
    """All tables: the accuracies of each task first."""
    made = [_accuracies(found, task, view) for task in found.tasks]
    for task in found.tasks:
        split, cells = view.split, found.scored(task, view.split)
        needed = _needed(found, cells, task, split)
        more = _comparisons(cells, task, split), needed, _reached(cells, task, split)
        made += [table for table in more if table.rows]
    return made


def _accuracies(found: FoundRuns, task: str, view: View) -> Table:
    split, min_seeds, with_published = view
    cells = found.scored(task, split)
    sizes = {c.examples: share_of(c) for c in sorted(cells, key=lambda c: c.examples)}
    texts = {
        (c.method, c.model, c.examples): shown(mean(c.scores(split)), min_seeds) for c in cells
    }
    rows = [
        (method, model, *(texts.get((method, model, n), "-") for n in sizes))
        for method, model in dict.fromkeys((c.method, c.model) for c in cells)
    ]
    teacher = found.teacher_score(task, split)
    if teacher is not None:
        rows.append(("teacher's labels", "-", *(f"{teacher:.2f}" for _ in sizes or [0])))
    if with_published:
        rows += _published_rows(task, max(1, len(sizes)))
    header = ("method", "model", *(sizes.values() or ["-"]))
    note = f"`*` fewer than {min_seeds} seeds." if any("*" in x for r in rows for x in r) else ""
    metric = found.metric(task, split).replace("_", " ")
    return Table(f"{task}: {metric}, {split}, %", header, tuple(rows), note)


def _published_rows(task: str, columns: int) -> Iterator[tuple[str, ...]]:
    values = {
        **published.ACCURACY.get(task, {}),
        "teacher (PaLM 540B)": published.TEACHER.get(task),
    }
    for method, value in values.items():
        if value is not None:
            yield (f"({method}, published)", "(220M)", *["-"] * (columns - 1), f"({value:.2f})")


def _baseline(cells: Sequence[FoundCell]) -> str | None:
    methods = {c.method for c in cells}
    return next((b for b in BASELINES if b in methods), None)


def _pairs(
    cells: Sequence[FoundCell], baseline: str | None
) -> Iterator[tuple[FoundCell, FoundCell]]:
    """Each method's cell with the baseline's of the same model and size."""
    of_baseline = {(c.model, c.examples): c for c in cells if c.method == baseline}
    for cell in cells:
        other = of_baseline.get((cell.model, cell.examples))
        if cell.method != baseline and other is not None:
            yield cell, other


def compare(one: FoundCell, other: FoundCell, split: str) -> Difference | None:
    """A cell against another, on the rows that all their runs have answered; None without any."""
    runs = [r for r in one.runs if r.has(split)], [r for r in other.runs if r.has(split)]
    seeds = [[r.seed for r in side] for side in runs]
    both = sorted(set(seeds[0]) & set(seeds[1]))
    paired = len(both) == len(seeds[0]) == len(seeds[1])
    ids, right = right_answers([*runs[0], *runs[1]], split)
    if not ids:
        return None
    return difference(right[: len(runs[0])], right[len(runs[0]) :], paired)


def _comparisons(cells: Sequence[FoundCell], task: str, split: str) -> Table:
    baseline = _baseline(cells)
    found = [(one, compare(one, other, split)) for one, other in _pairs(cells, baseline)]
    there = [(cell, d) for cell, d in found if d is not None]
    adjusted = holm([d.p for _, d in there])
    rows = tuple(
        (
            f"{cell.method} - {baseline}",
            cell.model,
            share_of(cell),
            f"{d.value:+.2f}",
            f"[{d.low:+.2f}, {d.high:+.2f}]",
            _p(d.p),
            _p(p),
            _p(d.mcnemar),
            f"{sum(one < 0.05 for one in d.pairs)} of {len(d.pairs)}",
        )
        for (cell, d), p in zip(there, adjusted, strict=True)
    )
    header = ("difference", "model", "training data", "points", "95 %")
    tests = ("p", "p, Holm", "p, McNemar, pooled", "seeds with p < 0.05")
    note = (
        "Points, interval and p by a bootstrap over seeds and test items"
        f"{'' if all(d.paired for _, d in there) else ' (seeds not paired where they differ)'}; "
        "Holm's correction is over this table. McNemar's test pools the seeds' answers as if they "
        "were independent, so with several seeds its p is too small; the last column tests each "
        "seed by itself."
    )
    return Table(f"{task}: against {baseline}", header + tests, rows, note)


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _targets(
    found: FoundRuns, cells: Sequence[FoundCell], task: str, split: str
) -> Iterator[tuple[str, Mean]]:
    """What is to be beaten: the teacher, and the baseline on the most data with each model."""
    teacher = found.teacher_score(task, split)
    if teacher is not None:
        yield "the teacher", Mean(teacher, None, 1)
    baseline = _baseline(cells)
    most = max((c.examples for c in cells), default=0)
    for cell in cells:
        if cell.method == baseline and cell.examples == most:
            name = f"{baseline} with {cell.model} on {share_of(cell)}"
            yield name, mean(cell.scores(split))


def _needed(found: FoundRuns, cells: Sequence[FoundCell], task: str, split: str) -> Table:
    """The smallest model, and with it the least data, that is above each target."""
    rows = []
    baseline = _baseline(cells)
    for name, target in _targets(found, cells, task, split):
        for method in dict.fromkeys(c.method for c in cells):
            if name != "the teacher" and method == baseline:
                continue
            place = ["not reached", "-", "-", "-"]
            # Cells are ordered by model size, then by data.
            own = [c for c in cells if c.method == method]
            for cell in sorted(own, key=lambda c: (c.parameters, c.examples)):
                score = mean(cell.scores(split))
                beaten = beats(score, target)
                if beaten.above:
                    clearly = "yes" if beaten.clear else "no"
                    place = [cell.model, share_of(cell), f"{score.value:.2f}", clearly]
                    break
            rows.append((name, f"{target.value:.2f}", method, *place))
    return Table(
        f"{task}: the smallest model and the least data above a target",
        ("target", "accuracy", "method", "model", "training data", "accuracy there", "clearly"),
        tuple(rows),
        "Of the sizes that were run. Clearly: by more than a standard error of the difference.",
    )


def _reached(cells: Sequence[FoundCell], task: str, split: str) -> Table:
    """How much data each method needs for the baseline's accuracy on all of it."""
    baseline, rows = _baseline(cells), []
    most = max((c.examples for c in cells), default=0)
    goals = {c.model: c for c in cells if c.method == baseline and c.examples == most}
    for model, goal in goals.items():
        for method in dict.fromkeys(c.method for c in cells if c.model == model):
            own = [c for c in cells if (c.model, c.method) == (model, method)]
            if method == baseline or len(own) < 2:
                continue
            curve = {c.fraction: c.scores(split) for c in own}
            rows.append((method, model, *_share(data_to_reach(curve, goal.scores(split)))))
    return Table(
        f"{task}: share of the data that reaches {baseline} on all of it",
        ("method", "model", "share", "95 %", "not reached in"),
        tuple(rows),
        "Where the mean curve, linear between the sizes that were run, crosses the target; the "
        "interval and the last column are over resampled seeds.",
    )


def _share(found: Reached) -> tuple[str, str, str]:
    share = "not reached" if found.share is None else f"{100 * found.share:.3g} %"
    if found.at_least:
        share = f"{share} or less"
    interval = "-"
    if found.low is not None and found.high is not None:
        interval = f"[{100 * found.low:.3g} %, {100 * found.high:.3g} %]"
    return share, interval, f"{100 * found.never:.0f} %"
