"""Says what takes long, while it does: with a clock on a terminal, else in lines."""

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from dss_jax.core import processes

log = logging.getLogger(__name__)

SHOWN_AFTER, LINE_AFTER = 1.0, 10.0
"""Seconds. What takes less is not worth a line; without a terminal, one line at the end will do."""


@contextmanager
def clocked(what: str) -> Iterator[None]:
    """Within it `what` is shown, as in "compiling"; at the end it is said how long that took."""
    began, done = time.monotonic(), threading.Event()
    thread = threading.Thread(target=_show, args=(what, done), name="clock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if (seconds := time.monotonic() - began) > SHOWN_AFTER:
        log.info("%s: %.1f s", what, seconds)


def _show(what: str, done: threading.Event) -> None:
    terminal = sys.stderr.isatty() and processes.is_first()
    if done.wait(SHOWN_AFTER if terminal else LINE_AFTER):
        return
    if not terminal:
        log.info("%s ...", what)
        return
    with tqdm(bar_format=f"{what} ... {{elapsed}}", leave=False) as bar:
        bar.start_t -= SHOWN_AFTER
        while not done.wait(1.0):
            bar.refresh()
