"""A lock on a run's folder: two sweeps, or one that was killed and its heir, never train the same
run at the same time.

The lock is the operating system's (flock) on a file that the training process inherits: it ends
with that process, however that ends, so there are no stale ones. Its content says who has it. On a
network file system flock may not be inherited; there the process that it names decides.
"""

import contextlib
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOCK = "sweep.lock"


def start_of(pid: int) -> int | None:
    """When a process of this machine began, in clock ticks since the boot; None: there is none.

    With the number it names a process for good: numbers alone are given again.
    """
    try:
        # Field 22, after the name in brackets, which may hold blanks.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _owner(file: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(file.read_text())
        if isinstance(found, dict):
            return found
    return {}


def _lives(owner: dict[str, Any]) -> bool:
    """Whether the process that a lock names is one of this machine, and at work."""
    if not here(owner) or owner.get("start") is None:
        return False
    return start_of(int(owner["pid"])) == owner["start"]


class Lock:
    """A lock that is held; `give` passes it on to a child process."""

    def __init__(self, file: Path, descriptor: int) -> None:
        self._file = file
        self.descriptor = descriptor
        """Open file that the child inherits (`pass_fds` of `subprocess.Popen`)."""

    def give(self, pid: int, device: Mapping[str, str] | None = None) -> None:
        """Says that the child has it now. It inherited the descriptor when it was started.

        Args:
          pid: the child.
          device: what the child's environment says of its device.
        """
        owner: dict[str, Any] = {"pid": pid, "host": socket.gethostname(), "start": start_of(pid)}
        owner["device"] = dict(device or {})
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, json.dumps(owner).encode(), 0)

    def release(self) -> None:
        """Ends it: the child has ended, or never began."""
        with contextlib.suppress(OSError):
            self._file.unlink()
        os.close(self.descriptor)


def take(folder: Path) -> Lock | None:
    """The lock of a folder, which is made where there is none; None: somebody has it."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / LOCK
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        try:
            if os.fstat(descriptor).st_ino == file.stat().st_ino:
                break
        except FileNotFoundError:
            pass
        # Its holder took the file away between the two calls.
        os.close(descriptor)
    if _lives(_owner(file)):
        os.close(descriptor)
        return None
    return Lock(file, descriptor)


def owner_of(folder: Path) -> dict[str, Any]:
    """What the lock of a folder says of the process that trains there: `pid`, `host`, `device`; {}
    where it says nothing.
    """
    return _owner(folder / LOCK)


def here(owner: Mapping[str, Any]) -> bool:
    """Whether a process is of this machine."""
    return owner.get("host") == socket.gethostname()
