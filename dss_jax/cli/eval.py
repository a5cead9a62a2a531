"""Score a trained student, and write its predictions.

dss eval --output_dir runs/cqa --split test --rationales
dss eval --output_dir runs/cqa --decode rank
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dss_jax.cli import gin_config, options
from dss_jax.core import config, registry, storage
from dss_jax.core.errors import UsageError
from dss_jax.train import processes

if TYPE_CHECKING:
    from dss_jax.data.store import TokenStore


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
    from dss_jax.experiment import run_folder
    from dss_jax.interop.model_files import VOCABULARY

    folder = run_folder.check_output_dir(args.output_dir)
    saved = run_folder.saved_config(folder).absolute()
    # Here --rationales asks for predicted ones; the run's configuration has its record files.
    bindings = options.flag_bindings(args, leave_out=("output_dir", "rationales"))
    vocabulary = folder / VOCABULARY
    if args.vocabulary is None and vocabulary.is_file():
        # The run's own copy is there where the original has moved.
        local = storage.local_file(vocabulary).absolute()
        bindings.append(f"Vocabulary.path = {str(local)!r}")
    run = gin_config.read_saved(saved, bindings + options.gin_bindings(rest, parser)).run()
    if not run.method.trains:
        raise UsageError(
            f"{folder} holds the teacher's own labels: nothing was trained. Its scores are in "
            "results.json; dss train scores them again."
        )
    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit must be at least 1, not {args.limit}.")
    return replace(run, evaluate=replace(run.evaluate, rationales=args.rationales))


def main(args: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Runs the command."""
    options.start_processes(args)
    run = processes.together(lambda: _resolve(args, rest, parser))
    task = registry.load_task(run.task.name, args.task_dir) if run.task.name else None

    from dss_jax.cli.tables import print_scores
    from dss_jax.core.scoring import TEXT_ACCURACY
    from dss_jax.data.prepare import ensure_store
    from dss_jax.experiment import run_folder, single
    from dss_jax.experiment.hosts import check_settings, check_store

    check_settings(run)
    splits = [{"valid": "validation"}.get(s, s) for s in args.split or ["test"]]

    def open_store() -> "TokenStore":
        store = ensure_store(
            run.task, run.vocabulary, run.data, task_dirs=args.task_dir, log=processes.say
        )
        for split in splits:
            store.split(split)
        return store

    store = processes.together(open_store)
    check_store(store)
    folder = run_folder.check_output_dir(args.output_dir)
    scorer = task.scorer if task else TEXT_ACCURACY
    session = single.open_session(run, folder, store, scorer)
    step, scores = single.score(session, splits, args.checkpoint, args.rationales, args.limit)
    if not processes.is_first():
        return 0
    metric = session.evaluator.metric
    print_scores(
        f"{run.task.shown_name}, {run.method.name}: {metric} of step {step}", scores, metric
    )
    for split in splits if run.method.form != "spans" else ():
        file = single.predictions_name(run, split, step, args.limit)
        print(f"predictions: {folder / run_folder.PREDICTIONS / file}")
    return 0
