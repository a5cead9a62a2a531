"""Several processes that run one program: how they find each other, start, and talk.

They are looked for in flags, the environment and, on a TPU VM, the metadata server. What goes
through the devices (batches, gradients, checkpoints) is not here: JAX and Orbax do that. Here are
small texts, which go through JAX's coordination service. It answers while a process is busy for
minutes, as with a token store that is made on one machine only.

Alone, every function here returns at once, and JAX is not even imported.
"""

import ctypes
import difflib
import glob
import importlib.util
import itertools
import json
import os
import signal
import socket
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from dss_jax.core.checks import at_least
from dss_jax.core.errors import UsageError

T = TypeVar("T")

START_SECONDS = 300
WAIT_SECONDS = 24 * 3600
"""For a token store that another machine makes. A process that has died ends the wait sooner: JAX's
heartbeats stop all of them."""

_numbers = itertools.count()
_sigterm_of_jax: int | None = None

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
    import urllib.request

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


def start(found: Processes | None, timeout: int = START_SECONDS) -> None:
    """Connects this process with the others that `find` found; None: nothing is done. Comes before
    anything that touches a device. UsageError: they do not find each other within `timeout`, in
    seconds.
    """
    if found is None:
        return
    import jax

    try:
        jax.distributed.initialize(
            found.coordinator_address,
            found.process_count,
            found.process_index,
            None if found.local_device_ids is None else list(found.local_device_ids),
            initialization_timeout=timeout,
        )
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"the processes did not find each other within {timeout} s (found by: {found.found}; "
            f"coordinator {found.coordinator_address or 'of the cluster'}): {error}\n"
            "Check that all of them were started, with the same --coordinator_address and "
            "--process_count, and that its port is open; for one process alone give "
            "--process_count 1."
        ) from error
    # Until `sync_stops` puts JAX's handler back, SIGTERM shall end the process, as without JAX.
    global _sigterm_of_jax
    _sigterm_of_jax = _set_sigterm(None)


def count() -> int:
    """Number of processes."""
    jax = sys.modules.get("jax")
    # Asked for in this order, for process_count() starts the devices.
    return int(jax.process_count()) if jax and jax.distributed.is_initialized() else 1


def index() -> int:
    """Which of them this is; 0 is the first."""
    return int(sys.modules["jax"].process_index()) if count() > 1 else 0


def is_first() -> bool:
    """Whether this process writes files and prints: process 0."""
    return index() == 0


def say(text: str) -> None:
    """Prints a line, once and not once a process."""
    if is_first():
        print(text, flush=True)


def gather(text: str) -> list[str]:
    """Everybody's text, by process; all processes must call this at the same point."""
    if count() == 1:
        return [text]
    client, folder = _client(), f"dss_jax/{next(_numbers)}"
    client.key_value_set(f"{folder}/{index():06}", text)
    barrier()
    return [value for _, value in sorted(client.key_value_dir_get(folder))]


def barrier() -> None:
    """Waits until all processes are here.

    Belongs between the compilation of a function for all devices and its first run. The first run
    connects the processes, and they must come to it within a time that JAX does not let us set (30
    seconds with Gloo, on CPUs); but some hosts compile much longer than others.
    """
    if count() > 1:
        _client().wait_at_barrier(f"dss_jax/{next(_numbers)}", WAIT_SECONDS * 1000)


def all_or_raise(work: Callable[[], T]) -> T:
    """Does what each process has to do by itself; where it fails on one, it fails on all.

    Raises:
      UsageError: the mistakes of this process and of others, with their names.
      Exception: what else `work` has raised here.
    """
    if count() == 1:
        return work()
    failed: Exception | None = None
    try:
        result = work()
    except Exception as error:
        failed = error
    mistakes, names = gather("" if failed is None else str(failed) or repr(failed)), process_names()
    if failed is not None and not isinstance(failed, UsageError):
        raise failed
    wrong = [f"{who}: {text}" for who, text in zip(names, mistakes, strict=True) if text]
    if wrong:
        raise UsageError("\n".join(wrong)) from failed
    return result


def broadcast_from_first(work: Callable[[], Any]) -> Any:
    """What process 0 finds out, for all: plain JSON. Its UsageErrors are raised by all."""
    if count() == 1:
        return work()
    said: dict[str, Any] = {}
    if is_first():
        try:
            said = {"result": work()}
        except UsageError as error:
            said = {"mistake": str(error)}
    said = json.loads(gather(json.dumps(said))[0])
    if "mistake" in said:
        raise UsageError(said["mistake"])
    return said["result"]


def check_same(texts: Mapping[str, str]) -> None:
    """Checks that all processes have the same texts: what it is ("configuration") -> its text, or a
    digest of it. UsageError: which processes have what, and the lines in which they differ.
    """
    everybody = [json.loads(t) for t in gather(json.dumps(texts))]
    names = process_names()
    for what in texts:
        having: dict[str, list[str]] = defaultdict(list)
        for name, own in zip(names, everybody, strict=True):
            having[own[what]].append(name)
        if len(having) > 1:
            raise UsageError(
                f"the processes have not the same {what}, so they cannot run together:\n"
                + "\n".join(_difference({text: ", ".join(who) for text, who in having.items()}))
                + "\nStart all processes from the same code, flags and data."
            )


def _difference(having: Mapping[str, str]) -> Iterator[str]:
    """The lines in which texts differ: text -> who has it."""
    (first, who), *others = having.items()
    if "\n" not in first:
        yield from (f"  {names}: {text}" for text, names in having.items())
        return
    for text, names in others:
        lines = first.splitlines(), text.splitlines()
        diff = difflib.unified_diff(*lines, who, names, n=0, lineterm="")
        yield from (line for line in diff if not line.startswith("@@"))


def process_names() -> list[str]:
    """What the processes are called in messages."""
    return [f"process {i} ({host})" for i, host in enumerate(gather(socket.gethostname()))]


@contextmanager
def sync_stops() -> Iterator[Callable[[int], bool] | None]:
    """Within it, SIGTERM for one process stops all of them after the same step.

    Gives a function that every process calls after each step with its number, and that is True
    for all of them at one step; None where this process is alone. JAX's preemption service agrees
    on the step in the background, a second or so after the signal came; asking costs nothing.
    """
    if count() == 1:
        yield None
        return
    mine = _set_sigterm(_sigterm_of_jax)
    from jax.experimental import multihost_utils

    try:
        yield multihost_utils.reached_preemption_sync_point
    finally:
        _set_sigterm(mine)


def _set_sigterm(handler: int | None) -> int | None:
    """Sets a C function, of which Python's `signal` knows nothing; gives the one before."""
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
    before: int | None = libc.signal(signal.SIGTERM, handler)
    return before


def _client() -> Any:
    # Not public in JAX; Orbax and T5X take it from here too.
    from jax._src import distributed

    return distributed.global_state.client
