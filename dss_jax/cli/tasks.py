"""List tasks, show examples as the model sees them, count, and fetch the authors' release.

dss tasks
dss tasks fetch cqa
dss tasks show cqa --n 3
dss tasks stats cqa
dss tasks check cqa --out cqa.png

`check` looks for what is wrong before money is spent, and ends with 1 where it should stop you:
no gold labels, labels that are not allowed or not in train, copies across splits, inputs that tell
their label, labels that are too long or written alike, records that do not fit.
"""

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from dss_jax.cli import options
from dss_jax.cli.tables import number, print_characters, print_table, say
from dss_jax.core import registry, storage
from dss_jax.core.checks import at_least
from dss_jax.core.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from dss_jax.data.store import TokenStore


def add_flags(parser: argparse.ArgumentParser) -> None:
    text = "list (default), show, stats, check or fetch"
    parser.add_argument("action", nargs="?", default="list", help=text)
    parser.add_argument("task", nargs="?", help="a task's name")
    parser.add_argument("--n", type=int, default=3, help="show: how many examples (default 3)")
    parser.add_argument("--split", default="train", help="show: train, validation or test")
    text = "check: draw it, too: .png, .svg or .pdf"
    parser.add_argument("--out", metavar="FILE", type=Path, help=text)
    parser.add_argument("--prefixes", help="paper or released_code")
    parser.add_argument("--store", help="one token store to use as it is")
    text = "fetch: the authors' datasets.zip from elsewhere, a file or https://"
    parser.add_argument("--archive", metavar="FILE", help=text)
    options.add_data_flags(parser)
    options.add_rationales_flag(parser)
    options.add_bad_rows_flag(parser)
    options.add_gin_flags(parser)
    parser.set_defaults(needs_model=False, model=None, method=None, mixture_or_task_name=None)


def main(args: argparse.Namespace) -> int:
    actions = {"list": _list, "show": _show, "stats": _stats, "check": _check, "fetch": _fetch}
    if args.action not in actions:
        raise unknown_name("action", args.action, actions)
    if args.action != "list" and args.task is None:
        raise UsageError(f"which task? dss tasks {args.action} NAME. `dss tasks` lists them.")
    at_least("--n", args.n, 1)
    if args.prefixes:
        args.bindings.append(f"Task.prefixes = {args.prefixes!r}")
    return actions[args.action](args) or 0


def _check(args: argparse.Namespace) -> int:
    from dss_jax.cli import task_check

    return task_check.main(args)


def _list(args: argparse.Namespace) -> None:
    rows = []
    for name in sorted(registry.task_names(args.task_dir)):
        task = registry.load_task(name, args.task_dir)
        sources = ", ".join(type(s).__name__.lower() for s in task.sources)
        rows.append([name, task.description, sources, task.scorer.name, task.licence])
    print_table("tasks", ("name", "what", "from", "metric", "licence"), rows, texts=True)


def _fetch(args: argparse.Namespace) -> None:
    from dss_jax.data import release, sources

    if storage.is_remote(given := args.data_dir or os.environ.get("DSS_DATA_DIR") or ""):
        raise UsageError(f"fetch writes to a local folder, not to {given}. Give --data_dir DIR.")
    folder = Path(given).expanduser() if given else sources.fetched_folder()
    release.fetch(registry.load_task(args.task, args.task_dir), folder, args.archive)
    where = f" --data_dir {shlex.quote(args.data_dir)}" if args.data_dir else ""
    say(f"next: dss tasks stats {args.task}{where}")


def _resolved(args: argparse.Namespace) -> tuple[options.Resolved, "TokenStore"]:
    from dss_jax.cli.task_check import resolve

    resolved = resolve(args)
    from dss_jax.data.prepare import ensure_store

    run = resolved.run
    return resolved, ensure_store(run.task, run.vocabulary, run.data, task_dirs=args.task_dir)


def _show(args: argparse.Namespace) -> None:
    resolved, store = _resolved(args)
    from dss_jax.layouts.summary import describe_examples

    split = options.split_of(args.split)
    for text in describe_examples(store, split, args.n, resolved.run.data):
        say(text)


def _stats(args: argparse.Namespace) -> None:
    resolved, store = _resolved(args)
    assert resolved.task is not None
    from dss_jax.layouts import health, summary

    run, task = resolved.run, resolved.task
    named = {
        "rows": "rows",
        "teacher_accuracy": "teacher accuracy",
        "invalid_labels": "invalid labels",
        "empty_labels": "of them empty",
        "empty_rationales": "empty rationales",
        "labels": "with a label",
        "kinds": "labels",
        "once": "seen once",
        "teacher_once": "teacher's seen once",
    }
    rows, own, skip = [], run.task, run.task.bad_rows == "skip"
    for c in summary.label_counts(task, own.data_dir, store.splits, own.record_files, skip):
        mean, p99 = c.rationale_words
        words = f"{number(mean, 1)}/{number(p99, 0)}"
        rows.append([c.split, *(getattr(c, name) for name in named), words])
    print_table(
        f"{task.name}: rows and the teacher's labels ({task.scorer.name}, %)",
        ("split", *named.values(), "rationale words mean/p99"),
        rows,
        note="Invalid: none of the labels allowed for that row, or none at all. Seen once: labels "
        "that one row alone has.",
    )
    print_table(
        f"{task.name}: tokens, prefix and EOS included, under the vocabulary of the store",
        ("split, feature", "mean", "p50", "p99", "max", "cut", "unknown"),
        [
            [
                f"{c.split} {c.column}",
                number(c.mean, 1),
                *(number(n, 0) for n in (c.median, c.p99, c.longest)),
                c.cut,
                c.unknown,
            ]
            for c in health.token_lengths(store, run.data)
        ],
        note=f"Cut: longer than {run.data.input_length} (inputs) or {run.data.target_length} "
        "(targets) tokens. Unknown: rows with a piece that the vocabulary lacks.",
    )
    print_characters(store.manifest.get("characters", {}))
    if "train" not in store.splits:
        return
    auto = {"flat": "flat (CPU, GPU)", "packed": "packed (TPU)"}
    print_table(
        f"{run.task.name}: padding of training batches of {run.data.batch_size} examples",
        ("layout", "compiled shapes", "row input/target", "executed / useful FLOPs"),
        [
            [auto.get(p.layout, p.layout), p.shapes, f"{p.length[0]}/{p.length[1]}", p.waste]
            for p in summary.padding(store, run)
        ],
        note="FLOPs of T5 v1.1 base; of another model they differ little.",
    )
