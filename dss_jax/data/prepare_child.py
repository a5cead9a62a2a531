"""Runs a module that needs TensorFlow in a child process, and logs what it logs. Both ends.

A module's `answer` is given a request and gives its result, both plain JSON. The request is a line
of the child's standard input, which ends with this process, however that ends: then the child ends
too. From its standard output come lines of JSON: `{"message": text, "level": number}` for what is
logged, `{"result": value}`, and for the user's mistakes `{"error": text}`.
"""

import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import IO, Any

from dss_jax.core import processes, signals
from dss_jax.core.errors import UsageError
from dss_jax.core.log import shown
from dss_jax.core.paths import PACKAGE

log = logging.getLogger(__name__)

STDERR_LINES = 40
"""How much of the child's error output is shown when it fails unexpectedly."""

PATIENCE = 10.0
"""Seconds that a child has to clean up."""

QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "GRPC_VERBOSITY": "ERROR",
    "GLOG_minloglevel": "3",
}
"""Variables that keep TensorFlow from talking."""

PREPARE = "dss_jax.data.seqio_prepare"

_early: "dict[str, tuple[subprocess.Popen[str], IO[str]]]" = {}
"""Children that are `loading` their module, by its name, and their error output."""

# Text is prepared on the CPU; TensorFlow would take the trainer's accelerator memory.
_ON_CPU = {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}


class PrepareError(RuntimeError):
    """The child process failed and gave no message for the user; carries its error output."""


def run(
    request: Mapping[str, Any],
    module: str = PREPARE,
    *,
    environment: Mapping[str, str] | None = None,
    asked: list[int] | None = None,
) -> Any:
    """Has a module answer a request, plain JSON.

    Args:
      module: one with a function `answer`.
      environment: the child's variables; None: this process's, on the CPU and quiet.
      asked: where given, Ctrl-C and SIGTERM go to the child as SIGTERM, this process waits for
        what it answers, and the numbers of these signals are put here. Otherwise the child is
        stopped with this process.

    Raises:
      UsageError: what the child has to tell the user; TensorFlow or SeqIO is not installed.
      PrepareError: anything else.
    """
    early = _early.pop(module, None) if environment is None and asked is None else None
    with _file() as own:
        child, stderr = early or (_start(own, module, environment, asked), own)
        try:
            with _handed_on(child, asked):
                said = _talk(child, request)
        except BaseException:
            _stop(child)
            raise
        if "error" in said:
            raise UsageError(said["error"])
        if child.returncode == signals.TERMINATED and asked:
            signals.end(asked[-1])
        if child.returncode != 0:
            stderr.seek(0)
            tail = "".join(stderr.readlines()[-STDERR_LINES:])
            raise PrepareError(f"{module} failed ({child.returncode}):\n{tail}")
    return said.get("result")


def _start(
    stderr: IO[str], module: str, environment: Mapping[str, str] | None, asked: list[int] | None
) -> "subprocess.Popen[str]":
    """A child with a file for its error output. Raises UsageError as `run`."""
    missing = [m for m in ("tensorflow", "seqio") if importlib.util.find_spec(m) is None]
    if missing:
        raise UsageError(
            f"preparing data needs {' and '.join(missing)}, not installed here. Run `dss prepare` "
            "on a machine that has it, copy the store's folder here and pass it with --store."
        )
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    variables = {**os.environ, **QUIET, **_ON_CPU} if environment is None else environment
    return subprocess.Popen(
        [sys.executable, "-m", __name__, module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        encoding="utf-8",
        env={**variables, "PYTHONPATH": path},
        # Otherwise the terminal sends Ctrl-C to the child too, which would count twice.
        start_new_session=asked is not None,
    )


_file = partial(tempfile.TemporaryFile, "w+", encoding="utf-8", errors="replace")


@contextmanager
def loading(module: str = PREPARE) -> Iterator[None]:
    """Within it a child loads TensorFlow, as long as other things are done, and answers the first
    request.
    """
    with _file() as stderr:
        with suppress(UsageError):
            _early[module] = _start(stderr, module, None, None), stderr
        try:
            yield
        finally:
            if module in _early:
                _stop(_early.pop(module)[0])


@contextmanager
def _handed_on(child: "subprocess.Popen[str]", asked: list[int] | None) -> Iterator[None]:
    """What asks this process to stop goes to the child instead."""
    if asked is None:
        yield
        return

    def hand_on(number: int, _: Any) -> None:
        asked.append(number)
        child.send_signal(signal.SIGTERM)

    with processes.handled((signal.SIGINT, signal.SIGTERM), hand_on):
        yield


def _talk(child: "subprocess.Popen[str]", request: Mapping[str, Any]) -> dict[str, Any]:
    """Sends the request and logs what the child says; returns its error and result, if any."""
    assert child.stdin is not None
    assert child.stdout is not None
    kept: dict[str, Any] = {}
    # Where it has died at once, its exit status and error output tell why.
    with suppress(BrokenPipeError):
        child.stdin.write(json.dumps(request) + "\n")
        child.stdin.flush()
    with child.stdout:
        for line in child.stdout:
            said = json.loads(line)
            if "message" in said:
                log.log(said["level"], said["message"])
            else:
                kept |= said
    child.wait()
    with suppress(BrokenPipeError):
        child.stdin.close()
    return kept


def _stop(child: "subprocess.Popen[str]") -> None:
    child.terminate()
    try:
        child.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _end_with_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)
    # Python's handler waits for a long call of a library to return.
    time.sleep(PATIENCE)
    os._exit(signals.TERMINATED)


def serve(module: str) -> int:
    """The child's end: has a module answer the request on standard input. Gives the exit status: 0,
    or 2 for a mistake of the user's.
    """
    # Libraries write to standard output as they like; only this process may speak to the parent.
    parent = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    # So that a stopped child removes what it has half written.
    signal.signal(signal.SIGTERM, signals.end)

    class ToParent(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tell(message=self.format(record), level=record.levelno)

    def tell(**content: Any) -> None:
        parent.write(json.dumps(content) + "\n")

    try:
        with shown(ToParent()):
            answer = importlib.import_module(module).answer
            if not (line := sys.stdin.readline()):
                return 0
            threading.Thread(target=_end_with_parent, daemon=True).start()
            result = answer(json.loads(line))
    except UsageError as error:
        tell(error=str(error))
        return 2
    if result is not None:
        tell(result=result)
    return 0


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1]))
