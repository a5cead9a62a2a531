"""`dss train --engine t5x` as far as it goes without T5X: refusals, and its child process."""

import dataclasses
import json
import logging
import os
import signal
import threading
from pathlib import Path

import pytest
import toy

from dss_jax.cli.main import main
from dss_jax.core import config, environment
from dss_jax.core.environment import check_for_t5x
from dss_jax.core.errors import UsageError
from dss_jax.core.log import shown
from dss_jax.data import prepare_child
from dss_jax.run import other_engine
from dss_jax.train.loop import Interrupted

TRAIN = [
    "train",
    "--task",
    "word_problems",
    "--model",
    "t5_1_1_tiny",
    "--engine",
    "t5x",
    "--output_dir",
    "runs/t5x",
]


def test_a_configuration_survives_the_way_to_the_child() -> None:
    run = toy.make_run(
        optimizer=config.Optimizer(clip_norm=float("inf")),
        train=config.Train(engine="t5x", output_dir="runs/x"),
    )
    text = json.dumps(dataclasses.asdict(run))
    assert other_engine.run_from(json.loads(text)) == run


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("model", {"remat_policy": "full"}, r"T5Config\.remat_policy must be 'none', not 'full'"),
        ("model", {"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon"),
        ("lora", {"rank": 4}, "no LoRA"),
        ("mesh", {"logical_axis_rules": (("batch", "data"),)}, "logical_axis_rules"),
        ("optimizer", {"name": "adafactor", "weight_decay": 0.1}, "weight_decay must be 0"),
    ],
)
def test_what_t5x_cannot_take_is_named(section: str, values: dict, message: str) -> None:
    run = toy.make_run()
    check_for_t5x(run)
    changed = dataclasses.replace(getattr(run, section), **values)
    with pytest.raises(UsageError, match=message):
        check_for_t5x(dataclasses.replace(run, **{section: changed}))


def test_without_t5x_the_command_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    missing = [environment.Check("tensorboard", "not installed", "tensorboard==2.21.0 is needed")]
    monkeypatch.setattr(environment, "t5x_checks", lambda _=None: missing)
    assert main(TRAIN) == 2
    error = capsys.readouterr().err
    assert "tensorboard: not installed" in error
    assert "make t5x" in error
    assert main([*TRAIN, "--seeds", "0,1"]) == 2
    assert "--seeds" in capsys.readouterr().err
    assert main([*TRAIN[:-3], "pytorch", *TRAIN[-2:]]) == 2
    assert "Known: jax, t5x" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


STAND_IN = """
import logging, os, signal, time

def answer(request):
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    steps = request["run"]["train"]["steps"]
    logging.getLogger("dss_jax").info(f"trains {steps} steps on {os.environ['PLACE']}")
    while request["task_dirs"] and not asked:
        time.sleep(0.02)
    return {"interrupted": 3} if asked else {"results": {"steps": steps}}
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A module in place of `t5x_engine`, and the variables that find it."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(other_engine, "MODULE", "stand_in")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return {**os.environ, "PLACE": "the accelerator"}


def test_results_come_back(
    toy_store, stand_in: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dss_jax")
    results = other_engine.train(toy.make_run(), toy_store, (), stand_in)
    assert results == {"steps": 6}
    assert caplog.messages == ["trains 6 steps on the accelerator"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_goes_to_the_child_which_saves(
    toy_store, stand_in: dict[str, str], number: signal.Signals
) -> None:
    class Send(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            threading.Timer(0.2, os.kill, (os.getpid(), number)).start()

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="after 3 steps"), shown(Send()):
        other_engine.train(toy.make_run(), toy_store, ["."], stand_in)
    assert signal.getsignal(number) == before


def test_other_children_keep_their_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    class Child:
        def __init__(self, command, env, start_new_session, **_):
            seen.update(env=env, new=start_new_session)
            raise FileNotFoundError

    monkeypatch.setattr(prepare_child.subprocess, "Popen", Child)
    with pytest.raises(FileNotFoundError):
        prepare_child.run({})
    assert seen["env"]["JAX_PLATFORMS"] == "cpu"
    assert not seen["new"]
