"""Whether this process is one of several that run one program, and how they find each other.

Looks at flags, the environment and, on a TPU VM, the metadata server. A single process is told so
in microseconds: JAX is not imported and nobody is waited for. Standard library only.
"""

import glob
import importlib.util
import os
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dss_jax.core.checks import at_least
from dss_jax.core.errors import UsageError

_TOLD = {
    "coordinator_address": ("JAX_COORDINATOR_ADDRESS",),
    "process_count": ("JAX_PROCESS_COUNT", "JAX_NUM_PROCESSES"),
    "process_index": ("JAX_PROCESS_INDEX", "JAX_PROCESS_ID"),
}
"""Flag, and field of `Processes` -> variables that stand for it; the first that is set counts."""

METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
METADATA_SECONDS = 5.0


@dataclass(frozen=True)
class Processes:
    """How `jax.distributed.initialize` is called. What is None, JAX asks the cluster for."""

    found: str  # What told, for people: "flags", "Slurm" ...
    coordinator_address: str | None = None  # HOST:PORT of process 0.
    process_count: int | None = None
    process_index: int | None = None
    # Which of the devices of this machine are this process's.
    local_device_ids: tuple[int, ...] | None = None


def _told(name: str, flag: str | int | None, environ: Mapping[str, str]) -> str | int | None:
    """What a flag, or else a variable says."""
    variables = _TOLD[name]
    given = flag is not None and flag != ""
    value = flag if given else next(filter(None, map(environ.get, variables)), None)
    if value is None or name == "coordinator_address":
        return value
    try:
        return int(value)
    except ValueError as error:
        raise UsageError(f"{variables[0]} must be a whole number, not {value!r}.") from error


def tpu_workers(environ: Mapping[str, str]) -> int:
    """Hosts of the TPU slice, or of all slices, that this machine is in; 0 where it has no TPU."""
    platforms = environ.get("JAX_PLATFORMS", "tpu")
    if "tpu" not in platforms or not importlib.util.find_spec("libtpu"):
        return 0
    if not (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")):  # noqa: PTH207
        return 0
    slices = int(environ.get("MEGASCALE_NUM_SLICES") or 1)
    # GKE sets these; a plain TPU VM has a metadata server.
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    if hosts is None and "TPU_SKIP_MDS_QUERY" not in environ:
        hosts = _metadata("worker-network-endpoints")
    return slices * len((hosts or "localhost").split(","))


def _metadata(name: str) -> str | None:
    request = urllib.request.Request(METADATA + name, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=METADATA_SECONDS) as response:
            return str(response.read().decode())
    except OSError:
        return None


def _slurm_devices(environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """This task's GPUs, where JAX's own rule, GPU number SLURM_LOCALID, would be wrong."""
    visible = [d for d in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
    # "4(x2),3" is for three nodes; only an even spread says what this one has.
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", environ.get("SLURM_TASKS_PER_NODE", ""))
    if len(visible) == 1 or tasks.partition("(")[0] == "1":
        return tuple(range(len(visible))) or None
    return None


def _of_cluster(
    environ: Mapping[str, str], tpu: Callable[[Mapping[str, str]], int]
) -> Processes | None:
    """What a cluster's environment tells; None: a single process."""
    # An interactive step has one task, whatever its allocation was made for.
    tasks = environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS") or "1"
    if {"SLURM_PROCID", "SLURM_STEP_NODELIST"} <= environ.keys() and int(tasks) > 1:
        return Processes("Slurm", local_device_ids=_slurm_devices(environ))
    if int(environ.get("OMPI_COMM_WORLD_SIZE") or 1) > 1:
        if "OMPI_MCA_orte_hnp_uri" in environ:
            return Processes("Open MPI")
        # Open MPI 5 does not say where process 0 is.
        return Processes(
            "Open MPI",
            process_count=int(environ["OMPI_COMM_WORLD_SIZE"]),
            process_index=int(environ["OMPI_COMM_WORLD_RANK"]),
        )
    if tpu(environ) > 1:
        return Processes("TPU")
    # Every pod has the first variable. The pods of an Indexed Job may as well be runs of their own,
    # so JAX's extra for Kubernetes must be there too.
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environ.keys() and (
        importlib.util.find_spec("kubernetes")
    ):
        return Processes("Kubernetes")
    return None


def find(
    coordinator_address: str | None = None,
    process_count: int | None = None,
    process_index: int | None = None,
    *,
    required: bool = False,
    environ: Mapping[str, str] = os.environ,
    tpu: Callable[[Mapping[str, str]], int] = tpu_workers,
) -> Processes | None:
    """The processes that this one is among; None: it is alone.

    What the flags do not give, the variables of `_TOLD` tell, then Slurm, Open MPI, a TPU pod or
    Kubernetes. A count of 1 means alone, wherever it runs. `required`: whether to be alone is an
    error. UsageError: a number is wrong, or one of the three is missing and no cluster tells it.
    """
    flags = zip(_TOLD, (coordinator_address, process_count, process_index), strict=True)
    every = {name: _told(name, flag, environ) for name, flag in flags}
    told: dict[str, Any] = {name: value for name, value in every.items() if value is not None}
    if "process_count" in told:
        at_least("--process_count", told["process_count"], 1)
        if told["process_count"] == 1:
            return None
    cluster = _of_cluster(environ, tpu)
    if told:
        cluster = replace(cluster or Processes("flags"), **told)
    _check(cluster, required)
    return cluster


def _check(cluster: Processes | None, required: bool) -> None:
    if cluster is None:
        if required:
            raise UsageError(
                "--multiprocess_gpu was given, but nothing says which processes there are. Give "
                "--coordinator_address HOST:PORT, --process_count N and --process_index I, or "
                "start the processes with srun or mpirun."
            )
        return
    address, count, index = (getattr(cluster, name) for name in _TOLD)
    missing = [f"--{name}" for name in _TOLD if getattr(cluster, name) is None]
    asks_jax = cluster.found in ("Slurm", "TPU", "Kubernetes") or len(missing) == 3
    if missing and not asks_jax:
        raise UsageError(
            f"several processes need {' and '.join(missing)} too: the address HOST:PORT of process "
            "0, how many processes there are, and which of them this is (0 is the first)."
        )
    if address is not None and not address.rpartition(":")[2].isdigit():
        raise UsageError(f"--coordinator_address must be HOST:PORT, not {address!r}.")
    if count is not None and index is not None and not 0 <= index < count:
        raise UsageError(
            f"--process_index must be from 0 to {count - 1}, for there are {count} processes, not "
            f"{index}."
        )
