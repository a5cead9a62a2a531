"""List tasks, show examples as the model sees them, and count.

dss tasks
dss tasks show cqa --n 3
dss tasks stats cqa
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dss_jax.cli import options
from dss_jax.core import registry
from dss_jax.core.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from dss_jax.data.store import TokenStore


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    parser.add_argument("action", nargs="?", default="list", help="list (default), show or stats")
    parser.add_argument("task", nargs="?", help="a task's name")
    parser.add_argument("--n", type=int, default=3, help="show: how many examples (default 3)")
    parser.add_argument("--split", default="train", help="show: train, validation or test")
    parser.add_argument("--store", help="one token store to use as it is")
    parser.add_argument("--prefixes", help="paper or released_code")
    options.add_data_flags(parser)
    options.add_rationales_flag(parser)
    options.add_gin_flags(parser)
    parser.set_defaults(needs_model=False, model=None, method=None, mixture_or_task_name=None)


def main(args: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Runs the command."""
    actions = {"list": _list, "show": _show, "stats": _stats}
    if args.action not in actions:
        raise unknown_name("action", args.action, actions)
    if args.action != "list" and args.task is None:
        raise UsageError(f"which task? dss tasks {args.action} NAME. `dss tasks` lists them.")
    if args.n < 1:
        raise UsageError(f"--n must be at least 1, not {args.n}.")
    if args.prefixes:
        rest = [*rest, f"--gin.Task.prefixes={args.prefixes!r}"]
    return actions[args.action](args, rest, parser)


def _list(args: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    options.gin_bindings(rest, parser)
    from dss_jax.cli.tables import print_table

    rows = []
    for name in sorted(registry.task_names(args.task_dir)):
        task = registry.load_task(name, args.task_dir)
        sources = ", ".join(type(s).__name__.lower() for s in task.sources)
        rows.append([name, task.description, sources, task.scorer.name, task.licence])
    print_table("tasks", ("name", "what", "from", "metric", "licence"), rows, texts=True)
    return 0


def _resolved(
    args: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser
) -> tuple[options.Resolved, "TokenStore"]:
    resolved = options.resolve(args, rest, parser)
    from dss_jax.data.prepare import ensure_store

    run = resolved.run
    store = ensure_store(run.task, run.vocabulary, run.data, task_dirs=resolved.task_dirs)
    return resolved, store


def _show(args: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    resolved, store = _resolved(args, rest, parser)
    from dss_jax.layouts.summary import describe_examples

    split = {"valid": "validation"}.get(args.split, args.split)
    for text in describe_examples(store, split, args.n, resolved.run.data):
        print(text)
    return 0


def _stats(args: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    resolved, store = _resolved(args, rest, parser)
    assert resolved.task is not None
    from dss_jax.cli.tables import number, print_table
    from dss_jax.layouts import summary

    run, task = resolved.run, resolved.task
    files = run.task.record_files
    counts = summary.label_counts(task, run.task.data_dir, store.splits, files)
    shown = ("rows", "teacher_accuracy", "invalid_labels", "empty_labels", "empty_rationales")
    heads = ("rows", "teacher accuracy", "invalid labels", "of them empty", "empty rationales")
    print_table(
        f"{task.name}: rows and the teacher's labels ({task.scorer.name}, %)",
        ("split", *heads, "rationale words mean/p99"),
        [
            [
                c.split,
                *(number(getattr(c, name)) for name in shown),
                f"{number(c.rationale_words[0], 1)}/{number(c.rationale_words[1], 0)}",
            ]
            for c in counts
        ],
        note="Invalid: none of the labels allowed for that row, or none at all.",
    )
    digits = {"mean": 1, "median": 0, "p99": 0, "longest": 0}
    print_table(
        f"{task.name}: tokens, prefix and EOS included, under the vocabulary of the store",
        ("split, feature", "mean", "p50", "p99", "max", "cut"),
        [
            [
                f"{c.split} {c.column}",
                *(number(getattr(c, name), n) for name, n in digits.items()),
                number(c.cut),
            ]
            for c in summary.token_lengths(store, run.data)
        ],
        note=f"Cut: longer than {run.data.input_length} (inputs) or {run.data.target_length} "
        "(targets) tokens.",
    )
    if "train" in store.splits:
        auto = {"flat": " (CPU, GPU)", "packed": " (TPU)"}
        print_table(
            f"{run.task.name}: padding of training batches of {run.data.batch_size} examples",
            ("layout", "compiled shapes", "row input/target", "executed / useful FLOPs"),
            [
                [
                    p.layout + auto.get(p.layout, ""),
                    number(p.shapes),
                    f"{p.length[0]}/{p.length[1]}",
                    number(p.waste, 2),
                ]
                for p in summary.padding(store, run)
            ],
            note="FLOPs of T5 v1.1 base; of another model they differ little.",
        )
    return 0
