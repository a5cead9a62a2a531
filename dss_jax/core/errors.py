"""Errors written for people: the value, what is allowed, the nearest name, the fix."""

import difflib
from collections.abc import Iterable, Sequence

from dss_jax.core.texts import visible


class Said(Exception):  # noqa: N818
    """An error whose text is printed, and may hold what others have written: see `visible`."""

    def __init__(self, text: str = "") -> None:
        super().__init__(visible(text))


class UsageError(Said, ValueError):
    """The user can fix this. The command line prints its text without a traceback."""

    status = 2  # Of the command.
    parts: Sequence[str] = ()  # Of several mistakes, each.


class Mistakes:
    """Gathers what is wrong, so that all of it is said at once.

    mistakes = Mistakes()
    for value in values:
        with mistakes:
            check(value)
    mistakes.done()
    """

    def __init__(self) -> None:
        self.found: list[str] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> bool:
        if isinstance(error, UsageError):
            self.found += error.parts or [str(error)]
        return isinstance(error, UsageError)

    def done(self) -> None:
        """Raises UsageError with all that was found, if anything was."""
        if self.found:
            error = UsageError("\n- ".join(["several things are wrong:", *self.found]))
            error.parts = self.found
            raise error if len(self.found) > 1 else UsageError(self.found[0])


class Diverged(Said):
    """What is computed is not finite: loss or gradient batch after batch, scores, what a student
    gives. Its text is printed without a traceback.
    """

    status = 1


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The known name most like `name`; None where none is at least as like it as `cutoff`, of 1."""
    names = {n.lower(): n for n in known}
    found = difflib.get_close_matches(name.lower(), names, n=1, cutoff=cutoff)
    return names[found[0]] if found else None


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """An error for a name that is not among `known`, with the nearest that is."""
    names = sorted(known)
    near = nearest(name, names)
    hint = f" Did you mean {near!r}?" if near else ""
    listed = ", ".join(names) if names else "none"
    return UsageError(f"unknown {kind} {name!r}.{hint} Known: {listed}.")
