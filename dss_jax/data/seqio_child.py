"""What the child processes that import TensorFlow share."""

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dss_jax.core.errors import UsageError


def serve(answer: Callable[[dict[str, Any], Callable[[str], None]], Any]) -> int:
    """Reads a request from standard input, and writes progress, result or error as JSON lines.

    Args:
      answer: (request, say) -> result as plain JSON, or None.

    Returns:
      Exit status: 0, or 2 for a mistake of the user's.
    """
    # Libraries write to standard output as they like; only this process may speak to the parent.
    speech = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    # So that a stopped child removes what it has half written.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    def write(**message: Any) -> None:
        speech.write(json.dumps(message) + "\n")

    try:
        result = answer(json.load(sys.stdin), lambda text: write(progress=text))
    except UsageError as error:
        write(error=str(error))
        return 2
    if result is not None:
        write(result=result)
    return 0


def find_provider(module: str, name: str) -> Any:
    """A user's SeqIO task or mixture, after importing the module that registers it.

    Raises:
      UsageError: no such module, or it registers no such name.
    """
    import seqio

    # Like `python -m`, so that a module in the working folder is found.
    sys.path.insert(0, str(Path.cwd()))
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"Task.mixture_or_task_module {module!r} cannot be imported: {error}. "
            "Run from the folder that holds it, or put that folder on PYTHONPATH."
        ) from error
    except Exception as error:
        raise UsageError(
            f"Task.mixture_or_task_module {module!r} fails to import: "
            f"{type(error).__name__}: {error}"
        ) from error
    try:
        return seqio.get_mixture_or_task(name)
    except ValueError as error:
        known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
        raise UsageError(
            f"{module} registers no SeqIO task or mixture {name!r}. "
            f"It has: {', '.join(sorted(known))}."
        ) from error


def ints_and_texts(dataset: Any) -> Iterator[dict[str, Any]]:
    """Rows of a `tf.data.Dataset`, byte strings decoded."""
    for row in dataset.as_numpy_iterator():
        yield {k: v.decode("utf-8") if isinstance(v, bytes) else v for k, v in row.items()}
