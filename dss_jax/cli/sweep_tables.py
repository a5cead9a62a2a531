"""What `dss sweep` shows: a table of what is done, and a line that tells how far it is."""

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dss_jax.cli.tables import print_table
from dss_jax.core.sweep_config import Cell
from dss_jax.sweep.plan import Planned, state_of

log = logging.getLogger(__name__)

LINE_SECONDS = 60.0
"""Between lines where there is no terminal, unless something has happened."""


def print_states(folder: Path, planned: Sequence[Planned]) -> None:
    """Prints a table of the runs: a row for each task, model and method; a column for each size:
    "3 of 4" runs done, "+1" of them half trained.
    """
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
    print(f"{folder}: runs that are done")
    print_table("", ["task", "model", "method", *sizes], texts)


class StatusLine:
    """One line that is written over on a terminal; elsewhere a line a minute, or when runs end."""

    def __init__(self) -> None:
        from tqdm import tqdm

        # Of tqdm, so that messages are printed above it; without a terminal it shows nothing.
        self._bar = tqdm(bar_format="{desc}", file=sys.stdout, disable=None)
        self._shown, self._counts = 0.0, ""

    def __call__(self, status: str) -> None:
        """Shows how far the sweep is: "COUNTS; TIME"."""
        self._bar.set_description_str(status)
        counts, now = status.partition(";")[0], time.monotonic()
        if self._bar.disable and (counts != self._counts or now - self._shown > LINE_SECONDS):
            self._counts, self._shown = counts, now
            log.info(status)

    def close(self) -> None:
        """Ends the line."""
        self._bar.close()
