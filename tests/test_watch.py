"""Losses far above those before: said once, with the ids of their rows. Lines that are missing."""

import json
from pathlib import Path

import numpy as np
import pytest
import toy

from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.run import single
from dss_jax.train.bad_steps import keep_line
from dss_jax.train.compile import Compiled
from dss_jax.train.metric_log import MetricLog
from dss_jax.train.step import TrainState
from dss_jax.train.watch import LEAST, LOG, LossSpikes, say_missing


def _told(folder: Path, losses: list[float], said: list[str], first: int = 1) -> list[int]:
    """The steps that are named, where losses of these steps come."""
    log = MetricLog(folder, first - 1)
    spikes = LossSpikes(log, folder, lambda batch: [f"row-{batch}-{i}" for i in range(8)])
    for step, loss in enumerate(losses, first):
        spikes(step, "train", {"loss": loss})
    log.close()
    return [int(line.split(":")[0].removeprefix("step ")) for line in said if "far above" in line]


def _losses(count: int, noise: float = 0.1) -> list[float]:
    """As a run's: falling, and noisy."""
    rng = np.random.default_rng(0)
    return list(2.0 * np.exp(-np.arange(count) / 60) + noise * rng.standard_normal(count) + 0.5)


def test_noise_is_no_spike(tmp_path: Path, said: list[str]) -> None:
    assert not _told(tmp_path / "a", _losses(300), said)
    # Where losses hardly differ, each would be far from the others in their own measure.
    assert not _told(tmp_path / "b", [0.002, *[0.001] * 50, 0.02, 0.001], said)
    assert not _told(tmp_path / "c", [9.0, 1.0, float("nan"), float("inf")], said)
    assert not (tmp_path / "a" / LOG).exists()


def test_a_spike_is_named_once_with_its_rows(tmp_path: Path, said: list[str]) -> None:
    losses = _losses(100)
    losses[60:64] = [4.0, 5.0, 4.5, 4.0]
    losses[80] = 3.5
    assert _told(tmp_path, losses, said) == [61, 81]
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [line["step"] for line in lines] == [61, 81]
    assert lines[0]["loss"] == 4.0
    assert 1.0 < lines[0]["median"] < 2.5
    assert lines[0]["ids"] == [f"row-60-{i}" for i in range(8)]
    assert "row-60-4, ... (all: loss_spikes.jsonl)" in said[0]


def test_a_run_that_goes_on_names_the_same(tmp_path: Path, said: list[str]) -> None:
    losses = _losses(100)
    losses[60], losses[62] = 4.0, 4.0
    assert _told(tmp_path, losses, said) == [61, 63]
    whole = (tmp_path / LOG).read_text()
    # It was killed, and its last checkpoint is that of step 61.
    assert _told(tmp_path, losses[61:], said, first=62) == [61, 63, 63]
    assert (tmp_path / LOG).read_text() == whole


def test_lines_of_later_steps_go_and_damaged_ones_stay(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'{"step": 3, "a": 1}\n{"st\xff\n{"step": 7, "a": 1}\n')
    keep_line(file, {"step": 5})
    assert file.read_bytes() == b'{"step": 3, "a": 1}\n{"st\xff\n{"step": 5}\n'


@pytest.mark.parametrize(
    ("steps", "goes_on", "every", "missing"),
    [
        ([10, 20, 30], 30, 10, False),
        ([10, 20, 30], 39, 10, False),
        ([10, 20, 30], 40, 10, True),
        ([], 9, 10, False),
        ([], 10, 10, True),
        ([], 0, 1, False),
        ([50, 100], 140, 10, False),  # It was logged less often before.
        ([50, 100], 150, 10, True),
        ([10, 20, 25, 30], 36, 5, False),
    ],
)
def test_lines_that_are_missing_are_said(
    steps: list[int], goes_on: int, every: int, missing: bool, said: list[str]
) -> None:
    lines = [{"step": step, "group": group} for step in steps for group in ("train", "validation")]
    say_missing(lines, goes_on, every)
    assert bool(said) == missing
    if missing:
        assert said[0].startswith(f"metrics.jsonl ends at step {[0, *steps][-1]}, and the run")


def test_a_run_names_the_rows_of_its_batch(
    tmp_path: Path, toy_store, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, at = Compiled.__call__, LEAST + 3

    def call(self: Compiled, state: object, batch: object) -> object:
        done = isinstance(state, TrainState) and int(state.step)
        made = real(self, state, batch)
        return (made[0], made[1] | {"loss": 9 * made[1]["loss"]}) if done == at else made

    monkeypatch.setattr(Compiled, "__call__", call)
    train = toy.config.Train(steps=LEAST + 5, log_every=1, output_dir=str(tmp_path))
    run = toy.make_run(train=train, evaluate=toy.config.Evaluate(every=50, max_decode_length=5))
    with toy.linear_programs():
        single.train(run, toy_store, TEXT_ACCURACY)
    (line,) = [json.loads(x) for x in (tmp_path / LOG).read_text().splitlines()]
    assert line["step"] == at + 1
    assert len(set(line["ids"])) == 8
    assert all(row.startswith("train-") for row in line["ids"])
    assert any(line["ids"][0] in text for text in said)
