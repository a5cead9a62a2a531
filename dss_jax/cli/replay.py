"""Repeat the step at which a run has diverged, and look at the rows of its batch.

dss replay runs/cqa/diverged.json
dss replay runs/cqa/diverged.json --gin.T5Config.dtype='"float32"'

Shows the numbers of the step, parameters that are not finite, and the losses of the rows, each by
itself and without dropout. With --gin. settings the same step is tried under others.
"""

import argparse

from dss_jax.cli import options, saved_run
from dss_jax.cli.tables import print_table, say
from dss_jax.core import storage


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="diverged.json in the folder of the run")
    parser.add_argument("--rows", type=int, default=10, help="rows shown (10)")
    parser.add_argument("--store", help="one token store to use as it is")
    text = "the Python module that registers its SeqIO task"
    parser.add_argument("--mixture_or_task_module", help=text)
    options.add_data_flags(parser)
    options.add_gin_flags(parser, files=False)


def main(args: argparse.Namespace) -> None:
    from dss_jax.run import replay

    file = storage.place(args.file)
    kept = replay.read(file)
    run = saved_run.resolve(
        file.parent, args.vocabulary, options.flag_bindings(args) + args.bindings
    )
    found = replay.replay(saved_run.reopen(run, file.parent, args.task_dir, ["train"]), kept)

    numbers = [[name, f"{value:.6g}"] for name, value in found.numbers.items()]
    print_table(f"step {found.step + 1} of {file.parent}", ("", ""), numbers)
    say(f"parameters that are not finite: {', '.join(found.bad_parameters) or 'none'}")
    tasks, worst = run.method.tasks, replay.worst_first(found.rows)[: args.rows]
    losses = [[row, *(own.get(task) for task in tasks)] for row, own in worst]
    print_table("losses of its rows, each by itself, without dropout", ("row", *tasks), losses)
