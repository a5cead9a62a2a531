"""Standard fine-tuning and distilling step-by-step on the embedded data set, side by side.

  dss demo --output_dir runs/demo

No download, no key, no GPU. The problems are generated, the teacher is simulated and the model is
trained from nothing; what is real is the whole path: a server on this machine that speaks OpenAI's
protocol is asked for rationales, and its records are trained on and scored.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dss_jax.cli import gin_config, options
from dss_jax.core import registry
from dss_jax.core.types import DistillationTask

METHODS = ("standard", "dss")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    parser.add_argument("--output_dir", default="runs/demo", help="default: runs/demo")
    parser.add_argument("--store_dir", help="folder of the token stores (also: DSS_STORE_DIR)")
    parser.add_argument("--gin.NAME", metavar="VALUE", dest="gin_example", help="a binding")


def main(args: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Runs the command."""
    bindings = options.gin_bindings(rest, parser)
    bindings += options.flag_bindings(args, leave_out=("output_dir",))
    runs = {}
    for method in METHODS:
        files: list[str | Path] = [
            options.BASE_GIN_FILE,
            gin_config.named_file("method", method),
            "runs/demo.gin",
        ]
        run = gin_config.load_run(files, bindings)
        folder = Path(args.output_dir) / method
        runs[method] = replace(run, train=replace(run.train, output_dir=str(folder)))
    first = runs[METHODS[0]]
    assert first.task.name is not None
    task = registry.load_task(first.task.name)

    from dss_jax.data.prepare import ensure_store
    from dss_jax.experiment.demo_records import simulated_records

    records = simulated_records(task, first.task, Path(args.output_dir) / "teacher")
    rationales = ",".join(map(str, records))
    runs = {m: replace(r, task=replace(r.task, rationales=rationales)) for m, r in runs.items()}
    first = runs[METHODS[0]]
    store = ensure_store(first.task, first.vocabulary, first.data)

    from dss_jax.experiment import single
    from dss_jax.train.loop import Interrupted

    results = {}
    for i, (method, run) in enumerate(runs.items(), 1):
        print(
            f"\n{i}/{len(runs)}  {method}: {run.train.steps} steps at batch {run.data.batch_size}"
        )
        try:
            results[method] = single.train(run, store, task.scorer)
        except Interrupted as stop:
            print(f"\n{stop}. To go on: dss demo --output_dir {args.output_dir}")
            return 130
    _report(Path(args.output_dir), runs, results, task)
    return 0


def _report(folder: Path, runs: dict, results: dict, task: DistillationTask) -> None:
    from dss_jax.cli.tables import number, print_table
    from dss_jax.experiment.curves import plot_curves

    metric, first = task.scorer.name, runs[METHODS[0]]
    last = results[METHODS[-1]]
    rows = [
        [name, *(number(r[s][metric]) for s in ("validation", "test")), number(r["best_step"])]
        for name, r in results.items()
    ]
    teacher = [number(last[s].get("teacher")) for s in ("validation", "test")]
    rows.append(["simulated teacher", *teacher, "-"])
    examples = f"{first.task.train_count or 'all'} training examples"
    print_table(
        f"{task.name}: {metric}, %, after {first.train.steps} steps on {examples}",
        ("method", "validation", "test", "best step"),
        rows,
        note="Generated problems, a simulated teacher, one seed, a tiny T5 trained from nothing.",
    )
    plot_curves(
        [(name, folder / name) for name in runs],
        metric,
        folder / "curves.png",
        title=f"{task.name} (generated), {examples}, tiny T5 from nothing",
        teacher=last["validation"].get("teacher"),
    )
    print(f"curves: {folder / 'curves.png'}")
