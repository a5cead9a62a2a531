"""Find the smallest model and the least data that reach a target, in few runs.

  dss frontier --task cqa --method dss --models t5_1_1_small,t5_1_1_base,t5_1_1_large \\
      --fractions 0.125,0.25,0.5,0.75,1 --target teacher --seeds 0,1,2 --output_dir runs/cqa

Models are tried from the smallest, with the most data first; then bisection over the data. The runs
are those of `dss sweep` in the same folder: what is there is used, and the same command goes on.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

from dss_jax.cli import sweep, sweep_options
from dss_jax.cli.tables import print_table, say
from dss_jax.core import registry
from dss_jax.core.checks import among, between
from dss_jax.core.errors import UsageError
from dss_jax.core.sweep_config import TEACHER, Cell, cells_of
from dss_jax.evaluate.statistics import mean
from dss_jax.sweep.frontier import Found, Question, draw, scores_of, search, write_json
from dss_jax.sweep.plan import Planned
from dss_jax.sweep.runner import Outcome

FULL_STANDARD = "full_standard"
DEFAULT_FRACTIONS = "0.0625,0.125,0.25,0.5,1"


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--task", help="a task file's name: see `dss tasks`")
    add("--method", default="dss", help="default: dss")
    text = (
        "teacher (its labels' accuracy; default), full_standard (standard fine-tuning of the "
        "largest model on all data), or a number, per cent"
    )
    add("--target", default=TEACHER, help=text)
    add("--split", default="validation", help="that decides (validation)")
    add("--map", action="store_true", help="also find how much less data larger models need")
    sweep_options.add_grid_flags(parser)


@dataclass
class _Trainer:
    grid: sweep_options.Grid
    planned: dict[Cell, Planned] = field(default_factory=dict)

    def cells(self, model: str, fraction: float, method: str) -> list[Cell]:
        task, seeds = self.grid.sweep.tasks[0], self.grid.sweep.seeds
        return [Cell(task, method, model, fraction, None, seed) for seed in seeds]

    def scores(self, cells: Sequence[Cell], split: str) -> list[float]:
        """Accuracies of the runs, which are trained where they are not done. Raises Stopped where
        one did not end well, and UsageError where they have no such split.
        """
        planned = [self.planned[cell] for cell in cells]
        places = sweep_options.places(self.grid.args, planned, len(self.grid.jobs(planned)))
        sweep.train_more(self.grid, planned, places)
        found = scores_of(self.grid.folder, cells, split)
        if found is None:
            raise UsageError(f"{cells[0].task} has no {split} split: give another --split.")
        return found


def main(args: argparse.Namespace) -> int:
    grid = _read(args)
    trainer = _Trainer(grid)
    cells = cells_of(grid.sweep)
    if args.target == TEACHER:
        cells.append(Cell(args.task, TEACHER))
    elif args.target == FULL_STANDARD:
        # Of every model, for the sizes are not known yet.
        cells += [c for m in grid.sweep.models for c in trainer.cells(m, 1.0, "standard")]
    planned, _ = sweep_options.plan(grid, list(dict.fromkeys(cells)))
    sweep_options.make_stores(grid, planned)
    trainer.planned |= {one.cell: one for one in planned}
    try:
        question = _question(args, trainer)
        _answer(trainer, question, args.map)
    except sweep.Stopped as stop:
        outcome: Outcome = stop.args[0]
        return sweep.ended(outcome)
    return 0


def _read(args: argparse.Namespace) -> sweep_options.Grid:
    among("--split", args.split, ("validation", "test"))
    if args.target not in (TEACHER, FULL_STANDARD):
        try:
            target = float(args.target)
        except ValueError:
            raise UsageError(
                f"--target must be teacher, full_standard or a number, not {args.target!r}."
            ) from None
        between("--target", target, 0, 100)
    args.tasks, args.methods = args.task, args.method
    args.fractions = args.fractions or DEFAULT_FRACTIONS
    grid = sweep_options.read_grid(args, tasks="--task NAME", methods="--method NAME")
    (args.task,), (args.method,) = grid.sweep.tasks, grid.sweep.methods
    return grid


def _question(args: argparse.Namespace, trainer: _Trainer) -> Question:
    """What is searched for: the models in order, the target as a number."""
    grid = trainer.grid.sweep
    sizes = {one.cell.model: one.model_size for one in trainer.planned.values()}
    models = tuple(sorted(grid.models, key=lambda model: sizes[model]))
    if args.target == TEACHER:
        (target,) = trainer.scores([Cell(args.task, TEACHER)], args.split)
        name = "the teacher's labels"
    elif args.target == FULL_STANDARD:
        cells = trainer.cells(models[-1], 1.0, "standard")
        target = mean(trainer.scores(cells, args.split)).value
        name = f"{models[-1]}, standard, all data"
    else:
        target, name = float(args.target), "the target"
    metric = registry.load_task(args.task, args.task_dir).scorer.name
    fractions = tuple(sorted(grid.fractions))
    return Question(
        args.task, args.method, models, fractions, grid.seeds, args.split, target, name, metric
    )


def _answer(trainer: _Trainer, question: Question, whole_map: bool) -> None:
    """Trains what the search asks for, and says and writes what it has found."""
    folder, split = trainer.grid.folder, question.split

    def there(model: str, fraction: float, split: str) -> list[float]:
        cells = trainer.cells(model, fraction, question.method)
        return scores_of(folder, cells, split) or []

    def accuracy(model: str, fraction: float) -> float:
        return mean(trainer.scores(trainer.cells(model, fraction, question.method), split)).value

    def tried(found: Found) -> None:
        one = found.path[-1]
        write_json(folder, question, found)
        verb = "reaches it" if one.reached else "does not"
        say(f"{one.model}, {100 * one.fraction:g} % of the data: {one.accuracy:.2f} {verb}")

    asked = question.models, question.fractions, question.target
    pairs = product(question.models, question.fractions)
    known = {pair: mean(values).value for pair in pairs if (values := there(*pair, split))}
    say(
        f"{question.task}, {question.method}: {question.target_name}, {question.target:.2f} on "
        f"{split}; models from the smallest: {', '.join(question.models)}"
    )
    found = search(*asked, accuracy, known=known, whole_map=whole_map, tried=tried)
    _print_path(question, found)
    tests = {model: there(model, fraction, "test") for model, fraction in found.least.items()}
    write_json(folder, question, found, tests)
    if not found.least:
        say(f"no model reaches {question.target:.2f} with these data.")
    for model, fraction in found.least.items():
        test = ""
        if tests[model]:
            value, error, _ = mean(tests[model])
            test = f"; on test {value:.2f}" + (f" +- {error:.2f}" if error is not None else "")
        say(f"{model} reaches it with {100 * fraction:g} % of the data{test}")
    say(f"picture: {draw(folder, question, found)}")


def _print_path(question: Question, found: Found) -> None:
    rows = []
    for i, t in enumerate(found.path, 1):
        reached, known = "yes" if t.reached else "no", "there before" if t.known else "trained"
        rows.append([str(i), t.model, f"{100 * t.fraction:g} %", t.accuracy, reached, known])
    columns = ("", "model", "data", question.split, "reached", "")
    title = f"the search for {question.target_name}, {question.target:.2f}"
    print_table(title, columns, rows)
    for dip in found.dips:
        say(
            f"{dip.model}: {dip.fall:.2f} points lower with {100 * dip.more:g} % of the data than "
            f"with {100 * dip.less:g} %. The search takes for granted that more data is better: "
            "more seeds, or dss sweep over all fractions, would tell."
        )
