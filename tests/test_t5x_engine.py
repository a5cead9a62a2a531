"""Both engines on the same batches from the same parameters: the same losses. Needs T5X.

benchmarks/t5x_parity.py measures the same on real data and writes the figures down.
"""

import dataclasses
import logging
import os
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import toy
from test_step import NO_DROPOUT

from dss_jax.core import config
from dss_jax.core.log import shown
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.interop.t5x import read_t5x
from dss_jax.interop.weights import flat
from dss_jax.layouts.batches import TrainBatches
from dss_jax.run.session import open_session, with_vocab_size
from dss_jax.train import loop
from dss_jax.train.loss import task_weights
from dss_jax.train.sharding import make_mesh, put_batch
from dss_jax.train.step import Program

pytest.importorskip("t5x.checkpoints", reason="T5X is not installed: make t5x")
pytestmark = pytest.mark.slow

STEPS = 20
OPTIMIZERS = {
    "adamw": config.Optimizer(learning_rate=1e-3, warmup_steps=5),
    "adafactor": config.Optimizer(
        name="adafactor", learning_rate=1e-2, schedule="constant", clip_norm=0.0
    ),
    "adafactor, clipped": config.Optimizer(
        name="adafactor", learning_rate=1e-2, schedule="constant", clip_norm=0.5
    ),
}
CASES = {
    "adamw": {"optimizer": OPTIMIZERS["adamw"]},
    "adafactor": {"optimizer": OPTIMIZERS["adafactor"]},
    "microbatches": {
        "optimizer": OPTIMIZERS["adafactor, clipped"],
        "loss": config.Loss(alpha=0.2, z_loss=1e-3, label_smoothing=0.1),
        "train": {"microbatches": 2},
    },
    "umt5": {
        "optimizer": OPTIMIZERS["adamw"],
        "model": dataclasses.replace(NO_DROPOUT, relative_attention_per_layer=True),
    },
    "labels only": {
        "optimizer": OPTIMIZERS["adamw"],
        "method": config.Method(name="distill", label="teacher", rationale=False),
    },
}


def run_of(name: str, store: Any) -> config.Run:
    sections = dict(CASES[name])
    train = config.Train(steps=STEPS, log_every=1, **sections.pop("train", {}))
    evaluate = config.Evaluate(every=10, batch_size=4, max_decode_length=5)
    data = config.Data(batch_size=8, layout="padded")
    defaults = {"model": NO_DROPOUT, "train": train, "evaluate": evaluate, "data": data}
    run = toy.make_run(**(defaults | sections))
    return with_vocab_size(run, store)


def batches_of(run: config.Run, store: Any) -> TrainBatches:
    return TrainBatches(store.split("train"), run.task, run.data, run.method, steps=STEPS)


def ours(run: config.Run, store: Any) -> tuple[list[dict[str, float]], Any]:
    program = Program(run, make_mesh(run.mesh, jax.devices()[:1]))
    batches, state, found = batches_of(run, store), program.init(), []
    for step in range(STEPS):
        state, metrics = program.train_step(state, put_batch(batches(step), program.mesh))
        found.append({name: float(value) for name, value in metrics.items()})
    return found, state.params


def t5x_losses(
    run: config.Run, store: Any, folder: Path, stop_at: int = STEPS
) -> dict[int, dict[str, float]]:
    from dss_jax.run import t5x_engine

    batches, weights = batches_of(run, store), task_weights(run.loss, run.method)
    found: dict[int, dict[str, float]] = {}

    def report(step: int, numbers: dict[str, float]) -> bool:
        found[step] = numbers
        return step == stop_at

    def batch_at(step: int) -> dict[str, np.ndarray]:
        return t5x_engine.rows_of(batches(step), weights)

    assert t5x_engine.fit(run, batch_at, str(folder), report) == stop_at
    return found


@pytest.mark.parametrize("name", CASES)
def test_same_losses_and_parameters(name: str, toy_store: Any, tmp_path: Path) -> None:
    run = run_of(name, toy_store)
    expected, params = ours(run, toy_store)
    found = t5x_losses(run, toy_store, tmp_path / "t5x")
    assert list(found) == list(range(1, STEPS + 1))
    names = ["loss", "learning_rate", "label/loss", "label/token_accuracy"]
    if run.method.rationale:
        names += ["rationale/loss", "rationale/token_accuracy"]
    for own, theirs in zip(expected, found.values(), strict=True):
        for metric in names:
            np.testing.assert_allclose(theirs[metric], own[metric], rtol=0, atol=1e-4)
    assert expected[0]["loss"] - expected[-1]["loss"] > 0.1, "it must have learned something"
    weights = read_t5x(str(tmp_path / "t5x" / f"checkpoint_{STEPS}"))
    for path, value in flat(params).items():
        np.testing.assert_allclose(weights.leaves[path].read(), value, atol=2e-3, err_msg=path)


def test_a_run_that_was_stopped_goes_on_with_the_next_batch(toy_store: Any, tmp_path: Path) -> None:
    run = run_of("adamw", toy_store)
    whole = t5x_losses(run, toy_store, tmp_path / "whole")
    first = t5x_losses(run, toy_store, tmp_path / "parts", stop_at=7)
    assert (tmp_path / "parts" / "checkpoint_7").is_dir()
    rest = t5x_losses(run, toy_store, tmp_path / "parts")
    assert list(rest) == list(range(8, STEPS + 1))
    for step, numbers in {**first, **rest}.items():
        np.testing.assert_allclose(numbers["loss"], whole[step]["loss"], atol=1e-6)


def test_a_run_is_scored_stopped_and_read_as_any_other(toy_store: Any, tmp_path: Path) -> None:
    from dss_jax.run import rescore, run_folder, t5x_engine

    run = run_of("adamw", toy_store)
    train = dataclasses.replace(
        run.train, engine="t5x", output_dir=str(tmp_path / "run"), keep_checkpoints=2
    )
    run = dataclasses.replace(run, train=train)

    class Stop(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "step 10/" in record.getMessage():
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(loop.Interrupted), shown(Stop()):
        t5x_engine.train(run, toy_store, TEXT_ACCURACY)
    results = t5x_engine.train(run, toy_store, TEXT_ACCURACY)
    assert results["best_step"] in (10, 11, STEPS)
    assert run_folder.read_results(tmp_path / "run") == results
    session = open_session(run, tmp_path / "run", toy_store, TEXT_ACCURACY)
    step, scores = rescore.score(session, ["test"])
    assert step == results["best_step"]
    assert scores["test"] == results["test"]
    # Another start only says what it found.
    assert t5x_engine.train(run, toy_store, TEXT_ACCURACY) == results
