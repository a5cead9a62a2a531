"""Several processes that run one program: starting them, and what they tell each other.

What goes through the devices (batches, gradients, checkpoints) is not here: JAX and Orbax do that.
Here are small texts, which go through JAX's coordination service. It answers while a process is
busy for minutes, as with a token store that is made on one machine only.

Alone, every function here returns at once, and JAX is not even imported.
"""

import ctypes
import difflib
import itertools
import json
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from dss_jax.core.errors import UsageError

if TYPE_CHECKING:
    from dss_jax.core.cluster import Processes

T = TypeVar("T")
Say = Callable[[str], None]

START_SECONDS = 300
WAIT_SECONDS = 24 * 3600
"""For a token store that another machine makes. A process that has died ends the wait sooner: JAX's
heartbeats stop all of them."""

_numbers = itertools.count()
_sigterm_of_jax: int | None = None


def start(found: "Processes | None", timeout: int = START_SECONDS) -> None:
    """Connects this process with the others. Comes before anything that touches a device.

    Args:
      found: of `core.cluster.find`; None: nothing is done.
      timeout: how long the processes wait for each other, in seconds.

    Raises:
      UsageError: they do not find each other.
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
    # Until the loop asks for it, SIGTERM shall end the process, as it does without JAX.
    _keep_handler_of_jax()


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
      UsageError: the mistake of this process, or of another one, with its name.
      Exception: what else `work` has raised here.
    """
    if count() == 1:
        return work()
    result: list[T] = []
    failed: Exception | None = None
    try:
        result.append(work())
    except Exception as error:
        failed = error
    mistakes, names = gather("" if failed is None else str(failed) or repr(failed)), process_names()
    if failed is not None and not isinstance(failed, UsageError):
        raise failed
    wrong = [f"{who}: {text}" for who, text in zip(names, mistakes, strict=True) if text]
    if wrong:
        raise UsageError("\n".join(wrong)) from failed
    return result[0]


def broadcast_from_first(work: Callable[[], Any]) -> Any:
    """What process 0 finds out, for all: plain JSON. Its mistakes are raised by all.

    Raises:
      UsageError: of process 0.
    """
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
    """Checks that all processes have the same texts.

    Args:
      texts: what it is ("configuration") -> its text, or a digest of it.

    Raises:
      UsageError: which processes have what, and the lines in which they differ.
    """
    everybody = [json.loads(t) for t in gather(json.dumps(texts))]
    names = process_names()
    for what in texts:
        having: dict[str, list[str]] = {}
        for name, own in zip(names, everybody, strict=True):
            having.setdefault(own[what], []).append(name)
        if len(having) > 1:
            raise UsageError(_difference(what, having))


def _difference(what: str, having: Mapping[str, Sequence[str]]) -> str:
    (first, who), *others = having.items()
    lines = [f"the processes have not the same {what}, so they cannot run together:"]
    if "\n" not in first:
        lines += [f"  {', '.join(names)}: {text}" for text, names in having.items()]
    for text, names in others if "\n" in first else ():
        diff = difflib.unified_diff(
            first.splitlines(), text.splitlines(), ", ".join(who), ", ".join(names), n=0,
            lineterm="",
        )  # fmt: skip
        lines += [line for line in diff if not line.startswith("@@")]
    return "\n".join([*lines, "Start all processes from the same code, flags and data."])


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
    mine = _signal(_sigterm_of_jax)
    from jax.experimental import multihost_utils

    try:
        yield multihost_utils.reached_preemption_sync_point
    finally:
        _signal(mine)


def _keep_handler_of_jax() -> None:
    """Takes JAX's own handler of SIGTERM out; `sync_stops` puts it back.

    It is a C function, of which Python's `signal` module knows nothing.
    """
    global _sigterm_of_jax
    _sigterm_of_jax = _signal(None)


def _signal(handler: int | None) -> int | None:
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
    before: int | None = libc.signal(signal.SIGTERM, handler)
    return before


def _client() -> Any:
    # Not public in JAX; Orbax and T5X take it from here too.
    from jax._src import distributed

    return distributed.global_state.client
