"""Find the smallest model and the least data that reach a target, in few runs.

  dss frontier --task cqa --method dss --models t5_1_1_small,t5_1_1_base,t5_1_1_large \\
      --fractions 0.125,0.25,0.5,0.75,1 --target teacher --seeds 0,1,2 --output_dir runs/cqa

Models are tried from the smallest, with the most data first; then bisection over the data. The runs
are those of `dss sweep` in the same folder: what is there is used, and the same command goes on.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dss_jax.cli import sweep, sweep_options
from dss_jax.core import storage
from dss_jax.core.checks import among, between
from dss_jax.core.errors import UsageError
from dss_jax.core.sweep_config import TEACHER, Cell, cells_of

if TYPE_CHECKING:
    from dss_jax.sweep.frontier import Found, Tried
    from dss_jax.sweep.frontier_files import Question
    from dss_jax.sweep.plan import Planned
    from dss_jax.sweep.runner import Outcome

FULL_STANDARD = "full_standard"
DEFAULT_FRACTIONS = "0.0625,0.125,0.25,0.5,1"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    parser.add_argument("--task", help="a task file's name: see `dss tasks`")
    parser.add_argument("--method", default="dss", help="default: dss")
    parser.add_argument(
        "--target", default=TEACHER,
        help="teacher (its labels' accuracy; default), full_standard (standard fine-tuning of the "
        "largest model on all data), or a number, per cent",
    )  # fmt: skip
    parser.add_argument("--split", default="validation", help="that decides (validation)")
    parser.add_argument(
        "--map", action="store_true", help="also find how much less data larger models need"
    )
    sweep_options.add_grid_flags(parser)
    sweep_options.add_device_flags(parser)


class Stopped(Exception):  # noqa: N818 - it may have been asked for
    """The runs of a cell did not all end well."""

    def __init__(self, outcome: "Outcome") -> None:
        super().__init__()
        self.outcome = outcome


@dataclass
class _Trainer:
    """Trains cells of a sweep's folder."""

    grid: sweep_options.Grid
    folder: Path
    planned: dict[Cell, "Planned"]
    places: Sequence[dict[str, str]]

    def scores(self, cells: Sequence[Cell], split: str) -> list[float]:
        """Accuracies of the runs, which are trained where they are not done.

        Raises:
          Stopped: one has failed, or was stopped.
          UsageError: they have no such split.
        """
        from dss_jax.cli.sweep_tables import StatusLine
        from dss_jax.sweep import frontier_files
        from dss_jax.sweep import plan as sweep_plan
        from dss_jax.sweep.runner import Runner

        left = [
            self.planned[c] for c in cells if not sweep_plan.state_of(self.folder / c.folder).done
        ]
        if left:
            self._add_to_grid(cells)
            line = StatusLine()
            runner = Runner(self.folder, self.places, line.say, line)
            jobs = sweep_plan.jobs_of(self.folder, left, self.grid.sweep.at_once)
            outcome = runner.run(jobs, len(cells) - len(left))
            line.close()
            if outcome.stopped or outcome.failed:
                raise Stopped(outcome)
        found = frontier_files.scores(self.folder, cells, split)
        if found is None:
            raise UsageError(f"{cells[0].task} has no {split} split: give another --split.")
        return found

    def _add_to_grid(self, cells: Sequence[Cell]) -> None:
        from dss_jax.sweep import plan as sweep_plan

        saved = sweep_plan.read_grid(self.folder) or {"cells": []}
        there = [Cell.from_json(cell) for cell in saved["cells"]]
        whole = list(dict.fromkeys([*there, *cells]))
        sweep_plan.write_grid(self.folder, whole, self.grid.gin_files, self.grid.bindings)


def main(args: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Runs the command."""
    grid = _read(args, rest, parser)
    cells = cells_of(grid.sweep)
    cells += _target_cells(args.target, grid)
    folder = storage.place(grid.output_dir)
    if storage.is_remote(grid.output_dir):
        raise UsageError(f"--output_dir {grid.output_dir}: give a local folder.")
    from dss_jax.sweep import plan as sweep_plan
    from dss_jax.sweep.devices import slots

    cells = list(dict.fromkeys(cells))
    before = sweep_plan.begun_before(folder, cells)
    planned, tasks = sweep_options.resolve(grid, [*cells, *before])
    sweep_plan.check_settings(folder, planned)
    places = slots(args.devices, args.devices_per_run, args.jobs)
    sweep_options.make_stores(grid, planned[: len(cells)])
    trainer = _Trainer(grid, folder, {p.cell: p for p in planned}, places)
    try:
        question = _question(args, trainer, tasks[args.task].scorer.name)
        found, tests = _search(trainer, question, args.map)
    except Stopped as stop:
        if stop.outcome.failed:
            return sweep.tell_failures(stop.outcome)
        print(f"stopped. To go on, give the same command again:\n  dss {shlex.join(sys.argv[1:])}")
        return 130
    _report(folder, question, found, tests)
    return 0


def _read(
    args: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser
) -> sweep_options.Grid:
    """The grid of the search.

    Raises:
      UsageError: something is wrong or missing.
    """
    if args.task is None:
        raise UsageError("no task: give --task NAME.")
    among("--split", args.split, ("validation", "test"))
    if args.target not in (TEACHER, FULL_STANDARD):
        try:
            between("--target", float(args.target), 0, 100)
        except ValueError as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(
                f"--target must be teacher, full_standard or a number, not {args.target!r}."
            ) from None
    args.tasks, args.methods = args.task, args.method
    args.fractions = args.fractions or DEFAULT_FRACTIONS
    return sweep_options.read_grid(args, rest, parser)


def _target_cells(target: str, grid: sweep_options.Grid) -> list[Cell]:
    """Cells that are needed for the target only; full data of every model, for the sizes are not
    known yet.
    """
    if target == TEACHER:
        return [Cell(task=grid.sweep.tasks[0], method=TEACHER)]
    if target != FULL_STANDARD:
        return []
    return [
        Cell(task=grid.sweep.tasks[0], method="standard", model=model, train_fraction=1.0, seed=s)
        for model in grid.sweep.models
        for s in grid.sweep.seeds
    ]


def _cells(grid: sweep_options.Grid, model: str, fraction: float, method: str) -> list[Cell]:
    return [
        Cell(
            task=grid.sweep.tasks[0], method=method, model=model, train_fraction=fraction,
            seed=seed,
        )
        for seed in grid.sweep.seeds
    ]  # fmt: skip


def _question(args: argparse.Namespace, trainer: _Trainer, metric: str) -> "Question":
    """What is searched for: the models in order, the target as a number."""
    from dss_jax.evaluate.statistics import mean
    from dss_jax.sweep.frontier_files import Question

    grid = trainer.grid
    sizes = {
        one.cell.model: one.model_size
        for one in trainer.planned.values()
        if one.cell.model in grid.sweep.models
    }
    models = tuple(sorted(grid.sweep.models, key=lambda model: sizes[model]))
    name, target = f"{args.target} %", 0.0
    if args.target == TEACHER:
        cell = Cell(task=args.task, method=TEACHER)
        (target,), name = trainer.scores([cell], args.split), "the teacher's labels"
    elif args.target == FULL_STANDARD:
        values = trainer.scores(_cells(grid, models[-1], 1.0, "standard"), args.split)
        target, name = mean(values).value, f"{models[-1]}, standard, all data"
    else:
        target, name = float(args.target), "the target"
    return Question(
        task=args.task, method=args.method, models=models,
        fractions=tuple(sorted(grid.sweep.fractions)), seeds=grid.sweep.seeds, split=args.split,
        target=target, target_name=name, metric=metric,
    )  # fmt: skip


def _search(
    trainer: _Trainer, question: "Question", whole_map: bool
) -> tuple["Found", dict[str, list[float]]]:
    from dss_jax.evaluate import statistics
    from dss_jax.sweep import frontier_files
    from dss_jax.sweep.frontier import Found, search

    def cells(model: str, fraction: float) -> list[Cell]:
        return _cells(trainer.grid, model, fraction, question.method)

    def accuracy(model: str, fraction: float) -> float:
        values = trainer.scores(cells(model, fraction), question.split)
        return statistics.mean(values).value

    known = {
        (model, fraction): statistics.mean(values).value
        for model in question.models
        for fraction in question.fractions
        if (values := frontier_files.scores(trainer.folder, cells(model, fraction), question.split))
    }
    print(
        f"{question.task}, {question.method}: {question.target_name}, {question.target:.2f} on "
        f"{question.split}; models from the smallest: {', '.join(question.models)}"
    )
    so_far = Found()

    def tried(one: "Tried") -> None:
        so_far.path.append(one)
        frontier_files.write_json(trainer.folder, question, so_far, {}, complete=False)
        verb = "reaches it" if one.reached else "does not"
        print(f"{one.model}, {100 * one.fraction:g} % of the data: {one.accuracy:.2f} {verb}")

    found = search(
        question.models, question.fractions, question.target, accuracy, known=known,
        whole_map=whole_map, tried=tried,
    )  # fmt: skip
    tests = {
        m: frontier_files.scores(trainer.folder, cells(m, f), "test") or []
        for m, f in found.least.items()
    }
    return found, tests


def _report(
    folder: Path, question: "Question", found: "Found", tests: dict[str, list[float]]
) -> None:
    from dss_jax.cli.tables import number, print_table
    from dss_jax.evaluate import statistics
    from dss_jax.sweep import frontier_files

    rows = [
        [
            str(i), t.model, f"{100 * t.fraction:g} %", number(t.accuracy),
            "yes" if t.reached else "no", "there before" if t.known else "trained",
        ]
        for i, t in enumerate(found.path, 1)
    ]  # fmt: skip
    columns = ("", "model", "data", question.split, "reached", "")
    print_table(f"the search for {question.target_name}, {question.target:.2f}", columns, rows)
    for dip in found.dips:
        print(
            f"{dip.model}: {dip.fall:.2f} points lower with {100 * dip.more:g} % of the data than "
            f"with {100 * dip.less:g} %. The search takes for granted that more data is better: "
            "more seeds, or dss sweep over all fractions, would tell."
        )
    frontier_files.write_json(folder, question, found, tests, complete=True)
    if not found.least:
        print(f"no model reaches {question.target:.2f} with these data.")
    for model, fraction in found.least.items():
        test = ""
        if tests[model]:
            mean, error, _ = statistics.mean(tests[model])
            test = f"; on test {mean:.2f}" + (f" +- {error:.2f}" if error is not None else "")
        print(f"{model} reaches it with {100 * fraction:g} % of the data{test}")
    print(f"picture: {frontier_files.draw(folder, question, found)}")
