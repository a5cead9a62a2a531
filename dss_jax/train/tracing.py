"""A trace of some steps, for xprof."""

import logging
from dataclasses import dataclass
from pathlib import Path

import jax

from dss_jax.core.errors import UsageError
from dss_jax.train.loop import Hook
from dss_jax.train.step import TrainState

log = logging.getLogger(__name__)


def steps_of(text: str, steps: int) -> tuple[int, int]:
    """ "10:15" -> (10, 15), of `Profile`; UsageError: it is not within so many steps."""
    start, colon, stop = text.partition(":")
    if not (colon and start.isdecimal() and stop.isdecimal() and int(start) < int(stop) <= steps):
        raise UsageError(
            f"--profile takes START:STOP with 0 <= START < STOP <= {steps} (Train.steps), for "
            f"example 10:15 for the steps 10 to 14, not {text!r}."
        )
    return int(start), int(stop)


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
