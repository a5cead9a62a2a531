"""Do rationales help here, why, how much data do they save, and would more of them help? A small
experiment that fits a budget of minutes, and stops early when the answer is clear.

  dss ask --task cqa --model t5_1_1_base --init_from google/t5-v1_1-base --budget 600
  dss ask --task word_problems --model t5_1_1_tiny --gin_file runs/demo.gin --budget 20

Standard fine-tuning, dss and two controls (shuffled rationales, those of other rows), on shares of
the data, seed by seed, each with a subset of its own. The same command goes on after a stop, and so
it does with a larger --budget. Its runs are those of `dss sweep` in the same folder.
"""

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Iterable
from itertools import product
from statistics import median
from typing import Any

from dss_jax.cli import sweep, sweep_options
from dss_jax.cli.tables import print_table, say
from dss_jax.core import locks, strict_json
from dss_jax.core.checks import among, at_least, between
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import write_whole
from dss_jax.core.sweep_config import TEACHER, Cell
from dss_jax.report import report
from dss_jax.report.answer import Conclusion, answer, scores, shown
from dss_jax.report.found_runs import View, find_runs
from dss_jax.sweep import ask as plans
from dss_jax.sweep.ask import BASELINE, METHOD, OTHER, SHUFFLED, Design, Part
from dss_jax.sweep.plan import Times, state_of

JSON, FORMAT = "answer.json", 1
FRACTIONS = "0.25,0.5,1"
MOST_ROUNDS = 30
MOST_MINUTES = 10**6  # Two years: of a budget without an end no look has a share.


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--task", help="a task file's name: see `dss tasks`")
    add("--budget", type=float, metavar="MINUTES", help="how long it may take, in all")
    add("--model", dest="models", metavar="NAME", help="in gin_configs/models/")
    text = f"of the training split; the largest is what is asked about ({FRACTIONS})"
    add("--fractions", metavar="X,Y", default=FRACTIONS, help=text)
    text = "points of accuracy that would not matter (1): what rationales must help by, at most"
    add("--margin", type=float, metavar="POINTS", default=1.0, help=text)
    text = "how often the intervals of all looks hold together (95)"
    add("--level", type=float, metavar="PERCENT", default=95.0, help=text)
    text = "the seeds are N, N + 1, ... (0): another N in another folder repeats the experiment"
    add("--first_seed", type=int, metavar="N", default=0, help=text)
    add("--split", default="test", help="whose items are answered: test (default) or validation")
    sweep_options.add_common_flags(parser)


def main(args: argparse.Namespace) -> int:
    began, grid = time.monotonic(), _read(args)
    # Two would each forget the other's looks.
    taken = f"{{owner}} asks in {grid.folder}. Let it finish, or give another --output_dir."
    with locks.held(grid.folder / f"{JSON}.lock", taken):
        asking = _Asking(grid, began)
        try:
            asking.measure()
            asking.rounds()
        except sweep.Stopped as stop:
            (outcome,) = stop.args
            if outcome.failed or not outcome.late:
                return sweep.ended(outcome)
            asking.say_what_a_run_takes()
        finally:
            asking.save()
    return 0


def _read(args: argparse.Namespace) -> sweep_options.Grid:
    if args.task is None:
        raise UsageError("no task: give --task NAME.")
    if args.budget is None:
        raise UsageError("no budget: give --budget MINUTES.")
    between("--budget", args.budget, 0, MOST_MINUTES)
    between("--margin", args.margin, 0, 100)
    between("--level", args.level, 50, 99.99)
    among("--split", args.split, ("test", "validation"))
    args.tasks, args.at_once = args.task, False
    args.methods = ",".join((BASELINE, METHOD, OTHER, SHUFFLED))
    at_least("--first_seed", args.first_seed, 0)
    args.seeds = ",".join(str(args.first_seed + n) for n in range(MOST_ROUNDS))
    args.output_dir = args.output_dir or f"runs/ask/{args.task}"
    args.bindings = ["Task.fresh_subsets = True", *args.bindings]
    return sweep_options.read_grid(args, tasks="--task NAME", models="--model NAME")


class _Asking:
    """The experiment of a folder, and its `answer.json`: minutes, budgets and looks so far, and the
    answer of the last one.
    """

    def __init__(self, grid: sweep_options.Grid, began: float) -> None:
        self.grid, self.args, self.folder = grid, grid.args, grid.folder
        (self.model,) = grid.sweep.models
        self.designs = plans.designs(grid.sweep.fractions)
        self.saved = self._read_saved()
        self._began = began - 60 * self.saved["minutes"]
        self.cells = {
            (part, n): Cell(self.args.task, part.method, self.model, part.fraction, None, seed)
            for n, seed in enumerate(grid.sweep.seeds)
            for part in self.designs[0]
        }
        teacher = [Cell(self.args.task, TEACHER)] if grid.sweep.teacher else []
        planned, _ = sweep_options.plan(grid, [*teacher, *self.cells.values()])
        self.planned = {one.cell: one for one in planned}
        runs = len(self.designs[0])
        self.places = sweep_options.places(self.args, self.planned.values(), runs)
        first = planned[: len(teacher) + len(self.designs[0])]
        stores = sweep_options.make_stores(grid, first)
        if any(self.args.split not in store.splits for store in stores.values()):
            raise UsageError(f"{self.args.task} has no {self.args.split} split: give --split.")
        judged = [store.split(self.args.split) for store in stores.values()]
        if not all(split.tokens("label_targets").lengths().any() for split in judged):
            raise UsageError(
                f"{self.args.task}'s {self.args.split} split has no gold labels, by which answers "
                "are judged: give --split."
            )
        self.teacher = sweep_options.without_teachers(first[: len(teacher)], stores)

    def _read_saved(self) -> dict[str, Any]:
        names = "task", "level", "margin", "split", "first_seed"
        fixed = {"format": FORMAT, **{name: getattr(self.args, name) for name in names}}
        fixed |= {"model": self.model, "fractions": [*self.grid.sweep.fractions]}
        saved = {**fixed, "minutes": 0.0, "budgets": [], "looks": []}
        if (file := self.folder / JSON).exists():
            saved = strict_json.read(file, "Move it away; its looks are forgotten then.")
        for name, value in fixed.items():
            if saved.get(name) != value:
                raise UsageError(
                    f"{file}: {name} is {saved.get(name)!r} there, not {value!r}, and results were "
                    "looked at with it. Give the same, or another --output_dir."
                )
        if [x["budget"] for x in saved["budgets"][-1:]] != [self.args.budget]:
            saved["budgets"].append({"budget": self.args.budget, "from": saved["minutes"]})
        return saved

    def save(self) -> None:
        self.saved["minutes"] = self.minutes
        write_whole(self.folder / JSON, strict_json.dumps(self.saved, indent=1) + "\n")

    @property
    def minutes(self) -> float:
        """How long it has taken, all starts together."""
        return (time.monotonic() - self._began) / 60

    def _done(self, part: Part, n: int) -> bool:
        return state_of(self.folder / self.cells[part, n].folder).done

    def _train(self, design: Design, rounds: Iterable[int], until: float = math.inf) -> None:
        runs = [self.planned[self.cells[part, n]] for n in rounds for part in design]
        sweep.train_more(self.grid, [*self.teacher, *runs], self.places, until)

    def _seconds(self) -> dict[str, float]:
        """What a run of a method takes: the median of those that were measured."""
        times, found = Times(self.folder).of_folder, defaultdict(list)
        for (part, n), cell in self.cells.items():
            if cell.folder in times and self._done(part, n):
                found[part.method].append(times[cell.folder])
        return {method: median(seconds) for method, seconds in found.items()}

    def _minutes(self, design: Design, rounds: int) -> float:
        """What is left of so many rounds takes; a control like dss, until it is measured."""
        seconds = self._seconds()
        left = [
            seconds.get(part.method, seconds.get(METHOD, 0.0))
            for part, n in product(design, range(min(rounds, MOST_ROUNDS)))
            if not self._done(part, n)
        ]
        return max(sum(left) / len(self.places), *left, 0.0) / 60

    def measure(self) -> None:
        """Trains a run of either method, which tell what all others take."""
        until = self._began + 60 * self.args.budget
        for n in range(MOST_ROUNDS):
            if self._seconds().keys() >= {BASELINE, METHOD}:
                return
            self._train(self.designs[-1], [n], until)

    def rounds(self) -> None:
        """Goes on, seed by seed, until the answer is clear or no further round fits the budget, and
        shows it.
        """
        whole = self.designs[-1]
        done = [all(self._done(part, n) for part in whole) for n in range(MOST_ROUNDS)]
        count = max(1, [*done, False].index(False))
        design: Design = ()
        made, looked, final, takes = None, 0, False, 0.0
        while not final:
            if (chosen := self._design(count)) != design:
                design, (made, looked) = chosen, self._last(chosen)
            if made is not None and made.unclear is None:
                break
            self._train(design, range(count))
            takes = self._minutes(design, count + 1)
            final = self.minutes + takes > self.args.budget or count == MOST_ROUNDS
            if count > looked and (final or count >= plans.MIN_ROUNDS):
                made, looked = self._look(design, count, final), count
            count += 1
        assert made is not None
        self._show(self._answer(design, looked, made.alpha, whole=True), takes)

    def _design(self, rounds: int) -> Design:
        """What a round is: what fits the budget, and once it was looked at, no less than then, nor
        other than then in the same budget.
        """
        budgets, looks = self.saved["budgets"], self.saved["looks"]
        last = self.designs[looks[-1]["design"]] if looks else self.designs[-1]
        if looks and looks[-1]["budget"] == len(budgets):
            return last
        options = self.designs[: self.designs.index(last) + 1]
        return plans.choose(options, self._minutes, rounds, self.args.budget - self.minutes)

    def _last(self, design: Design) -> tuple[Conclusion | None, int]:
        """The answer of the last look, and its number of seeds, where it was at this design."""
        look = (self.saved["looks"] or [{"design": None}])[-1]
        if look["design"] != self.designs.index(design):
            return None, 0
        return self._answer(design, look["seeds"], look["alpha"]), look["seeds"]

    def _answer(self, design: Design, seeds: int, alpha: float, whole: bool = False) -> Conclusion:
        folders = {part: [self.cells[part, n].folder for n in range(seeds)] for part in design}
        right = scores(find_runs(self.folder), folders, self.args.split)
        return answer(right, self.args.margin, alpha, whole)

    def _look(self, design: Design, seeds: int, final: bool) -> Conclusion:
        """Looks at the results, which spends a part of the level."""
        own, looks = self.saved["budgets"][-1], self.saved["looks"]
        share = 1.0 if final else (self.minutes - own["from"]) / (own["budget"] - own["from"])
        alpha = self._left(len(self.saved["budgets"]) - 1, share)
        made = self._answer(design, seeds, alpha)
        look = {"budget": len(self.saved["budgets"]), "seeds": seeds, "alpha": alpha}
        looks.append({**look, "design": self.designs.index(design), "minutes": self.minutes})
        self.save()
        gain = made.contrasts["helps"].shown(self.args.level)
        say(f"{seeds} seeds, {self.minutes:.1f} of {self.args.budget:g} minutes: {gain}")
        return made

    def _left(self, budgets: int, share: float) -> float:
        """What a look may spend of the level of error, in a share of a budget after others."""
        level = 1 - self.args.level / 100
        so_far = sum(look["alpha"] for look in self.saved["looks"])
        return max(0.0, plans.spent(level, budgets, share) - so_far)

    def _show(self, made: Conclusion, next_round: float) -> None:
        level, split = self.args.level, self.args.split
        needs = made.needs(self._left(len(self.saved["budgets"]), 1.0), next_round)
        if needs and made.contrasts["helps"].estimate.seeds == MOST_ROUNDS:
            needs += f" The command can run no more seeds: {MOST_ROUNDS} are its most."
        said, table = made.said(level, split), made.table(level)
        self.saved |= {"said": said, "needs": needs, "answer": made.as_json()}
        headline = " ".join(filter(None, (said, needs)))
        say(f"\n{headline}")
        print_table(table.title, table.header, table.rows, note=table.note)
        view = View(split)
        written = report.write(self.folder, view=view, html=True, headline=headline, first=[table])
        for file in (*written.files, self.folder / JSON):
            say(file)

    def say_what_a_run_takes(self) -> None:
        """Where the budget ended before the first runs did."""
        runs = [self.planned[self.cells[part, 0]] for part in self.designs[-1]]
        done = 0.0
        for one in runs:
            state = state_of(self.folder / one.cell.folder)
            done += one.work * (state.done or state.step / one.run.train.steps)
        share = done / sum(one.work for one in runs)
        text = f"It cannot be told: {share:.0%} of the first run of each method fitted the budget."
        if share:
            text += f" All of them take about {shown(self.minutes / share)} minutes, and a few "
            text += "seeds are needed. The same command goes on with a larger --budget."
        self.saved |= {"said": text, "needs": "", "answer": None}
        say(text)
