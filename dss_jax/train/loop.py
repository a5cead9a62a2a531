"""The training loop: steps, and hooks that are called after them. It knows no run, no program."""

import logging
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import jax

from dss_jax.core import processes, signals
from dss_jax.train.step import Metrics, TrainState

log = logging.getLogger(__name__)

Item = TypeVar("Item")

AHEAD = 2
"""Steps that may be sent off and not done. The device has its next one, and no stop, reading or
batch is further ahead of it, however long a step takes.
"""


class Hook:
    """What is done beside the steps. Each hook has its own every-n; steps are counted from 1."""

    def done(self, step: int, metrics: Metrics, newest: TrainState) -> None:
        """A step has ended. `metrics` are its own, ready to be read; `newest` is the state, of at
        most `AHEAD` steps later.
        """

    def due(self, step: int) -> bool:
        """Whether it wants the state after this step. Every hook is asked once after each step."""
        return False

    def at(self, step: int, state: TrainState) -> None:
        """Called after steps for which any hook was due, when all steps up to it have ended."""


def fit(
    state: TrainState,
    *,
    steps: int,
    train_step: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
    next_batch: Callable[[int], Any],
    hooks: Sequence[Hook] = (),
) -> TrainState:
    """Trains from `state`, whose step decides which batch comes next, until `steps` are done.

    Args:
      state: where to start: fresh, or restored. It is given up.
      next_batch: number of a step, from 0 -> its batch, on the devices.
      hooks: called in their order. One may end the training by raising.
    """
    sent: deque[tuple[int, Metrics]] = deque()

    def settle(most: int) -> None:
        """Waits until at most so many steps are at work, and hands on what the others gave."""
        while len(sent) > most:
            step, metrics = sent.popleft()
            jax.block_until_ready(metrics)
            for hook in hooks:
                hook.done(step, metrics, state)

    for step in range(int(state.step), steps):
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            state, metrics = train_step(state, next_batch(step))
        sent.append((step + 1, metrics))
        settle(AHEAD)
        # Every one is asked: to ask may be what keeps several processes in step.
        due = [hook.due(step + 1) for hook in hooks]
        if any(due):
            # Before anything is evaluated or saved, all hooks have seen what led to it.
            settle(0)
            for hook in hooks:
                hook.at(step + 1, state)
    settle(0)
    return state


@contextmanager
def prefetch(
    make: Callable[[int], Item], first: int, end: int, *, ahead: int = 2
) -> Iterator[Callable[[int], Item]]:
    """Items number `first`, `first` + 1, ... up to `end` - 1, made in a thread while others are
    used: at most `ahead` are made and not asked for.

    Gives number -> item. Each is asked for once, in order; an error of `make` is raised where its
    item is asked for. What was made and not asked for is dropped at the end: as `make` is a pure
    function, the next run makes it again.
    """
    thread, upcoming = ThreadPoolExecutor(1, "prefetch"), first
    made = deque(thread.submit(make, n) for n in range(first, min(first + ahead, end)))

    def item(number: int) -> Item:
        nonlocal upcoming
        assert number == upcoming < end, f"asked for {number}, next is {upcoming}"
        found = made.popleft().result()
        upcoming += 1
        if number + ahead < end:
            made.append(thread.submit(make, number + ahead))
        return found

    try:
        yield item
    finally:
        thread.shutdown(cancel_futures=True)


class Interrupted(Exception):  # noqa: N818 - it is no error
    """The run was asked to stop by a signal of this `number`, and saved its state at `step`."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"interrupted after {step} steps; the state is saved")
        self.step, self.number = step, number
        self.status = signals.saved_status(number)


class StopRequest:
    """Whether the run was asked to stop; `asked`: by a signal for this process, of this `number`
    (SIGTERM where another process was asked). `agreed`, where there are several: (step) -> whether
    all stop after it; each must ask once after each step.
    """

    def __init__(self, agreed: Callable[[int], bool] | None = None) -> None:
        self.asked, self.number = False, int(signal.SIGTERM)
        self._agreed, self._last = agreed, (0, False)

    def after(self, step: int) -> bool:
        """Whether to stop after this step; the same answer however often it is asked."""
        if self._last[0] != step:
            self._last = step, self.asked if self._agreed is None else self._agreed(step)
        return self._last[1]


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns Ctrl-C and SIGTERM (preemption) into a request; a second one stops at once.

    Of several processes, one that is asked stops all of them after the same step.
    """
    with processes.sync_stops() as agreed:
        request = StopRequest(agreed)

        def handle(number: int, _: FrameType | None) -> None:
            if request.asked:
                signals.end(number)
            request.asked, request.number = True, number
            when = "this step" if agreed is None else "a step that all processes reach"
            name = signal.Signals(number).name
            log.info("%s: saving after %s; again to stop at once", name, when)
            if agreed is not None:
                # JAX listens to SIGTERM, and tells the other processes.
                os.kill(os.getpid(), signal.SIGTERM)

        taken = (signal.SIGINT, signal.SIGTERM) if agreed is None else (signal.SIGINT,)
        with processes.handled(taken, handle):
            yield request
