"""Several seeds in one process give what each gives alone: numbers, folders, where they go on."""

import dataclasses
import json
from pathlib import Path

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
from dss_jax.run import rescore, run_folder, seeds, single
from dss_jax.run.session import open_session
from dss_jax.train import loop
from dss_jax.train import step as steps
from dss_jax.train.metric_log import read_metrics

pytestmark = pytest.mark.usefixtures("linear_programs")

TIMING = {"examples_per_second", "tokens_per_second", "useful_tflops_per_second"}


def _run(folder: Path) -> config.Run:
    evaluate = config.Evaluate(every=2, batch_size=16, max_decode_length=3)
    run = toy.make_run(mesh=config.Mesh(data=4), evaluate=evaluate)
    train = dataclasses.replace(run.train, steps=4, output_dir=str(folder))
    return dataclasses.replace(run, train=train)


def _train(folder: Path, store: TokenStore) -> dict:
    return seeds.train(seeds.seed_runs(_run(folder), [0, 1]), store, TEXT_ACCURACY)


def _single(folder: Path) -> config.Run:
    """Seed 1 as a run of its own in its folder."""
    run = _run(folder)
    data, train = dataclasses.replace(run.data, seed=1), dataclasses.replace(run.train, seed=1)
    return dataclasses.replace(run, data=data, train=train)


def _arrays(folder: Path, store: TokenStore) -> list[np.ndarray]:
    session = open_session(_single(folder), folder, store, TEXT_ACCURACY)
    checkpoints = session.checkpoints()
    state = checkpoints.restore(4, session.program.abstract_state)
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
def both(tmp_path_factory: pytest.TempPathFactory, toy_store: TokenStore):
    """Seeds 0 and 1, stopped after 3 steps of seed 1 and continued: the folder, what was returned,
    what was said at the second start.
    """
    folder = tmp_path_factory.mktemp("runs") / "both"
    with pytest.MonkeyPatch.context() as patch:
        _interrupt(patch, after=3, seed=1)
        with pytest.raises(loop.Interrupted, match="interrupted after 3 steps"):
            _train(folder, toy_store)
    with toy.heard() as said:
        return folder, _train(folder, toy_store), said


def _interrupt(patch: pytest.MonkeyPatch, after: int, seed: int) -> None:
    """Ctrl-C's signal in the run of one seed."""
    real = single.first_state

    def first_state(session, checkpoints):
        if session.run.train.seed == seed:
            toy.interrupt_before(patch, after - 1)
        return real(session, checkpoints)

    patch.setattr(single, "first_state", first_state)


def test_each_seed_is_the_run_that_it_is_alone(alone, both, toy_store) -> None:
    mine, theirs = both[0] / "seed_1", alone[0]
    assert {f.name for f in mine.iterdir()} == {f.name for f in theirs.iterdir()}
    for part in ("predictions", "checkpoints"):
        assert {f.name for f in (mine / part).iterdir()} == {
            f.name for f in (theirs / part).iterdir()
        }
    saved = gin_config.read([mine / run_folder.CONFIG]).run()
    assert saved == _single(mine)
    assert _lines(mine) == _lines(theirs)
    assert run_folder.read_results(mine) == alone[1]
    for x, y in zip(_arrays(mine, toy_store), _arrays(theirs, toy_store), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_finished_seed_is_left_alone_and_the_others_go_on(both) -> None:
    folder, _, said = both
    assert f"{folder / 'seed_0'} is finished; these are its results" in said
    assert "going on from the checkpoint of step 3" in said
    assert "seed 1, 2 of 2" in said


def test_what_is_compiled_is_shared(tmp_path: Path, toy_store, monkeypatch) -> None:
    built: list[int] = []
    real = steps.make_train_step
    monkeypatch.setattr(steps, "make_train_step", lambda *a: built.append(1) or real(*a))
    _train(tmp_path / "shared", toy_store)
    assert len(built) == 1


def test_a_seed_is_scored_as_any_run(both, toy_store) -> None:
    folder = both[0] / "seed_1"
    results = run_folder.read_results(folder)
    session = open_session(_single(folder), folder, toy_store, TEXT_ACCURACY)
    step, scores = rescore.score(session, ["test"])
    assert step == results["best_step"]
    assert scores["test"] == pytest.approx(results["test"])


def test_the_summary_has_mean_and_standard_error(both) -> None:
    folder, returned, _ = both
    assert json.loads((folder / seeds.SUMMARY).read_text()) == returned
    assert (folder / run_folder.CURVES).read_bytes().startswith(b"\x89PNG")
    losses = [one["test"]["label/loss"] for one in returned["seeds"].values()]
    assert list(returned["seeds"]) == ["0", "1"]
    assert losses[0] != losses[1]
    expected = {"mean": sum(losses) / 2, "standard_error": abs(losses[0] - losses[1]) / 2}
    assert returned["test"]["label/loss"] == pytest.approx(expected)
    one = {"metric": "m", "method": "dss", "steps": 4, "test": {"m": 3.0}}
    assert seeds.summary({0: one})["test"] == {"m": {"mean": 3.0, "standard_error": None}}


def test_a_folder_of_a_single_run_is_refused(alone) -> None:
    with pytest.raises(UsageError, match="holds a single run"):
        seeds.seed_runs(_run(alone[0]), [0, 1])


def test_one_order_for_all_seeds_where_it_is_asked_for(tmp_path: Path) -> None:
    runs = seeds.seed_runs(_run(tmp_path), [4, 5], same_order=True)
    assert [(r.train.seed, r.data.seed) for r in runs] == [(4, 0), (5, 0)]
    runs = seeds.seed_runs(_run(tmp_path), [4, 5])
    assert [(r.train.seed, r.data.seed) for r in runs] == [(4, 4), (5, 5)]


def test_each_seed_has_a_subset_of_its_own_where_it_is_asked_for(tmp_path: Path) -> None:
    run = _run(tmp_path)
    subsets = [r.task.subset_seed for r in seeds.seed_runs(run, [4, 5])]
    assert subsets == [run.task.subset_seed] * 2
    fresh = dataclasses.replace(run, task=dataclasses.replace(run.task, fresh_subsets=True))
    assert [r.task.subset_seed for r in seeds.seed_runs(fresh, [4, 5])] == [4, 5]
    # A single run, too, and one that is read again.
    assert dataclasses.replace(run, task=fresh.task, train=config.Train(seed=3)).task == (
        dataclasses.replace(fresh.task, subset_seed=3)
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--seeds", "0,x"], "--seeds takes whole numbers"),
        (["--seeds", "0,1,0"], "has a seed twice"),
        # JAX has the same key for both.
        (["--seeds", "0,4294967296"], "Train.seed must be between 0 and 4294967295"),
        (["--seeds", "0,1", "--gin.Train.seed=3"], "--seeds or --gin.Train.seed"),
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
