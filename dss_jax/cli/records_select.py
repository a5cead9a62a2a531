"""`dss records select`: which rows to buy rationales of, or to train on. docs/records.md."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from dss_jax.cli import options
from dss_jax.cli.tables import say
from dss_jax.core import registry, strict_json
from dss_jax.core.checks import among, at_least
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import write_whole
from dss_jax.core.types import SPLITS, DistillationTask
from dss_jax.records.files import read_records, write_records
from dss_jax.records.filters import Filters, apply_filters
from dss_jax.records.ids import ids_in, lines_with_ids
from dss_jax.records.records import Record

WAYS = ("random", "nearest", "diversity", "difficulty", "agreement")


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--budget", type=int, metavar="N", help="select: so many rows")
    add("--by", metavar="WAY", help=f"select: {', '.join(WAYS)}")
    text = "select: of the rows of a task, which nobody was asked about yet, in place of FILE"
    add("--task", help=text)
    add("--split", default="train", help="select: of the task's rows (default: train)")
    add("--data_dir", help="select: folder of the data (also: DSS_DATA_DIR)")
    options.add_bad_rows_flag(parser)
    text = "select by nearest: the split whose inputs rows should be near (default: validation)"
    add("--like", default="validation", metavar="SPLIT", help=text)
    text = "select by difficulty: of a student for these rows, of dss eval or dss predict"
    add("--predictions", metavar="FILE", help=text)
    add("--seed", type=int, default=0, help="select: of all that is drawn (default: 0)")


def main(args: argparse.Namespace) -> None:
    if args.by is None or args.budget is None:
        raise UsageError(f"how many, and how? Give --budget N --by WAY: {', '.join(WAYS)}.")
    among("way --by", args.by, WAYS)
    at_least("--budget", args.budget, 1)
    at_least("--seed", args.seed, 0)
    if len(args.files) != (args.task is None):
        raise UsageError("select takes one record file; or none, and --task NAME.")
    count = _of_task(args) if args.task else _of_records(args)
    say(f"wrote {args.out}: {args.budget:,} of {count:,} rows, by {args.by}")


def _of_task(args: argparse.Namespace) -> int:
    """Writes ids, for `dss extract`, in the order of choice; how many rows there are."""
    task = registry.load_task(args.task, args.task_dir)
    args.split = options.split_of(args.split)
    rows = _inputs(args, task, args.split)
    lines = ({"id": name, "input": rows[name]} for name in _chosen(args, task, rows))
    text = "".join(strict_json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_whole(Path(args.out), text)
    return len(rows)


def _of_records(args: argparse.Namespace) -> int:
    """Writes records, for `dss train`, in their order; how many rows there are."""
    header, lines = read_records(Path(args.files[0]))
    records, task = list(lines), registry.load_task(header.task, args.task_dir)
    args.split = header.split
    chosen = _chosen(args, task, {r.id: r.input for r in records}, records)
    own = Filters(ids=(f"{args.by}, seed {args.seed}", frozenset(chosen)))
    write_records(Path(args.out), *apply_filters(header, records, own, task.scorer.correct))
    return len(records)


def _inputs(args: argparse.Namespace, task: DistillationTask, split: str) -> Mapping[str, str]:
    from dss_jax.data.rows import examples

    left: list[str] | None = [] if args.bad_rows == "skip" else None
    return {e.id: e.input for e in examples(task, split, args.data_dir, left)}


def _chosen(
    args: argparse.Namespace,
    task: DistillationTask,
    rows: Mapping[str, str],
    records: Sequence[Record] = (),
) -> list[str]:
    from dss_jax.records import select

    if args.ids:
        wanted = ids_in(Path(args.ids))
        rows = {name: text for name, text in rows.items() if name in wanted}
    scores = _scores(args, records)
    if scores is not None:
        if without := [name for name in rows if name not in scores]:
            say(f"{len(without):,} of {len(rows):,} rows have no prediction: they are left out")
        rows = {name: text for name, text in rows.items() if name in scores}
    if len(rows) < args.budget:
        raise UsageError(f"--budget {args.budget}: there are {len(rows):,} rows to choose from.")
    if scores is not None:
        return select.by_score({name: scores[name] for name in rows}, args.budget, args.seed)
    if args.by == "random":
        return select.drawn(rows, args.seed)[: args.budget]
    if args.by == "diversity":
        return select.diverse(rows, args.budget, args.seed)
    like = options.split_of(args.like)
    among("split --like", like, [split for split in SPLITS if split != args.split])
    targets = _inputs(args, task, like).values()
    return select.nearest(rows, targets, args.budget, args.seed)


def _scores(args: argparse.Namespace, records: Sequence[Record]) -> dict[str, float] | None:
    """Id -> what there should be most of, of the ways that have such a number."""
    if args.by == "agreement":
        if any(len(record.samples) > 1 for record in records):
            return {record.id: record.agreement for record in records}
        raise UsageError(
            "--by agreement needs a record file with several samples a row: dss extract --samples "
            "5 asks for them."
        )
    if args.by != "difficulty":
        return None
    if args.predictions is None:
        raise UsageError(
            "--by difficulty needs --predictions FILE, a student's for these rows: dss eval "
            "--split train --decode rank writes them."
        )
    from dss_jax.records.select import difficulty

    return {line["id"]: difficulty(line) for line in lines_with_ids(Path(args.predictions))}
