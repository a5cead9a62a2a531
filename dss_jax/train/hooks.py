"""What is done beside the training steps: scoring, saving, stopping, logging, tracing."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, Protocol

import jax

from dss_jax.core import config
from dss_jax.core.flops import Work, peak_flops, training_flops
from dss_jax.train.loop import Hook, Interrupted, StopRequest
from dss_jax.train.step import Metrics, TrainState

log = logging.getLogger(__name__)

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
class Evaluate(Hook):
    """Scores the parameters every `every` steps and at the last.

    Attributes:
      score: (params, step) -> validation score, the higher the better; None: no such split.
    """

    every: int
    steps: int
    score: Callable[[Any, int], float | None]
    found: tuple[int, float | None] = (0, None)

    def due(self, step: int) -> bool:
        return step % self.every == 0 or step == self.steps

    def at(self, step: int, state: TrainState) -> None:
        if self.due(step):
            self.found = step, self.score(state.params, step)

    def score_at(self, step: int) -> float | None:
        """The score of a step that was just evaluated; None of others."""
        return self.found[1] if self.found[0] == step else None


class SavesStates(Protocol):
    """Keeps states; `dss_jax.train.checkpoint.Checkpoints` is one."""

    def save(self, state: TrainState, step: int, score: float | None) -> None: ...
    def wait(self) -> None: ...


@dataclass
class Save(Hook):
    """Saves the state every `every` steps, where the run stops, and wherever it is evaluated, so
    that the best of the evaluated can be scored on test. Comes after `evaluate`.
    """

    every: int
    checkpoints: SavesStates
    evaluate: Evaluate
    stop: StopRequest

    def due(self, step: int) -> bool:
        return step % self.every == 0 or self.evaluate.due(step) or self.stop.after(step)

    def at(self, step: int, state: TrainState) -> None:
        if self.due(step):
            self.checkpoints.save(state, step, self.evaluate.score_at(step))


@dataclass
class Stop(Hook):
    """Ends the training where a stop was asked for. Comes after all that saves.

    Attributes:
      wait: returns when what was saved is on the disk.
    """

    steps: int
    stop: StopRequest
    wait: Callable[[], None]

    def due(self, step: int) -> bool:
        return self.stop.after(step) and step < self.steps

    def at(self, step: int, state: TrainState) -> None:
        if self.due(step):
            self.wait()
            raise Interrupted(step)


class ShowsProgress(Protocol):
    """Shows that so many updates are done; `dss_jax.train.metric_log.Progress` is one."""

    def __call__(self, step: int, numbers: Numbers | None = None) -> None: ...


@dataclass
class Log(Hook):
    """Writes a step's metrics, and the rates since the last reading, every `every` steps.

    Comes after all that takes time: that is none of the rates'. The clock is read when a step's
    metrics have arrived.

    Attributes:
      write: (step, "train", numbers).
      show: told of every step, where there is something to tell.
      work: number of a batch -> its useful work, of all processes.
      examples: of a batch.
      model: for the work's FLOPs.
      peak: operations a second of all devices together; None where it is not known.
    """

    every: int
    steps: int
    write: Callable[[int, str, Numbers], None]
    work: Callable[[int], Work]
    examples: int
    model: config.T5Config
    peak: float | None = None
    show: ShowsProgress | None = None
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
    peaks = [peak_flops(device.device_kind) for device in devices]
    return None if None in peaks else sum(p for p in peaks if p is not None)


@dataclass
class Profile(Hook):
    """Traces the steps from number `start` up to `stop` - 1 (0 is the first), for xprof.

    As the trace begins and ends all steps sent off have ended, so it holds these steps whole.

    Attributes:
      folder: the trace goes into `plugins/profile` in it, where TensorBoard looks.
      first: number of the step that this start begins with.
    """

    folder: Path
    start: int
    stop: int
    first: int
    _running: bool = False

    def __post_init__(self) -> None:
        if self.first >= self.stop:
            log.info("nothing is traced: step %d is done already", self.stop)
        self.at(self.first, None)

    def due(self, step: int) -> bool:
        return step in (self.start, self.stop)

    def at(self, step: int, state: TrainState | None) -> None:
        if self.start <= step < self.stop and not self._running:
            # A trace holds a million events. Python's frames fill that with one compilation, and
            # the steps after it would be missing.
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0
            jax.profiler.start_trace(self.folder, profiler_options=options)
            self._running = True
        elif step >= self.stop:
            self.close()

    def close(self) -> None:
        """Writes what was traced, also where the run was stopped within; else does nothing."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            log.info("trace of steps %d to %d: %s", self.start, self.stop - 1, self.folder)
