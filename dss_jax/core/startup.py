"""Where the time goes between the command and the first step. Standard library only."""

import os
import time
from pathlib import Path

_IMPORTED = time.time()


def process_start() -> float:
    """Seconds since 1970; where Linux does not tell, when this file was imported."""
    try:
        # Field 22, after the name in brackets, which may hold blanks: clock ticks since the boot.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return _IMPORTED


class StartClock:
    """Splits the time since the start into named parts, one after the other."""

    def __init__(self, began: float | None = None) -> None:
        """`began`: seconds since 1970; None: when the process began."""
        self._last = process_start() if began is None else began
        self.seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """What has passed since the last call belongs to `name`."""
        now = time.time()
        self.seconds[name] = self.seconds.get(name, 0.0) + max(0.0, now - self._last)
        self._last = now

    @property
    def total(self) -> float:
        """In seconds."""
        return sum(self.seconds.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items())
        return f"{self.total:.1f} s from the command to the first step: {parts}"
