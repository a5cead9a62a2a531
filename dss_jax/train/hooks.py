"""What is done beside the training steps: scoring, saving, stopping, logging, tracing, and the end
of a run that has diverged.
"""

import logging
import math
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dss_jax.core import config, processes, strict_json
from dss_jax.core.errors import Diverged
from dss_jax.core.flops import Work, peak_flops, training_flops
from dss_jax.core.paths import write_whole
from dss_jax.train.checkpoint import Checkpoints
from dss_jax.train.loop import Hook, Interrupted, StopRequest
from dss_jax.train.step import Metrics, TrainState

log = logging.getLogger(__name__)

Numbers = dict[str, float]

LOG, REPLAY, STATES = "bad_steps.jsonl", "diverged.json", "diverged"
"""In the run's folder: a line a skipped batch; what `dss replay` reads; the state for it."""

SHOWN = 5
"""Ids of a batch that are said; all are written."""


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
            raise Interrupted(step)


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
        self.at(self.first)

    def due(self, step: int) -> bool:
        return step in (self.start, self.stop)

    def at(self, step: int, state: TrainState | None = None) -> None:
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
        in_a_row = int(metrics["bad_steps"])
        if not in_a_row:
            return
        numbers = {name: float(value) for name, value in metrics.items()}
        ids = self.ids_at(step - 1)
        log.warning(
            f"step {step}: {not_finite(numbers)}, so the update is skipped ({in_a_row} in a row). "
            f"Rows: {', '.join(ids[:SHOWN])}{', ...' if len(ids) > SHOWN else ''} (all: {LOG})"
        )
        if processes.is_first():
            line = strict_json.dumps({"step": step, "numbers": numbers, "ids": ids}) + "\n"
            file = self.folder / LOG
            # Whole, because objects of a bucket do not grow.
            write_whole(file, (file.read_text() if file.exists() else "") + line)
        if in_a_row >= self.most:
            raise self._diverged(step - in_a_row, numbers, newest)

    def _diverged(self, first: int, numbers: dict[str, float], state: TrainState) -> Diverged:
        """Keeps what `dss replay` needs; `first` is the number of the first bad batch."""
        with closing(Checkpoints(self.folder / STATES)) as kept:
            kept.save(state, int(state.step), None)
        file = self.folder / REPLAY
        ids = [self.ids_at(first + i) for i in range(self.most)]
        content: dict[str, Any] = {"step": first, "in_a_row": self.most, "state": int(state.step)}
        content |= {"numbers": numbers, "ids": ids}
        if processes.is_first():
            write_whole(file, strict_json.dumps(content, indent=1) + "\n")
        return Diverged(
            f"the run has diverged: {self.most} updates in a row were skipped from step "
            f"{first + 1} on, the last because {not_finite(numbers)} (Train.max_bad_steps = "
            f"{self.most}). What is saved is the state before them. To repeat the step:\n"
            f"  dss replay {shlex.quote(str(file))}\n"
            "Usual causes: a learning rate that is too high (Optimizer.learning_rate, "
            "Optimizer.warmup_steps), a checkpoint to start from that is damaged."
        )


def not_finite(numbers: dict[str, float]) -> str:
    """ "the loss is nan (label/loss nan)" or, where that is finite, what the gradient is."""
    bad = {name: value for name, value in numbers.items() if not math.isfinite(value)}
    parts = [f"{name} {value}" for name, value in bad.items() if name.endswith("/loss")]
    if "loss" in bad:
        return f"the loss is {numbers['loss']}" + (f" ({', '.join(parts)})" if parts else "")
    if "grad_norm" in bad:
        return f"the gradient's norm is {numbers['grad_norm']}"
    return "batches before it were not finite"


def bad_leaves(tree: Any) -> list[str]:
    """Names of arrays that hold a number that is not finite."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(np.asarray(leaf)).all():
            found.append(jax.tree_util.keystr(path, simple=True, separator="/"))
    return found
