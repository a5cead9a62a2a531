"""Commands of `dss` in children of a process that has imported all of it: they start in no time.

Needs a system with fork. The process that forks must not have used JAX: each child starts its
devices itself.
"""

import contextlib
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import conftest

# Quicker, with one device.
os.environ["XLA_FLAGS"] = conftest.FAST_COMPILE.replace("device_count=4", "device_count=1")
import matplotlib.pyplot  # noqa: F401 - this and the next take seconds
import pytest
import tensorboardX  # noqa: F401
import toy

from dss_jax.cli.main import main
from dss_jax.report import figures
from dss_jax.run import pictures

FINE, REFUSED, SAID, SILENT, LOST, TRACEBACK, HUNG = OUTCOMES = (
    "fine",
    "refused",
    "said",
    "silent",
    "lost",
    "traceback",
    "hung",
)
"""What became of a fault: the right result; a clear line, a status that is not 0, and nothing lost;
another result, which was said; another one without a word; refused, and the right file does not
help; a traceback; no end."""

PATIENCE = 120.0
"""Seconds after which a command counts as hung."""


@dataclass
class Ended:
    """How a child has ended: exit status, or minus the signal's number; None: it hung, and was
    killed. What it has said, and what it made.
    """

    status: int | None
    said: str
    made: dict | None = None

    @property
    def outcome(self) -> str:
        """Without a look at what it has made: `FINE`, `REFUSED`, `TRACEBACK` or `HUNG`."""
        if self.status is None:
            return HUNG
        if "Traceback (most recent call last)" in self.said or self.status < 0:
            return TRACEBACK
        if self.status == 0:
            return FINE
        clear = re.search(r"^(dss|damage): |^! ", self.said, re.M)
        return REFUSED if clear else TRACEBACK


def child(work: Callable[[], object], log: Path) -> int:
    """A child that does the work, and ends with the status that it gives; its process id."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        status = int(work() or 0)  # type: ignore[call-overload]
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def wait(pid: int, log: Path, seconds: float = PATIENCE) -> Ended:
    """Waits for a child."""
    end, status = time.monotonic() + seconds, None
    while status is None and time.monotonic() < end:
        found, code = os.waitpid(pid, os.WNOHANG)
        if found:
            status = os.waitstatus_to_exitcode(code)
        else:
            time.sleep(0.005)
    if status is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return Ended(status, log.read_text(errors="replace") if log.exists() else "")


def dss(arguments: Sequence[str], *, linear: bool = False, **environment: str) -> int:
    """As the program: `dss` with these arguments, signals and all; its exit status. `linear`: see
    `toy.Linear`.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        own = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, own)
    os.environ.update(environment)
    sys.argv = ["dss", *arguments]
    with _undrawn(), toy.linear_programs() if linear else contextlib.nullcontext():
        return main()


@contextlib.contextmanager
def _undrawn() -> Iterator[None]:
    """Pictures take most of the time of the smallest runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "plot_curves", lambda *args, **options: None)
        for name in ("by_data", "by_size"):
            patch.setattr(figures, name, lambda *args: [])
        yield


def command(
    arguments: Sequence[str],
    log: Path,
    *,
    linear: bool = False,
    outcome: Callable[[], dict] | None = None,
    **environment: str,
) -> Ended:
    """Runs `dss` in a child, to its end, and then asks there for the `outcome`."""
    answer = log.with_name(f"{log.name}.made")
    for file in (log, answer):
        file.unlink(missing_ok=True)

    def work() -> int:
        status = dss(arguments, linear=linear, **environment)
        if status == 0 and outcome is not None:
            try:
                answer.write_text(json.dumps(outcome()))
            except Exception as error:
                answer.write_text(json.dumps({"damaged": str(error)}))
        return status

    ended = wait(child(work, log), log)
    ended.made = json.loads(answer.read_text()) if answer.exists() else None
    return ended


def made(work: Callable[[], object], log: Path, status: int = 0) -> None:
    """Does some work in a child; AssertionError: it ended otherwise."""
    log.unlink(missing_ok=True)
    ended = wait(child(lambda: work() and None, log), log)
    assert ended.status == status, ended.said[-3000:]
