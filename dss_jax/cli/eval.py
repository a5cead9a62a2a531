"""Score a trained student, and write its predictions.

dss eval --output_dir runs/cqa --split test --rationales
dss eval --output_dir runs/cqa --decode rank
dss eval --output_dir runs/cqa --rationales --reader runs/pinto
"""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from dss_jax.cli import options, saved_run
from dss_jax.cli.tables import print_scores
from dss_jax.core import config, processes
from dss_jax.core.checks import at_least
from dss_jax.core.errors import UsageError

if TYPE_CHECKING:
    from dss_jax.student.student import Student


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--output_dir", required=True, help="folder of the run")
    add("--split", action="append", help="train, validation, test (default: test)")
    add("--checkpoint", default="best", help="best, latest or a step")
    add("--rationales", action="store_true", help="generate rationales too")
    text = "a student of method pinto, which reads the rationales and says the student's label"
    add("--reader", metavar="DIR", help=text)
    add("--decode", help="greedy, beam, sample or rank (the most probable allowed label)")
    add("--limit", type=int, help="score the first so many rows only")
    add("--store", help="one token store to use as it is")
    add("--mixture_or_task_module", help="the Python module that registers its SeqIO task")
    options.add_data_flags(parser)
    options.add_process_flags(parser)
    options.add_gin_flags(parser, files=False)


def _resolve(args: argparse.Namespace) -> config.Run:
    """The configuration of the run, with what the flags change."""
    from dss_jax.run import run_folder

    # Here --rationales asks for predicted ones; the run's configuration has its record files.
    bindings = options.flag_bindings(args, leave_out=("output_dir", "rationales")) + args.bindings
    run = saved_run.resolve(run_folder.check_output_dir(args.output_dir), args.vocabulary, bindings)
    if args.limit is not None:
        at_least("--limit", args.limit, 1)
    return replace(run, evaluate=replace(run.evaluate, generate_rationales=args.rationales))


def _reader(args: argparse.Namespace, run: config.Run) -> "Student":
    from dss_jax.student.load import load
    from dss_jax.student.reading import warn_of_task
    from dss_jax.student.telling import check_reads

    if not (args.rationales or run.method.joint):
        raise UsageError("--reader reads what the student writes: give --rationales, too.")
    if processes.count() > 1:
        raise UsageError("--reader is for one process: leave it out, or score on one machine.")
    reader = load(args.reader)
    check_reads(reader)
    warn_of_task(reader, run.task.shown_name)
    return reader


def main(args: argparse.Namespace) -> None:
    options.start_processes(args)
    run = processes.all_or_raise(lambda: _resolve(args))
    reader = _reader(args, run) if args.reader else None
    splits = list(map(options.split_of, args.split or ["test"]))

    from dss_jax.run import rescore, run_folder, score

    folder = run_folder.check_output_dir(args.output_dir)
    with run_folder.locked(folder):
        session = saved_run.reopen(run, folder, args.task_dir, splits)
        step, scores = rescore.score(session, splits, args.checkpoint, args.rationales, args.limit)
        if reader:
            from dss_jax.student.reading import read_file

            for split in splits:
                file = score.predictions_file(session, split, step, args.limit)
                same = session.evaluator.scorer.correct
                read_file(reader, file, session.store.split(split), same)
    if not processes.is_first():
        return
    metric = session.evaluator.metric
    if scored := {split: numbers for split, numbers in scores.items() if metric in numbers}:
        title = f"{run.task.shown_name}, {run.method.name}: {metric} of step {step}"
        print_scores(title, scored, metric)
    for split in [split for split in scores if split not in scored]:
        print(f"{split}: {scores[split]['examples']:,} rows predicted; none has a gold label")
    for split in splits if run.method.form != "spans" else ():
        print(f"predictions: {score.predictions_file(session, split, step, args.limit)}")
