"""Train every cell of a grid: tasks x models x methods x sizes of the training data x seeds.

  dss sweep --tasks cqa --methods standard,dss --fractions 0.125,0.25,0.5,1 --models t5_1_1_base \\
      --seeds 0,1,2,3 --output_dir runs/cqa
  dss sweep --gin_file sweeps/word_problems.gin --output_dir runs/words
  dss sweep ... --dry_run              the plan and the commands; starts nothing
  dss sweep ... --submit slurm         the cells as a Slurm array: docs/sweep.md

The same command again goes on: finished runs are kept, half-trained ones go on, failed ones are
tried again. More cells may be added; the settings of a run may not change.
"""

import argparse
import logging
import math
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from dss_jax.cli import sweep_options
from dss_jax.cli.sweep_options import Grid
from dss_jax.cli.tables import print_table, say
from dss_jax.core import storage
from dss_jax.core.checks import among
from dss_jax.core.errors import UsageError
from dss_jax.core.signals import saved_status
from dss_jax.core.sweep_config import cells_of
from dss_jax.sweep import cluster
from dss_jax.sweep import plan as sweep_plan
from dss_jax.sweep.devices import Environment
from dss_jax.sweep.plan import Job, Planned, State, state_of
from dss_jax.sweep.runner import Outcome, Runner

log = logging.getLogger(__name__)

LINE_SECONDS = 60.0
"""Between lines where there is no terminal, unless something has happened."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--tasks", metavar="A,B", help="task files' names: see `dss tasks`")
    add("--methods", metavar="A,B", help="default: standard,dss")
    add("--counts", metavar="N,N", help="numbers of training examples")
    sweep_options.add_grid_flags(parser)
    add("--dry_run", action="store_true", help="show the plan, start nothing")
    text = "slurm or sky: print what submits it"
    add("--print", metavar="WHERE", dest="print_for", help=text)
    add("--submit", metavar="WHERE", help="slurm or sky: submit it")
    text = "flags for sbatch, or for sky jobs launch, with =: --launch_flags='--time=4:00:00'"
    add("--launch_flags", metavar="FLAGS", default="", help=text)
    text = "do not write tables and figures at the end"
    add("--no_report", action="store_true", help=text)


def main(args: argparse.Namespace) -> int:
    where = _where(args)
    grid = sweep_options.read_grid(args)
    _check_place(args.output_dir, where)
    planned, before = sweep_options.plan(grid, cells_of(grid.sweep))
    planned += (undistilled := sweep_options.undistilled(grid))
    if args.dry_run:
        say("# dry run: nothing is started")
        print_states(grid.folder, planned)
        for job in grid.jobs(planned):
            say(shlex.join(["dss", "train", *job.flags]))
        return 0
    places = sweep_options.places(args, planned, len(grid.jobs(planned)))
    stores = sweep_options.make_stores(grid, planned)
    planned = sweep_options.without_teachers(planned, stores)
    cells = dict.fromkeys([*(p.cell for p in planned), *before])
    sweep_plan.write_grid(grid.folder, cells, args.gin_file, grid.bindings)
    if where is not None:
        _submit(grid, planned, where, {task: store.path for task, store in stores.items()})
        return 0
    left = sum(len(job.planned) for job in grid.jobs(planned))
    print_states(grid.folder, planned)
    if grid.sweep.undistilled and not undistilled:
        say("no undistilled student is scored: the runs start from random parameters")
    say(f"{left} of {len(planned)} runs are left; {len(places)} at once")
    outcome = train(grid, planned, places)
    print_states(grid.folder, planned)
    try:
        if not outcome.stopped and not args.no_report:
            write_report(grid.folder)
    finally:
        status = ended(outcome)
    return status


def _where(args: argparse.Namespace) -> str | None:
    """The cluster that was named; None: this machine."""
    if args.print_for and args.submit:
        raise UsageError("give --print or --submit, not both.")
    where: str | None = args.print_for or args.submit
    if where is not None:
        among("cluster", where, ("slurm", "sky"))
    elif args.launch_flags:
        raise UsageError("--launch_flags goes with --print or --submit.")
    return where


def _check_place(output_dir: str, where: str | None) -> None:
    """Raises UsageError where those who train cannot share the folder."""
    if where == "sky" and storage.scheme_of(output_dir) != "gs":
        raise UsageError(
            f"--output_dir {output_dir}: jobs of SkyPilot move from machine to machine, so the "
            "sweep's folder must be on gs://."
        )
    if where != "sky" and storage.is_remote(output_dir):
        who = "Slurm's nodes share a file system" if where else "runs are trained in a local folder"
        raise UsageError(
            f"--output_dir {output_dir}: {who}. Give a folder, or --submit sky to train on "
            "machines that share the bucket."
        )


def print_states(folder: Path, planned: Sequence[Planned]) -> None:
    """Prints a table of the runs: a row for each task, model and method; a column for each size:
    "3 of 4" runs done, "+1" of them half trained.
    """
    sizes = list(dict.fromkeys(p.cell.size for p in planned if p.cell.trains)) or [""]
    rows: dict[tuple[str, str, str], dict[str, list[State]]] = {}
    for cell in (one.cell for one in planned):
        row = rows.setdefault((cell.task, cell.model or "-", cell.method), {})
        # What is not trained has no size.
        size = cell.size if cell.trains else sizes[0]
        row.setdefault(size, []).append(state_of(folder / cell.folder))
    texts = [[*name, *(_shown(row.get(size, [])) for size in sizes)] for name, row in rows.items()]
    say(f"{folder}: runs that are done")
    print_table("", ["task", "model", "method", *sizes], texts)


def _shown(states: Sequence[State]) -> str:
    begun = sum(state.step > 0 for state in states)
    done = f"{sum(state.done for state in states)} of {len(states)}"
    return (f"{done} +{begun} begun" if begun else done) if states else "-"


class StatusLine:
    """One line that is written over on a terminal; elsewhere a line a minute, or when runs end."""

    def __init__(self) -> None:
        from tqdm import tqdm

        # Of tqdm, so that messages are printed above it; without a terminal it shows nothing.
        self._bar = tqdm(bar_format="{desc}", file=sys.stdout, disable=None)
        self._shown, self._counts = 0.0, ""
        self.close = self._bar.close

    def __call__(self, status: str) -> None:
        """Shows how far the sweep is: "COUNTS; TIME"."""
        self._bar.set_description_str(status)
        counts, now = status.partition(";")[0], time.monotonic()
        if self._bar.disable and (counts != self._counts or now - self._shown > LINE_SECONDS):
            self._counts, self._shown = counts, now
            log.info(status)


class Stopped(Exception):  # noqa: N818 - it may have been asked for
    """Runs did not all end well; its one argument is the `Outcome`."""


def train_more(
    grid: Grid, planned: Sequence[Planned], places: Sequence[Environment], until: float = math.inf
) -> None:
    """Trains what is left of some runs, which join those of the sweep's folder. Raises Stopped
    where one did not end well.
    """
    if grid.jobs(planned):
        cells = [*sweep_plan.cells_in(grid.folder), *(one.cell for one in planned)]
        sweep_plan.write_grid(grid.folder, dict.fromkeys(cells), grid.args.gin_file, grid.bindings)
        outcome = train(grid, planned, places, until)
        if outcome.stopped or outcome.failed or outcome.late:
            raise Stopped(outcome)


def train(
    grid: Grid, planned: Sequence[Planned], places: Sequence[Environment], until: float = math.inf
) -> Outcome:
    """Trains what is left of the runs, on this machine."""
    return run_jobs(grid.folder, grid.jobs(planned), len(planned), places, until)


def run_jobs(
    folder: Path,
    jobs: Sequence[Job],
    of: int,
    places: Sequence[Environment],
    until: float = math.inf,
) -> Outcome:
    """Runs what is left `of` so many runs of a sweep's folder, and shows how far it is."""
    done = of - sum(len(job.planned) for job in jobs)
    with closing(StatusLine()) as line:
        return Runner(folder, places, line).run(jobs, done, until)


def ended(outcome: Outcome) -> int:
    """Says how to go on, and names what failed. Returns the exit status."""
    if outcome.stopped:
        say("stopped. To go on, give the same command again:")
        say(f"  dss {shlex.join(sys.argv[1:])}")
        return saved_status(outcome.stopped)
    if outcome.failed:
        say(f"{len(outcome.failed)} failed; the same command tries them again:", file=sys.stderr)
    for job, status, file, lines in outcome.failed:
        last = f": {lines[-1]}" if lines else ""
        say(f"  {job.folder} (status {status}, {file}){last}", file=sys.stderr)
    return 1 if outcome.failed else 0


def write_report(folder: Path, tables: bool = True) -> None:
    """Tables and figures, as `dss report` makes them; with `tables`, also printed."""
    from dss_jax.cli.report import show
    from dss_jax.report import report

    try:
        made = report.write(folder)
    except UsageError as error:
        say(f"no report: {error}")
        return
    show(made, tables)


def _submit(grid: Grid, planned: Sequence[Planned], where: str, stores: Mapping[str, Path]) -> None:
    args, jobs = grid.args, grid.jobs(planned)
    left = [one for job in jobs for one in job.planned]
    if not left:
        say(f"all {len(planned)} runs are done: dss report {grid.folder}")
        return
    flags = shlex.split(args.launch_flags)
    if where == "slurm":
        commands = cluster.slurm(grid.folder, jobs, flags, args.jobs)
    else:
        commands = cluster.sky(jobs, flags, stores, args.store_dir)
    for one in left:
        one.hand_over()
    if args.print_for:
        say("\n".join(map(shlex.join, commands)))
        return
    cluster.submit(commands)
    say(f"{len(left)} runs in {len(jobs)} jobs. When they have ended: dss report {grid.folder}")
