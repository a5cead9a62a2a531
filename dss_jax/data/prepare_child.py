"""Runs a module that needs TensorFlow in a child process, and shows what it says.

The child reads a request as JSON from standard input and writes JSON lines to standard output:
`{"progress": text}`, `{"result": value}`, and for the user's mistakes `{"error": text}`.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from dss_jax.core.errors import UsageError
from dss_jax.core.paths import PACKAGE

STDERR_LINES = 40
"""How much of the child's error output is shown when it fails unexpectedly."""

QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "GRPC_VERBOSITY": "ERROR",
    "GLOG_minloglevel": "3",
}
"""Variables that keep TensorFlow from talking."""

# Text is prepared on the CPU; TensorFlow would take the trainer's accelerator memory.
_ON_CPU = {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}


class PrepareError(RuntimeError):
    """The child process failed and gave no message for the user; carries its error output."""


def run(
    request: dict[str, Any],
    log: Callable[[str], None],
    module: str = "dss_jax.data.seqio_prepare",
    *,
    environment: Mapping[str, str] | None = None,
    hand_on_signals: bool = False,
) -> Any:
    """Runs a module on a request.

    Args:
      request: plain JSON; for the default module see `dss_jax.data.prepare.make_request`, plus
        `path`, the store's place.
      log: is given the child's progress lines.
      module: one that calls `seqio_child.serve`.
      environment: the child's variables; None: this process's, on the CPU and quiet.
      hand_on_signals: Ctrl-C and SIGTERM go to the child as SIGTERM, and this process waits for
        what it answers. Otherwise the child is stopped with this process.

    Returns:
      The child's result; None where it has none.

    Raises:
      UsageError: what the child has to tell the user; TensorFlow or SeqIO is not installed.
      PrepareError: anything else.
    """
    missing = [m for m in ("tensorflow", "seqio") if importlib.util.find_spec(m) is None]
    if missing:
        raise UsageError(
            f"preparing data needs {' and '.join(missing)}, not installed here. Run `dss prepare` "
            "on a machine that has it, copy the store's folder here and pass it with --store."
        )
    path = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, **QUIET, **_ON_CPU} if environment is None else environment
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            encoding="utf-8",
            env={**variables, "PYTHONPATH": path.rstrip(os.pathsep)},
            # Otherwise the terminal sends Ctrl-C to the child too, which would count twice.
            start_new_session=hand_on_signals,
        )
        try:
            with _handing_on(child) if hand_on_signals else nullcontext():
                said = _talk(child, request, log)
        except BaseException:
            _stop(child)
            raise
        if "error" in said:
            raise UsageError(said["error"])
        if child.returncode != 0:
            stderr.seek(0)
            tail = "".join(stderr.readlines()[-STDERR_LINES:])
            raise PrepareError(f"{module} failed ({child.returncode}):\n{tail}")
    return said.get("result")


def _talk(
    child: "subprocess.Popen[str]", request: dict[str, Any], log: Callable[[str], None]
) -> dict[str, Any]:
    """Sends the request and passes progress on; returns the child's error and result, if any."""
    assert child.stdin is not None
    assert child.stdout is not None
    kept: dict[str, Any] = {}
    try:
        child.stdin.write(json.dumps(request))
        child.stdin.close()
    except BrokenPipeError:
        pass  # It died at once; its exit status and error output tell why.
    with child.stdout:
        for line in child.stdout:
            said = json.loads(line)
            if "progress" in said:
                log(said["progress"])
            else:
                kept |= said
    child.wait()
    return kept


@contextmanager
def _handing_on(child: "subprocess.Popen[str]") -> Iterator[None]:
    """Signals that ask this process to stop go to the child instead."""

    def hand_on(*_: Any) -> None:
        child.send_signal(signal.SIGTERM)

    before = {s: signal.signal(s, hand_on) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(child: "subprocess.Popen[str]") -> None:
    child.terminate()
    try:
        child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
