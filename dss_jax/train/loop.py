"""The training loop. Scoring, logging back-ends and export are passed in: it knows none of them."""

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import jax

from dss_jax.core import config
from dss_jax.core.devices import peak_flops
from dss_jax.core.flops import Work, training_flops
from dss_jax.core.processes import sync_stops
from dss_jax.layouts.blocks import Batch
from dss_jax.train.prefetch import Prefetch
from dss_jax.train.sharding import put_batch
from dss_jax.train.step import Metrics, Program, TrainState

Numbers = dict[str, float]

AHEAD = 2
"""Steps that may be sent off and not done. The device has its next one, and no stop, shown step or
batch is further ahead of it, however long a step takes.
"""


class ShowProgress(Protocol):
    """Shows that so many updates are done; `dss_jax.train.metric_log.Progress` is one."""

    def __call__(self, step: int, numbers: Numbers | None = None) -> None: ...
    def say(self, text: str) -> None: ...


class SavesStates(Protocol):
    """Keeps states; `dss_jax.train.checkpoint.Checkpoints` is one."""

    def save(self, state: TrainState, step: int, score: float | None) -> None: ...
    def wait(self) -> None: ...


class Interrupted(Exception):  # noqa: N818 - it is no error
    """The run was asked to stop, and saved its state at `step`."""

    def __init__(self, step: int) -> None:
        super().__init__(f"interrupted after {step} steps; the state is saved")
        self.step = step


@dataclass
class StopRequest:
    """Whether the run was asked to stop.

    Attributes:
      asked: by a signal for this process.
      agreed: of several processes: (step) -> whether all of them stop after it.
    """

    asked: bool = False
    agreed: Callable[[int], bool] | None = None

    def after(self, step: int) -> bool:
        """Whether to stop after this step; the loop asks once after each."""
        return self.asked if self.agreed is None else self.agreed(step)


@contextmanager
def stop_on_signals(say: Callable[[str], None]) -> Iterator[StopRequest]:
    """Turns Ctrl-C and SIGTERM (preemption) into a request; a second Ctrl-C stops at once.

    Of several processes, one that is asked stops all of them after the same step.
    """
    with sync_stops() as agreed:
        request = StopRequest(agreed=agreed)

        def handle(number: int, _: FrameType | None) -> None:
            if request.asked:
                raise KeyboardInterrupt
            request.asked = True
            when = "this step" if agreed is None else "a step that all processes reach"
            say(f"{signal.Signals(number).name}: saving after {when}; again to stop at once")
            if agreed is not None:
                # JAX listens to SIGTERM, and tells the other processes.
                os.kill(os.getpid(), signal.SIGTERM)

        taken = (signal.SIGINT, signal.SIGTERM) if agreed is None else (signal.SIGINT,)
        before = {s: signal.signal(s, handle) for s in taken}
        try:
            yield request
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass
class _Meter:
    """Examples, real tokens and useful operations a second between readings, evaluation left out.

    A step's numbers are counted when it is sent off, but the clock is read when its metrics have
    arrived: the device may be a step behind the host.
    """

    model: config.T5Config
    peak: float | None
    examples: int = 0
    work: Work = field(default_factory=Work)
    since: float = field(default_factory=time.monotonic)

    def add(self, work: Work, examples: int) -> None:
        self.examples += examples
        self.work = self.work.plus(work)

    def take(self) -> tuple[int, Work]:
        """What was added since the last time."""
        taken = self.examples, self.work
        self.examples, self.work = 0, Work()
        return taken

    def rates(self, taken: tuple[int, Work]) -> Numbers:
        """Turns what was taken into rates, at the moment when it is done."""
        now = time.monotonic()
        seconds, self.since = max(now - self.since, 1e-9), now
        examples, work = taken
        flops = training_flops(self.model, work) / seconds
        rates = {
            "examples_per_second": examples / seconds,
            "tokens_per_second": (work.encoder_tokens + work.decoder_tokens) / seconds,
            "useful_tflops_per_second": flops / 1e12,
        }
        return rates if self.peak is None else rates | {"mfu": 100.0 * flops / self.peak}

    def restart(self) -> None:
        """Leaves out what has passed since the last reading."""
        self.take()
        self.since = time.monotonic()


def _peak(program: Program) -> float | None:
    """Operations a second of all devices of the mesh together; None where it is not known."""
    peaks = [peak_flops(device.device_kind) for device in program.mesh.devices.flat]
    return None if None in peaks else sum(p for p in peaks if p is not None)


def fit(
    run: config.Run,
    program: Program,
    state: TrainState,
    batches: Callable[[int], Batch],
    checkpoints: SavesStates,
    *,
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    work: Callable[[int], Work],
    evaluate: Callable[[Any, int], float | None],
    log: Callable[[int, str, Numbers], None],
    progress: ShowProgress,
    stop: StopRequest,
    watch: Callable[[int, Metrics, TrainState], None] = lambda *_: None,
    first_step_done: Callable[[], None] = lambda: None,
) -> TrainState:
    """Trains from `state` to `run.train.steps`.

    Args:
      run: the configuration.
      program: of the run.
      state: where to start: fresh, or restored. Its step decides which batch comes next.
      batches: step -> this process's batch; called in a thread, a few steps ahead.
      checkpoints: where the state is saved, every `checkpoint_every` steps and at the end.
      train_step: `program.train_step`, perhaps compiled already.
      work: step -> the useful work of the global batch; called in the same thread.
      evaluate: (params, step) -> validation score, the higher the better; None: no such split.
      log: (step, "train", numbers) every `log_every` steps.
      progress: told of every step.
      stop: asked after every step.
      watch: (batches done, their last metrics, the newest state) after every step that has ended,
        before anything is evaluated or saved that came after it.
      first_step_done: called once, when the first step of this start has ended.

    Returns:
      The state at the last step.

    Raises:
      Interrupted: a stop was asked for; the state is on disk.
    """
    steps, first = run.train.steps, int(state.step)
    save_every = run.train.checkpoint_every or run.evaluate.every
    # Numbers are read one step late, so that the device never waits for the host.
    pending: tuple[int, Metrics, tuple[int, Work]] | None = None
    meter = _Meter(run.model, _peak(program))
    sent: deque[tuple[int, Metrics]] = deque()

    def flush() -> None:
        nonlocal pending
        if pending is not None:
            step, metrics, taken = pending
            numbers = {name: float(value) for name, value in metrics.items()}
            numbers |= meter.rates(taken)
            if not numbers["bad_steps"]:
                del numbers["bad_steps"]
            log(step, "train", numbers)
            progress(step, numbers)
            pending = None

    def settle(most: int) -> None:
        """Waits until at most so many steps are at work."""
        while len(sent) > most:
            ended, metrics = sent.popleft()
            jax.block_until_ready(metrics)
            watch(ended, metrics, state)

    def on_devices(step: int) -> tuple[Batch, Work]:
        return put_batch(batches(step), program.mesh), work(step)

    with Prefetch(on_devices, first, steps) as prefetched:
        for step in range(first, steps):
            batch, useful = prefetched(step)
            state, metrics = train_step(state, batch)
            done = step + 1
            sent.append((done, metrics))
            if step == first:
                jax.block_until_ready(metrics)
                first_step_done()
            settle(AHEAD)
            meter.add(useful, run.data.batch_size)
            flush()
            progress(done)
            if done % run.train.log_every == 0 or done == steps:
                pending = (done, metrics, meter.take())
            at_evaluation = done % run.evaluate.every == 0 or done == steps
            at_save = done % save_every == 0 or done == steps
            score, stopping = None, stop.after(done)
            if at_evaluation or at_save or stopping:
                flush()
                settle(0)
            if at_evaluation:
                score = evaluate(state.params, done)
            if at_save or at_evaluation or stopping:
                # Every evaluated state is saved, so that the best of them can be scored on test.
                checkpoints.save(state, done, score)
                meter.restart()
            if stopping and done < steps:
                checkpoints.wait()
                raise Interrupted(done)
    checkpoints.wait()
    return state
