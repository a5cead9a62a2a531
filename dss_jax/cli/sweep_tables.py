"""What `dss sweep` shows: a table of what is done, and a line that tells how far it is."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from dss_jax.cli.tables import print_table
from dss_jax.core.sweep_config import Cell

if TYPE_CHECKING:
    from dss_jax.sweep.plan import Planned
    from dss_jax.sweep.runner import Status

LINE_SECONDS = 60.0
"""Between lines where there is no terminal, unless something has happened."""


def state_rows(folder: Path, planned: Sequence["Planned"]) -> tuple[list[str], list[list[str]]]:
    """A table of the runs: a row for each task, model and method; a column for each size.

    Returns:
      The columns, and the rows: "3 of 4" runs done, "+1" of them half trained.
    """
    from dss_jax.sweep.plan import state_of

    sizes = list(dict.fromkeys(p.cell.size for p in planned if p.cell.model is not None))
    rows: dict[tuple[str, str, str], dict[str, list[Cell]]] = {}
    for one in planned:
        cell = one.cell
        name = (cell.task, cell.model or "-", cell.method)
        rows.setdefault(name, {}).setdefault(cell.size if cell.model else "", []).append(cell)
    texts = []
    for name, by_size in rows.items():
        line = list(name)
        for size in sizes if name[1] != "-" else [""]:
            states = [state_of(folder / cell.folder) for cell in by_size.get(size, ())]
            done, begun = sum(s.done for s in states), sum(s.step > 0 for s in states)
            half = f" +{begun} begun" if begun else ""
            line.append(f"{done} of {len(states)}{half}" if states else "-")
        texts.append(line + ["-"] * (3 + len(sizes) - len(line)))
    return ["task", "model", "method", *sizes], texts


def print_states(folder: Path, planned: Sequence["Planned"]) -> None:
    """Prints `state_rows`."""
    columns, rows = state_rows(folder, planned)
    print(f"{folder}: runs that are done")
    print_table("", columns, rows)


class StatusLine:
    """One line that is written over on a terminal; elsewhere a line a minute, or when runs end."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._terminal = self._stream.isatty()
        self._shown, self._counts = 0.0, ""

    def __call__(self, status: "Status") -> None:
        """Shows how far the sweep is."""
        text, now = str(status), time.monotonic()
        if self._terminal:
            self._stream.write(f"\r\x1b[K{text}")
            self._stream.flush()
            return
        counts = text.partition(";")[0]
        if counts != self._counts or now - self._shown > LINE_SECONDS:
            self._counts, self._shown = counts, now
            self.say(text)

    def say(self, text: str) -> None:
        """Prints a line above it."""
        clear = "\r\x1b[K" if self._terminal else ""
        self._stream.write(f"{clear}{text}\n")
        self._stream.flush()

    def close(self) -> None:
        """Ends the line."""
        if self._terminal:
            self._stream.write("\n")
