"""How a command ends that is told to, by Ctrl-C or SIGTERM: with a status that says whether it is
worth to start it again.
"""

import signal
from typing import Any, NoReturn

INTERRUPTED, TERMINATED, SAVED = 130, 143, 185
"""Exit statuses: of Ctrl-C, whether or not there was something to save; of SIGTERM, where nothing
was; of a run that was told to end by SIGTERM, and has saved. The launchers start again after the
last two. 185 is above 128, where xpk starts again by itself, and no signal that is in use has it.
"""


told: list[int] = []
"""Signals that `end` got; JAX, where it traces, may raise something else then."""


def end(number: int, _: Any = None) -> NoReturn:
    """A handler: raises KeyboardInterrupt or SystemExit, so what is half written is removed."""
    told.append(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(TERMINATED)


def saved_status(number: int) -> int:
    """The exit status of a run that has saved because of this signal."""
    return SAVED if number == signal.SIGTERM else INTERRUPTED
