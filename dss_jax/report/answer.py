"""What `dss ask` finds in its runs: whether rationales help, why, how much data they save, and
whether more of them would help.

All methods of a seed have the same subset of the data, order and test items, so that a question is
a mean of differences over seeds and items: see `crossed`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dss_jax.core.errors import UsageError
from dss_jax.evaluate.crossed import Crossed, crossed
from dss_jax.evaluate.statistics import Reached, data_to_reach
from dss_jax.report.found_runs import FoundRuns, right_answers
from dss_jax.report.tables import Table, share_reached
from dss_jax.sweep.ask import BASELINE, METHOD, OTHER, SHUFFLED, Part

Scores = Mapping[Part, np.ndarray]
"""Which answers are right: bool [seeds, items], the same seeds and items of all parts."""

YES, NO, WORSE, UNKNOWN, NOT_ASKED = "yes", "no", "worse", "cannot tell", "not asked"
LESS, MORE = "less than half", "more than half"
CONTENT, WORDS, ANY = "content", "words", "any rationale"

HELPS = {
    YES: "Rationales help here",
    NO: "Rationales do not help here by {margin:g} points or more",
    WORSE: "Rationales hurt here",
    UNKNOWN: "It cannot be told yet whether rationales help here",
}
CAUSES = {
    CONTENT: "; by their content: shuffled ones and those of other rows keep less than half of it",
    WORDS: "; mostly by their words: shuffled ones keep more than half of it",
    ANY: "; not by their content: those of other rows keep more than half of it",
    UNKNOWN: "; what of them helps cannot be told yet",
    NOT_ASKED: "",
}
MORES = {
    YES: "More rows with rationales would help",
    NO: "More rows with rationales would not help by {margin:g} points or more",
    WORSE: "More rows with rationales did not help",
    UNKNOWN: "Whether more rows with rationales would help cannot be told yet",
}


@dataclass(frozen=True)
class Contrast:
    """A question: a mean in percentage points, its interval, and what follows."""

    question: str
    estimate: Crossed
    low: float
    high: float
    answer: str

    def shown(self, level: float) -> str:
        points = f"{self.estimate.value:+.1f} points"
        return f"{self.question} is {points} ({level:g} %: {self.low:+.1f} to {self.high:+.1f})"


@dataclass(frozen=True)
class Conclusion:
    """What is known after a look.

    Attributes:
      cause: of the help: content, words, any rationale, cannot tell; not asked where there is none.
      contrasts: by name: "helps", the controls, what half of the gain is above each, "more".
      accuracies: per cent, of each seed, of each method and share of the data.
      saved: the share of the data with which dss is as good as standard fine-tuning on all of it.
      alpha: each interval misses with this probability.
      margin: percentage points that would not matter.
      unclear: the contrast that keeps the answer from being clear.
    """

    cause: str
    contrasts: dict[str, Contrast]
    accuracies: list[dict[str, Any]]
    saved: Reached | None
    alpha: float
    margin: float
    unclear: str | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"saved": self.saved and self.saved._asdict()}

    def said(self, level: float, split: str) -> str:
        """The answer for people; `level` of all looks, per cent."""
        gain = self.contrasts["helps"]
        of = gain.estimate
        verdict = HELPS[gain.answer].format(margin=self.margin)
        text = (
            f"{verdict}: {gain.shown(level)}, {of.seeds} seed{'s' * (of.seeds > 1)} and "
            f"{of.items:,} {split} items{CAUSES[self.cause]}."
        )
        if self.saved is not None and self.saved.share is not None:
            share, interval, _ = share_reached(self.saved)
            text += f" {METHOD} gets from {share} of the data what {BASELINE} gets from all of it"
            text += f" (95 %: {interval})."
        if (more := self.contrasts.get("more")) is not None:
            text += f" {MORES[more.answer].format(margin=self.margin)}: {more.shown(level)}."
        return text

    def needs(self, alpha: float, minutes: float) -> str:
        """What would make the answer clear, were the difference to stay what it is; "" where it is.
        Intervals would miss with probability `alpha`; a round takes so many minutes.
        """
        if self.unclear is None:
            return ""
        found = self.contrasts[self.unclear]
        of = found.estimate
        if of.seeds == 1:
            return f"One seed says nothing of chance; each takes {shown(minutes)} minutes here."
        if not of.error() and of.value:
            return "No variance was seen, so that nothing can be said of chance."
        if not of.error():
            return "All answers are equally right: this student learns nothing, or all of it."
        # Away from 0, or below the margin: whichever is nearer.
        reach = max(abs(of.value), self.margin - of.value if self.unclear == "helps" else 0.0)
        seeds, items = of.needed(reach, alpha)
        if seeds is not None:
            more = max(1, seeds - of.seeds)
            takes = f"about {more:,} more seed{'s' * (more > 1)} ({shown(more * minutes)} minutes)"
        elif items is not None:
            takes = f"about {items:,} test items in place of {of.items:,}; seeds alone do not do"
        else:
            takes = "many more seeds and test items"
        return f"To tell would take {takes}, if {found.question} stays {of.value:+.1f}."

    def table(self, level: float) -> Table:
        rows = [
            (f.question, f"{f.estimate.value:+.2f}", f"[{f.low:+.2f}, {f.high:+.2f}]", f.answer)
            for f in self.contrasts.values()
        ]
        if self.saved is not None:
            share, interval, never = share_reached(self.saved)
            question = f"data for which {METHOD} is as good as {BASELINE} on all"
            rows.append((question, share, interval, f"not reached in {never} of resamples"))
        note = (
            "Intervals hold for new seeds and test items, and for new subsets of the data where "
            "these are not all; all looks together. That of the data is over seeds alone, at 95 %."
        )
        header = ("question", "points", f"{level:g} %", "answer")
        return Table("Do rationales help here?", header, tuple(rows), note)


def shown(minutes: float) -> str:
    return f"{minutes:,.0f}" if minutes >= 10 else f"{minutes:.2g}"


def scores(found: FoundRuns, folders: Mapping[Part, Sequence[str]], split: str) -> Scores:
    """The answers of the runs of each part, in the order of their folders. Raises UsageError where
    a run cannot be read, or they have no items in common.
    """
    runs = {run.folder: run for cell in found.cells for run in cell.runs}
    wanted = [found.folder / name for names in folders.values() for name in names]
    missing = [folder for folder in wanted if folder not in runs]
    ids, right = right_answers([runs[folder] for folder in wanted if folder in runs], split)
    if missing or not ids:
        what = f"{missing[0]} has no results that can be read" if missing else f"no {split} items"
        raise UsageError(f"{what}. See dss report {found.folder} --split {split}.")
    return dict(zip(folders, right.reshape(len(folders), -1, len(ids)), strict=True))


def answer(right: Scores, margin: float, alpha: float, whole: bool = True) -> Conclusion:
    """The answer of a look.

    The questions are asked in this order, each only where the one before says yes, so that they
    need no correction for being several (Hsu and Berger 1999): whether dss is above the baseline on
    the most data; whether the rationales of other rows keep half of that; whether shuffled ones do.

    Args:
      margin: percentage points that would not matter.
      alpha: of each interval, which is two-sided.
      whole: also how much data are saved, which takes a while.
    """
    shares = sorted({part.fraction for part in right})
    most = shares[-1]
    points = {part: 100.0 * one for part, one in right.items()}
    base, dss = points[Part(BASELINE, most)], points[Part(METHOD, most)]
    found: dict[str, Contrast] = {}

    def ask(name: str, question: str, values: np.ndarray, names: tuple[str, str, str]) -> str:
        of = crossed(values)
        low, high = of.interval(alpha)
        above, below, small = names
        said = small if high < margin else UNKNOWN
        if low > 0 or high < 0:
            said = above if low > 0 else below
        found[name] = Contrast(question, of, low, high, said)
        return said

    helps = ask("helps", f"{METHOD} - {BASELINE}", dss - base, (YES, WORSE, NO))
    kept = []
    for control in (OTHER, SHUFFLED):
        if (spoiled := points.get(Part(control, most))) is not None:
            ask(control, f"{METHOD} - {control}", dss - spoiled, (YES, WORSE, NO))
            if helps == YES:
                # Above 0 where the control is nearer to the baseline than to dss.
                values, question = (dss + base) / 2 - spoiled, f"half of the gain - {control}'s"
                kept.append(ask(half_of(control), question, values, (LESS, MORE, UNKNOWN)))
    cause = _cause(*kept) if kept else NOT_ASKED
    unclear = "helps" if helps == UNKNOWN else None
    if cause == UNKNOWN:
        unclear = half_of(OTHER if kept[0] == UNKNOWN else SHUFFLED)
    saved = None
    if len(shares) > 1:
        question = f"{METHOD}, {100 * most:g} % - {100 * shares[-2]:g} % of the data"
        ask("more", question, dss - points[Part(METHOD, shares[-2])], (YES, WORSE, NO))
        curve = {s: points[Part(METHOD, s)].mean(axis=1).tolist() for s in shares}
        saved = data_to_reach(curve, base.mean(axis=1).tolist()) if whole else None
    accuracies = [{**p._asdict(), "seeds": r.mean(axis=1).tolist()} for p, r in points.items()]
    return Conclusion(cause, found, accuracies, saved, alpha, margin, unclear)


def half_of(control: str) -> str:
    """The name of the contrast whether a control keeps half of the gain."""
    return f"half of the gain, {control}"


def _cause(other: str, shuffled: str) -> str:
    """From what the rationales of other rows, and shuffled ones, keep of the gain."""
    if other != LESS:
        return ANY if other == MORE else UNKNOWN
    return {LESS: CONTENT, MORE: WORDS}.get(shuffled, UNKNOWN)
