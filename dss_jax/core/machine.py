"""What is on this machine: processors, and processes. Standard library only."""

import ctypes
import functools
import hashlib
import math
import os
import socket
from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""What bounds a container, as it sees it."""

GLIBC = {-8: 1, -4: 0, -1: 2**31 - 1}
"""M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h."""

ACCELERATORS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/accel0", "/dev/vfio/0")
"""Of NVIDIA, of any GPU in Windows' subsystem, AMD, TPUs up to v4, and from v5 on."""


@functools.cache
def here() -> str:
    """Where a pid names one process: this machine since its start, and this container, in hex.
    Containers may have the same host name, and each its own process 7.
    """
    parts = [socket.gethostname()]
    with suppress(OSError):  # macOS has neither.
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def is_gone(place: str, pid: int) -> bool:
    """Whether a process is surely no more: it was one of `here`, which alone can tell."""
    if place == here():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # Another user's.
    return False


def processors() -> int:
    """How many this process may use: containers and Slurm give it fewer than the machine has, or a
    share of their time (`docker run --cpus`, limits of Kubernetes), which more threads soon use up.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # macOS has none.
    there = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(there, math.ceil(_container_share() or there)))


def _container_share() -> float | None:
    """The time that this container has, in processors; None: it is not bounded."""
    with suppress(OSError, ValueError):  # "max" is no number.
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return int(quota) / int(period)
    with suppress(OSError, ValueError):  # Version 1 of cgroups.
        names = (CGROUP / "cpu" / f"cpu.cfs_{name}_us" for name in ("quota", "period"))
        quota_us, period_us = (int(file.read_text()) for file in names)
        return quota_us / period_us if quota_us > 0 else None
    return None


def computes_on_cpus() -> bool:
    """Whether JAX will, as far as can be told before it is imported."""
    return os.environ.get("JAX_PLATFORMS") == "cpu" or not any(map(os.path.exists, ACCELERATORS))


def keep_freed_memory() -> None:
    """Has glibc keep what is freed for the next step, where JAX computes on a CPU. By default each
    step gets its memory from the system anew, which takes a quarter of the processors' time. For
    threads that are there already it comes too late: they have arenas, which give memory back.
    """
    with suppress(AttributeError, OSError, TypeError):  # Where it is not glibc.
        for parameter, value in GLIBC.items():
            ctypes.CDLL(None).mallopt(parameter, value)
