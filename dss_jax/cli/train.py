"""Train a student and score the best checkpoint on the test split.

  dss train --task cqa --method dss --model t5_1_1_base --output_dir runs/cqa
  dss train --task cqa --method dss --model t5_1_1_base --output_dir runs/cqa --seeds 0,1,2,3
  dss train --task cqa --method dss --model t5_1_1_base --output_dir runs/cqa --engine t5x

The same output folder goes on where it stopped. Ctrl-C saves first. On several hosts the same
command runs on each: docs/multi_host.md.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dss_jax.cli import options
from dss_jax.core import config, processes
from dss_jax.core.startup import StartClock

if TYPE_CHECKING:
    from dss_jax.data.store import TokenStore


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    options.add_run_flags(parser)
    options.add_process_flags(parser)
    parser.add_argument(
        "--seeds", metavar="N,N",
        help="train these seeds in turn, each in OUTPUT_DIR/seed_N; they set Train.seed and "
        "Data.seed (give --gin.Data.seed to keep one order for all)",
    )  # fmt: skip
    parser.add_argument(
        "--profile",
        metavar="START:STOP",
        help="trace the steps START to STOP - 1 for xprof, into OUTPUT_DIR/tensorboard",
    )
    parser.set_defaults(needs_model=True)


def parse_seeds(text: str, rest: Sequence[str]) -> list[int]:
    """ "0,1,2" -> [0, 1, 2].

    Raises:
      UsageError: not whole numbers, the same one twice, or Train.seed is given too.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise options.UsageError(f"--seeds takes whole numbers, as in 0,1,2,3, not {text!r}.")
    seeds = [int(word) for word in words]
    if len(set(seeds)) < len(seeds):
        raise options.UsageError(f"--seeds {text} has a seed twice.")
    if any(flag.startswith("--gin.Train.seed=") for flag in rest):
        raise options.UsageError("give --seeds or --gin.Train.seed, not both.")
    return seeds


def parse_profile(text: str, steps: int) -> tuple[int, int]:
    """ "10:15" -> (10, 15).

    Raises:
      UsageError: not two step numbers of the run, the smaller first.
    """
    start, colon, stop = text.partition(":")
    if not (colon and start.isdecimal() and stop.isdecimal() and int(start) < int(stop) <= steps):
        raise options.UsageError(
            f"--profile takes START:STOP with 0 <= START < STOP <= {steps} (Train.steps), for "
            f"example 10:15 for the steps 10 to 14, not {text!r}."
        )
    return int(start), int(stop)


def _open_store(resolved: options.Resolved) -> "TokenStore":
    """The token store, made where there is none; the processes check what they have in common."""
    from dss_jax.data.prepare import ensure_store
    from dss_jax.layouts.summary import report_cuts
    from dss_jax.run.hosts import check_settings, check_store

    run = resolved.run
    check_settings(run)
    store = processes.all_or_raise(
        lambda: ensure_store(
            run.task, run.vocabulary, run.data, task_dirs=resolved.task_dirs, need=("train",)
        )
    )
    check_store(store)
    if run.method.form != "spans":  # Its pieces fit.
        report_cuts(store, run.data)
    return store


def _check(run: config.Run, seeds: list[int] | None) -> None:
    """Raises UsageError for what cannot be run, before the store is made and JAX starts."""
    if run.train.output_dir is None:
        raise options.UsageError("no output folder: give --output_dir DIR.")

    from dss_jax.run.run_folder import check_output_dir

    check_output_dir(run.train.output_dir)
    if seeds is not None and run.train.engine == "t5x":
        raise options.UsageError("--seeds trains with our own loop: leave --engine t5x out.")
    if run.train.engine == "t5x":
        if processes.count() > 1:
            raise options.UsageError(
                "--engine t5x runs in one process. On several hosts run python -m t5x.train with "
                "gin_configs/t5x/finetune.gin: docs/t5x.md."
            )
        from dss_jax.core.environment import check_for_t5x, require_t5x

        require_t5x()
        check_for_t5x(run)


def main(args: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Runs the command."""
    clock = StartClock()
    seeds = None if args.seeds is None else parse_seeds(args.seeds, rest)
    variables = dict(os.environ)
    if args.engine == "t5x" or any("Train.engine=" in flag and "t5x" in flag for flag in rest):
        # T5X's process takes the accelerator; one process at a time can have it.
        os.environ["JAX_PLATFORMS"] = "cpu"
    options.start_processes(args)
    resolved = processes.all_or_raise(lambda: options.resolve(args, rest, parser))
    run = resolved.run
    _check(run, seeds)
    if args.profile is not None and (seeds is not None or run.train.engine == "t5x"):
        raise options.UsageError("--profile is for one run of our own loop: leave --seeds out.")
    profile = None if args.profile is None else parse_profile(args.profile, run.train.steps)
    processes.say(config.to_gin(run))
    clock.lap("imports")

    store = _open_store(resolved)
    clock.lap("store")

    from dss_jax.core.scoring import TEXT_ACCURACY

    scorer = resolved.task.scorer if resolved.task else TEXT_ACCURACY

    from dss_jax.cli.tables import print_seeds
    from dss_jax.run import other_engine, single
    from dss_jax.run import seeds as several
    from dss_jax.train.loop import Interrupted

    clock.lap("imports")
    if not run.method.trains:
        from dss_jax.run import teacher_run

        results = teacher_run.score(run, store, scorer)
        _print_scores(
            f"{run.task.shown_name}, the teacher's own labels: {results['metric']}", results
        )
        return 0
    try:
        if seeds is not None:
            same_order = any(flag.startswith("--gin.Data.seed=") for flag in rest)
            runs = several.seed_runs(run, seeds, same_order)
            numbers = several.train(runs, store, scorer, clock)
            if processes.is_first():
                print_seeds(f"{run.task.shown_name}, {run.method.name}", numbers)
                print(f"curves: {run.train.output_dir}/curves.png")
            return 0
        if run.train.engine == "t5x":
            results = other_engine.train(run, store, resolved.task_dirs, variables)
        else:
            results = single.train(run, store, scorer, clock, profile)
    except Interrupted as stop:
        again = f"dss {shlex.join(sys.argv[1:])}"
        processes.say(f"\n{stop}. To go on, give the same command again:\n  {again}")
        return 130
    if processes.is_first():
        _report(run, results)
    return 0


def _print_scores(title: str, results: dict) -> None:
    from dss_jax.cli.tables import print_scores

    scores = {name: results[name] for name in ("validation", "test") if name in results}
    print_scores(title, scores, results["metric"])


def _report(run: config.Run, results: dict) -> None:
    which = "the best on validation" if "validation" in results else "the last"
    _print_scores(
        f"{run.task.shown_name}, {run.method.name}: {results['metric']} of step "
        f"{results['best_step']}, {which}",
        results,
    )
    print(f"curves: {run.train.output_dir}/curves.png")
