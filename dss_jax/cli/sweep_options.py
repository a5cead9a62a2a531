"""Flags of `dss sweep` and `dss frontier`, and how a grid becomes checked runs."""

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dss_jax.cli import gin_config, options, train
from dss_jax.core import checks, config
from dss_jax.core.errors import UsageError
from dss_jax.core.sweep_config import TEACHER, Cell, Sweep, groups_of
from dss_jax.core.types import DistillationTask

if TYPE_CHECKING:
    from dss_jax.data.store import TokenStore
    from dss_jax.sweep.plan import Planned

PASSED = ("data_dir", "vocabulary", "store_dir", "rationales", "decode", "init_from", "extra_task")
"""Flags of `dss train` that go to every run; {task} and {model} in them are the run's own."""

OF_STUDENTS = ("init_from", "extra_task")
"""Those that the teacher's runs are not given."""

MOST_SHOWN = 10
"""Mistakes shown at once."""


def add_grid_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that say which grid, and what its runs have in common."""
    parser.add_argument("--models", metavar="A,B", help="names in gin_configs/models/")
    parser.add_argument("--fractions", metavar="X,Y", help="of the training split: 0.125,0.5,1")
    parser.add_argument("--seeds", metavar="N,N", help="of each cell (default: 0)")
    parser.add_argument(
        "--at_once", action="store_true", default=None,
        help="train the seeds of a cell at once, on one device: for small models",
    )  # fmt: skip
    parser.add_argument("--output_dir", help="folder of the sweep; it grows, and goes on")
    parser.add_argument(
        "--init_from", help="checkpoint of every run; {model} stands for the model's name"
    )
    parser.add_argument(
        "--extra_task", metavar="NAME", help="a task whose rows every run is trained on, too"
    )
    parser.add_argument("--decode", help="greedy (default), beam, sample or rank")
    options.add_data_flags(parser)
    options.add_rationales_flag(parser)
    options.add_gin_flags(parser)


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that say how many runs are at work at once."""
    parser.add_argument("--devices", metavar="0,1", help="GPUs to use (default: all)")
    parser.add_argument(
        "--devices_per_run", type=int, default=1, metavar="N", help="GPUs of each run (1)"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N",
        help="runs at once on each GPU, or on a machine without (1)",
    )  # fmt: skip


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(flag: str, text: str, kind: type) -> tuple:
    try:
        return tuple(kind(word) for word in _words(text))
    except ValueError:
        wanted = "whole numbers" if kind is int else "numbers"
        raise UsageError(f"--{flag} takes {wanted} with commas between, not {text!r}.") from None


@dataclass(frozen=True)
class Grid:
    """A sweep's configuration, and the flags that all its runs share."""

    sweep: Sweep
    output_dir: str
    args: argparse.Namespace
    bindings: tuple[str, ...]
    """"Train.steps = 300": what `--gin.` gives to every run."""

    @property
    def gin_files(self) -> list[str]:
        """As given."""
        return list(self.args.gin_file)

    def place(self, cell: Cell) -> str:
        """Folder of a cell's run."""
        return f"{self.output_dir.rstrip('/')}/{cell.folder}"

    def common_flags(self, cell: Cell) -> list[str]:
        """Flags of `dss train` that do not depend on the cell, but for {task} and {model}."""
        args, flags = self.args, []
        for name in PASSED:
            value = getattr(args, name)
            if value is None or (name in OF_STUDENTS and cell.model is None):
                continue
            flags += [f"--{name}", _filled(value, cell)]
        for folder in args.task_dir:
            flags += ["--task_dir", folder]
        for file in args.gin_file:
            flags += ["--gin_file", file]
        if args.gin_search_paths:
            flags += ["--gin_search_paths", args.gin_search_paths]
        return flags

    def flags(self, cell: Cell) -> list[str]:
        """Flags of `dss train` for a cell, without seed and output folder."""
        named = ["--task", cell.task, "--method", cell.method]
        own: list[str] = []
        if cell.model is not None:
            named += ["--model", cell.model]
            own = [b for model, b in self.sweep.model_bindings if model == cell.model]
        own += self.bindings
        if cell.model is not None:
            # Both, because a gin file may give one of them, and they exclude each other.
            own += [
                f"Task.train_fraction = {cell.train_fraction or 1.0!r}",
                f"Task.train_count = {cell.train_count!r}",
            ]
        return [*named, *self.common_flags(cell), *map(_gin_flag, own)]

    def seed_flags(self, cell: Cell) -> list[str]:
        """The cell's own; as in `dss train --seeds`, an order that was asked for is kept."""
        flags = [f"--gin.Train.seed={cell.seed}"]
        if not any(b.startswith("Data.seed ") for b in self.bindings):
            flags.append(f"--gin.Data.seed={cell.seed}")
        return flags


def _gin_flag(binding: str) -> str:
    name, _, value = binding.partition("=")
    return f"--gin.{name.strip()}={value.strip()}"


def _filled(text: str, cell: Cell) -> str:
    return text.replace("{task}", cell.task).replace("{model}", cell.model or "")


def read_grid(
    args: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser
) -> Grid:
    """Gin files and flags -> the grid. Flags win.

    Raises:
      UsageError: something is wrong or missing.
    """
    bindings = options.gin_bindings(rest, parser)
    given: dict[str, object] = {}
    for name in ("tasks", "methods", "models"):
        if getattr(args, name, None) is not None:
            given[name] = tuple(_words(getattr(args, name)))
    for name, kind in (("fractions", float), ("counts", int), ("seeds", int)):
        if getattr(args, name, None) is not None:
            given[name] = _numbers(name, getattr(args, name), kind)
    if args.at_once is not None:
        given["at_once"] = True
    if ("fractions" in given) != ("counts" in given):
        # A flag for one of them takes the place of both in a gin file.
        given |= {name: () for name in ("fractions", "counts") if name not in given}
    grid = [b for b in bindings if b.startswith("Sweep.")]
    search = [p for p in args.gin_search_paths.split(",") if p]
    sweep = gin_config.read(
        args.gin_file, [*(f"Sweep.{n} = {v!r}" for n, v in given.items()), *grid], search
    ).sweep()
    sweep.check_complete()
    if any(b.startswith("Train.seed ") for b in bindings):
        raise UsageError("give --seeds, not --gin.Train.seed: every cell has seeds of its own.")
    if args.output_dir is None:
        raise UsageError("no folder: give --output_dir DIR.")
    common = tuple(b for b in bindings if not b.startswith("Sweep."))
    return Grid(sweep, args.output_dir, args, common)


def resolve(
    grid: Grid, cells: Sequence[Cell]
) -> tuple[list["Planned"], dict[str, DistillationTask]]:
    """Cells -> checked runs, as the processes that train them will read the same flags.

    Args:
      grid: of the sweep.
      cells: of it; those of a group differ in their seeds only.

    Returns:
      The runs, and task name -> task.

    Raises:
      UsageError: what is wrong with which cell, for all that is.
    """
    from dss_jax.sweep.plan import Planned

    parser = argparse.ArgumentParser(prog="dss train", allow_abbrev=False)
    train.add_flags(parser)
    planned: dict[Cell, Planned] = {}
    tasks: dict[str, DistillationTask] = {}
    mistakes: dict[str, list[str]] = {}
    for group, members in groups_of(cells).items():
        flags = grid.flags(members[0])
        try:
            args, rest = parser.parse_known_args([*flags, *grid.seed_flags(members[0])])
            args.output_dir = grid.place(members[0])
            resolved = options.resolve(args, rest, parser)
            if resolved.run.method.form == "spans":
                raise UsageError(
                    "pre-training is no method of a sweep: dss train --method pretrain, and then "
                    "dss sweep --init_from its folder."
                )
            if grid.sweep.at_once:
                checks.whole_on_one_device(resolved.run.mesh)
        except UsageError as error:
            mistakes.setdefault(str(error), []).append(group)
            continue
        assert resolved.task is not None
        tasks[members[0].task] = resolved.task
        for cell in members:
            run = _of_cell(resolved.run, cell, grid)
            planned[cell] = Planned(cell, tuple(flags), tuple(grid.seed_flags(cell)), run)
    if mistakes:
        raise UsageError(_listed(mistakes))
    return [planned[cell] for cell in cells], tasks


def _of_cell(run: config.Run, cell: Cell, grid: Grid) -> config.Run:
    own_order = any(flag.startswith("--gin.Data.seed=") for flag in grid.seed_flags(cell))
    return dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, seed=cell.seed if own_order else run.data.seed),
        train=dataclasses.replace(run.train, seed=cell.seed, output_dir=grid.place(cell)),
    )


def _listed(mistakes: dict[str, list[str]]) -> str:
    """What is wrong, with the cells that it is wrong for."""
    lines = []
    for text, groups in list(mistakes.items())[:MOST_SHOWN]:
        more = f" and {len(groups) - 1} more" if len(groups) > 1 else ""
        lines.append(f"  {groups[0]}{more}: {text}")
    if len(mistakes) > MOST_SHOWN:
        lines.append(f"  ... and {len(mistakes) - MOST_SHOWN} other mistakes")
    return "nothing was started; these cells of the grid cannot be run:\n" + "\n".join(lines)


def make_stores(grid: Grid, planned: Sequence["Planned"]) -> dict[str, "TokenStore"]:
    """Makes the token stores that the runs share, and checks that they hold what is trained on.

    Returns:
      Task -> its store.

    Raises:
      UsageError: a task's data cannot be had, or lacks what a method needs.
    """
    from dss_jax.data.prepare import ensure_store

    stores: dict[str, TokenStore] = {}
    by_key: dict[tuple, TokenStore] = {}
    mistakes: dict[str, list[str]] = {}
    for one in planned:
        run = one.run
        task = dataclasses.replace(run.task, train_fraction=1.0, train_count=None)
        key = (task, run.vocabulary, run.data.store, run.data.store_dir)
        if key not in by_key:
            by_key[key] = ensure_store(
                task, run.vocabulary, run.data, task_dirs=grid.args.task_dir, need=("train",)
            )
        store = stores.setdefault(one.cell.task, by_key[key])
        problem = _lacking(store, one)
        if problem:
            mistakes.setdefault(problem, []).append(one.cell.group)
    if mistakes:
        raise UsageError(_listed(mistakes))
    return stores


def _lacking(store: "TokenStore", planned: "Planned") -> str | None:
    """What a run needs that its store does not have; None: nothing."""
    from dss_jax.layouts.batches import subset_rows

    if planned.cell.method == TEACHER:
        return None
    run = planned.run
    if run.method.uses_rationales and not store.has("rationale_targets"):
        return f"the data have no rationales, which --method {run.method.name} uses."
    if run.method.label == "teacher" and not store.has("teacher_label_targets"):
        return f"the data have no labels of a teacher, which --method {run.method.name} learns."
    try:
        subset_rows(len(store.split("train")), run.task)
    except UsageError as error:
        return str(error)
    return None


def without_teachers(
    planned: Sequence["Planned"], stores: dict[str, "TokenStore"]
) -> list["Planned"]:
    """The runs without the teachers that have labelled neither validation nor test."""
    return [
        one for one in planned if one.cell.method != TEACHER or _has_teacher(stores[one.cell.task])
    ]


def _has_teacher(store: "TokenStore") -> bool:
    if not store.has("teacher_label_targets"):
        return False
    judged = [name for name in ("validation", "test") if name in store.splits]
    return any(any(store.split(name).text("teacher_label")[:]) for name in judged)
