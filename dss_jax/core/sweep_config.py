"""The configuration of a sweep: the grid whose cells are runs. Standard library only."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from dss_jax.core.checks import Section, setting
from dss_jax.core.config import Task
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import check_name

TEACHER = "teacher"
"""The method that trains nothing: one cell a task, whatever the grid."""

UNDISTILLED, FEW_SHOT = "undistilled", "undistilled_few_shot"
"""The methods that score the checkpoint as it is: one cell a task and model."""


@dataclass(frozen=True, kw_only=True)
class Sweep(Section):
    """The grid: every task with every model, method, size of the training data and seed.

    Attributes:
      tasks: names of task files.
      methods: names in gin_configs/methods.
      models: names in gin_configs/models.
      fractions: shares of the training split, each in (0, 1]; without these and `counts`: 1.
      counts: numbers of training examples, beside the fractions or in their place.
      seeds: of each cell's runs: Train.seed and Data.seed.
      at_once: whether one process trains the seeds of a cell, in turn; it compiles once.
      teacher: whether the teacher's own labels are scored, too, where a task has them.
      undistilled: whether the checkpoints that runs start from are scored as they are, too, without
        exemplars and with them.
      model_bindings: (model, "Train.steps = 4_000"), settings for the runs of one model only.
    """

    tasks: tuple[str, ...] = setting((), distinct=True)
    methods: tuple[str, ...] = setting(("standard", "dss"), distinct=True)
    models: tuple[str, ...] = setting((), distinct=True)
    fractions: tuple[float, ...] = setting((), low=0, high=1, positive=True, distinct=True)
    counts: tuple[int, ...] = setting((), low=1, distinct=True)
    seeds: tuple[int, ...] = setting((0,), low=0, distinct=True)
    at_once: bool = False
    teacher: bool = True
    undistilled: bool = True
    model_bindings: tuple[tuple[str, str], ...] = ()

    def check(self) -> None:
        for name in ("tasks", "methods", "models"):
            for value in getattr(self, name):
                if not value or "/" in value:
                    raise UsageError(f"Sweep.{name} must hold names, not {value!r}.")
        for name in {TEACHER, UNDISTILLED, FEW_SHOT} & {*self.methods}:
            raise UsageError(
                f"leave the method {name!r} out of Sweep.methods: it is scored once anyway "
                f"(Sweep.{name.partition('_')[0]} = False: it is not)."
            )
        for pair in self.model_bindings:
            if "=" not in pair[1]:
                such = 'pairs such as ("t5_1_1_xxl", "Train.steps = 4_000")'
                raise UsageError(f"Sweep.model_bindings must hold {such}, not {pair!r}.")

    @property
    def sizes(self) -> tuple[tuple[float | None, int | None], ...]:
        """(fraction, None) and (None, count), in the order given."""
        fractions = self.fractions if self.fractions or self.counts else (1.0,)
        return (*((f, None) for f in fractions), *((None, c) for c in self.counts))

    def check_complete(self, **flags: str) -> None:
        """Raises UsageError where a side of the grid is empty, or has several values and takes one.
        `flags`: what the caller has for a side that takes one: models="--model NAME".
        """
        for name in ("tasks", "methods", "models", "seeds"):
            values, flag = getattr(self, name), flags.get(name, f"--{name} A,B")
            if not values:
                raise UsageError(
                    f"the grid has no {name}: give {flag} or Sweep.{name} in a gin file."
                )
            if name in flags and len(values) > 1:
                raise UsageError(f"{flag} takes one, not {len(values)}: {', '.join(values)}.")


def size_name(fraction: float | None, count: int | None) -> str:
    """How much of the training data, as in the name of a folder."""
    return f"frac_{fraction:.12g}" if count is None else f"count_{count}"


def sizes_in(text: str) -> list[tuple[float | None, int | None]]:
    """ "frac_0.5,count_100" -> (0.5, None), (None, 100); UsageError: a word is neither."""
    found: list[tuple[float | None, int | None]] = []
    for word in text.split(","):
        kind, _, number = word.strip().partition("_")
        try:
            share = float(number) if kind == "frac" else None
            found.append((share, int(number) if kind == "count" else None))
        except ValueError:
            kind = ""
        if kind not in ("frac", "count"):
            raise UsageError(f"--sizes takes sizes such as frac_0.5,count_100, not {word!r}.")
    return found


def of_sizes(tasks: Sequence[Task], text: str) -> list[Task]:
    """Each task on data of each of the sizes in a text; see `sizes_in`."""
    sizes = sizes_in(text)
    return [
        dataclasses.replace(task, train_fraction=1.0 if share is None else share, train_count=count)
        for task in tasks
        for share, count in sizes
    ]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep. `model` is None for the teacher, which is no model of ours; of all that
    train one of `train_fraction` and `train_count` is a number.
    """

    task: str
    method: str
    model: str | None = None
    train_fraction: float | None = None
    train_count: int | None = None
    seed: int = 0

    @property
    def trains(self) -> bool:
        """Whether it has training data, and a seed."""
        return self.train_fraction is not None or self.train_count is not None

    @property
    def size(self) -> str:
        return size_name(self.train_fraction, self.train_count)

    @property
    def group(self) -> str:
        """Folder of all seeds, relative to the sweep's."""
        parts = self.task, self.model, self.method, self.size if self.trains else None
        return "/".join(filter(None, parts))

    @property
    def folder(self) -> str:
        """Folder of the run, relative to the sweep's."""
        return f"{self.group}/seed_{self.seed}" if self.trains else self.group

    def as_json(self) -> dict[str, Any]:
        """As in `sweep.json`."""
        return {"folder": self.folder, **dataclasses.asdict(self)}

    @staticmethod
    def from_json(saved: dict[str, Any]) -> "Cell":
        """A cell of `sweep.json`; UsageError: its folder would lie outside of the sweep's."""
        cell = Cell(**{f.name: saved[f.name] for f in dataclasses.fields(Cell)})
        check_name(cell.folder, "sweep.json")
        return cell


def cells_of(sweep: Sweep) -> list[Cell]:
    """The cells of a grid, in the order in which they are run: of each model, a seed's whole curve
    before the next seed's. The teacher's are first, where `Sweep.teacher` is set.
    """
    teachers = [Cell(task, TEACHER) for task in sweep.tasks if sweep.teacher]
    grid = product(sweep.tasks, sweep.models, sweep.seeds, sweep.sizes, sweep.methods)
    return teachers + [
        Cell(task, method, model, *size, seed) for task, model, seed, size, method in grid
    ]


def undistilled_cells(sweep: Sweep) -> list[Cell]:
    """The checkpoint of each task and model, where `Sweep.undistilled` is set."""
    pairs = product(sweep.tasks, sweep.models) if sweep.undistilled else ()
    ways = UNDISTILLED, FEW_SHOT
    return [Cell(task, way, model) for task, model in pairs for way in ways]
