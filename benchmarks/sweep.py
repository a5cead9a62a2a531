"""Times a sweep of the embedded task: this tree beside an older one, by turns.

  git worktree add /tmp/before ac6c364
  python benchmarks/sweep.py --before /tmp/before

The grid has 48 cells: 4 shares of the data x 3 methods x 4 seeds, of sweeps/word_problems.gin as
each tree has it. A turn is `dss sweep` for some shares in one tree, two with --turns 2; the tree
that comes first changes with each turn. A tree has one folder for all its turns, and at first
neither token stores nor compiled code, so that the sum of its turns is what the whole grid takes,
with the command started twice. The report is left out, because each turn would write it. Issue 24
bounds the ratio of the sums: 0.5. Fewer --shares are a part of the grid. Seconds of the clock, and
of all processors together, which say more on a busy machine. Writes a JSON file.
"""

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from reporting import RESULTS, command, digits, processor, write_report

HERE = Path(__file__).resolve().parents[1]
CACHES = ("DSS_COMPILE_CACHE", "JAX_COMPILATION_CACHE_DIR", "DSS_STORE_DIR")


def turn(tree: Path, folder: Path, shares: str, args: argparse.Namespace) -> tuple[float, float]:
    """Seconds that a tree takes for the cells of some shares: of the clock, and of processors."""
    words = ["--methods", args.methods, "--seeds", args.seeds, "--fractions", shares, "--no_report"]
    words += [f"--gin.Train.steps={args.steps}"] if args.steps else []
    environment = {k: v for k, v in os.environ.items() if k not in CACHES}
    environment |= {"PYTHONPATH": str(tree), "DSS_CACHE_DIR": str(folder / "cache")}
    sweep = [sys.executable, "-m", "dss_jax.cli.main", "sweep"]
    sweep += ["--gin_file", "sweeps/word_problems.gin", "--output_dir", str(folder / "runs")]
    with (folder / "log").open("a") as log:
        began, before = time.perf_counter(), os.times()
        subprocess.run(
            [*sweep, *words], cwd=tree, env=environment, check=True, stdout=log, stderr=log
        )
        took, after = time.perf_counter() - began, os.times()
    used = after.children_user + after.children_system
    return digits(took), digits(used - before.children_user - before.children_system)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="the older tree")
    parser.add_argument("--shares", default="0.125,0.25,0.5,1", help="of the training data")
    parser.add_argument(
        "--turns", type=int, default=2, help="of each tree, which share out the shares"
    )
    parser.add_argument("--methods", default="standard,single_task,dss")
    parser.add_argument("--seeds", default="0,1,2,3")
    parser.add_argument("--steps", type=int, help="of a run, in place of the gin file's")
    parser.add_argument("--out", type=Path, default=RESULTS / "sweep-word_problems-cpu.json")
    args = parser.parse_args()
    trees, load = {"before": args.before.resolve(), "now": HERE}, os.getloadavg()[0]
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in trees}
    with tempfile.TemporaryDirectory() as scratch:
        every = args.shares.split(",")
        many = min(args.turns, len(every))
        for number, shares in enumerate(",".join(every[at::many]) for at in range(many)):
            for name in [*trees][:: -1 if number % 2 else 1]:
                folder = Path(scratch) / name
                folder.mkdir(exist_ok=True)
                turns[name].append(turn(trees[name], folder, shares, args))
                print(f"{shares} of the data, {name}: {turns[name][-1][0]:.0f} s", flush=True)
    sums = {name: [sum(kind) for kind in zip(*own, strict=True)] for name, own in turns.items()}
    ratios = [digits(now / then) for now, then in zip(sums["now"], sums["before"], strict=True)]
    cells = len(every) * len(args.methods.split(",")) * len(args.seeds.split(","))
    report = {
        "cells": cells,
        "turns_clock_and_processors": turns,
        "now_over_before": ratios[0],
        "now_over_before_by_processor_time": ratios[1],
        "command": command(sys.argv[1:], "sweep.py"),
        "processor": processor(),
        "load_average_1_min": {"before": load, "after": os.getloadavg()[0]},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    write_report(report, args.out)
    print(f"{cells} cells: now / before = {report['now_over_before']}")


if __name__ == "__main__":
    main()
