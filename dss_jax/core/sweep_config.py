"""The configuration of a sweep: the grid whose cells are runs. Standard library only."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dss_jax.core.checks import at_least, between, flag
from dss_jax.core.errors import UsageError

TEACHER = "teacher"
"""The method that trains nothing: one cell a task, whatever the grid."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The grid: every task with every model, method, size of the training data and seed.

    Attributes:
      tasks: names of task files.
      methods: names in gin_configs/methods.
      models: names in gin_configs/models.
      fractions: shares of the training split, each in (0, 1]; without these and `counts`: 1.
      counts: numbers of training examples, beside the fractions or in their place.
      seeds: of each cell's runs: Train.seed and Data.seed.
      at_once: whether the seeds of a cell are trained at once, on one device, by one process.
      teacher: whether the teacher's own labels are scored, too, where a task has them.
      model_bindings: (model, "Train.steps = 4_000"), settings for the runs of one model only.
    """

    tasks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("standard", "dss")
    models: tuple[str, ...] = ()
    fractions: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0,)
    at_once: bool = False
    teacher: bool = True
    model_bindings: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name in ("tasks", "methods", "models", "fractions", "counts", "seeds"):
            _check_list(f"Sweep.{name}", getattr(self, name))
        for name in ("tasks", "methods", "models"):
            for value in getattr(self, name):
                if not isinstance(value, str) or not value or "/" in value:
                    raise UsageError(f"Sweep.{name} must hold names, not {value!r}.")
        if TEACHER in self.methods:
            raise UsageError(
                "leave the method 'teacher' out of Sweep.methods: it is scored once a task anyway "
                "(Sweep.teacher = False: it is not)."
            )
        for fraction in self.fractions:
            between("a fraction in Sweep.fractions", fraction, 0, 1)
            if not fraction:
                raise UsageError("a fraction in Sweep.fractions must be above 0.")
        for count in self.counts:
            at_least("a count in Sweep.counts", count, 1)
        for seed in self.seeds:
            at_least("a seed in Sweep.seeds", seed, 0)
        flag("Sweep.at_once", self.at_once)
        flag("Sweep.teacher", self.teacher)
        self._check_model_bindings()

    def _check_model_bindings(self) -> None:
        for pair in self.model_bindings:
            if not isinstance(pair, tuple | list) or len(pair) != 2 or "=" not in pair[1]:
                raise UsageError(
                    'Sweep.model_bindings must hold pairs such as ("t5_1_1_xxl", "Train.steps = '
                    f'4_000"), not {pair!r}.'
                )

    @property
    def sizes(self) -> tuple[tuple[float | None, int | None], ...]:
        """(fraction, None) and (None, count), in the order given."""
        fractions = self.fractions if self.fractions or self.counts else (1.0,)
        return (*((f, None) for f in fractions), *((None, c) for c in self.counts))

    def check_complete(self) -> None:
        """Raises UsageError where a side of the grid is empty."""
        for name in ("tasks", "methods", "models", "seeds"):
            if not getattr(self, name):
                raise UsageError(
                    f"the grid has no {name}: give --{name} A,B or Sweep.{name} in a gin file."
                )


def _check_list(name: str, values: Any) -> None:
    if not isinstance(values, tuple | list):
        raise UsageError(f"{name} must be a list such as ({values!r},), not {values!r}.")
    twice = [v for i, v in enumerate(values) if v in values[:i]]
    if twice:
        raise UsageError(f"{name} has {twice[0]!r} twice.")


def from_values(values: dict[str, Any]) -> Sweep:
    """A sweep from what gin has read: lists become tuples."""
    whole: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Sweep(**whole)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a sweep.

    Attributes:
      task, method: names.
      model: name; None for the teacher, which is no model of ours.
      train_fraction, train_count: one of them is a number, the other None; of the teacher, none.
      seed: of the run.
    """

    task: str
    method: str
    model: str | None = None
    train_fraction: float | None = None
    train_count: int | None = None
    seed: int = 0

    @property
    def size(self) -> str:
        """How much of the training data, as in the name of a folder."""
        if self.train_count is not None:
            return f"count_{self.train_count}"
        return f"frac_{self.train_fraction:.12g}"

    @property
    def group(self) -> str:
        """Folder of all seeds, relative to the sweep's."""
        if self.model is None:
            return f"{self.task}/{self.method}"
        return f"{self.task}/{self.model}/{self.method}/{self.size}"

    @property
    def folder(self) -> str:
        """Folder of the run, relative to the sweep's."""
        return self.group if self.model is None else f"{self.group}/seed_{self.seed}"

    def as_json(self) -> dict[str, Any]:
        """As in `sweep.json`."""
        return {"folder": self.folder, **dataclasses.asdict(self)}

    @staticmethod
    def from_json(saved: dict[str, Any]) -> "Cell":
        """A cell of `sweep.json`."""
        return Cell(**{f.name: saved[f.name] for f in dataclasses.fields(Cell)})


def cells_of(sweep: Sweep) -> list[Cell]:
    """The cells of a grid, in the order in which they are run: of each model, a seed's whole curve
    before the next seed's. The teacher's are first, where `Sweep.teacher` is set.
    """
    teachers = [Cell(task=task, method=TEACHER) for task in sweep.tasks if sweep.teacher]
    return teachers + [
        Cell(
            task=task, method=method, model=model, train_fraction=fraction, train_count=count,
            seed=seed,
        )
        for task in sweep.tasks
        for model in sweep.models
        for seed in sweep.seeds
        for fraction, count in sweep.sizes
        for method in sweep.methods
    ]  # fmt: skip


def groups_of(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Folder of all seeds -> the cells in it, in order."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.group, []).append(cell)
    return found
