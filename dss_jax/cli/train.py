"""Train a student and score the best checkpoint on the test split.

  dss train --task cqa --method dss --model t5_1_1_base --output_dir runs/cqa

The same output folder goes on where it stopped. Ctrl-C saves first.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence

from dss_jax.cli import options
from dss_jax.core import config


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    options.add_run_flags(parser)
    parser.set_defaults(needs_model=True)


def main(args: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Runs the command."""
    resolved = options.resolve(args, rest, parser)
    run = resolved.run
    # Checked before the store is made and JAX starts, which take seconds.
    if run.train.output_dir is None:
        raise options.UsageError("no output folder: give --output_dir DIR.")
    print(config.to_gin(run))
    sys.stdout.flush()

    from dss_jax.core.scoring import TEXT_ACCURACY
    from dss_jax.data.prepare import ensure_store
    from dss_jax.data.summary import report_cuts

    store = ensure_store(
        run.task, run.vocabulary, run.data, task_dirs=resolved.task_dirs, need=("train",)
    )
    report_cuts(store, run.data, print)
    scorer = resolved.task.scorer if resolved.task else TEXT_ACCURACY

    from dss_jax.cli.tables import print_scores
    from dss_jax.experiment import single
    from dss_jax.train.loop import Interrupted

    try:
        results = single.train(run, store, scorer)
    except Interrupted as stop:
        print(f"\n{stop}. To go on, give the same command again:\n  dss {shlex.join(sys.argv[1:])}")
        return 130
    scores = {name: results[name] for name in ("validation", "test") if name in results}
    which = "the best on validation" if "validation" in results else "the last"
    print_scores(
        f"{run.task.shown_name}, {run.method.name}: {results['metric']} of step "
        f"{results['best_step']}, {which}",
        scores,
        results["metric"],
    )
    print(f"curves: {run.train.output_dir}/curves.png")
    return 0
