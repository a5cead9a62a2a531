"""What is on this machine: processors, and processes. Standard library only."""

import os


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
