"""What is watched in a run's numbers: losses that jump, and lines that are missing."""

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dss_jax.train.bad_steps import IdsAt, keep_line, rows_of
from dss_jax.train.metric_log import MetricLog, Numbers

log = logging.getLogger(__name__)

LOG = "loss_spikes.jsonl"
"""In the run's folder: a line a spike."""

WINDOW, LEAST = 20, 10
"""Logged losses that one is held against, at most and at least."""

FAR = 8.0
"""Robust standard deviations (1.4826 times the median distance from the median, Rousseeuw and Croux
1993) that a spike is above the median. One counts as 5 % of the median at least, and as 0.01 nats,
for losses may hardly differ.
"""


def say_missing(before: Sequence[Mapping[str, Any]], step: int, every: int) -> None:
    """Says that the lines of a run that goes on from `step` end too early: it logs every `every`
    steps, or has logged less often before.
    """
    steps = [0, *(line["step"] for line in before if line["group"] == "train")]
    if step - steps[-1] >= max(every, *np.diff(steps), 1):
        log.warning(
            f"metrics.jsonl ends at step {steps[-1]}, and the run goes on from step {step}: the "
            "numbers between them are lost, for the file was cut short. What it trains is not "
            "changed by that."
        )


class LossSpikes:
    """Hands numbers on to `write`, and says where a training loss is far above those before it,
    with the ids of its rows: once, until it is back. A bad row, or a learning rate that is too
    high. Looked at are the losses that are logged, every `Train.log_every` steps, so the devices
    are asked for nothing more; those that a run that goes on has logged before count, too.
    """

    def __init__(self, write: MetricLog, folder: Path, ids_at: IdsAt) -> None:
        """`ids_at`: batch number -> ids of its rows; `folder`: of the run."""
        self._write, self._folder, self._ids_at = write, folder, ids_at
        self._losses, self._high = deque[float](maxlen=WINDOW), False
        for line in write.before:
            if line["group"] == "train":
                self._above(line.get("loss"))

    def __call__(self, step: int, group: str, numbers: Numbers) -> None:
        """As `MetricLog`."""
        self._write(step, group, numbers)
        was_high, median = self._high, self._above(numbers.get("loss"))
        if median is None or was_high:
            return
        loss, ids = numbers["loss"], self._ids_at(step - 1)
        log.warning(
            f"step {step}: the loss is {loss:.4g}, far above the {median:.4g} of before. "
            f"{rows_of(ids, LOG)}"
        )
        line = {"step": step, "loss": loss, "median": median, "ids": ids}
        keep_line(self._folder / LOG, line)

    def _above(self, loss: float | None) -> float | None:
        """The median that a loss is far above; None: it is not."""
        if loss is None or not math.isfinite(loss):
            return None
        median = float(np.median(self._losses)) if self._losses else loss
        spread = 1.4826 * float(np.median(np.abs(np.subtract(self._losses or [loss], median))))
        far = FAR * max(spread, 0.05 * abs(median), 0.01)
        self._high = len(self._losses) >= LEAST and loss > median + far
        self._losses.append(loss)
        return median if self._high else None
