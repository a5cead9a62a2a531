"""Make the token store of a task, which `dss train` otherwise does by itself.

  dss prepare --task cqa --data_dir ../release --vocabulary t5.model

The store can be copied to a machine without TensorFlow and used there with --store.
"""

import argparse
from collections.abc import Sequence

from dss_jax.cli import options


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    options.add_run_flags(parser)
    parser.set_defaults(needs_model=False)


def main(args: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Runs the command."""
    resolved = options.resolve(args, rest, parser)
    run = resolved.run

    from dss_jax.data.prepare import ensure_store
    from dss_jax.data.summary import report_cuts

    store = ensure_store(run.task, run.vocabulary, run.data, task_dirs=resolved.task_dirs)
    for name in store.splits:
        print(f"{name}: {len(store.split(name)):,} rows")
    report_cuts(store, run.data, print)
    print(f"token store: {store.path}")
    return 0
