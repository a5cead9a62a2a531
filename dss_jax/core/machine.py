"""What is on this machine: processors, and processes. Standard library only."""

import ctypes
import os
from contextlib import suppress

GLIBC = {-8: 1, -4: 0, -1: 2**31 - 1}
"""M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h."""


def is_alive(pid: int) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # Another user's.
    return True


def processors() -> int:
    """How many this process may use: containers and Slurm give it fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)  # macOS has none.
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Has glibc keep what is freed for the next step, where JAX computes on a CPU. By default each
    step gets its memory from the system anew, which takes a quarter of the processors' time.
    """
    with suppress(AttributeError, OSError, TypeError):  # Where it is not glibc.
        for parameter, value in GLIBC.items():
            ctypes.CDLL(None).mallopt(parameter, value)
