"""Standard fine-tuning and distilling step-by-step on the embedded data set, by the share of the
data; with tables, figures and the teacher's line, as `dss report` makes them.

  dss demo --output_dir runs/demo

No download, no key, no GPU. The problems are generated, the teacher is simulated and the model is
trained from nothing; what is real is the whole path: a server on this machine that speaks OpenAI's
protocol is asked for rationales, and its records are trained on and scored.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dss_jax.cli import gin_config, options, sweep
from dss_jax.cli.tables import print_table
from dss_jax.core import config, registry
from dss_jax.core.sweep_config import TEACHER, Cell
from dss_jax.core.types import DistillationTask
from dss_jax.sweep import plan as sweep_plan
from dss_jax.sweep.devices import slots_of_small
from dss_jax.sweep.plan import Job, Planned

METHODS = ("standard", "dss")
FRACTIONS = (0.125, 0.5, 1.0)
MODEL = "tiny"
"""The model's name in folders and figures; its shape is in gin_configs/runs/demo.gin."""

Runs = dict[Cell, config.Run]


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output_dir", default="runs/demo", help="default: runs/demo")
    parser.add_argument("--store_dir", help="folder of the token stores (also: DSS_STORE_DIR)")
    options.add_gin_flags(parser, files=False)


def main(args: argparse.Namespace) -> int:
    bindings = args.bindings + options.flag_bindings(args, leave_out=("output_dir",))
    folder = Path(args.output_dir)
    runs = _runs(folder, bindings)
    sweep_plan.check_settings(folder, _planned(runs))
    task = registry.load_task(str(next(iter(runs.values())).task.name))

    from dss_jax.data import prepare_child
    from dss_jax.data.prepare import ensure_store
    from dss_jax.teacher.demo_records import simulated_records

    largest = list(runs.values())[-1].task
    with prepare_child.loading():
        records = simulated_records(task, largest, folder / "teacher")
        files = tuple(map(str, records))
        runs = {c: replace(r, task=replace(r.task, record_files=files)) for c, r in runs.items()}
        first = next(iter(runs.values()))
        ensure_store(first.task, first.vocabulary, first.data)

    sweep_plan.write_grid(folder, runs, ["runs/demo.gin"], bindings)
    outcome = sweep.run_jobs(folder, _jobs(folder, runs), len(runs), slots_of_small(len(runs)))
    if outcome.stopped or outcome.failed:
        return sweep.ended(outcome)
    _report(folder, runs, task)
    return 0


def _planned(runs: Runs) -> list[Planned]:
    return [Planned(cell, run, run.vocabulary.path) for cell, run in runs.items()]


def _jobs(folder: Path, runs: Runs) -> list[Job]:
    """What is left of the runs: the first of each method, which compiles for the others; then the
    longest first.
    """
    planned = _planned(runs)
    firsts = [next(cell for cell in runs if cell.method == method) for method in METHODS]
    planned.sort(key=lambda one: (one.cell not in firsts, -one.work))
    sizes = [(c.train_fraction, c.train_count) for c in runs if c.method == METHODS[0]]
    return sweep_plan.jobs_of(folder, planned, sizes)


def _runs(folder: Path, bindings: Sequence[str]) -> Runs:
    """The teacher's cell and those of the grid, with their configurations."""
    runs: Runs = {}
    for method in (TEACHER, *METHODS):
        own = gin_config.named_file("method", method)
        run = gin_config.read([options.BASE_GIN_FILE, own, "runs/demo.gin"], bindings).run()
        name, seed = str(run.task.name), run.train.seed
        parts = [_part(run.task, fraction) for fraction in FRACTIONS]
        for task in [run.task] if method == TEACHER else parts:
            cell = Cell(name, method)
            if method != TEACHER:
                share = None if task.train_count else task.train_fraction
                cell = Cell(name, method, MODEL, share, task.train_count, seed)
            train = replace(run.train, output_dir=str(folder / cell.folder))
            runs[cell] = replace(run, task=task, train=train)
    return runs


def _part(task: config.Task, fraction: float) -> config.Task:
    if task.train_count is not None:
        return replace(task, train_count=max(1, round(fraction * task.train_count)))
    return replace(task, train_fraction=fraction * task.train_fraction)


def _shown(task: config.Task) -> str:
    if task.train_count is not None:
        return f"{task.train_count} examples"
    return f"{100 * task.train_fraction:g} %"


def _report(folder: Path, runs: Runs, task: DistillationTask) -> None:
    from dss_jax.run import run_folder
    from dss_jax.run.pictures import plot_curves

    results = {cell: run_folder.read_results(folder / cell.folder) or {} for cell in runs}
    metric, last = task.scorer.name, list(runs.values())[-1]
    rows = []
    for cell, one in results.items():
        scores = [one[split][metric] for split in ("validation", "test")]
        if cell.model:
            rows.append([cell.method, _shown(runs[cell].task), *scores, one["best_step"]])
        else:
            rows.append(["simulated teacher", None, *scores, None])
    print_table(
        f"{task.name}: {metric}, %, after {last.train.steps} steps",
        ("method", "data", "validation", "test", "best step"),
        rows[1:] + rows[:1],
        note="Generated problems, a simulated teacher, one seed, a tiny T5 trained from nothing.",
    )
    whole = [c for c, run in runs.items() if c.model and run.task == last.task]
    plot_curves(
        [(c.method, folder / c.folder) for c in whole],
        metric,
        folder / "curves.png",
        title=f"{task.name} (generated), all training examples, tiny T5 from nothing",
        teacher=results[next(iter(runs))]["validation"][metric],
    )
    print(f"curves: {folder / 'curves.png'}")
    sweep.write_report(folder, tables=False)
