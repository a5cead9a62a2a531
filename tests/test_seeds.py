"""Several seeds at once give what each gives alone: numbers, folders, and where they go on."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import toy

from dss_jax.cli import gin_config
from dss_jax.cli.main import main
from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.data.store import TokenStore
from dss_jax.layouts.batches import TrainBatches
from dss_jax.run import run_folder, score, seeds, single
from dss_jax.run.session import open_session, with_vocab_size
from dss_jax.train import loop
from dss_jax.train.metric_log import read_metrics
from dss_jax.train.seeds import stack_batches, stack_states, stacked_step, take_seed
from dss_jax.train.sharding import make_mesh, put_batch
from dss_jax.train.step import TrainState, build

OPTIMIZER = config.Optimizer(learning_rate=1e-2, eps=1e-3)
"""A large epsilon, because Adam turns rounding of a tiny gradient into a whole step."""

METHODS = {"dss": config.Method(), "standard": config.Method(name="standard", rationale=False)}
TIMING = {"examples_per_second", "tokens_per_second", "useful_tflops_per_second"}


def _of_seed(run: config.Run, seed: int) -> config.Run:
    return dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, seed=seed),
        train=dataclasses.replace(run.train, seed=seed),
    )


def _alone(run: config.Run, store: TokenStore, n: int) -> tuple[list[dict], TrainState]:
    program = build(run, make_mesh(run.mesh, jax.devices()[:1]))
    batches = TrainBatches(store.split("train"), run.task, run.data, run.method)
    state, numbers = program.init(), []
    for k in range(n):
        state, metrics = program.train_step(state, put_batch(batches(k), program.mesh))
        numbers.append({name: float(value) for name, value in metrics.items()})
    return numbers, state


def _at_once(
    run: config.Run, values: list[int], store: TokenStore, devices: int, n: int
) -> tuple[list[dict], TrainState]:
    program = build(run, make_mesh(run.mesh, jax.devices()[:devices]))
    step = stacked_step(run, program, len(values))
    assert step.mesh.size == devices
    runs = [_of_seed(run, seed) for seed in values]
    order = [TrainBatches(store.split("train"), r.task, r.data, r.method) for r in runs]
    state, numbers = stack_states([program.init(s) for s in values], step.mesh), []
    for k in range(n):
        batch = put_batch(stack_batches([one(k) for one in order]), step.mesh)
        state, metrics = step(state, batch)
        numbers.append({name: np.asarray(values_N) for name, values_N in metrics.items()})
    return numbers, state


@pytest.mark.parametrize(
    ("method", "values", "devices"),
    [
        ("dss", [0, 3], 1),
        pytest.param("standard", [0, 3], 1, marks=pytest.mark.slow),
        pytest.param("dss", [0, 7, 8, 3], 2, marks=pytest.mark.slow),
    ],
)
def test_each_step_is_that_of_the_seed_alone(
    method: str, values: list[int], devices: int, toy_store: TokenStore
) -> None:
    run = with_vocab_size(toy.make_run(optimizer=OPTIMIZER, method=METHODS[method]), toy_store)
    assert run.model.dropout_rate > 0, "dropout masks must be those of the seed alone too"
    numbers, state = _at_once(run, values, toy_store, devices, 3)
    assert len(set(numbers[0]["loss"])) == len(values), "seeds differ"
    # The last one only, because a program of its own takes seconds to compile.
    i, seed = len(values) - 1, values[-1]
    expected, alone = _alone(_of_seed(run, seed), toy_store, 3)
    for k, metrics in enumerate(expected):
        for name, value in metrics.items():
            got = numbers[k][name][i]
            np.testing.assert_allclose(got, value, rtol=2e-5, err_msg=f"{name} at {k}")
    mine = take_seed(state, i, alone).params
    for x, y in zip(jax.tree.leaves(mine), jax.tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)
    assert int(state.step) == 3


def _run(folder: Path) -> config.Run:
    run = toy.make_run(
        optimizer=OPTIMIZER, evaluate=config.Evaluate(every=2, batch_size=16, max_decode_length=3)
    )
    train = dataclasses.replace(run.train, steps=4, output_dir=str(folder))
    return dataclasses.replace(run, train=train)


def _sweep(folder: Path, store: TokenStore) -> dict:
    runs = seeds.seed_runs(_run(folder), [0, 1])
    return seeds.train(runs, store, TEXT_ACCURACY)


def _single(folder: Path) -> config.Run:
    """Seed 1 as a run of its own in its folder."""
    return _of_seed(_run(folder), 1)


def _stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Sends Ctrl-C's signal just before a step runs."""
    toy.interrupt_before(monkeypatch, step - 1)


def _arrays(folder: Path, run: config.Run, store: TokenStore) -> list[np.ndarray]:
    session = open_session(run, folder, store, TEXT_ACCURACY)
    checkpoints = session.checkpoints()
    state = checkpoints.restore(run.train.steps, session.program.abstract_state)
    checkpoints.close()
    return [np.asarray(x) for x in jax.tree.leaves(session.program.seeded(state))]


def _lines(folder: Path) -> list[dict]:
    lines = read_metrics(folder / run_folder.METRICS)
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, toy_store: TokenStore):
    """Seed 1, trained by itself: its folder and its results."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    return folder, single.train(_single(folder), toy_store, TEXT_ACCURACY)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, toy_store: TokenStore):
    """Seeds 0 and 1 at once: the folder, and what was returned."""
    folder = tmp_path_factory.mktemp("runs") / "swept"
    return folder, _sweep(folder, toy_store)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, toy_store: TokenStore) -> Path:
    """The same, stopped after 3 steps."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        _stop_after(patch, 3)
        with pytest.raises(loop.Interrupted, match="interrupted after 3 steps"):
            _sweep(folder, toy_store)
    return folder


def _assert_close(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            _assert_close(a[name], b[name])
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    else:
        assert a == b


def test_each_seed_has_the_folder_of_a_run_of_its_own(alone, swept, toy_store) -> None:
    mine, theirs = swept[0] / "seed_1", alone[0]
    assert {f.name for f in mine.iterdir()} == {f.name for f in theirs.iterdir()}
    names = [{f.name for f in (d / "predictions").iterdir()} for d in (mine, theirs)]
    assert names[0] == names[1]
    steps = [{f.name for f in (d / "checkpoints").iterdir()} for d in (mine, theirs)]
    assert steps[0] == steps[1]
    saved = gin_config.load_run([mine / run_folder.CONFIG])
    assert saved == _single(mine)
    lines = _lines(mine), _lines(theirs)
    assert len(lines[0]) == len(lines[1]) == 4 + 2 + 1
    for a, b in zip(*lines, strict=True):
        _assert_close(a, b)
    _assert_close(run_folder.read_results(mine), alone[1])
    for x, y in zip(
        _arrays(mine, saved, toy_store), _arrays(theirs, saved, toy_store), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


def test_a_seed_is_scored_and_ended_as_any_run(swept, toy_store) -> None:
    folder = swept[0] / "seed_1"
    before = (folder / run_folder.METRICS).read_text()
    results = run_folder.read_results(folder)
    assert single.train(_single(folder), toy_store, TEXT_ACCURACY) == results
    assert (folder / run_folder.METRICS).read_text() == before
    session = open_session(_single(folder), folder, toy_store, TEXT_ACCURACY)
    step, scores = score.score(session, ["test"])
    assert step == results["best_step"]
    _assert_close(scores["test"], results["test"])


def test_the_summary_has_mean_and_standard_error(swept) -> None:
    folder, returned = swept
    assert json.loads((folder / seeds.SUMMARY).read_text()) == returned
    assert (folder / run_folder.CURVES).read_bytes().startswith(b"\x89PNG")
    losses = [one["test"]["label/loss"] for one in returned["seeds"].values()]
    assert list(returned["seeds"]) == ["0", "1"]
    assert losses[0] != losses[1]
    expected = {"mean": sum(losses) / 2, "standard_error": abs(losses[0] - losses[1]) / 2}
    assert returned["test"]["label/loss"] == pytest.approx(expected)
    assert seeds.mean_and_error([3.0]) == {"mean": 3.0, "standard_error": None}


def test_killed_seeds_go_on_from_the_latest_step_of_all(
    stopped: Path, swept, tmp_path: Path, toy_store, said: list[str]
) -> None:
    folder = tmp_path / "killed"
    shutil.copytree(stopped, folder)
    # As if killed while the states of step 3 were written: only seed 0 has its own.
    shutil.rmtree(folder / "seed_1" / "checkpoints" / "3")
    _sweep(folder, toy_store)
    for seed in (0, 1):
        assert f"seed {seed}: going on from the checkpoint of step 2" in said
        mine, whole = folder / f"seed_{seed}", swept[0] / f"seed_{seed}"
        assert _lines(mine) == _lines(whole)
        for x, y in zip(
            _arrays(mine, _single(mine), toy_store),
            _arrays(whole, _single(whole), toy_store),
            strict=True,
        ):
            np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_a_seed_goes_on_alone_and_then_the_others(
    stopped: Path, alone, tmp_path: Path, toy_store, said: list[str]
) -> None:
    folder = tmp_path / "apart"
    shutil.copytree(stopped, folder)
    run = _single(folder / "seed_1")
    results = single.train(run, toy_store, TEXT_ACCURACY)
    assert "going on from the checkpoint of step 3" in said
    _assert_close(results, alone[1])
    said.clear()
    numbers = _sweep(folder, toy_store)
    assert f"{folder / 'seed_1'} is finished" in said
    assert "seed 0: going on from the checkpoint of step 3" in said
    assert numbers["seeds"]["1"] == results


def test_runs_that_are_far_apart_are_refused(stopped: Path, tmp_path: Path, toy_store) -> None:
    folder = tmp_path / "far"
    shutil.copytree(stopped, folder)
    shutil.rmtree(folder / "seed_1" / "checkpoints")
    with pytest.raises(UsageError, match=r"(?s)too far apart.*seed_0: 2, 3.*seed_1: none"):
        _sweep(folder, toy_store)
    assert (folder / "seed_0" / "checkpoints" / "3").exists()


def test_what_seeds_cannot_do_is_refused(tmp_path: Path, alone) -> None:
    run = dataclasses.replace(_run(tmp_path), mesh=config.Mesh(model=2))
    with pytest.raises(UsageError, match=r"Mesh\.model is 2.*whole on one"):
        seeds.seed_runs(run, [0, 1])
    with pytest.raises(UsageError, match="holds a single run"):
        seeds.seed_runs(_run(alone[0]), [0, 1])


def test_one_order_for_all_seeds_where_it_is_asked_for(tmp_path: Path) -> None:
    runs = seeds.seed_runs(_run(tmp_path), [4, 5], same_order=True)
    assert [(r.train.seed, r.data.seed) for r in runs] == [(4, 0), (5, 0)]
    runs = seeds.seed_runs(_run(tmp_path), [4, 5])
    assert [(r.train.seed, r.data.seed) for r in runs] == [(4, 4), (5, 5)]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--seeds", "0,x"], "--seeds takes whole numbers"),
        (["--seeds", "0,1,0"], "has a seed twice"),
        (["--seeds", "0,1", "--gin.Train.seed=3"], "--seeds or --gin.Train.seed"),
        (["--seeds", "0,1", "--gin.Mesh.fsdp=2"], "Mesh.fsdp is 2"),
        (["--seeds", "0,1", "--profile", "1:2"], "leave --seeds out"),
        (["--profile", "5"], "--profile takes START:STOP"),
        (["--profile", "5:5"], "0 <= START < STOP <= 10000"),
        (["--profile", "5:11", "--gin.Train.steps=10"], "<= 10 (Train.steps)"),
    ],
)
def test_a_mistake_is_named_before_anything_is_made(
    flags: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", "--task", "word_problems", "--model", "t5_1_1_tiny"]
    assert main([*train, "--output_dir", str(tmp_path / "x"), *flags]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
