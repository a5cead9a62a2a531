"""Flags of `dss sweep` and `dss frontier`, and how a grid becomes checked runs."""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from dss_jax.cli import gin_config, options
from dss_jax.core import config, storage
from dss_jax.core.errors import UsageError
from dss_jax.core.sweep_config import FEW_SHOT, TEACHER, Cell, Sweep, undistilled_cells
from dss_jax.run.changes import with_seed
from dss_jax.sweep import plan as sweep_plan
from dss_jax.sweep.devices import Environment, slots, slots_of_small
from dss_jax.sweep.plan import Job, Planned

if TYPE_CHECKING:
    from dss_jax.data.store import TokenStore

OF_STUDENTS = ("init_from", "extra_task")
"""Flags that the teacher's runs are not given."""

KINDS = {
    "tasks": str,
    "methods": str,
    "models": str,
    "fractions": float,
    "counts": int,
    "seeds": int,
}
"""Flags with commas between values, which are of this kind."""

MOST_SHOWN = 10
"""Mistakes shown at once."""

Mistakes = dict[str, list[str]]
"""What is wrong -> the groups of cells that it is wrong for."""


def add_grid_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that say which grid, what its runs have in common, and how many are at work at once."""
    add = parser.add_argument
    add("--models", metavar="A,B", help="names in gin_configs/models/")
    add("--fractions", metavar="X,Y", help="of the training split: 0.125,0.5,1")
    add("--seeds", metavar="N,N", help="of each cell (default: 0)")
    text = "one process for the seeds of a cell, in turn: it compiles once"
    add("--at_once", action="store_true", help=text)
    add_common_flags(parser)


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that say what all runs have in common, and how many are at work at once."""
    add = parser.add_argument
    add("--output_dir", help="folder of the runs; it grows, and goes on")
    add("--init_from", help="checkpoint of every run; {model} stands for the model's name")
    add("--extra_task", metavar="NAME", help="a task whose rows every run is trained on, too")
    add("--decode", help="greedy (default), beam, sample or rank")
    options.add_data_flags(parser)
    options.add_rationales_flag(parser)
    options.add_gin_flags(parser)
    add("--devices", metavar="0,1", help="GPUs to use (default: all)")
    add("--devices_per_run", metavar="N", type=int, default=1, help="GPUs of each run (1)")
    text = "runs at once on each GPU, or on a machine without (1; of small models one a core)"
    add("--jobs", metavar="N", type=int, help=text)


SMALL = 256
"""Widest model whose runs have a core each. Two runs of width 128 side by side got 1.3 (dss) to 1.9
(standard) times the examples a second of one on both cores; of width 256, 1.2 to 1.3 times.
"""


def places(args: argparse.Namespace, planned: Iterable[Planned], most: int) -> list[Environment]:
    """What each of the runs that are at work at the same time has of its own, by the flags; without
    them a core for each of up to `most`, where all models are small and there is neither a GPU nor
    a TPU.
    """
    sizes = [one.run.model.emb_dim for one in planned if one.cell.model is not None]
    unsaid = args.jobs is None and args.devices is None and args.devices_per_run == 1
    if unsaid and max(sizes, default=SMALL) <= SMALL:
        return slots_of_small(max(1, most))
    return slots(args.devices, args.devices_per_run, 1 if args.jobs is None else args.jobs)


@dataclass(frozen=True)
class Grid:
    """A sweep's configuration, and what all its runs share."""

    sweep: Sweep
    folder: Path
    args: argparse.Namespace
    bindings: tuple[str, ...]
    """"Train.steps = 300": what `--gin.` gives to every run."""

    def place(self, cell: Cell) -> str:
        return f"{self.args.output_dir.rstrip('/')}/{cell.folder}"

    def bindings_of(self, cell: Cell) -> list[str]:
        """The settings of a cell, but for its seed."""
        left_out = ("output_dir", *(OF_STUDENTS if cell.model is None else ()))
        named = {"{task}": cell.task, "{model}": cell.model or ""}
        found = options.flag_bindings(self.args, left_out)
        for name, text in named.items():
            found = [binding.replace(name, text) for binding in found]
        found += [b for model, b in self.sweep.model_bindings if model == cell.model]
        found += self.bindings
        if cell.model is not None:
            # Both, because a gin file may give one of them, and they exclude each other.
            found.append(f"Task.train_fraction = {cell.train_fraction or 1.0!r}")
            found.append(f"Task.train_count = {cell.train_count!r}")
        return [*found, f"Train.output_dir = {self.place(cell)!r}"]

    def jobs(self, planned: Sequence[Planned]) -> list[Job]:
        sweep, dirs = self.sweep, self.args.task_dir
        return sweep_plan.jobs_of(self.folder, planned, sweep.sizes, sweep.at_once, dirs)


def _values(flag: str, text: str, kind: type) -> tuple:
    try:
        return tuple(kind(word.strip()) for word in text.split(",") if word.strip())
    except ValueError:
        wanted = "whole numbers" if kind is int else "numbers"
        raise UsageError(f"--{flag} takes {wanted} with commas between, not {text!r}.") from None


def read_grid(args: argparse.Namespace, **own_flags: str) -> Grid:
    """Gin files and flags -> the grid; flags win. Raises UsageError for what is wrong; `own_flags`:
    see `Sweep.check_complete`.
    """
    given: dict[str, object] = {}
    for name, kind in KINDS.items():
        if (text := getattr(args, name, None)) is not None:
            given[name] = _values(name, text, kind)
    if args.at_once:
        given["at_once"] = True
    # A flag for one of them takes the place of both in a gin file.
    sizes = {"fractions": (), "counts": ()} if given.keys() & {"fractions", "counts"} else {}
    own = [b for b in args.bindings if b.startswith("Sweep.")]
    flags = [f"Sweep.{name} = {value!r}" for name, value in (sizes | given).items()]
    sweep = gin_config.read(args.gin_file, flags + own, options.search_paths(args)).sweep()
    for name, value in given.items():
        if getattr(sweep, name) != value:
            raise UsageError(f"leave out --gin.Sweep.{name}: the command's own flags say it.")
    sweep.check_complete(**own_flags)
    common = tuple(b for b in args.bindings if b not in own)
    if any(b.startswith("Train.seed ") for b in common):
        raise UsageError("give --seeds, not --gin.Train.seed: every cell has seeds of its own.")
    if args.output_dir is None:
        raise UsageError("no folder: give --output_dir DIR.")
    if own_flags and storage.is_remote(args.output_dir):  # Only a sweep's runs may be elsewhere.
        raise UsageError(f"--output_dir {args.output_dir}: give a local folder.")
    return Grid(sweep, storage.place(args.output_dir), args, common)


def plan(grid: Grid, cells: Sequence[Cell]) -> tuple[list[Planned], list[Cell]]:
    """Cells -> checked runs; and other cells of the sweep's folder whose runs have begun: a part of
    its grid.

    Raises:
      UsageError: what is wrong with which cell, for all that is; or the folder's runs were begun
        with other settings.
    """
    before = sweep_plan.begun_before(grid.folder, cells)
    planned = resolve(grid, [*cells, *before])
    sweep_plan.check_settings(grid.folder, planned)
    return planned[: len(cells)], before


def resolve(grid: Grid, cells: Sequence[Cell]) -> list[Planned]:
    """The checked runs of cells; those of a group differ in their seeds only."""
    firsts: dict[str, Cell] = {}
    for cell in cells:
        firsts.setdefault(cell.group, cell)
    of_group: dict[str, options.Resolved] = {}
    mistakes: Mistakes = {}
    for group, cell in firsts.items():
        try:
            bindings = grid.bindings_of(cell)
            found = options.named_run(grid.args, cell.task, cell.method, cell.model, bindings)
            if found.run.method.form == "spans":
                raise UsageError(
                    "pre-training is no method of a sweep: dss train --method pretrain, and then "
                    "dss sweep --init_from its folder."
                )
            of_group[group] = found
        except UsageError as error:
            mistakes.setdefault(str(error), []).append(group)
    _refuse(mistakes)
    # An order that was asked for is kept, as in `dss train --seeds`.
    same_order = any(b.startswith("Data.seed ") for b in grid.bindings)
    planned = []
    for cell in cells:
        one = of_group[cell.group]
        run = with_seed(one.run, cell.seed, grid.place(cell), same_order)
        planned.append(Planned(cell, run, one.vocabulary))
    return planned


def _refuse(mistakes: Mistakes) -> None:
    """Raises UsageError with what is wrong, and the cells that it is wrong for."""
    if not mistakes:
        return
    lines = ["nothing was started; these cells of the grid cannot be run:"]
    for text, groups in list(mistakes.items())[:MOST_SHOWN]:
        more = f" and {len(groups) - 1} more" if len(groups) > 1 else ""
        lines.append(f"  {groups[0]}{more}: {text}")
    if len(mistakes) > MOST_SHOWN:
        lines.append(f"  ... and {len(mistakes) - MOST_SHOWN} other mistakes")
    raise UsageError("\n".join(lines))


def make_stores(grid: Grid, planned: Sequence[Planned]) -> dict[str, "TokenStore"]:
    """Makes the token stores that the runs share: task -> store. Raises UsageError where a task's
    data cannot be had, or have fewer rows than are asked for.
    """
    from dss_jax.data.prepare import ensure_store
    from dss_jax.layouts.batches import subset_rows

    made = cache(partial(ensure_store, task_dirs=grid.args.task_dir, need=("train",)))
    stores: dict[str, TokenStore] = {}
    mistakes: Mistakes = {}
    for one in planned:
        run = one.run
        # What runs differ in and their stores do not is left out.
        task = replace(
            run.task, train_fraction=1.0, train_count=None, subset_seed=0, fresh_subsets=False
        )
        data = config.Data(store=run.data.store, store_dir=run.data.store_dir)
        store = stores.setdefault(one.cell.task, made(task, run.vocabulary, data))
        try:
            if run.method.trains:
                subset_rows(len(store.split("train")), run.task)
        except UsageError as error:
            mistakes.setdefault(str(error), []).append(one.cell.group)
    _refuse(mistakes)
    return stores


def undistilled(grid: Grid) -> list[Planned]:
    """The checkpoints that runs start from, to be scored; none where they start from nothing."""
    planned = resolve(grid, undistilled_cells(grid.sweep))
    return [one for one in planned if one.run.train.init_from is not None]


def without_teachers(planned: Sequence[Planned], stores: dict[str, "TokenStore"]) -> list[Planned]:
    """The runs without the teachers that have labelled neither validation nor test, and without
    the checkpoints in front of whose inputs no exemplar fits.
    """

    def stays(one: Planned) -> bool:
        store = stores[one.cell.task]
        if one.cell.method == FEW_SHOT:
            from dss_jax.data.few_shot import FewShotStore

            return FewShotStore(store, one.run).mean > 0
        if one.cell.method != TEACHER:
            return True
        judged = [name for name in ("validation", "test") if name in store.splits]
        return any(any(store.split(name).text("teacher_label")[:]) for name in judged)

    return [one for one in planned if stays(one)]
