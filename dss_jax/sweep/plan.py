"""What a sweep has to do: the planned runs, what is done of them, and the folder they are in.

DIR/sweep.json                                the grid: its cells, and the settings they share
DIR/TASK/MODEL/METHOD/SIZE/seed_N/            a run: see `run_folder`
DIR/TASK/teacher/                             the teacher's own labels, scored as a run is
DIR/TASK/MODEL/undistilled/                   the checkpoint that runs start from, as it is
DIR/sweep_times.jsonl                         a line a run of this machine that has ended
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from dss_jax.core import config, storage, strict_json
from dss_jax.core.errors import UsageError
from dss_jax.core.flops import Work, training_flops, work_of_shape
from dss_jax.core.paths import write_whole
from dss_jax.core.sweep_config import Cell, size_name
from dss_jax.core.t5_config import VOCAB_SIZE
from dss_jax.core.types import ENGINES
from dss_jax.run import run_folder
from dss_jax.run.changes import other_settings

GRID, TIMES = "sweep.json", "sweep_times.jsonl"
FORMAT = 1

LABEL_ROW, RATIONALE_ROW = work_of_shape(1, 96, 8), work_of_shape(1, 96, 32)
"""Of usual lengths of input and target; only the proportion of two runs' work matters."""

TEACHER_WORK = 1e9
"""FLOPs that scoring without training counts as: nearly nothing."""


@dataclass(frozen=True)
class Planned:
    """A cell, the run that it is, and the path that was given for its vocabulary: that of a
    checkpoint is found by whoever trains.
    """

    cell: Cell
    run: config.Run
    vocabulary: str | None = None

    def hand_over(self) -> None:
        """Writes the run's configuration into its folder, for the process that trains it."""
        given = replace(self.run.vocabulary, path=self.vocabulary)
        run_folder.open_run_folder(replace(self.run, vocabulary=given), None)

    @property
    def work(self) -> float:
        """FLOPs of the training, roughly: to weigh one run against another."""
        method = self.run.method
        if not method.trains:
            return TEACHER_WORK
        # Rationales are a row of their own, or as much more text in the one row.
        both = method.uses_rationales or method.equal_compute
        work = LABEL_ROW.plus(RATIONALE_ROW) if both else LABEL_ROW
        return float(self._flops(work) * self.run.train.steps * self.run.data.batch_size)

    @property
    def model_size(self) -> int:
        """FLOPs of an example, which order models by their size."""
        return self._flops(LABEL_ROW)

    def _flops(self, work: Work) -> int:
        model = self.run.model
        return training_flops(replace(model, vocab_size=model.vocab_size or VOCAB_SIZE), work)


class State(NamedTuple):
    """What is there of a run: whether it is finished, and if not, the last saved or logged step; 0
    where it has not begun.
    """

    done: bool
    step: int


def state_of(folder: Path) -> State:
    done = storage.exists(folder / run_folder.RESULTS)
    return State(done, 0 if done else logged_step(folder))


def logged_step(folder: Path) -> int:
    """The step in the last line of a run's metrics; 0 where there is none."""
    try:
        with (folder / run_folder.METRICS).open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 8192))
            lines = file.read().splitlines()
    except (OSError, ValueError):
        return 0
    for line in reversed(lines):
        with suppress(ValueError, KeyError, TypeError):  # Cut off at its start, or half written.
            return int(json.loads(line)["step"])
    return 0


def read_grid(folder: Path) -> dict[str, Any]:
    """What `sweep.json` of a folder holds; no cells where there is none."""
    file = folder / GRID
    if not storage.exists(file):
        return {"cells": []}
    with storage.explained(file):
        grid = strict_json.read(file, "Remove it, and give the same dss sweep again.")
    if not isinstance(grid.get("cells", []), list) or grid.get("format") != FORMAT:
        raise UsageError(
            f"{file} has format {grid.get('format')!r}, but this version reads {FORMAT}. Give "
            "another --output_dir."
        )
    return grid


def cells_in(folder: Path) -> list[Cell]:
    return [Cell.from_json(cell) for cell in read_grid(folder)["cells"]]


def begun_before(folder: Path, cells: Sequence[Cell]) -> list[Cell]:
    """Cells of the folder's grid that are not among `cells`, and whose run has begun."""
    others = (cell for cell in cells_in(folder) if cell not in cells)
    return [cell for cell in others if run_folder.begun(folder / cell.folder)]


def write_grid(
    folder: Path, cells: Iterable[Cell], gin_files: Sequence[str], bindings: Sequence[str]
) -> None:
    grid = {"format": FORMAT, "cells": [cell.as_json() for cell in cells]}
    grid |= {"gin_files": list(map(str, gin_files)), "bindings": list(bindings)}
    write_whole(folder / GRID, strict_json.dumps(grid, indent=1) + "\n")


def check_settings(folder: Path, planned: Sequence[Planned]) -> None:
    """Raises UsageError where runs of the folder were begun with other settings, and shows them."""
    differences = (other_settings(p.run, folder / p.cell.folder) for p in planned)
    if found := [diff for diff in differences if diff]:
        more = f"\n... and {len(found) - 1} more runs" if len(found) > 1 else ""
        raise UsageError(
            f"{folder} holds a sweep with other settings:\n{found[0]}{more}\n"
            "Give another --output_dir, or the same settings: a grid may grow, its runs may not "
            "change."
        )


@dataclass(frozen=True)
class Job:
    """One process: the runs that it trains, the folder of its log, relative to the sweep's, and the
    flags of `dss train`.
    """

    planned: tuple[Planned, ...]
    folder: str
    flags: tuple[str, ...]

    @property
    def work(self) -> float:
        """FLOPs, roughly."""
        return sum(one.work for one in self.planned)


def jobs_of(
    folder: Path,
    planned: Sequence[Planned],
    sizes: Sequence[tuple[float | None, int | None]] = (),
    at_once: bool = False,
    task_dirs: Sequence[str] = (),
) -> list[Job]:
    """The processes that do what is left of the runs in a sweep's folder. Runs on data of all these
    `sizes` share what is compiled; with `at_once`, the seeds of a group share a process.
    """
    groups: dict[str, list[Planned]] = {}
    for one in planned:
        if not state_of(folder / one.cell.folder).done:
            key = one.cell.group if at_once else one.cell.folder
            groups.setdefault(key, []).append(one)
    names = ",".join(size_name(*size) for size in sizes) if len(sizes) > 1 else ""
    return [_job(folder, members, names, task_dirs) for members in groups.values()]


def _job(folder: Path, members: Sequence[Planned], sizes: str, task_dirs: Sequence[str]) -> Job:
    first = members[0]
    place = first.cell.folder
    flags = ["--gin_file", str(folder / place / run_folder.CONFIG)]
    if len(members) > 1:
        place = first.cell.group
        seeds = ",".join(str(one.cell.seed) for one in members)
        flags += ["--seeds", seeds, "--output_dir", str(folder / place)]
        orders = {one.run.data.seed for one in members}
        # One order for all was asked for.
        flags += [f"--gin.Data.seed={seed}" for seed in orders if len(orders) == 1]
    if (engine := first.run.train.engine) != ENGINES[0] and first.run.method.trains:
        # It must be known before the settings are read, for that may start the devices.
        flags += ["--engine", engine]
    elif sizes and first.run.method.trains:
        flags += ["--sizes", sizes]
    for task_dir in task_dirs:
        flags += ["--task_dir", task_dir]
    return Job(tuple(members), place, tuple(flags))


class Times:
    """The times of the runs that have ended, kept for the next start of the sweep; `of_folder`:
    those that were there at this one, in seconds, by the folder of the process's log.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / TIMES
        self.seconds = self.work = 0.0
        self.of_folder: Counter[str] = Counter()
        lines = self._file.read_text().splitlines() if self._file.exists() else ()
        for line in lines:
            with suppress(ValueError, KeyError):
                saved = json.loads(line)
                self._count(saved["seconds"], saved["work"])
                self.of_folder[saved["folder"]] += saved["seconds"]

    def _count(self, seconds: float, work: float) -> None:
        if work > TEACHER_WORK:  # Scoring the teacher says nothing of how long training takes.
            self.seconds += seconds
            self.work += work

    def add(self, job: Job, state: str, seconds: float, work: float) -> None:
        """A process has ended after so many seconds, and has done so much."""
        self._count(seconds, work)
        line = {"folder": job.folder, "state": state, "seconds": round(seconds, 1), "work": work}
        with self._file.open("a") as file:
            file.write(strict_json.dumps(line) + "\n")

    def to_the_end(
        self, running: Sequence[tuple[float, float]], left: float, slots: int
    ) -> float | None:
        """Seconds to the end, from the speed so far; None while nothing is known.

        Args:
          running: (seconds, work done) of each process at work.
          left: work that is still to be done, the rest of the running ones included.
          slots: how many run at once.
        """
        seconds = self.seconds + sum(s for s, _ in running)
        work = self.work + sum(w for _, w in running)
        return None if work <= 0 or seconds <= 0 else left * seconds / work / slots
