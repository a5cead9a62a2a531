"""Which devices the runs of a sweep get: one a run, set in its environment.

JAX is not imported: the sweep's own process must leave the devices to its children.
"""

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from dss_jax.core.checks import at_least
from dss_jax.core.errors import UsageError
from dss_jax.core.machine import computes_on_cpus, processors

Environment = dict[str, str]


def gpus(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs that a process may use: CUDA_VISIBLE_DEVICES, or all that nvidia-smi lists."""
    platforms = environ.get("JAX_PLATFORMS", "")
    if platforms and "cuda" not in platforms and "gpu" not in platforms:
        return []
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [d for d in visible.split(",") if d and d != "-1"]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(i) for i, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]


def cores(count: int) -> list[set[int]]:
    """The cores of each of so many runs that are at work at once, of those that this process may
    use: as many each as there are, at least one; empty where the system does not tell.
    """
    if not hasattr(os, "sched_getaffinity"):
        return [set() for _ in range(count)]
    own = sorted(os.sched_getaffinity(0))
    return [set(own[i::count] or [own[i % len(own)]]) for i in range(count)]


@contextmanager
def on_cores(own: set[int]) -> Iterator[None]:
    """Processes that are started within it have these cores from their first moment on; none: all
    that this one has. A small model's step is hardly quicker on two cores than on one, and threads
    of several runs on the same cores wait for each other.
    """
    if not own:
        yield
        return
    all_of_them = os.sched_getaffinity(0)
    os.sched_setaffinity(0, own)
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_of_them)


def slots(
    devices: str | None,
    each: int,
    jobs: int,
    environ: Mapping[str, str] = os.environ,
    found: Callable[[Mapping[str, str]], list[str]] = gpus,
) -> list[Environment]:
    """What the environment of each run that is at work at the same time has beside the sweep's own:
    at least one. Without GPUs, `jobs` empty ones: a run takes the whole machine, all chips of a TPU
    included.

    Args:
      devices: "0,1", GPUs as in CUDA_VISIBLE_DEVICES; None: all that are `found`.
      each: how many of them a run gets.
      jobs: how many runs share a device, or, where there is no GPU, how many run at once.
      environ: of the sweep.

    Raises:
      UsageError: a number is wrong, or there are fewer GPUs than a run shall get.
    """
    at_least("--jobs", jobs, 1)
    at_least("--devices_per_run", each, 1)
    own = found(environ) if devices is None else [d.strip() for d in devices.split(",")]
    if not all(own):
        raise UsageError(f"--devices takes GPUs such as 0,1, not {devices!r}.")
    if not own:
        if each > 1:
            raise UsageError(
                f"--devices_per_run {each}: no GPU was found (nvidia-smi, CUDA_VISIBLE_DEVICES)."
            )
        return [{} for _ in range(jobs)]
    if each > len(own):
        raise UsageError(
            f"--devices_per_run {each}: there are only {len(own)} GPUs: {', '.join(own)}."
        )
    parts = [own[i : i + each] for i in range(0, len(own) - each + 1, each)]
    made = [{"CUDA_VISIBLE_DEVICES": ",".join(part)} for part in parts]
    if jobs > 1 and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in environ:
        # JAX takes three quarters of a GPU's memory at its start.
        made = [{**one, "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / jobs:.2f}"} for one in made]
    # The devices take turns, so that few runs spread over all of them.
    return [dict(one) for _ in range(jobs) for one in made]


def slots_of_small(runs: int) -> list[Environment]:
    """As `slots`, for so many runs of small models: a core each, where there is neither a GPU nor a
    TPU.
    """
    alone = slots(None, 1, 1)
    if any(alone) or not computes_on_cpus():
        return alone
    return slots(None, 1, min(runs, processors()))
