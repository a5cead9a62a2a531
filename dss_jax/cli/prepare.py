"""Make the token store of a task, which `dss train` otherwise does by itself.

  dss prepare --task cqa --data_dir ../release --vocabulary t5.model

With --beam, Apache Beam tokenises it on many machines: docs/beam.md.
The store can be copied to a machine without TensorFlow and used there with --store.
"""

import argparse
import importlib.util
from typing import Any

from dss_jax.cli import options
from dss_jax.core import config
from dss_jax.core.checks import at_least
from dss_jax.core.errors import UsageError


def add_flags(parser: argparse.ArgumentParser) -> None:
    options.add_run_flags(parser)
    add = parser.add_argument
    add("--beam", action="store_true", help="with Apache Beam, on many machines")
    text = "of Beam, separated by commas, as seqio_cache_tasks takes them"
    add("--pipeline_options", default="--runner=DirectRunner", metavar="A,B", help=text)
    add("--temp_dir", help="for Beam's parts: a folder that all workers can write")
    text = "that a worker of Beam takes (20000)"
    add("--rows_per_part", type=int, default=20_000, help=text)
    parser.set_defaults(needs_model=False)


def _beam(args: argparse.Namespace, task: config.Task) -> dict[str, Any]:
    """How Beam shall work. Raises UsageError where it cannot."""
    if importlib.util.find_spec("apache_beam") is None:
        raise UsageError('--beam needs Apache Beam: pip install "dss-jax[beam]".')
    at_least("--rows_per_part", args.rows_per_part, 1)
    if task.use_cached:
        raise UsageError("--use_cached rows are tokenised already: leave --beam out.")
    flags = [o for o in args.pipeline_options.split(",") if o]
    return {"pipeline_options": flags, "temp_dir": args.temp_dir, "rows": args.rows_per_part}


def main(args: argparse.Namespace) -> None:
    run = options.resolve(args).run

    from dss_jax.data.prepare import ensure_store
    from dss_jax.layouts import health

    # Stores of extra tasks are made for those who train.
    need = ("train",) if run.task.extra_tasks else ()
    beam = _beam(args, run.task) if args.beam else None
    dirs = args.task_dir
    store = ensure_store(run.task, run.vocabulary, run.data, task_dirs=dirs, need=need, beam=beam)
    for one in (store, *store.extras):
        health.report(one, run.data)
        print(f"token store: {one.path}")
