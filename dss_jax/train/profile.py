"""A trace of some steps, for xprof and TensorBoard."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


class Profile:
    """Traces the steps from number `start` up to `stop` - 1 (0 is the first).

    As the trace begins and ends, the device is waited for, so that it holds these steps whole.
    """

    def __init__(
        self, folder: Path, start: int, stop: int, say: Callable[[str], None] = print
    ) -> None:
        """`folder`: the trace goes into `plugins/profile` in it, where TensorBoard looks."""
        self._folder, self._start, self._stop, self._say = folder, start, stop, say
        self._running = False

    def watch(self, step_function: Callable[..., Any], first: int) -> Callable[..., Any]:
        """A training step that is traced when its turn comes.

        Args:
          step_function: (state, batch) -> (state, metrics).
          first: number of the step that it is called for first.
        """
        if first >= self._stop:
            self._say(f"nothing is traced: step {self._stop} is done already")
        number = max(first, 0)

        def call(state: Any, batch: Any) -> Any:
            nonlocal number
            if not self._start <= number < self._stop:
                number += 1
                return step_function(state, batch)
            if not self._running:
                jax.block_until_ready(state)
                # A trace holds a million events. Python's frames fill that with one compilation,
                # and the steps after it would be missing.
                options = jax.profiler.ProfileOptions()
                options.python_tracer_level = 0
                jax.profiler.start_trace(self._folder, profiler_options=options)
                self._running = True
            with jax.profiler.StepTraceAnnotation("train", step_num=number):
                result = step_function(state, batch)
            number += 1
            if number == self._stop:
                jax.block_until_ready(result)
                self.close()
            return result

        return call

    def close(self) -> None:
        """Writes what was traced, also where the run was stopped within; else does nothing."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            self._say(f"trace of steps {self._start} to {self._stop - 1}: {self._folder}")
