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
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dss_jax.cli import sweep_options
from dss_jax.cli.sweep_options import Grid
from dss_jax.core import storage
from dss_jax.core.errors import UsageError, unknown_name
from dss_jax.core.sweep_config import cells_of

if TYPE_CHECKING:
    from dss_jax.data.store import TokenStore
    from dss_jax.sweep.plan import Planned
    from dss_jax.sweep.runner import Outcome

CLUSTERS = ("slurm", "sky")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    parser.add_argument("--tasks", metavar="A,B", help="task files' names: see `dss tasks`")
    parser.add_argument("--methods", metavar="A,B", help="default: standard,dss")
    parser.add_argument("--counts", metavar="N,N", help="numbers of training examples")
    sweep_options.add_grid_flags(parser)
    sweep_options.add_device_flags(parser)
    parser.add_argument("--dry_run", action="store_true", help="show the plan, start nothing")
    parser.add_argument(
        "--print", metavar="WHERE", dest="print_for", help="slurm or sky: print what submits it"
    )
    parser.add_argument("--submit", metavar="WHERE", help="slurm or sky: submit it")
    parser.add_argument(
        "--launch_flags", default="", metavar="FLAGS",
        help="flags for sbatch, or for sky jobs launch, with =: --launch_flags='--time=4:00:00'",
    )  # fmt: skip
    parser.add_argument(
        "--no_report", action="store_true", help="do not write tables and figures at the end"
    )


def main(args: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Runs the command."""
    where = _where(args)
    grid = sweep_options.read_grid(args, rest, parser)
    _check_place(grid.output_dir, where)
    cells = cells_of(grid.sweep)
    folder = storage.place(grid.output_dir)
    from dss_jax.sweep import plan as sweep_plan
    from dss_jax.sweep.devices import slots

    before = sweep_plan.begun_before(folder, cells)
    planned, _ = sweep_options.resolve(grid, [*cells, *before])
    sweep_plan.check_settings(folder, planned)
    planned = planned[: len(cells)]
    if args.dry_run:
        _show_plan(grid, folder, planned)
        return 0
    places = slots(args.devices, args.devices_per_run, args.jobs)
    stores = sweep_options.make_stores(grid, planned)
    planned = sweep_options.without_teachers(planned, stores)
    sweep_plan.write_grid(
        folder, [*(p.cell for p in planned), *before], grid.gin_files, grid.bindings
    )
    if where is not None:
        return _cluster(args, grid, folder, planned, stores)
    return _run_here(args, grid, folder, planned, places)


def _where(args: argparse.Namespace) -> str | None:
    """The cluster that was named; None: this machine."""
    if args.print_for and args.submit:
        raise UsageError("give --print or --submit, not both.")
    where = args.print_for or args.submit
    if where is not None and where not in CLUSTERS:
        raise unknown_name("cluster", where, CLUSTERS)
    if args.launch_flags and where is None:
        raise UsageError("--launch_flags goes with --print or --submit.")
    return where


def _check_place(output_dir: str, where: str | None) -> None:
    """Raises UsageError where those who train cannot share the folder."""
    bucket = storage.scheme_of(output_dir) == "gs"
    if where == "sky" and not bucket:
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


def _left(folder: Path, planned: Sequence["Planned"]) -> list["Planned"]:
    from dss_jax.sweep.plan import state_of

    return [one for one in planned if not state_of(folder / one.cell.folder).done]


def _show_plan(grid: Grid, folder: Path, planned: Sequence["Planned"]) -> None:
    """Prints what is there and what is left, and the command of each process."""
    from dss_jax.cli.sweep_tables import print_states
    from dss_jax.sweep.plan import jobs_of

    print("# dry run: nothing is started")
    print_states(folder, planned)
    for job in jobs_of(folder, _left(folder, planned), grid.sweep.at_once):
        print(shlex.join(["dss", "train", *job.flags]))


def _run_here(
    args: argparse.Namespace,
    grid: Grid,
    folder: Path,
    planned: Sequence["Planned"],
    places: Sequence[dict[str, str]],
) -> int:
    from dss_jax.cli.sweep_tables import StatusLine, print_states
    from dss_jax.sweep.plan import jobs_of
    from dss_jax.sweep.runner import Runner

    left = _left(folder, planned)
    jobs = jobs_of(folder, left, grid.sweep.at_once)
    print_states(folder, planned)
    print(f"{len(left)} of {len(planned)} runs are left; {len(places)} at once")
    line = StatusLine()
    outcome = Runner(folder, places, line.say, line).run(jobs, len(planned) - len(left))
    line.close()
    print_states(folder, planned)
    if outcome.stopped:
        print("stopped. To go on, give the same command again:")
        print(f"  dss {shlex.join(sys.argv[1:])}")
        return 130
    try:
        if not args.no_report:
            write_report(folder)
    finally:
        status = tell_failures(outcome)
    return status


def tell_failures(outcome: "Outcome") -> int:
    """Names what failed. Returns the exit status."""
    if not outcome.failed:
        return 0
    print(f"{len(outcome.failed)} failed; the same command tries them again:", file=sys.stderr)
    for job, status, log, lines in outcome.failed:
        last = f": {lines[-1]}" if lines else ""
        print(f"  {job.folder} (status {status}, {log}){last}", file=sys.stderr)
    return 1


def write_report(folder: Path, tables: bool = True) -> None:
    """Tables and figures, as `dss report` makes them; with `tables`, also printed."""
    from dss_jax.cli.report import show
    from dss_jax.report import report

    try:
        made = report.write(folder)
    except UsageError as error:
        print(f"no report: {error}")
        return
    if tables:
        show(made)
    else:
        print("\n".join(map(str, made.files)))


def _cluster(
    args: argparse.Namespace,
    grid: Grid,
    folder: Path,
    planned: Sequence["Planned"],
    stores: dict[str, "TokenStore"],
) -> int:
    """Prints or submits what is left."""
    from dss_jax.sweep import cluster as sweep_cluster
    from dss_jax.sweep.plan import jobs_of

    left = _left(folder, planned)
    if not left:
        print(f"all {len(planned)} runs are done: dss report {folder}")
        return 0
    jobs = jobs_of(folder, left, grid.sweep.at_once)
    flags = shlex.split(args.launch_flags)
    if (args.print_for or args.submit) == "slurm":
        limit = None if args.jobs == 1 else args.jobs
        commands = sweep_cluster.slurm(folder, jobs, flags, limit)
    else:
        places = {task: store.path for task, store in stores.items()}
        commands = sweep_cluster.sky(jobs, flags, places, args.store_dir)
    if args.print_for:
        for command in commands:
            print(shlex.join(command))
        return 0
    sweep_cluster.submit(commands, print)
    print(f"{len(left)} runs in {len(jobs)} jobs. When they have ended: dss report {folder}")
    return 0
