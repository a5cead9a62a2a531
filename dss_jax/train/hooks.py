"""What is done beside the training steps: scoring, saving, stopping, logging, and the watch over
losses that are not finite. Tracing is in `tracing`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import jax

from dss_jax.core import config
from dss_jax.core.flops import Work, training_flops
from dss_jax.train.checkpoint import Checkpoints
from dss_jax.train.loop import Hook, Interrupted, StopRequest
from dss_jax.train.step import Metrics, TrainState

Numbers = dict[str, float]


@dataclass
class FirstStep(Hook):
    """Calls `report` when the first step of this start has ended: step number `first` + 1."""

    first: int
    report: Callable[[], None]

    def due(self, step: int) -> bool:
        return step == self.first + 1

    def at(self, step: int, state: TrainState) -> None:
        if self.due(step):
            self.report()


@dataclass
class Validate(Hook):
    """Scores the parameters every `every` steps and at the last; `score`: (params, step) ->
    validation score, the higher the better; None: no such split. `newest`: that of the last step.
    """

    every: int
    steps: int
    score: Callable[[Any, int], float | None]
    newest: dict[int, float | None] = field(default_factory=dict)

    def due(self, step: int) -> bool:
        return step % self.every == 0 or step == self.steps

    def at(self, step: int, state: TrainState) -> None:
        if self.due(step):
            self.newest = {step: self.score(state.params, step)}


@dataclass
class Save(Hook):
    """Saves the state every `every` steps, where the run stops, and wherever it is evaluated, so
    that the best of the evaluated can be scored on test. Comes after `evaluate`. A save that fails
    ends the run soon: what it trains from then on would be lost.
    """

    every: int
    checkpoints: Checkpoints
    evaluate: Validate
    stop: StopRequest

    def done(self, step: int, metrics: Metrics, newest: TrainState) -> None:
        self.checkpoints.check()

    def due(self, step: int) -> bool:
        return step % self.every == 0 or self.evaluate.due(step) or self.stop.after(step)

    def at(self, step: int, state: TrainState) -> None:
        if self.due(step):
            self.checkpoints.save(state, step, self.evaluate.newest.get(step))


@dataclass
class Stop(Hook):
    """Ends the training where a stop was asked for. Comes after all that saves; `wait` returns when
    it is on the disk.
    """

    steps: int
    stop: StopRequest
    wait: Callable[[], None]

    def due(self, step: int) -> bool:
        return self.stop.after(step) and step < self.steps

    def at(self, step: int, state: TrainState) -> None:
        if self.due(step):
            self.wait()
            raise Interrupted(step, self.stop.number)


@dataclass
class Log(Hook):
    """Writes a step's metrics, and the rates since the last reading, every `every` steps.

    Comes after all that takes time: that is none of the rates'.

    Attributes:
      work: number of a batch -> its useful work, of all processes, with `examples` rows.
      peak: operations a second of all devices together; None where it is not known.
      show: told of every step, and of the numbers where there are new ones.
    """

    every: int
    steps: int
    write: Callable[[int, str, Numbers], None]
    work: Callable[[int], Work]
    examples: int
    model: config.T5Config
    peak: float | None = None
    show: Callable[[int, Numbers | None], None] | None = None
    _read: int | None = None
    _since: float = field(default_factory=time.monotonic)

    def done(self, step: int, metrics: Metrics, newest: TrainState) -> None:
        if self._read is None:
            self._read = step - 1
        numbers = None
        if step % self.every == 0 or step == self.steps:
            numbers = {name: float(value) for name, value in metrics.items()} | self._rates(step)
            if not numbers["bad_steps"]:
                del numbers["bad_steps"]
            self.write(step, "train", numbers)
        if self.show is not None:
            self.show(step, numbers)

    def _rates(self, step: int) -> Numbers:
        """Examples, real tokens and useful operations a second since the last reading."""
        assert self._read is not None
        now = time.monotonic()
        seconds, self._since = max(now - self._since, 1e-9), now
        batches = range(self._read, step)
        self._read = step
        work = reduce(Work.plus, map(self.work, batches), Work())
        flops = training_flops(self.model, work) / seconds
        rates = {
            "examples_per_second": len(batches) * self.examples / seconds,
            "tokens_per_second": (work.encoder_tokens + work.decoder_tokens) / seconds,
            "useful_tflops_per_second": flops / 1e12,
        }
        return rates if self.peak is None else rates | {"mfu": 100.0 * flops / self.peak}

    def at(self, step: int, state: TrainState) -> None:
        self._read, self._since = step, time.monotonic()


def peak_of(devices: Sequence[jax.Device]) -> float | None:
    """Operations a second of devices together; None where that of one is not known."""
    from dss_jax.core.devices import peak_flops

    peaks = [peak_flops(device.device_kind) for device in devices]
    return None if None in peaks else sum(p for p in peaks if p is not None)


@dataclass
class BadSteps(Hook):
    """Says and keeps which updates were skipped because loss or gradient was not finite, and ends
    a run that makes no others. The step itself leaves parameters and optimiser as they are
    (`step.make_train_step`), so nothing here is in a hurry.

    Attributes:
      most: `Train.max_bad_steps`. After as many in a row the parameters of the newest state are
        still those before the first of them; it is kept for `dss replay`, and `Diverged` raised.
      ids_at: batch number -> ids of its rows.
    """

    folder: Path
    most: int
    ids_at: Callable[[int], list[str]]

    def done(self, step: int, metrics: Metrics, newest: TrainState) -> None:
        if int(metrics["bad_steps"]):
            from dss_jax.train.bad_steps import noted  # Seldom.

            noted(step, metrics, newest, self.folder, self.most, self.ids_at)
