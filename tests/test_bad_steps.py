"""Losses and gradients that are not finite: not trained on, said, and never the best."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import toy

from dss_jax.cli import tasks
from dss_jax.cli.main import main
from dss_jax.core import config, strict_json
from dss_jax.core.errors import Diverged, UsageError
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.data.store import TokenStore
from dss_jax.layouts.batches import TrainBatches
from dss_jax.report.page import as_json
from dss_jax.run import replay, run_folder, score, single
from dss_jax.run.session import Session, open_session, train_batches
from dss_jax.train import checkpoint
from dss_jax.train import step as steps
from dss_jax.train.bad_steps import LOG, REPLAY, not_finite
from dss_jax.train.checkpoint import Checkpoints
from dss_jax.train.metric_log import MetricLog, read_metrics
from dss_jax.train.sharding import put_batch

pytestmark = pytest.mark.usefixtures("linear_programs")

NO_SUCH_TOKEN = 999_999
"""Its embedding is NaN (`jnp.take` fills with it)."""


def poison(patch: pytest.MonkeyPatch, *, steps: set[int], rows: int = 1) -> None:
    """In the batches of these numbers the first inputs are no tokens; also where they are alone."""
    real, real_alone = TrainBatches.__call__, TrainBatches.alone

    def call(self: TrainBatches, step: int, shape: int | None = None) -> tuple:
        batch = real(self, step, shape)
        return poisoned(batch, range(rows)) if step in steps else batch

    def alone(self: TrainBatches, step: int, place: int) -> tuple:
        batch = real_alone(self, step, place)
        return poisoned(batch, [place]) if step in steps and place < rows else batch

    def poisoned(batch: tuple, places: object) -> tuple:
        tokens = batch[0].encoder_input_tokens.copy()
        tokens[list(places), 0] = NO_SUCH_TOKEN
        return (batch[0]._replace(encoder_input_tokens=tokens), *batch[1:])

    patch.setattr(TrainBatches, "__call__", call)
    patch.setattr(TrainBatches, "alone", alone)


def _run(folder: Path, **train: object) -> config.Run:
    evaluate = config.Evaluate(every=4, batch_size=4, max_decode_length=5)
    run = toy.make_run(mesh=config.Mesh(data=4), evaluate=evaluate)
    train = {"output_dir": str(folder), "log_every": 1, "steps": 8} | train
    return dataclasses.replace(run, train=dataclasses.replace(run.train, **train))


def _train(run: config.Run, store: TokenStore) -> dict:
    return single.train(run, store, TEXT_ACCURACY)


def _session(run: config.Run, store: TokenStore) -> Session:
    return open_session(run, Path(str(run.train.output_dir)), store, TEXT_ACCURACY)


def _strict(text: str) -> object:
    """JSON as JavaScript reads it."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, toy_store: TokenStore) -> dict:
    return _train(_run(tmp_path_factory.mktemp("runs") / "whole"), toy_store)


def test_a_batch_that_is_not_finite_changes_nothing(
    tmp_path: Path, toy_store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, steps={1, 3, 4, 5})
    session = _session(_run(tmp_path, max_bad_steps=3, steps=20), toy_store)
    program = session.program
    batches = train_batches(session)
    state, seen = program.init(), []
    for step in range(8):
        before = jax.tree.map(np.asarray, (state.params, state.opt_state))
        state, metrics = program.train_step(state, put_batch(batches(step), program.mesh))
        after = jax.tree.map(np.asarray, (state.params, state.opt_state))
        same = jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), before, after))
        seen.append((int(metrics["bad_steps"]), all(same)))
        assert int(state.step) == step + 1
        assert np.isfinite(metrics["loss"]) == (step not in {1, 3, 4, 5})
    counts, unchanged = zip(*seen, strict=True)
    # After three in a row nothing is applied any more, though the batches are good again.
    assert counts == (0, 1, 0, 1, 2, 3, 4, 5)
    assert unchanged == (False, True, False, True, True, True, True, True)


def test_a_batch_that_is_skipped_is_said_and_the_run_goes_on(
    tmp_path: Path, toy_store: TokenStore, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    poison(monkeypatch, steps={2})
    results = _train(_run(tmp_path), toy_store)
    assert np.isfinite(results["test"]["label/loss"])
    (skipped,) = [line for line in said if "skipped" in line]
    assert skipped.startswith("step 3: the loss is nan (label/loss nan")
    lines = [_strict(x) for x in (tmp_path / run_folder.METRICS).read_text().splitlines()]
    trained = {line["step"]: line for line in lines if line["group"] == "train"}
    assert trained[3]["loss"] is None
    assert trained[3]["bad_steps"] == 1
    assert "bad_steps" not in trained[4]
    (kept,) = [_strict(x) for x in (tmp_path / LOG).read_text().splitlines()]
    assert kept["step"] == 3
    assert len(kept["ids"]) == 8
    assert all(row.startswith("train-") for row in kept["ids"])
    assert all(row in skipped for row in kept["ids"][:5])
    assert (tmp_path / run_folder.CURVES).exists()


def test_a_run_that_diverges_stops_before_it_saves_over_anything(
    tmp_path: Path, toy_store: TokenStore, whole: dict, capsys: pytest.CaptureFixture
) -> None:
    run = _run(tmp_path)
    for _ in range(2):  # The same command again does the same.
        with pytest.MonkeyPatch.context() as patch:
            poison(patch, steps={4, 5, 6, 7})
            with pytest.raises(Diverged, match=r"from step 5 on.*\n  dss replay .*diverged.json"):
                _train(run, toy_store)
        checkpoints = Checkpoints(tmp_path / run_folder.CHECKPOINTS)
        assert checkpoints.steps() == [4]
        checkpoints.close()
        assert not (tmp_path / run_folder.RESULTS).exists()
    kept = _strict((tmp_path / REPLAY).read_text())
    assert kept["step"] == 4
    assert kept["numbers"]["loss"] is None
    assert len(kept["ids"]) == 3
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, steps={4, 5, 6, 7})
        found = replay.replay(_session(run, toy_store), replay.read(tmp_path / REPLAY))
    assert found.step == 4
    assert np.isnan(found.numbers["loss"])
    assert found.bad_parameters == []
    worst, *others = replay.worst_first(found.rows)
    assert worst[0] == kept["ids"][0][0]
    assert np.isnan(worst[1]["label"])
    assert len(others) == 7
    assert all(np.isfinite(list(own.values())).all() for _, own in others)
    # Without what was wrong the same command goes on, and ends as a run that never was disturbed.
    assert _train(run, toy_store) == whole


def test_the_state_that_is_kept_is_that_before_the_first_bad_step(
    tmp_path: Path, toy_store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host sees a step when others after it are sent off; they may be good ones."""
    poison(monkeypatch, steps={2, 3})
    run = _run(tmp_path, max_bad_steps=2)
    with pytest.raises(Diverged):
        _train(run, toy_store)
    kept = replay.read(tmp_path / REPLAY)
    session = _session(run, toy_store)
    states = Checkpoints(tmp_path / "diverged")
    state = states.restore(kept["state"], session.program.abstract_state)
    states.close()
    batches = train_batches(session)
    expected = session.program.init()
    for step in range(2):
        batch = put_batch(batches(step), session.program.mesh)
        expected, _ = session.program.train_step(expected, batch)
    jax.tree.map(np.testing.assert_array_equal, state.params, expected.params)


def test_a_score_that_is_not_finite_is_never_the_best(
    tmp_path: Path, toy_store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = _session(_run(tmp_path / "run"), toy_store).program.init()
    # As a folder of an earlier version may have it, then as it is written now.
    for folder, wrap in (("old", lambda s: None if s is None else {"score": s}), ("new", None)):
        if wrap is not None:
            monkeypatch.setattr(checkpoint, "_metrics", wrap)
        checkpoints = Checkpoints(tmp_path / folder, keep=1)
        for number, value in ((1, 10.0), (2, float("nan")), (3, 5.0), (4, float("nan"))):
            checkpoints.save(state, number, value)
            checkpoints.wait()
        assert checkpoints.best_step() == 1
        assert set(checkpoints.steps()) >= {1, 4}
        checkpoints.close()
        monkeypatch.undo()
    texts = [f.read_text() for f in (tmp_path / "new").rglob("*metrics*") if f.is_file()]
    assert texts
    assert not any("NaN" in text for text in texts)


def test_a_validation_without_a_finite_loss_has_no_score(
    tmp_path: Path, toy_store: TokenStore
) -> None:
    session = _session(_run(tmp_path), toy_store)
    (tmp_path / run_folder.CONFIG).touch()  # Of a run at work.
    params = jax.tree.map(lambda x: x * float("nan"), session.program.init().params)
    log = MetricLog(tmp_path, 0)
    assert score.validate(session, log, params, 2) is None
    log.close()
    (line,) = (tmp_path / run_folder.METRICS).read_text().splitlines()
    assert _strict(line)["label/loss"] is None
    assert read_metrics(tmp_path / run_folder.METRICS)[0]["label/loss"] is None


def test_scores_that_are_not_finite_are_no_results(
    tmp_path: Path, toy_store: TokenStore, whole: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step was bad, and the checkpoint is."""
    real = Checkpoints.restore_params

    def damaged(*args: object) -> object:
        return jax.tree.map(lambda x: x * float("nan"), real(*args))

    run = _run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "restore_params", damaged)
        for _ in range(2):
            with pytest.raises(Diverged, match=r"validation has label/loss nan.*no results"):
                _train(run, toy_store)
            assert not (tmp_path / run_folder.RESULTS).exists()
    assert _train(run, toy_store) == whole
    for file in [*tmp_path.rglob("*.json"), *tmp_path.rglob("*.jsonl")]:
        for text in (
            file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
        ):
            _strict(text)


def test_a_run_that_has_diverged_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def diverge(args: object) -> None:
        raise Diverged("the run has diverged")

    monkeypatch.setattr(tasks, "main", diverge)
    assert main(["tasks"]) == 1
    assert capsys.readouterr().err == "dss: error: the run has diverged\n"


def test_a_page_s_data_are_json() -> None:
    assert _strict(as_json({"a": float("nan"), "b": [float("inf")]})) == {"a": None, "b": [None]}


def test_json_has_null_for_what_is_not_finite() -> None:
    value = {"a": [1.5, float("nan")], "b": (float("inf"), {"c": -float("inf"), "d": "NaN"})}
    expected = {"a": [1.5, None], "b": [None, {"c": None, "d": "NaN"}]}
    assert _strict(strict_json.dumps(value)) == expected


def test_a_gradient_alone_may_be_what_is_not_finite(
    tmp_path: Path, toy_store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflown(*args: object) -> tuple:
        gradients, sums = real(*args)
        gradients["kernel"] *= float("inf")
        return gradients, sums

    real = steps._gradients
    monkeypatch.setattr(steps, "_gradients", overflown)
    session = _session(_run(tmp_path), toy_store)
    program, state = session.program, session.program.init()
    before = jax.tree.map(np.asarray, state.params)
    batch = put_batch(train_batches(session)(0), program.mesh)
    program.train_step.folder = None  # What is kept there is found by the files of our code.
    state, metrics = program.train_step(state, batch)
    assert np.isfinite(metrics["loss"])
    assert int(metrics["bad_steps"]) == 1
    jax.tree.map(np.testing.assert_array_equal, state.params, before)
    numbers = {"loss": 1.0, "label/loss": 1.0, "grad_norm": float("inf")}
    assert not_finite(numbers) == "the gradient's norm is inf"


def test_what_is_no_replay_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(UsageError, match="there is no"):
        replay.read(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{"step": "two"}')
    assert main(["replay", str(tmp_path / "x.json")]) == 2
    assert "is not what a run that has diverged writes" in capsys.readouterr().err
