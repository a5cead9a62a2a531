"""Locks between the processes of a machine, and of machines whose network file system knows flock.

A lock is the operating system's (flock, by `filelock`): it ends with its process, however that
ends, so there are no stale ones. While it is held, its file says who has it. There are no locks
under gs:// and s3://.
"""

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dss_jax.core import storage
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import make_folder

if TYPE_CHECKING:
    from filelock import FileLock

log = logging.getLogger(__name__)

Owner = dict[str, Any]
"""What the holder of a lock says of itself: `pid`, `host`, `since`, and `devices`, the variable
`DEVICES` of its environment. {}: nothing."""

DEVICES = "CUDA_VISIBLE_DEVICES"

PATIENCE = 1.0
"""Seconds that a lock is tried for: whoever only looks (`owner_of`) has it for a moment."""


class Taken(UsageError):  # noqa: N818
    """Another process has the lock."""

    status = 75  # As EX_TEMPFAIL of sysexits.h: the same command may do later.


@contextmanager
def held(file: Path, taken: str, *, wait: bool = False) -> Iterator[None]:
    """Holds a lock; its folder is made where there is none. Where the file system has no locks, or
    is a bucket, it goes on without. `taken` is what is said where another process has it;
    {owner} in it stands for that process. Taken: it has it, and `wait`, to wait for that
    process, is not set.
    """
    lock = None if storage.is_remote(file) else _acquired(file, taken, wait)
    if lock is None:
        yield
        return
    try:
        owner = {"pid": os.getpid(), "host": socket.gethostname()}
        owner |= {"since": time.strftime("%F %T"), "devices": os.environ.get(DEVICES)}
        file.write_text(json.dumps(owner))
        yield
    finally:
        _give_back(lock, file)


def owner_of(file: Path) -> Owner | None:
    """Who has a lock; None: nobody."""
    from filelock import FileLock, Timeout

    if storage.is_remote(file) or not file.exists():
        return None
    lock = FileLock(file, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return {**json.loads(file.read_text())}
        return {}
    except OSError:
        return None
    _give_back(lock, file)
    return None


def shown(owner: Owner | None) -> str:
    """A holder for people."""
    return f"process {owner['pid']} on {owner['host']}" if owner else "another process"


def _acquired(file: Path, taken: str, wait: bool) -> "FileLock | None":
    """The lock; None where the file system has none."""
    from filelock import FileLock, Timeout

    make_folder(file.parent)
    # Its soft locks are files that outlive a killed process.
    lock = FileLock(file, timeout=PATIENCE, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        owner = owner_of(file)
        since = f" (since {owner['since']})" if owner else ""
        text = taken.replace("{owner}", f"{shown(owner)}{since}")
        if not wait:
            raise Taken(text) from None
        log.info(text)
        lock.acquire(timeout=-1)
    except OSError as error:
        log.warning("no lock on %s (%s): start nothing else that writes there", file.parent, error)
        return None
    return lock


def _give_back(lock: "FileLock", file: Path) -> None:
    # Held until the file is gone: who waits for it then sees that, and makes another one.
    file.unlink(missing_ok=True)
    lock.release()
