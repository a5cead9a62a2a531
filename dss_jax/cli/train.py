"""Train a student and score the best checkpoint on the test split.

  dss train --task cqa --method dss --model t5_1_1_base --output_dir runs/cqa
  dss train --task cqa --method dss --model t5_1_1_base --output_dir runs/cqa --seeds 0,1,2,3
  dss train --task cqa --method dss --model t5_1_1_base --output_dir runs/cqa --engine t5x

The same output folder goes on where it stopped. Ctrl-C saves first. On several hosts the same
command runs on each: docs/multi_host.md.
"""

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from dss_jax.cli import options
from dss_jax.core import config, processes, registry
from dss_jax.core.errors import UsageError
from dss_jax.core.startup import StartClock

if TYPE_CHECKING:
    from dss_jax.data.store import TokenStore

log = logging.getLogger(__name__)


def add_flags(parser: argparse.ArgumentParser) -> None:
    options.add_run_flags(parser)
    options.add_process_flags(parser)
    seeds = (
        "train these seeds in turn, each in OUTPUT_DIR/seed_N; they set Train.seed and Data.seed "
        "(give --gin.Data.seed to keep one order for all)"
    )
    profile = "trace the steps START to STOP - 1 for xprof, into OUTPUT_DIR/tensorboard"
    sizes = "sizes of data, as frac_0.5,count_100, on which other runs find what this one compiles"
    parser.add_argument("--seeds", metavar="N,N", help=seeds)
    parser.add_argument("--sizes", metavar="SIZE,SIZE", help=sizes)
    parser.add_argument("--profile", metavar="START:STOP", help=profile)
    parser.set_defaults(needs_model=True)


def _seeds(args: argparse.Namespace) -> list[int]:
    from dss_jax.run.seeds import seeds_of

    if _given(args, "Train.seed"):
        raise UsageError("give --seeds or --gin.Train.seed, not both.")
    return seeds_of(args.seeds)


def _given(args: argparse.Namespace, setting: str) -> bool:
    return any(binding.startswith(f"{setting} =") for binding in args.bindings)


def _open_store(
    args: argparse.Namespace, run: config.Run, runs: Sequence[config.Run]
) -> "TokenStore":
    """The token store, made where there is none and none of the runs has trained on another; the
    processes check what they have in common.
    """
    from dss_jax.data.prepare import ensure_store
    from dss_jax.layouts import health
    from dss_jax.run import trained_on

    def open_store() -> "TokenStore":
        before, dirs = partial(trained_on.refuse_other, runs), args.task_dir
        where = run.task, run.vocabulary, run.data
        return ensure_store(*where, task_dirs=dirs, need=("train",), before=before)

    if processes.count() > 1:
        from dss_jax.run.hosts import same_store

        store = same_store(run, open_store)
    else:
        store = open_store()
    health.say_and_check(run, store)
    if run.task.record_files and run.data.store is None:
        trained_on.warn_of_prompts(run.task, args.task_dir)
    return store


def _check(args: argparse.Namespace, run: config.Run) -> None:
    """Raises UsageError for what cannot be run, before the store is made and JAX starts."""
    if run.train.output_dir is None:
        raise UsageError("no output folder: give --output_dir DIR.")

    from dss_jax.run.run_folder import check_output_dir

    check_output_dir(run.train.output_dir)
    if run.method.form == "undistilled" and run.train.init_from is None:
        raise UsageError(f"--method {run.method.name} scores a checkpoint: give --init_from.")
    if args.seeds is not None and not (run.method.trains or run.method.exemplars):
        raise UsageError(f"--method {run.method.name} draws nothing: leave --seeds out.")
    t5x = run.train.engine == "t5x" and run.method.trains
    if args.seeds is not None and t5x:
        raise UsageError("--seeds trains with our own loop: leave --engine t5x out.")
    if t5x:
        from dss_jax.core import environment

        environment.require_t5x(processes=processes.count())
        environment.check_for_t5x(run)
    if args.sizes is not None and t5x:
        raise UsageError("--sizes is for our own loop: leave --engine t5x out.")
    if args.profile is not None and (args.seeds is not None or t5x):
        raise UsageError("--profile is for one run of our own loop: leave --seeds out.")


def _runs(args: argparse.Namespace, run: config.Run, seeds: Sequence[int] | None) -> list:
    """One, or one a seed. UsageError: the folder of one holds another run that has trained."""
    runs = [run]
    if seeds is not None:
        from dss_jax.run.seeds import seed_runs

        runs = seed_runs(run, seeds, _given(args, "Data.seed"))
    from dss_jax.run.changes import check_settings

    processes.broadcast_from_first(lambda: [*map(check_settings, runs)])
    return runs


def main(args: argparse.Namespace) -> int:
    clock = StartClock()
    seeds = None if args.seeds is None else _seeds(args)
    variables = dict(os.environ)
    if args.engine == "t5x" or any("Train.engine " in b and "t5x" in b for b in args.bindings):
        # T5X's process takes the accelerator; one process at a time can have it.
        os.environ["JAX_PLATFORMS"] = "cpu"
    options.start_processes(args)
    run = processes.all_or_raise(lambda: options.resolve(args)).run
    _check(args, run)
    runs = _runs(args, run, seeds)
    subsets: Sequence[config.Task] = ()
    if args.sizes is not None:
        from dss_jax.core.sweep_config import of_sizes

        subsets = of_sizes([one.task for one in runs], args.sizes)
    profile = None
    if args.profile is not None:
        from dss_jax.train.tracing import steps_of

        profile = steps_of(args.profile, run.train.steps)
    log.debug(config.to_gin(run))
    clock.lap("imports")

    store = _open_store(args, run, runs)
    clock.lap("store")

    from dss_jax.run import single
    from dss_jax.train.loop import Interrupted

    clock.lap("imports")
    scorer = registry.scorer_of(run.task.name, args.task_dir)
    try:
        if not run.method.trains:
            from dss_jax.run import teacher_run, undistilled_run
            from dss_jax.run.seeds import summary

            scoring = teacher_run if run.method.form == "teacher" else undistilled_run
            found = {one.train.seed: scoring.score(one, store, scorer) for one in runs}
            results = found[run.train.seed] if seeds is None else summary(found)
        elif seeds is not None:
            from dss_jax.run import seeds as several

            results = several.train(runs, store, scorer, clock, subsets)
        elif run.train.engine == "t5x":
            from dss_jax.run import other_engine

            results = other_engine.train(run, store, args.task_dir, variables)
        else:
            results = single.train(run, store, scorer, clock, profile, subsets)
    except Interrupted as stop:
        again = f"dss {shlex.join(sys.argv[1:])}"
        log.info(f"\n{stop}. To go on, give the same command again:\n  {again}")
        return stop.status
    if processes.is_first():
        from dss_jax.cli.tables import print_results

        print_results(run, results)
    return 0
