"""What a teacher answered: look at record files, filter and merge them. docs/records.md.

dss records stats FILE [--chart PNG]
dss records show FILE [--status S] [--id ID] [--wrong] [--limit N] [--page]
dss records filter FILE --out F [--only ok] [--label_equals_gold] ...
dss records merge FILE FILE ... --out F [--on_conflict first|last]
dss records export FILE ... --to DIR [--name NAME] [--version 1.0.0]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dss_jax.cli import options
from dss_jax.core import registry
from dss_jax.core.checks import among, at_least
from dss_jax.core.errors import UsageError, unknown_name
from dss_jax.core.types import DistillationTask
from dss_jax.records.records import STATUSES, Header


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    add = parser.add_argument
    add("action", help="stats, show, filter, merge or export")
    add(
        "files",
        nargs="*",
        metavar="FILE",
        help="a record file; merge: two or more; export: one a split",
    )
    add("--out", metavar="FILE", help="filter, merge: the record file to write")
    add("--task_dir", action="append", default=[], help="a folder with task files of yours")
    add("--chart", metavar="PNG", help="stats: draw it, too")
    add("--status", help=f"show: only rows of this status ({', '.join(STATUSES)})")
    add("--id", help="show: only this row")
    add("--wrong", action="store_true", help="show: only rows whose label is not the gold one")
    add("--limit", type=int, default=20, help="show: at most so many rows (default 20; 0: all)")
    add("--page", action="store_true", help="show: in $PAGER, where the output is a terminal")
    add("--only", action="append", default=[], help="filter: rows of this status; may be repeated")
    add("--label_equals_gold", action="store_true",
        help="filter: rows whose label is right; rows without a gold label stay")  # fmt: skip
    add("--label_equals_vote", action="store_true",
        help="filter: of each row, the samples that have its label")  # fmt: skip
    add("--min_agreement", type=float, default=0.0, metavar="X",
        help="filter: rows with at least this share of samples for their label")  # fmt: skip
    add("--rationale_words", metavar="MIN:MAX",
        help="filter: samples with so many words; MIN: or :MAX alone will do")  # fmt: skip
    add("--exact_duplicates", action="store_true", help="filter: drop what is there before")
    add("--near_duplicates", type=float, default=0.0, metavar="T",
        help="filter: drop what is like something before; least Jaccard similarity, "
        "of word triples")  # fmt: skip
    add("--duplicates_of", default="both",
        help="filter: input (drops rows), rationale (drops samples) or both (default)")  # fmt: skip
    add("--on_conflict", help="merge: the version that is taken of a row with two: first or last")
    add("--to", metavar="DIR",
        help="export: the TFDS data folder, which SeqIO's `TfdsDataSource` reads")  # fmt: skip
    add("--name", help="export: of the data set (default: TASK_rationales)")
    add("--version", default="1.0.0", help="export: of the data set (default: 1.0.0)")


def main(args: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Runs the command."""
    actions = {"stats": _stats, "show": _show, "filter": _filter, "merge": _merge,
               "export": _export}  # fmt: skip
    if args.action not in actions:
        raise unknown_name("action", args.action, actions)
    # argparse gives back the files that come after a flag: it takes FILE to be none by then.
    args.files += [word for word in rest if not word.startswith("-")]
    if unused := options.gin_bindings([w for w in rest if w.startswith("-")], parser):
        raise UsageError(f"dss records takes no gin settings, such as {unused[0]!r}.")
    if args.action not in ("merge", "export") and len(args.files) != 1:
        raise UsageError(f"dss records {args.action} takes one file, not {len(args.files)}.")
    if args.action in ("filter", "merge") and not args.out:
        raise UsageError(f"where to? Give dss records {args.action} ... --out FILE.")
    if args.action == "export" and not (args.to and args.files):
        raise UsageError("which files, and where to? dss records export FILE ... --to DIR.")
    return actions[args.action](args)


def _export(args: argparse.Namespace) -> int:
    from dss_jax.data import prepare_child

    request = {
        "files": args.files, "folder": args.to, "name": args.name, "version": args.version,
    }  # fmt: skip
    path = Path(prepare_child.run(request, "dss_jax.data.seqio_export"))
    name, version, folder = path.parent.name, path.name, path.parents[1]
    print(f"data set: {path}")
    print(f'seqio.TfdsDataSource(tfds_name="{name}:{version}", tfds_data_dir="{folder}")')
    return 0


def _task(header: Header, args: argparse.Namespace) -> DistillationTask:
    return registry.load_task(header.task, args.task_dir)


def _stats(args: argparse.Namespace) -> int:
    from dss_jax.cli import record_tables
    from dss_jax.records.files import read_records
    from dss_jax.records.stats import record_stats

    file = Path(args.files[0])
    header, records = read_records(file)
    task = _task(header, args)
    stats = record_stats(records, task.scorer.correct)
    record_tables.print_stats(header, stats, task.scorer.name)
    if args.chart:
        from dss_jax.report.record_chart import plot_records

        title = f"{header.task}, {header.split}: {stats.rows:,} rows by {header.teacher}"
        plot_records(stats, Path(args.chart), title=title)
        print(f"wrote {args.chart}")
    return 0


def _show(args: argparse.Namespace) -> int:
    if args.status is not None:
        among("--status", args.status, STATUSES)
    at_least("--limit", args.limit, 0)
    from itertools import islice

    from dss_jax.cli import record_tables
    from dss_jax.records.files import read_records

    header, records = read_records(Path(args.files[0]))
    correct = _task(header, args).scorer.correct
    chosen = (
        record
        for record in records
        if (args.status is None or record.status == args.status)
        and (args.id is None or record.id == args.id)
        and not (args.wrong and (not record.gold or correct(record.gold, record.teacher_label)))
    )
    # One more than is shown, to be able to say that there are more.
    shown = list(islice(chosen, args.limit + 1 if args.limit else None))
    more = bool(args.limit) and len(shown) > args.limit
    if not shown:
        raise UsageError(f"{args.files[0]} has no such row.")
    record_tables.show(shown[: args.limit or None], correct, more=more, page=args.page)
    return 0


def _filter(args: argparse.Namespace) -> int:
    from dss_jax.cli import record_tables
    from dss_jax.records.files import read_records, write_records
    from dss_jax.records.filters import Filters, apply_filters

    filters = Filters(
        only=tuple(args.only),
        label_equals_gold=args.label_equals_gold,
        label_equals_vote=args.label_equals_vote,
        min_agreement=args.min_agreement,
        rationale_words=_bounds(args.rationale_words),
        exact_duplicates=args.exact_duplicates,
        near_duplicates=args.near_duplicates,
        duplicates_of=args.duplicates_of,
    )
    if filters == Filters(duplicates_of=filters.duplicates_of):
        raise UsageError("no filter given, for example --only ok. See dss records --help.")
    header, lines = read_records(Path(args.files[0]))
    correct = _task(header, args).scorer.correct
    records = list(lines)
    filtered, kept = apply_filters(header, records, filters, correct)
    new = filtered.filters[len(header.filters) :]
    record_tables.print_filters(len(records), sum(len(r.samples) for r in records), new)
    if not kept:
        raise UsageError("no row is left; nothing was written. Loosen the filters.")
    write_records(Path(args.out), filtered, kept)
    print(f"wrote {args.out}: {len(kept):,} rows")
    return 0


def _bounds(text: str | None) -> tuple[int | None, int | None] | None:
    if text is None:
        return None
    ends = text.split(":")
    if len(ends) != 2 or not all(e.isdecimal() or not e for e in ends) or not any(ends):
        raise UsageError(
            f"--rationale_words is MIN:MAX, for example 5:80, :80 or 5:, not {text!r}."
        )
    low, high = (int(end) if end else None for end in ends)
    return low, high


def _merge(args: argparse.Namespace) -> int:
    if args.on_conflict is not None:
        among("--on_conflict", args.on_conflict, ("first", "last"))
    from dss_jax.records.files import SHOWN_IDS, merge

    merged = merge([Path(f) for f in args.files], Path(args.out), args.on_conflict)
    print(f"wrote {args.out}: {merged.rows:,} rows of {len(args.files)} files")
    for count, what in (
        (merged.equal, "rows were there once more, and the same"),
        (merged.answered, "rows were an error in one file; the answer was taken"),
        (len(merged.conflicts), f"rows differed; the {args.on_conflict} was taken"),
    ):
        if count:
            print(f"{count:,} {what}")
    for row_id, first, other in merged.conflicts[:SHOWN_IDS]:
        print(f"  {row_id}: {first}, {other}")
    return 0
