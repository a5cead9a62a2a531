"""Ctrl-C and SIGTERM end a command soon, whatever it is doing."""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from dss_jax.core import processes, signals

PATIENCE = 0.7
"""Seconds that the main thread has to answer. In a call of a library (XLA compiles for minutes) it
does not, and Python has no other to do it."""

AGAIN = 0.05
"""Seconds after which a signal comes again whose exception was dropped."""


OF_THREADS = ("asyncio", "concurrent.futures")
"""Loggers of what callbacks in other threads raise."""


def _before_a_stop(_: logging.LogRecord) -> bool:
    return not signals.told


@contextmanager
def ends_soon() -> Iterator[None]:
    """Within it, in the program's main thread, Ctrl-C and SIGTERM end it by an exception
    (`signals.end`). Where the main thread does not answer within `PATIENCE`, the process ends as it
    is, as by a kill: files are written under another name first. Who sets handlers of his own
    decides for himself.
    """
    answered = threading.Event()

    def handle(number: int, _: Any) -> None:
        answered.set()
        signals.end(number)

    def watch() -> None:
        while number := reader.recv(1):
            if signal.getsignal(number[0]) is handle and not answered.wait(PATIENCE):
                os.write(2, b"dss: stopped\n")
                os._exit(128 + number[0])

    def unraised(what: Any) -> None:
        """In a `__del__` or a callback of the garbage collector (JAX has one) Python drops the
        exception: the signal comes again.
        """
        if signals.told and what.exc_type in (KeyboardInterrupt, SystemExit):
            again = threading.Timer(AGAIN, os.kill, (os.getpid(), signals.told[-1]))
            again.daemon = True
            again.start()
        else:
            dropped(what)

    def in_thread(what: Any) -> None:
        """Threads of what the signal has ended find things closed: Orbax's, in a restore."""
        if not signals.told:
            shown(what)

    dropped, sys.unraisablehook = sys.unraisablehook, unraised
    shown, threading.excepthook = threading.excepthook, in_thread
    for name in OF_THREADS:
        logging.getLogger(name).addFilter(_before_a_stop)
    both = (signal.SIGINT, signal.SIGTERM)
    taken = [n for n in both if signal.getsignal(n) is not signal.SIG_IGN]  # As under nohup.
    reader, writer = socket.socketpair()
    with reader, writer:
        writer.setblocking(False)
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        thread = threading.Thread(target=watch, name="signals", daemon=True)
        thread.start()
        try:
            with processes.handled(taken, handle):
                yield
        finally:
            sys.unraisablehook, threading.excepthook = dropped, shown
            for name in OF_THREADS:
                logging.getLogger(name).removeFilter(_before_a_stop)
            signal.set_wakeup_fd(wakeup)
            writer.shutdown(socket.SHUT_WR)
            thread.join()


def said(number: int) -> int:
    """The status of a command that this signal has ended, when it is said."""
    terminated = number == signal.SIGTERM
    print("dss: stopped (SIGTERM)" if terminated else "dss: stopped", file=sys.stderr)
    return signals.TERMINATED if terminated else signals.INTERRUPTED


def leave(status: int) -> NoReturn:
    """Ends the process when all is cleaned up. Python would wait for threads that still compile."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(status)
