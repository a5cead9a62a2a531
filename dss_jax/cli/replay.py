"""Repeat the step at which a run has diverged, and look at the rows of its batch.

dss replay runs/cqa/diverged.json
dss replay runs/cqa/diverged.json --gin.T5Config.dtype='"float32"'

Shows the numbers of the step, parameters that are not finite, and the losses of the rows, each by
itself and without dropout. With --gin. settings the same step is tried under others.
"""

import argparse
from collections.abc import Sequence

from dss_jax.cli import options, saved_run
from dss_jax.core import storage

ROWS = 10


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    parser.add_argument("file", help="diverged.json in the folder of the run")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"rows shown ({ROWS})")
    parser.add_argument("--store", help="one token store to use as it is")
    options.add_data_flags(parser)
    parser.add_argument("--gin.NAME", metavar="VALUE", dest="gin_example", help="a binding")


def main(args: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Runs the command."""
    from dss_jax.run import replay

    file = storage.place(args.file)
    kept = replay.read(file)
    bindings = options.flag_bindings(args) + options.gin_bindings(rest, parser)
    run = saved_run.resolve(file.parent, args.vocabulary, bindings)
    session = saved_run.reopen(run, file.parent, args.task_dir, ["train"])
    found = replay.replay(session, kept)

    from dss_jax.cli.tables import number, print_table

    print_table(
        f"step {found.step + 1} of {file.parent}",
        ("", ""),
        [[name, f"{value:.6g}"] for name, value in found.numbers.items()],
    )
    bad = found.bad_parameters
    print(f"parameters that are not finite: {', '.join(bad) if bad else 'none'}")
    tasks = session.run.method.tasks
    print_table(
        "losses of its rows, each by itself, without dropout",
        ("row", *tasks),
        [
            [row, *(number(own.get(task)) for task in tasks)]
            for row, own in replay.worst_first(found.rows)[: args.rows]
        ],
    )
    return 0
