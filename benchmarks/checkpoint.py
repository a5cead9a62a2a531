"""What whole checkpoints and the lock cost: this tree beside an older one, by turns.

  git worktree add /tmp/before ac6c364
  python benchmarks/checkpoint.py --before /tmp/before

Saves: random arrays of about so many megabytes, in the shapes of T5's layers, are saved and
restored by each tree's `dss_jax.train.checkpoint` in a process of its own: seconds that training
waits, until the save is on the disk, and of a restore with its check; and the processor's seconds
of a save, all threads together. Starts: `dss train` with a checkpoint at each step is killed
(SIGKILL) when one is whole, and the same command is given again: seconds from the command to its
first step. Issue 20 bounds them: a save at most 1.2 times as long, a start that goes on at most as
long, and what a save costs more at most 3 % of 250 steps. Writes a JSON file.
"""

import argparse
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
from reporting import RESULTS, command, digits, processor, spread, write_report

LAYER = (512, 2048)
EVERY = 250
"""Steps between checkpoints."""

RUN = ["--task", "word_problems", "--model", "t5_1_1_tiny", "--gin.Train.checkpoint_every=1"]
MEGABYTES_OF_RUN = 12
"""Of its parameters and optimizer."""

SAVES = 3
"""Measured in a process; one before them warms up."""


def saves(megabytes: int) -> list[dict[str, float]]:
    """In a process of a tree: seconds of saves and restores."""
    import jax

    from dss_jax.train.checkpoint import Checkpoints

    rng = np.random.default_rng(0)
    count = max(1, round(megabytes * 1e6 / (4 * LAYER[0] * LAYER[1])))
    arrays = [rng.standard_normal(LAYER, np.float32) for _ in range(count)]
    params = {f"layer_{i}": jax.device_put(array) for i, array in enumerate(arrays)}
    found = []
    for _ in range(1 + SAVES):
        folder = Path(tempfile.mkdtemp())
        with closing(Checkpoints(folder)) as checkpoints:
            start, own = time.perf_counter(), time.process_time()
            checkpoints.save_params(params, 1, None)
            one = {"training waits": time.perf_counter() - start}
            checkpoints.wait()
            one["on the disk"] = time.perf_counter() - start
            one["processor"] = time.process_time() - own
        with closing(Checkpoints(folder)) as checkpoints:
            start = time.perf_counter()
            jax.block_until_ready(checkpoints.restore_params(1, params))
            one["restore"] = time.perf_counter() - start
        shutil.rmtree(folder)
        found.append(one)
    return found[1:]


class Tree:
    """A checkout of the package, with a cache and a run of its own."""

    def __init__(self, path: Path, folder: Path) -> None:
        self._run = folder / "run"
        self._environment = {
            **{k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"},
            "PYTHONPATH": str(path.resolve()),
            "DSS_CACHE_DIR": str(folder / "cache"),
        }
        self._dss = [sys.executable, "-m", "dss_jax.cli.main"]

    def saves(self, megabytes: int) -> list[dict[str, float]]:
        words = [sys.executable, __file__, "--worker", str(megabytes)]
        done = subprocess.run(
            words, env=self._environment, stdout=subprocess.PIPE, text=True, check=True
        )
        found: list[dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
        return found

    def start(self) -> float:
        """Starts the run, or goes on with it; killed when a new checkpoint is whole."""
        startup, checkpoints = self._run / "startup.jsonl", self._run / "checkpoints"

        def whole() -> set[str]:
            there = checkpoints.iterdir() if checkpoints.is_dir() else ()
            return {p.name for p in there if p.name.isdigit()}

        begun, before = _lines(startup), whole()
        words = [*self._dss, "train", *RUN, "--output_dir", str(self._run)]
        process = subprocess.Popen(words, env=self._environment, stdout=subprocess.DEVNULL)
        while len(_lines(startup)) == len(begun) or not whole() - before:
            if process.poll() is not None:
                raise SystemExit(f"dss train ended with {process.returncode}: {self._run}")
            time.sleep(0.1)
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.wait()
        return float(_lines(startup)[-1]["total_seconds"])

    def step_seconds(self) -> float:
        """Of a step of the run, without those that saved: the median of 12 after 4."""
        folder = self._run.with_name("steps")
        words = [*self._dss, "train", *RUN[:-1], "--output_dir", str(folder)]
        words += ["--gin.Train.steps=16", "--gin.Train.log_every=1", "--gin.Evaluate.every=16"]
        subprocess.run(words, env=self._environment, stdout=subprocess.DEVNULL, check=True)
        lines = [x for x in _lines(folder / "metrics.jsonl") if x.get("group") == "train"]
        return float(np.median([64 / line["examples_per_second"] for line in lines[4:]]))


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(x) for x in file.read_text().splitlines()] if file.exists() else []


def summed_up(readings: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Spreads of readings of the same names."""
    return {name: spread(np.array([one[name] for one in readings])) for name in readings[0]}


def main(arguments: list[str]) -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(prog="checkpoint.py", description=__doc__)
    parser.add_argument("--before", type=Path, help="a worktree of an older commit")
    parser.add_argument("--megabytes", default=f"{MEGABYTES_OF_RUN},720", help="of the saves")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.worker:
        print(json.dumps(saves(args.worker)))
        return
    if args.before is None:
        parser.error("give the older tree: --before DIR")
    sizes = [int(size) for size in args.megabytes.split(",")]
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        paths = {"now": Path(__file__).parents[1], "before": args.before}
        trees = {name: Tree(path, Path(folder, name)) for name, path in paths.items()}
        found: dict[str, dict[str, list]] = {name: defaultdict(list) for name in trees}
        for number in range(args.rounds + 1):
            for name in sorted(trees, reverse=bool(number % 2)):
                seconds = trees[name].start()
                print(f"round {number}, {name}: started in {seconds:.1f} s", flush=True)
                if number == 0:  # The first start compiles, and goes on with nothing.
                    continue
                found[name]["goes on"].append({"start": seconds})
                for size in sizes:
                    own = trees[name].saves(size)
                    found[name][f"{size} MB"] += own
                    print(f"round {number}, {name}, {size} MB: {own[-1]}", flush=True)
        step = trees["now"].step_seconds()
    measured = {n: {k: summed_up(x) for k, x in own.items()} for n, own in found.items()}
    now, before = measured["now"], measured["before"]
    report: dict[str, Any] = {
        "command": command(arguments, "checkpoint.py"),
        "date": datetime.date.today().isoformat(),
        "device": processor(),
        "load_average_1_min": {"before": load, "after": os.getloadavg()[0]},
        "now": now,
        "before": before,
        "step_seconds": digits(step),
        "ratio of medians": {
            kind: {n: digits(x["median"] / before[kind][n]["median"]) for n, x in now[kind].items()}
            for kind in now
        },
    }
    if MEGABYTES_OF_RUN in sizes:
        of_run = f"{MEGABYTES_OF_RUN} MB"
        more = [one[of_run]["processor"]["median"] for one in (now, before)]
        report[f"cost of a save in {EVERY} steps, percent"] = digits(
            100 * (more[0] - more[1]) / (EVERY * step)
        )
    file = args.out / "checkpoint-cpu.json"
    write_report(report, file)
    print(json.dumps(report, indent=1))
    print(file)


if __name__ == "__main__":
    main(sys.argv[1:])
