"""Score a trained student, and write its predictions.

dss eval --output_dir runs/cqa --split test --rationales
dss eval --output_dir runs/cqa --decode rank
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

from dss_jax.cli import options, saved_run
from dss_jax.core import config, processes
from dss_jax.core.errors import UsageError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    parser.add_argument("--output_dir", required=True, help="folder of the run")
    parser.add_argument("--split", action="append", help="train, validation, test (default: test)")
    parser.add_argument("--checkpoint", default="best", help="best, latest or a step")
    parser.add_argument("--rationales", action="store_true", help="generate rationales too")
    parser.add_argument(
        "--decode", help="greedy, beam, sample or rank (the most probable allowed label)"
    )
    parser.add_argument("--limit", type=int, help="score the first so many rows only")
    parser.add_argument("--store", help="one token store to use as it is")
    options.add_data_flags(parser)
    options.add_process_flags(parser)
    parser.add_argument("--gin.NAME", metavar="VALUE", dest="gin_example", help="a binding")


def _resolve(
    args: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser
) -> config.Run:
    """The configuration of the run, with what the flags change."""
    from dss_jax.run import run_folder

    # Here --rationales asks for predicted ones; the run's configuration has its record files.
    bindings = options.flag_bindings(args, leave_out=("output_dir", "rationales"))
    bindings += options.gin_bindings(rest, parser)
    folder = run_folder.check_output_dir(args.output_dir)
    run = saved_run.resolve(folder, args.vocabulary, bindings)
    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit must be at least 1, not {args.limit}.")
    return replace(run, evaluate=replace(run.evaluate, generate_rationales=args.rationales))


def main(args: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Runs the command."""
    options.start_processes(args)
    run = processes.all_or_raise(lambda: _resolve(args, rest, parser))
    splits = [{"valid": "validation"}.get(s, s) for s in args.split or ["test"]]

    from dss_jax.cli.tables import print_scores
    from dss_jax.run import run_folder, score

    folder = run_folder.check_output_dir(args.output_dir)
    with run_folder.locked(folder):
        session = saved_run.reopen(run, folder, args.task_dir, splits)
        step, scores = score.score(session, splits, args.checkpoint, args.rationales, args.limit)
    if not processes.is_first():
        return 0
    metric = session.evaluator.metric
    print_scores(
        f"{run.task.shown_name}, {run.method.name}: {metric} of step {step}", scores, metric
    )
    for split in splits if run.method.form != "spans" else ():
        file = score.predictions_name(run, split, step, args.limit)
        print(f"predictions: {folder / run_folder.PREDICTIONS / file}")
    return 0
