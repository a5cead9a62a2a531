"""Both engines side by side: the same batches, the same parameters, dropout off; their losses.

  python benchmarks/t5x_parity.py --task word_problems --model t5_1_1_tiny

Writes a JSON file with the loss of each step, the differences and the versions. Needs T5X
(`make t5x`). Takes the flags of `dss train`; --gin.NAME=value too. Nothing is timed here.
"""

import argparse
import datetime
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from train_step import RESULTS, command, processor

from dss_jax import __version__
from dss_jax.cli import options
from dss_jax.core import config, environment
from dss_jax.core.environment import check_for_t5x
from dss_jax.data.prepare import ensure_store
from dss_jax.interop.t5x import read_t5x
from dss_jax.interop.weights import flat
from dss_jax.layouts.batches import TrainBatches
from dss_jax.run.session import with_vocab_size
from dss_jax.train.loss import task_weights
from dss_jax.train.sharding import make_mesh, put_batch
from dss_jax.train.step import Program

STEPS = 20


def ours(run: config.Run, batches: TrainBatches) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses of our engine, and its parameters at the end."""
    program = Program(run, make_mesh(run.mesh))
    state, losses = program.init(), []
    for step in range(run.train.steps):
        state, metrics = program.train_step(state, put_batch(batches(step), program.mesh))
        losses.append(float(metrics["loss"]))
    return losses, {path: np.asarray(leaf) for path, leaf in flat(state.params).items()}


def t5x(run: config.Run, batches: TrainBatches) -> tuple[list[float], dict[str, np.ndarray]]:
    """The same of T5X's."""
    from dss_jax.run import t5x_engine

    weights, losses = task_weights(run.loss, run.method), []

    def report(step: int, numbers: dict[str, Any]) -> bool:
        losses.append(numbers["loss"])
        return False

    with tempfile.TemporaryDirectory() as folder:
        t5x_engine.fit(run, lambda s: t5x_engine.rows_of(batches(s), weights), folder, report)
        read = read_t5x(f"{folder}/checkpoint_{run.train.steps}")
        return losses, {path: leaf.read() for path, leaf in read.leaves.items()}


def compare(run: config.Run, task_dirs: tuple[str, ...]) -> dict[str, Any]:
    """Runs both engines and measures how far apart they are."""
    check_for_t5x(run)
    store = ensure_store(run.task, run.vocabulary, run.data, task_dirs=task_dirs)
    run = with_vocab_size(run, store)
    batches = TrainBatches(
        store.split("train"), run.task, run.data, run.method, steps=run.train.steps
    )
    (own, params), (other, other_params) = ours(run, batches), t5x(run, batches)
    moved = [np.abs(params[p] - other_params[p]).max() for p in params]
    return {
        "loss": own,
        "t5x_loss": other,
        "largest_difference_of_losses": max(abs(a - b) for a, b in zip(own, other, strict=True)),
        "largest_difference_of_parameters": float(max(moved)),
    }


def main() -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    options.add_run_flags(parser)
    parser.set_defaults(needs_model=True)
    args = options.parse(parser, sys.argv[1:])
    environment.require_t5x()
    asked = options.resolve(args).run
    found = {}
    for name in ("adamw", "adafactor"):
        run = asked
        optimizer = run.optimizer
        if name == "adafactor":
            optimizer = replace(
                optimizer, name=name, learning_rate=1e-3, schedule="constant", clip_norm=0.0
            )
        run = replace(
            run,
            optimizer=optimizer,
            model=replace(run.model, dropout_rate=0.0),
            data=replace(run.data, layout="padded"),
            train=replace(run.train, steps=STEPS, log_every=1),
        )
        found[name] = compare(run, tuple(args.task_dir))
        print(name, found[name]["largest_difference_of_losses"])
    versions = {c.name: c.found for c in environment.package_checks()}
    versions |= {name: f"git {commit}" for name, commit in environment.git_pins().items()}
    run = asked
    result = {
        "command": command(sys.argv[1:], "t5x_parity.py"),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": processor() if jax.default_backend() == "cpu" else jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "dss-jax": __version__,
        "python": sys.version.split()[0],
        "versions": versions,
        "batch_size": run.data.batch_size,
        "method": run.method.name,
        "model": config.to_gin(run).split("# T5Config\n")[1].split("\n\n")[0].splitlines(),
        "steps": STEPS,
        "results": found,
    }
    name = f"t5x-parity-{run.task.shown_name}-{args.model}-{jax.default_backend()}.json"
    file = Path(RESULTS) / name
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
