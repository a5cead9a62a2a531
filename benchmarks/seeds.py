"""Times several seeds trained at once beside the same seeds one after another.

  python benchmarks/seeds.py                        # the demo's model and task, 4 seeds
  python benchmarks/seeds.py --task cqa --model t5_1_1_base --gin.T5Config.dtype='"bfloat16"'

A step at once makes the batches of all seeds in NumPy, puts them on the device and runs one program
(`dss_jax.train.seeds`); a step one after another does the same for a single run, so often as there
are seeds. Both run by turns in one process; figures are medians over all steps.

Takes the flags of `dss train`; --gin.NAME=value too. Writes a JSON file.
"""

import argparse
import dataclasses
import datetime
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from reporting import RESULTS, command, digits, processor, spread, write_report

from dss_jax import __version__
from dss_jax.cli import options
from dss_jax.core import config
from dss_jax.core.errors import UsageError


def parse(arguments: list[str]) -> tuple[argparse.Namespace, config.Run, tuple[str, ...]]:
    """Command line -> flags, the run that is timed, the user's task folders."""
    parser = argparse.ArgumentParser(
        prog="seeds.py", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    options.add_run_flags(parser)
    parser.add_argument("--number", type=int, default=4, help="of seeds (default 4)")
    parser.add_argument("--steps", type=int, default=50, help="timed steps of each (default 50)")
    parser.add_argument("--rounds", type=int, default=5, help="turns (default 5)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: results/)")
    parser.set_defaults(needs_model=True)
    args, rest = parser.parse_known_args(arguments)
    for name in ("number", "steps", "rounds"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} must be at least 1, not {getattr(args, name)}.")
    if not (args.task or args.gin_file):
        args.gin_file = ["runs/demo.gin"]
    resolved = options.resolve(args, rest, parser)
    return args, resolved.run, resolved.task_dirs


def sides(
    run: config.Run, store: Any, number: int, steps: int
) -> tuple[dict[str, Callable], config.Run]:
    """Name -> (step -> None), which trains all seeds by one step; and the run with its layout."""
    import jax

    from dss_jax.core.scoring import TEXT_ACCURACY
    from dss_jax.run.seeds import batches_of, seed_runs, stacked
    from dss_jax.run.session import for_mesh
    from dss_jax.train.seeds import build_seeds, stack_batches, stack_states
    from dss_jax.train.sharding import make_mesh, put_batch
    from dss_jax.train.step import build

    seeds = list(range(number))
    mesh = make_mesh(run.mesh, jax.devices()[:1])
    train = dataclasses.replace(run.train, output_dir="unused", steps=2 + steps)
    run = for_mesh(dataclasses.replace(run, train=train), mesh)
    program = build(run, mesh)
    several = build_seeds(run, program, seeds)
    order = batches_of(seed_runs(run, seeds), store, TEXT_ACCURACY)
    states = {"single": program.init()}
    states["stacked"] = stack_states([several.init(seed) for seed in seeds], several.mesh)

    def one_after_another(step: int) -> None:
        for one in order:
            batch = put_batch(one(step), program.mesh)
            states["single"], metrics = program.train_step(states["single"], batch)
            jax.block_until_ready(metrics)

    def at_once(step: int) -> None:
        batch = put_batch(stacked(order, step), several.mesh)
        states["stacked"], metrics = several.train_step(states["stacked"], batch)
        jax.block_until_ready(metrics)

    # Compiles every shape.
    for shape in range(order[0].layout.shapes):
        empty = order[0].empty(shape)
        one_state, _ = program.train_step(program.init(), put_batch(empty, program.mesh))
        many = put_batch(stack_batches([empty] * number), several.mesh)
        fresh = stack_states([several.init(seed) for seed in seeds], several.mesh)
        jax.block_until_ready((one_state, several.train_step(fresh, many)))

    return {"one_after_another": one_after_another, "at_once": at_once}, run


def measure(calls: dict[str, Callable], steps: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each step of each side, by turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in calls.items():
        began = time.perf_counter()
        call(0)
        print(f"{name}: first step {time.perf_counter() - began:.1f} s", flush=True)
        call(1)
    for turn in np.array_split(np.arange(2, 2 + steps), rounds):
        for name, call in calls.items():
            for step in turn:
                began = time.perf_counter()
                call(int(step))
                seconds[name].append(time.perf_counter() - began)
    return seconds


def main(arguments: list[str]) -> int:
    """Measures, prints and writes."""
    args, run, task_dirs = parse(arguments)
    from dss_jax.data.prepare import ensure_store
    from dss_jax.run.session import with_vocab_size

    store = ensure_store(run.task, run.vocabulary, run.data, task_dirs=task_dirs, need=["train"])
    run = with_vocab_size(run, store)
    load = os.getloadavg()[0]
    calls, run = sides(run, store, args.number, args.steps)
    seconds = measure(calls, args.steps, args.rounds)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    examples = args.number * run.data.batch_size
    import jax

    report = {
        "task": run.task.shown_name,
        "model": args.model or ",".join(args.gin_file),
        "method": run.method.name,
        "seeds": args.number,
        "batch_size": run.data.batch_size,
        "layout": run.data.layout,
        "dtype": run.model.dtype,
        "dropout_rate": run.model.dropout_rate,
        "steps": args.steps,
        "rounds": args.rounds,
        "ratio": digits(medians["one_after_another"] / medians["at_once"]),
        "examples_per_second": {name: digits(examples / m) for name, m in medians.items()},
        "seconds_for_a_step_of_all_seeds": {
            name: spread(np.array(values)) for name, values in seconds.items()
        },
        "device": jax.devices()[0].device_kind,
        "processor": processor(),
        # The load after the run counts the run itself.
        "load_average_1_min": {"before": load, "after": os.getloadavg()[0]},
        "jax": jax.__version__,
        "dss_jax": __version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command(arguments, "seeds.py"),
        "raw_seconds": {name: [digits(x) for x in values] for name, values in seconds.items()},
    }
    kind = re.sub(r"[^a-z0-9]+", "-", str(report["device"]).lower()).strip("-")
    file = args.out / f"seeds-{report['task']}-{kind}.json"
    write_report(report, file)
    print(json.dumps({k: v for k, v in report.items() if k != "raw_seconds"}, indent=1))
    print(file)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UsageError as error:
        print(f"seeds.py: error: {error}", file=sys.stderr)
        sys.exit(2)
