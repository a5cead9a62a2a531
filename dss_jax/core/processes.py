"""Several processes that run one program: starting them, and what they tell each other.

What goes through the devices (batches, gradients, checkpoints) is not here: JAX and Orbax do that.
Here are small texts, which go through JAX's coordination service. It answers while a process is
busy for minutes, as with a token store that is made on one machine only.

Alone, every function here returns at once, and JAX is not even imported.
"""

import ctypes
import itertools
import json
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from dss_jax.core.errors import UsageError

if TYPE_CHECKING:
    from dss_jax.core.cluster import Processes

T = TypeVar("T")

START_SECONDS = 300
WAIT_SECONDS = 24 * 3600
"""For a token store that another machine makes. A process that has died ends the wait sooner: JAX's
heartbeats stop all of them."""

_numbers = itertools.count()
_sigterm_of_jax: int | None = None


def start(found: "Processes | None", timeout: int = START_SECONDS) -> None:
    """Connects this process with the others, before anything touches a device; None: it is alone.
    UsageError: they do not find each other within `timeout` seconds.
    """
    if found is None:
        return
    import jax

    mine = _set_sigterm(None)
    try:
        jax.distributed.initialize(
            found.coordinator_address,
            found.process_count,
            found.process_index,
            found.local_device_ids and list(found.local_device_ids),
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
    _sigterm_of_jax = _set_sigterm(mine)


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


def process_names() -> list[str]:
    """What the processes are called in messages."""
    return [f"process {i} ({host})" for i, host in enumerate(gather(socket.gethostname()))]


@contextmanager
def handled(numbers: Iterable[int], handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Signals of these numbers go to a handler, of Python's; then to those of before again."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


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
