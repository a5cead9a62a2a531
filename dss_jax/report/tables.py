"""The tables of a report, as text."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dss_jax.core.sweep_config import UNDISTILLED
from dss_jax.core.texts import visible
from dss_jax.evaluate import power_law
from dss_jax.evaluate.statistics import (
    ROUNDING,
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
from dss_jax.report.found_runs import (
    BASELINES,
    FoundCell,
    FoundRuns,
    View,
    closed_labels,
    right_answers,
)

Fitted = Mapping[tuple[str, str, str], power_law.Laws]
"""Of curves: of task, model and method."""


@dataclass(frozen=True)
class Table:
    """A table of texts: the first column to the left, the others to the right."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def markdown(self) -> list[str]:
        rule = ["---", *["---:"] * (len(self.header) - 1)]
        return [_row(self.header), _row(rule), *map(_row, self.rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(as_markdown, cells))} |"


def as_markdown(text: str) -> str:
    """Text on a line of Markdown: no table's border, and no HTML that a viewer would show."""
    return re.sub(r"\||<(?=[a-zA-Z/!?])", r"\\\g<0>", " ".join(visible(text).split("\n")))


def shown(m: Mean, min_seeds: int) -> str:
    """ "42.10 ± 0.80 (4)"; with a star where there are too few seeds."""
    error = "" if m.error is None else f" ± {m.error:.2f}"
    return f"{m.value:.2f}{error} ({m.n}){'*' if m.n < min_seeds else ''}"


def share_of(cell: FoundCell) -> str:
    """ "12.5 % (1,000)": a size of the training data."""
    return f"{cell.percent:.4g} % ({cell.examples:,})"


def tables(found: FoundRuns, view: View, fits: Fitted) -> list[Table]:
    """All tables: the accuracies of each task that has any first."""
    of_tasks = [_OfTask(found, task, view, fits) for task in found.tasks]
    made = [table for one in of_tasks if (table := one.accuracies()).rows]
    for one in of_tasks:
        others = one.comparisons(one.baseline), one.comparisons(UNDISTILLED)
        more = *others, one.needed(), one.reached(), one.compute()
        made += [table for table in more if table.rows]
    return made


class _OfTask:
    def __init__(self, found: FoundRuns, task: str, view: View, fits: Fitted) -> None:
        self.task, self.view, self.split, self.fits = task, view, view.split, fits
        scored = found.scored(task, view.split)
        self.cells = [c for c in scored if c.examples]
        self.untrained = [c for c in scored if not c.examples]
        self.metric = found.metric(task)
        self.teacher = found.teacher_score(task, view.split)
        self.methods = list(dict.fromkeys(c.method for c in self.cells))
        self.baseline = next((b for b in BASELINES if b in self.methods), None)
        most = max((c.examples for c in self.cells), default=0)
        self.goals = [c for c in self.cells if (c.method, c.examples) == (self.baseline, most)]
        """The baseline on the most data, of each model."""

    def mean(self, cell: FoundCell) -> Mean:
        return mean(cell.scores(self.split))

    def accuracies(self) -> Table:
        cells, least = self.cells, self.view.min_seeds
        sizes = {c.examples: share_of(c) for c in sorted(cells, key=lambda c: c.examples)}
        texts = {(c.method, c.model, c.examples): shown(self.mean(c), least) for c in cells}
        rows = [
            (method, model, *(texts.get((method, model, n), "-") for n in sizes))
            for method, model in dict.fromkeys((c.method, c.model) for c in cells)
        ]
        if self.teacher is not None:
            rows.append(("teacher's labels", "-", *(f"{self.teacher:.2f}" for _ in sizes or [0])))
        for c in self.untrained:
            m = self.mean(c)
            score = shown(m, 0) if m.n > 1 else f"{m.value:.2f}"
            rows.append((c.method, c.model, *(score for _ in sizes or [0])))
        answers = (run.predictions(self.split) for cell in cells for run in cell.runs)
        if shares := closed_labels(next(filter(None, answers), [])):
            share = f"{100 * max(shares.values()):.2f}"
            rows.append(("the most frequent label", "-", *(share for _ in sizes)))
        if self.view.published:
            teacher = {"teacher (PaLM 540B)": published.TEACHER.get(self.task)}
            empty = ["-"] * (len(sizes) - 1)
            for method, value in {**published.ACCURACY.get(self.task, {}), **teacher}.items():
                if value is not None:
                    rows.append((f"({method}, published)", "(220M)", *empty, f"({value:.2f})"))
        header = ("method", "model", *(sizes.values() or ["-"]))
        few = any("*" in text for row in rows for text in row)
        notes = [f"`*` fewer than {least} seeds."] if few else []
        notes += [*self._of_subsets(), *self._of_rows()]
        metric = self.metric.replace("_", " ")
        return Table(
            f"{self.task}: {metric}, {self.split}, %", header, tuple(rows), " ".join(notes)
        )

    def _of_subsets(self) -> Iterator[str]:
        """Whether the errors hold the draw of the data."""
        drawn = [c for c in self.cells if c.fraction < 1 and len(c.runs) > 1]
        shared = [c for c in drawn if c.subsets < len(c.runs)]
        if shared:
            yield (
                "All seeds of a size have one subset of the data, so that the errors leave out "
                "its draw (`Task.fresh_subsets`)."
                if len(shared) == len(drawn)
                else "Seeds of "
                + ", ".join(dict.fromkeys(f"{c.method} {share_of(c)}" for c in shared))
                + " share subsets of the data: these errors leave out its draw."
            )
        elif drawn:
            yield "Each seed has a subset of its own: the errors hold the draw of the data."

    def _of_rows(self) -> Iterator[str]:
        """Cells that were trained on fewer rows than their size says."""
        said = dict.fromkeys(
            f"{c.method} {share_of(c)}: {' or '.join(f'{n:,}' for n in sorted(rows))}"
            for c in self.cells
            if (rows := c.trained_rows) and rows != {c.examples}
        )
        if said:
            yield f"Rows that were trained on, where not all of the size: {'; '.join(said)}."

    def comparisons(self, baseline: str | None) -> Table:
        """Each method's cell against the baseline's of the same model and size, if it has one."""
        every = [*self.cells, *self.untrained]
        others = {(c.model, c.examples): c for c in every if c.method == baseline}
        there: list[tuple[FoundCell, Difference]] = []
        for cell in (c for c in self.cells if c.method != baseline):
            other = others.get((cell.model, cell.examples)) or others.get((cell.model, 0))
            if other is not None and (d := compare(cell, other, self.split)) is not None:
                there.append((cell, d))
        adjusted = holm([d.p for _, d in there])
        rows = tuple(
            (
                f"{cell.method} - {baseline}",
                cell.model,
                share_of(cell),
                f"{d.value:+.2f}",
                f"[{d.low:+.2f}, {d.high:+.2f}]",
                *map(_p, (d.p, p, d.mcnemar)),
                f"{sum(one < 0.05 for one in d.pairs)} of {len(d.pairs)}",
            )
            for (cell, d), p in zip(there, adjusted, strict=True)
        )
        header = ("difference", "model", "training data", "points", "95 %")
        tests = ("p", "p, Holm", "p, McNemar, pooled", "seeds with p < 0.05")
        unpaired = (
            "" if all(d.paired for _, d in there) else " (seeds not paired where they differ)"
        )
        note = (
            f"Points, interval and p by a bootstrap over seeds and test items{unpaired}; Holm's "
            "correction is over this table. McNemar's test pools the seeds' answers as if they "
            "were independent, so with several seeds its p is too small; the last column tests "
            "each seed by itself."
        )
        return Table(f"{self.task}: against {baseline}", header + tests, rows, note)

    def compute(self) -> Table:
        """What the training of each method on the most data took."""
        last = {(c.method, c.model): c for c in self.cells}.values()
        base = {c.model: c.flops for c in last if c.method == self.baseline}
        rows = []
        for cell in (c for c in last if c.flops):
            assert cell.flops is not None
            than = base.get(cell.model)
            steps = sorted({run.results["steps"] for run in cell.runs})
            times = "-" if than is None else f"{cell.flops / than:.2f}"
            took = ", ".join(f"{n:,}" for n in steps), f"{cell.flops:.2e}", times
            score = shown(self.mean(cell), self.view.min_seeds)
            rows.append((cell.method, cell.model, share_of(cell), *took, score))
        times = f"times {self.baseline or 'a baseline'}'s"
        head = "method", "model", "training data", "steps", "FLOPs", times
        return Table(
            f"{self.task}: compute of the training",
            (*head, "accuracy"),
            tuple(rows if len(rows) > 1 else ()),
            "FLOPs: floating-point operations of all steps, forward and backward, without padding.",
        )

    def needed(self) -> Table:
        """The smallest model, and with it the least data, that is above each target: the teacher,
        and the baseline on the most data with each model.
        """
        targets = [] if self.teacher is None else [("the teacher", Mean(self.teacher, None, 1))]
        for goal in self.goals:
            name = f"{self.baseline} with {goal.model} on {share_of(goal)}"
            targets.append((name, self.mean(goal)))
        cells = sorted(self.cells, key=lambda c: (c.parameters, c.examples))
        rows = []
        for name, target in targets:
            for method in self.methods:
                if name != "the teacher" and method == self.baseline:
                    continue
                place = ["not reached", "-", "-", "-"]
                for cell in (c for c in cells if c.method == method):
                    score = self.mean(cell)
                    beaten = beats(score, target)
                    there = cell.model, share_of(cell), f"{score.value:.2f}"
                    if beaten.above:
                        place = [*there, "yes" if beaten.clear else "no"]
                        break
                    if abs(score.value - target.value) <= ROUNDING and "-" in place:
                        place = [*there, "equal"]
                rows.append((name, f"{target.value:.2f}", method, *place))
        return Table(
            f"{self.task}: the smallest model and the least data above a target",
            ("target", "accuracy", "method", "model", "training data", "accuracy there", "clearly"),
            tuple(rows),
            "Of the sizes that were run. Clearly: by more than a standard error of the difference; "
            "equal: the target's accuracy.",
        )

    def reached(self) -> Table:
        """How much data each method needs for the baseline's accuracy on all of it: between the
        sizes that were run, and by a power law.
        """
        rows = []
        for goal in self.goals:
            for method in self.methods:
                own = [c for c in self.cells if (c.model, c.method) == (goal.model, method)]
                if method != self.baseline and len(own) > 1:
                    curve = {c.fraction: c.scores(self.split) for c in own}
                    target, by_law = goal.scores(self.split), ("too few points for a law", "-", "-")
                    if law := self.fits.get((self.task, goal.model, method)):
                        by_law = share_reached(power_law.reached(law, target))
                    linear = share_reached(data_to_reach(curve, target))
                    rows.append((method, goal.model, *linear, *by_law))
        of_share = ("share", "95 %", "not reached in")
        return Table(
            f"{self.task}: share of the data that reaches {self.baseline} on all of it",
            ("method", "model", *of_share, "by a power law", *of_share[1:]),
            tuple(rows),
            "Where the mean curve, linear between the sizes that were run, crosses the target, and "
            f"where a power law does, which needs {power_law.LEAST} sizes and goes on beyond them; "
            "intervals and what is not reached are over resampled seeds.",
        )


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


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def share_reached(found: Reached) -> tuple[str, str, str]:
    """A share of the data as text, its interval, and how often it is not reached."""
    share = "not reached" if found.share is None else f"{100 * found.share:.3g} %"
    if found.at_least:
        share = f"{share} or less"
    interval = "-"
    if found.low is not None and found.high is not None:
        interval = f"[{100 * found.low:.3g} %, {100 * found.high:.3g} %]"
    return share, interval, f"{100 * found.never:.0f} %"
