"""What the package says: the logger "dss_jax". Standard library only.

A module says something by `logging.getLogger(__name__).info(...)`. As with every library, a program
that imports the package decides what becomes of it; the command line shows it (`shown`).
"""

import contextlib
import logging
import sys
from collections.abc import Iterator

from dss_jax.core import processes
from dss_jax.core.texts import visible

LOGGER = logging.getLogger("dss_jax")


class TerminalHandler(logging.Handler):
    """Prints messages, of several processes only those of the first; warnings on standard error.

    A progress bar (tqdm) steps aside for them. Characters that a terminal would obey are shown.
    """

    below = logging.WARNING
    """Messages below this go to standard output."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one."""
        if not processes.is_first():
            return
        stream = sys.stdout if record.levelno < self.below else sys.stderr
        # Only what has loaded it can have a bar on the screen.
        bars = sys.modules.get("tqdm")
        try:
            text = visible(self.format(record))
            if bars is None:
                print(text, file=stream, flush=True)
            else:
                bars.tqdm.write(text, file=stream)
                stream.flush()
        except BrokenPipeError:
            pass  # The reader (head, tee) has gone; the work goes on.
        except Exception:
            self.handleError(record)


@contextlib.contextmanager
def shown(handler: logging.Handler | None = None, verbose: bool = False) -> Iterator[None]:
    """Within it, messages go to a handler (None: the terminal) and nowhere else; where it is
    `verbose`, those of level debug too.
    """
    handler = handler or TerminalHandler()
    before = LOGGER.level, LOGGER.propagate
    LOGGER.setLevel(logging.DEBUG if verbose else logging.INFO)
    # Absl, which JAX's libraries import, gives the root logger a handler of its own.
    LOGGER.propagate = False
    LOGGER.addHandler(handler)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(before[0])
        LOGGER.propagate = before[1]


@contextlib.contextmanager
def on_stderr() -> Iterator[None]:
    """Within it, all messages go to standard error: the output is for a command's data."""
    before, TerminalHandler.below = TerminalHandler.below, logging.NOTSET
    try:
        yield
    finally:
        TerminalHandler.below = before
