"""Where numbers go: `metrics.jsonl`, TensorBoard files, and a bar or lines on the terminal."""

import json
import math
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from dss_jax.core import storage, strict_json
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import write_whole

Numbers = Mapping[str, float]

LINE_SECONDS = 10.0
"""Between lines where there is no terminal for a bar."""

_SHOWN = {
    "label": "label/loss",
    "rationale": "rationale/loss",
    "ex/s": "examples_per_second",
    "tok/s": "tokens_per_second",
    "MFU %": "mfu",
}
"""What bar and lines show -> metric."""


def read_metrics(file: Path) -> list[dict]:
    """The lines of a `metrics.jsonl`; None is a number that was not finite. A last line cut short
    by a crash is left out; UsageError: another is none of ours, and what it said is lost.
    """
    if not file.exists():
        return []
    lines, found = file.read_bytes().splitlines(), []
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            if not {"step", "group"} <= line.keys():
                raise ValueError("no step and group")
        except (ValueError, AttributeError) as error:
            if number == len(lines):
                break
            raise UsageError(
                f"{file}:{number}: no line of metrics: {text[:60]!r}. The file is damaged: take a "
                "whole copy, or remove the line, and go on without its numbers."
            ) from error
        found.append(line)
    return found


class MetricLog:
    """Writes numbers of a step to `metrics.jsonl` and `tensorboard/` in the output folder.

    Lines of steps after `step`, from which the run goes on, are taken out: an interrupted run wrote
    them after its last checkpoint, and they will come again.

    A thread imports tensorboardX when there is something to write: that takes seconds, for it
    imports boto3, Google's clients and PyTorch where they are installed, and no step shall wait.
    """

    def __init__(self, folder: Path, step: int) -> None:
        # Test is scored last of all, and again where the run ended before its results were written.
        lines = read_metrics(folder / "metrics.jsonl")
        self.before = [line for line in lines if line["step"] <= step and line["group"] != "test"]
        self._mirror: Any = None
        if storage.is_remote(folder):
            from dss_jax.train.mirror import Mirror

            self._temporary = tempfile.TemporaryDirectory(prefix="dss-logs-")
            self._mirror = Mirror(Path(self._temporary.name), folder)
            folder = Path(self._temporary.name)
        file = folder / "metrics.jsonl"
        write_whole(file, "".join(strict_json.dumps(line) + "\n" for line in self.before))
        self._file = file.open("a", buffering=1)
        self._tensorboard, self._first = folder / "tensorboard", step + 1
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tensorboard")
        self._begun: deque[Future] = deque()
        self._writer: Any = None

    def __call__(self, step: int, group: str, numbers: Numbers) -> None:
        """Writes numbers after `step` updates; the group is "train", "validation" or "test". Raises
        what writing those before has raised.
        """
        line = {"step": step, "group": group, **{k: float(v) for k, v in numbers.items()}}
        self._file.write(strict_json.dumps(line) + "\n")
        while self._begun and self._begun[0].done():
            self._begun.popleft().result()
        self._begun.append(self._thread.submit(self._show, step, group, dict(numbers)))
        if self._mirror is not None:
            # A checkpoint follows a validation, and a run goes on from it with the lines up to it.
            (self._mirror.later if group == "train" else self._mirror.soon)()

    def _show(self, step: int, group: str, numbers: Numbers) -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            # What is there of later steps is not shown.
            self._writer = SummaryWriter(str(self._tensorboard), purge_step=self._first)
        for name, value in numbers.items():
            if math.isfinite(value):  # Of others the library warns each time.
                self._writer.add_scalar(f"{group}/{name}", float(value), step)

    def close(self) -> None:
        self._file.close()
        self._thread.shutdown()
        if self._writer is not None:
            self._writer.close()
        for written in self._begun:
            written.result()
        if self._mirror is not None:
            self._mirror.close()
            self._temporary.cleanup()


class Progress:
    """A bar on a terminal; elsewhere (a log file, CI) a line every few seconds."""

    def __init__(self, total: int, start: int) -> None:
        self._stream: TextIO = sys.stderr
        self._total, self._start = total, start
        self._began, self._last_line = time.monotonic(), -math.inf  # The first numbers are shown.
        self._text = ""
        self._bar = (
            tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, file=self._stream)
            if self._stream.isatty()
            else None
        )

    def __call__(self, step: int, numbers: Numbers | None = None) -> None:
        """Shows that `step` updates are done, with the latest numbers where there are new ones."""
        if numbers is not None:
            self._text = "  ".join(
                f"{name} {numbers[key]:.4g}" for name, key in _SHOWN.items() if key in numbers
            )
        if self._bar is not None:
            self._bar.set_postfix_str(self._text, refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if numbers is not None and (now - self._last_line >= LINE_SECONDS or step == self._total):
            self._last_line = now
            left = int((now - self._began) / max(1, step - self._start) * (self._total - step))
            eta = f"ETA {left // 60}:{left % 60:02d}"
            print(f"step {step}/{self._total}  {self._text}  {eta}", file=self._stream, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
