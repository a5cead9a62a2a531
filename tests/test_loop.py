"""Training as a whole: exact resume, interruption, what is written, what is kept."""

import dataclasses
import gzip
import json
import re
import threading
from pathlib import Path
from typing import ClassVar
from unittest.mock import MagicMock

import jax
import numpy as np
import pytest
import toy

from dss_jax.cli import gin_config
from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.flops import Work, training_flops, work_of_rows
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.run import run_folder, single
from dss_jax.run.session import open_session
from dss_jax.train import hooks, loop
from dss_jax.train.checkpoint import Checkpoints
from dss_jax.train.metric_log import Progress, read_metrics

pytestmark = pytest.mark.usefixtures("linear_programs")


def _run(folder: Path, **train: object) -> config.Run:
    run = toy.make_run(mesh=config.Mesh(data=4))
    train = {"output_dir": str(folder), "log_every": 1} | train
    return dataclasses.replace(run, train=dataclasses.replace(run.train, **train))


def _train(run: config.Run, store) -> dict:
    return single.train(run, store, TEXT_ACCURACY)


def _interrupt_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Sends Ctrl-C's signal just before a step runs; the batches after it are made already."""
    toy.interrupt_before(monkeypatch, step - 1)


def _final_state(run: config.Run, store) -> list[np.ndarray]:
    session = open_session(run, Path(str(run.train.output_dir)), store, TEXT_ACCURACY)
    checkpoints = session.checkpoints()
    state = checkpoints.restore(run.train.steps, session.program.abstract_state)
    checkpoints.close()
    return [np.asarray(x) for x in jax.tree.leaves(session.program.seeded(state))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, toy_store):
    """A run that was never interrupted."""
    run = _run(tmp_path_factory.mktemp("runs") / "whole")
    with toy.heard() as said:
        return run, _train(run, toy_store), said


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory, toy_store):
    """The same run, stopped by Ctrl-C between two evaluations, and continued."""
    run = _run(tmp_path_factory.mktemp("runs") / "resumed")
    with pytest.MonkeyPatch.context() as patch:
        _interrupt_after(patch, 3)
        with pytest.raises(loop.Interrupted, match="interrupted after 3 steps"):
            _train(run, toy_store)
        assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]
        # Ctrl-C does not wait for the compiler: what it is at, it ends, and takes up nothing more.
        for thread in [t for t in threading.enumerate() if t.name.startswith("compile")]:
            thread.join(120)
            assert not thread.is_alive()
    with toy.heard() as said:
        return run, _train(run, toy_store), said


def test_a_stopped_run_ends_bit_for_bit_as_one_that_was_not(whole, resumed, toy_store) -> None:
    assert "going on from the checkpoint of step 3" in resumed[2]
    a, b = _final_state(whole[0], toy_store), _final_state(resumed[0], toy_store)
    assert len(a) == len(b) > 10
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def test_metrics_of_a_resumed_run_are_those_of_the_whole(whole, resumed) -> None:
    timing = {"examples_per_second", "tokens_per_second", "useful_tflops_per_second"}
    lines = [
        [
            {k: v for k, v in line.items() if k not in timing}
            for line in read_metrics(Path(str(run.train.output_dir)) / run_folder.METRICS)
        ]
        for run, _, _ in (whole, resumed)
    ]
    assert lines[0] == lines[1]
    steps = [line["step"] for line in lines[0] if line["group"] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines[0] if line["group"] == "validation"] == [2, 4, 6]
    assert whole[1] == resumed[1]


def test_the_folder_holds_what_the_user_looks_for(whole, toy_store) -> None:
    run, results, said = whole
    folder = Path(str(run.train.output_dir))
    saved = gin_config.read([folder / run_folder.CONFIG]).run()
    assert saved == run
    assert json.loads((folder / run_folder.RESULTS).read_text()) == results
    assert (folder / run_folder.CURVES).read_bytes().startswith(b"\x89PNG")
    assert list((folder / "tensorboard").iterdir())
    assert results["validation"]["examples"] == toy.SIZES["validation"]
    assert results["test"]["teacher"] == pytest.approx(
        100 * np.mean([f"label {r % 2}" == f"label {r % 3}" for r in range(6)] + [False])
    )
    lines = (folder / "predictions" / "test-best.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [r["id"] for r in rows] == [f"test-{i}" for i in range(toy.SIZES["test"])]
    assert {"input", "target", "prediction", "correct"} <= rows[0].keys()
    # That is said of a pre-trained student.
    assert not any("exact match near 0 is normal" in line for line in said)


def test_the_best_and_the_latest_checkpoints_are_kept(tmp_path: Path, whole, toy_store) -> None:
    session = open_session(whole[0], tmp_path, toy_store, TEXT_ACCURACY)
    state = session.program.init()
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    for step, score in ((1, 10.0), (2, 30.0), (3, 20.0), (4, None), (5, 5.0)):
        checkpoints.save(state, step, score)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 5]
    assert (checkpoints.best_step(), checkpoints.latest_step()) == (2, 5)
    checkpoints.close()
    reopened = Checkpoints(tmp_path / "checkpoints", keep=1)
    assert reopened.best_step() == 2
    params = reopened.restore_params(2, session.program.abstract_state.params)
    for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(x, y)
    with pytest.raises(UsageError, match=r"no checkpoint of step 3\. There: 2, 5"):
        reopened.restore_params(3, session.program.abstract_state.params)
    reopened.close()


def test_each_start_says_where_its_time_went(whole, resumed) -> None:
    for (run, _, _), first_steps in ((whole, [0]), (resumed, [0, 3])):
        file = Path(str(run.train.output_dir)) / run_folder.STARTUP
        starts = [json.loads(line) for line in file.read_text().splitlines()]
        assert [start["step"] for start in starts] == first_steps
        for start in starts:
            assert list(start["seconds"]) == ["model", "state", "compile", "first step"]
            assert sum(start["seconds"].values()) == pytest.approx(start["total_seconds"], abs=0.01)


def test_rates_of_useful_work_are_logged(whole) -> None:
    lines = read_metrics(Path(str(whole[0].train.output_dir)) / run_folder.METRICS)
    trained = [line for line in lines if line["group"] == "train"]
    assert all(line["useful_tflops_per_second"] > 0 for line in trained)
    assert not any("mfu" in line for line in trained), "the peak of a CPU is not known"


def test_utilisation_is_useful_work_over_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    model = dataclasses.replace(toy.MODEL, vocab_size=128)
    work = work_of_rows([(5, 3), (7, 2)])
    written: list[tuple] = []
    half = Work(*(x / 2 for x in work))
    log = hooks.Log(2, 9, lambda *line: written.append(line), lambda _: half, 1, model, peak=4e6)
    metrics = {"loss": 1.5, "bad_steps": 0.0}
    # The clock starts anew where something else took time.
    monkeypatch.setattr(hooks.time, "monotonic", lambda: 10.0)
    log.at(4, None)
    monkeypatch.setattr(hooks.time, "monotonic", lambda: 12.0)
    for step in (5, 6):
        log.done(step, metrics, None)
    ((step, group, numbers),) = written
    assert (step, group, numbers["loss"]) == (6, "train", 1.5)
    assert numbers["examples_per_second"] == 1.0
    assert numbers["tokens_per_second"] == (5 + 3 + 7 + 2) / 2
    assert numbers["useful_tflops_per_second"] == training_flops(model, work) / 2 / 1e12
    assert numbers["mfu"] == pytest.approx(100 * training_flops(model, work) / 2 / 4e6)
    assert "bad_steps" not in numbers


@dataclasses.dataclass
class _State:
    """A program that is no T5: its state is the sum of its batches."""

    step: int = 0
    params: int = 0


class _Metric(float):
    """Notes when it is waited for."""

    waited: ClassVar[list[int]] = []

    def block_until_ready(self) -> None:
        self.waited.append(int(self))


def _add(state: _State, batch: int) -> tuple[_State, dict]:
    return _State(state.step + 1, state.params + batch), {"loss": _Metric(state.step)}


class _Noting(loop.Hook):
    def __init__(self, every: int = 10**9) -> None:
        self.every, self.seen = every, []

    def done(self, step, metrics, newest) -> None:
        self.seen.append(("done", step, int(metrics["loss"]), newest.step))

    def due(self, step: int) -> bool:
        return step % self.every == 0

    def at(self, step: int, state: _State) -> None:
        self.seen.append(("at", step, state.params))


def test_the_host_is_no_more_than_a_few_steps_ahead() -> None:
    """Or a stop waits for all steps that were sent off since the last numbers were read."""
    _Metric.waited.clear()

    def train_step(state: _State, batch: int) -> tuple[_State, dict]:
        assert state.step - 1 - max(_Metric.waited, default=-1) <= loop.AHEAD
        return _add(state, batch)

    end = loop.fit(_State(), steps=20, train_step=train_step, next_batch=lambda k: k)
    assert end == _State(20, sum(range(20)))
    assert _Metric.waited == list(range(20))


def test_hooks_see_all_steps_before_the_state_and_each_has_its_own_every_n() -> None:
    threes, fives = _Noting(3), _Noting(5)
    loop.fit(_State(2, 1), steps=7, train_step=_add, next_batch=lambda k: k, hooks=[threes, fives])
    done = [x[1:3] for x in threes.seen if x[0] == "done"]
    assert done == [(3, 2), (4, 3), (5, 4), (6, 5), (7, 6)]
    assert [x[1:3] for x in fives.seen if x[0] == "done"] == done
    # Every hook is called where one is due, and has seen every step by then.
    for hook in (threes, fives):
        assert [x for x in hook.seen if x[0] == "at"] == [
            ("at", s, sum(range(s))) for s in (3, 5, 6)
        ]
        for _, step, _ in [x for x in hook.seen if x[0] == "at"]:
            seen = hook.seen[: hook.seen.index(("at", step, sum(range(step))))]
            assert [x[1] for x in seen if x[0] == "done"] == list(range(3, step + 1))


def test_a_stop_that_comes_while_hooks_are_asked_is_saved_first() -> None:
    """The signal may arrive between two of them: all must have the same answer."""
    stop, saves = loop.StopRequest(), MagicMock()
    evaluate = hooks.Validate(100, 100, MagicMock(return_value=None))
    save = hooks.Save(100, saves, evaluate, stop)

    class Signal(loop.Hook):
        def due(self, step: int) -> bool:
            stop.asked = step >= 3
            return False

    own = [evaluate, save, Signal(), hooks.Stop(100, stop, saves.wait)]
    with pytest.raises(loop.Interrupted) as stopped:
        loop.fit(_State(), steps=100, train_step=_add, next_batch=lambda k: k, hooks=own)
    assert stopped.value.step == 4
    assert [c.args[1:] for c in saves.save.call_args_list] == [(4, None)]
    assert saves.mock_calls[-1][0] == "wait"


def test_each_evaluated_state_is_saved_with_its_score() -> None:
    saves = MagicMock()
    evaluate = hooks.Validate(4, 10, lambda params, step: float(step))
    save = hooks.Save(3, saves, evaluate, loop.StopRequest())
    loop.fit(_State(), steps=10, train_step=_add, next_batch=lambda k: k, hooks=[evaluate, save])
    assert [c.args[1:] for c in saves.save.call_args_list] == [
        (3, None),
        (4, 4.0),
        (6, None),
        (8, 8.0),
        (9, None),
        (10, 10.0),
    ]
    assert [c.args[0].params for c in saves.save.call_args_list] == [
        sum(range(s)) for s in (3, 4, 6, 8, 9, 10)
    ]


def test_steps_are_traced_on_request(tmp_path: Path, toy_store) -> None:
    run = _run(tmp_path / "traced", steps=4)
    single.train(run, toy_store, TEXT_ACCURACY, profile=(1, 3))
    (folder,) = (tmp_path / "traced" / "tensorboard").glob("plugins/profile/*")
    assert list(folder.glob("*.xplane.pb"))
    (trace,) = folder.glob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = [event["args"]["step_num"] for event in events if event.get("name") == "train"]
    assert steps == ["1", "2"]


def test_a_finished_run_is_not_trained_again(whole, toy_store) -> None:
    run, results, _ = whole
    folder = Path(str(run.train.output_dir))
    before = {f: f.stat().st_mtime_ns for f in [*folder.rglob("*.jsonl"), folder / "config.gin"]}
    assert _train(run, toy_store) == results
    # Nor is what it was trained with rewritten by settings that may change while it trains.
    train = dataclasses.replace(run.train, log_every=7, keep_checkpoints=9)
    assert _train(dataclasses.replace(run, train=train), toy_store) == results
    assert all(f.stat().st_mtime_ns == t for f, t in before.items())


def test_another_configuration_is_refused_with_the_difference(whole) -> None:
    run = whole[0]
    other = dataclasses.replace(run, loss=config.Loss(alpha=0.25))
    with pytest.raises(UsageError) as error:
        run_folder.open_run_folder(other, "toy")
    assert "-Loss.alpha = 0.5" in str(error.value)
    assert "+Loss.alpha = 0.25" in str(error.value)
    with pytest.raises(UsageError, match="token store"):
        run_folder.open_run_folder(run, "other data")
    # How often it logs does not make it another experiment.
    logs_less = dataclasses.replace(run, train=dataclasses.replace(run.train, log_every=7))
    run_folder.open_run_folder(logs_less, "toy")
    run_folder.open_run_folder(run, "toy")


def test_a_run_of_an_older_version_goes_on(whole, tmp_path: Path) -> None:
    run = whole[0]
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, output_dir=str(tmp_path)))
    file = run_folder.open_run_folder(run, "toy") / run_folder.CONFIG
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(x for x in lines if not x.startswith("Loss.alpha_schedule")))
    run_folder.open_run_folder(run, "toy")
    (tmp_path / run_folder.CHECKPOINTS).mkdir()
    other = dataclasses.replace(run, loss=config.Loss(alpha_schedule="linear"))
    file.write_text("".join(x for x in lines if not x.startswith("Loss.alpha_schedule")))
    with pytest.raises(UsageError, match=r"\+Loss.alpha_schedule = 'linear'"):
        run_folder.open_run_folder(other, "toy")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all my work")
    with pytest.raises(UsageError, match="not empty and holds no"):
        run_folder.open_run_folder(_run(tmp_path), "toy")
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.tex"]


def test_lines_after_the_last_checkpoint_are_taken_back(tmp_path: Path) -> None:
    from dss_jax.train.metric_log import MetricLog

    log = MetricLog(tmp_path, 0)
    for step in (1, 2, 3):
        log(step, "train", {"loss": step})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "gro')  # a crash in the middle of a line
    log = MetricLog(tmp_path, 2)
    log(3, "train", {"loss": 30.0})
    log.close()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1), (2, 2), (3, 30)]


@pytest.mark.parametrize("bad", [b"\0\0\0", b"\xff{}", b"[]", b'{"step": 2}'])
def test_a_damaged_line_of_metrics_is_named_not_dropped(tmp_path: Path, bad: bytes) -> None:
    from dss_jax.train.metric_log import MetricLog

    file = tmp_path / "metrics.jsonl"
    line = b'{"step": 1, "group": "train"}\n'
    content = line + bad + b"\n" + line
    file.write_bytes(content)
    for read in (lambda: read_metrics(file), lambda: MetricLog(tmp_path, 1)):
        with pytest.raises(UsageError, match=r"metrics.jsonl:2: no line of metrics"):
            read()
    assert file.read_bytes() == content


def test_the_first_numbers_say_how_long_it_will_take(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(100, 0)
    for step in range(1, 10):
        progress(step)
    assert not capsys.readouterr().err
    progress(10, {"label/loss": 1.0})
    assert re.match(r"step 10/100  label 1  ETA \d+:\d\d\n", capsys.readouterr().err)
    progress(20, {"label/loss": 1.0})
    assert not capsys.readouterr().err, "then one every ten seconds"
