"""What a teacher answered: look at record files, filter and merge them. docs/records.md.

dss records stats FILE [--chart PNG]
dss records show FILE [--status S] [--id ID] [--wrong] [--limit N] [--page]
dss records filter FILE --out F [--only ok] [--label_equals_gold] ...
dss records select FILE --out F --budget N --by diversity [--seed S]
dss records select --task TASK --out F --budget N --by diversity
dss records cut FILE --out F --student DIR --words N
dss records merge FILE FILE ... --out F [--on_conflict first|last]
dss records export FILE ... --to DIR [--name NAME] [--version 1.0.0]
"""

import argparse
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from dss_jax.cli import records_select
from dss_jax.cli.tables import number, print_characters, print_table, say, terminal
from dss_jax.core import registry
from dss_jax.core.checks import among, at_least
from dss_jax.core.errors import UsageError, unknown_name
from dss_jax.core.texts import visible
from dss_jax.core.types import DistillationTask
from dss_jax.records.files import SHOWN_IDS, merge, read_records, write_records
from dss_jax.records.filters import Correct, Filters, apply_filters
from dss_jax.records.ids import ids_in
from dss_jax.records.records import STATUSES, Header, Record
from dss_jax.records.stats import Accuracy, RecordStats, record_stats

if TYPE_CHECKING:
    from dss_jax.data.characters import Characters

PROVENANCE = "teacher endpoint date terms prices prompt_sha256 sampling totals"
"""Fields of a header that are shown."""


RECORDS_AT_ONCE = 4096
"""Whose characters are counted."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("action", help="stats, show, filter, select, cut, merge or export")
    files = "a record file; merge: two or more; export: one a split"
    add("files", nargs="*", metavar="FILE", help=files)
    add("--out", metavar="FILE", help="filter, select, cut, merge: the file to write")
    add("--task_dir", action="append", default=[], help="a folder with task files of yours")
    text = "stats: of the student, a SentencePiece model, for characters that it lacks"
    add("--vocabulary", metavar="FILE", help=text)
    add("--chart", metavar="PNG", help="stats: draw it, too")
    add("--status", help=f"show: only rows of this status ({', '.join(STATUSES)})")
    add("--id", help="show: only this row")
    add("--wrong", action="store_true", help="show: only rows whose label is not the gold one")
    add("--limit", type=int, default=20, help="show: at most so many rows (default 20; 0: all)")
    add("--page", action="store_true", help="show: in $PAGER, where the output is a terminal")
    add("--only", action="append", default=[], help="filter: rows of this status; may be repeated")
    gold = "filter: rows whose label is right; rows without a gold label stay"
    add("--label_equals_gold", action="store_true", help=gold)
    vote = "filter: of each row, the samples that have its label"
    add("--label_equals_vote", action="store_true", help=vote)
    share = "filter: rows with at least this share of samples for their label"
    add("--min_agreement", type=float, default=0.0, metavar="X", help=share)
    words = "filter: samples with so many words; MIN: or :MAX alone will do"
    add("--rationale_words", metavar="MIN:MAX", help=words)
    add("--exact_duplicates", action="store_true", help="filter: drop what is there before")
    near = "filter: drop what is like something before; least Jaccard similarity, of word triples"
    add("--near_duplicates", type=float, default=0.0, metavar="T", help=near)
    of = "filter: input (drops rows), rationale (drops samples) or both (default)"
    add("--duplicates_of", default="both", help=of)
    text = "filter, select: only rows whose ids are in this file: JSONL, each line with an id"
    add("--ids", metavar="FILE", help=text)
    records_select.add_flags(parser)
    text = "cut: of method pinto, whose loss of the label tells which words matter"
    add("--student", metavar="DIR", help=text)
    add("--words", type=int, metavar="N", help="cut: so many words of each rationale stay")
    add("--on_conflict", help="merge: the version that is taken of a row with two: first or last")
    folder = "export: the TFDS data folder, which SeqIO's `TfdsDataSource` reads"
    add("--to", metavar="DIR", help=folder)
    add("--name", help="export: of the data set (default: TASK_rationales)")
    add("--version", default="1.0.0", help="export: of the data set (default: 1.0.0)")


def main(args: argparse.Namespace) -> None:
    actions = {f.__name__[1:]: f for f in (_stats, _show, _filter, _cut, _merge, _export)}
    actions["select"] = records_select.main
    if args.action not in actions:
        raise unknown_name("action", args.action, actions)
    if args.action not in ("merge", "export", "select") and len(args.files) != 1:
        raise UsageError(f"dss records {args.action} takes one file, not {len(args.files)}.")
    if args.action in ("filter", "select", "cut", "merge") and not args.out:
        raise UsageError(f"where to? Give dss records {args.action} ... --out FILE.")
    if args.action == "export" and not (args.to and args.files):
        raise UsageError("which files, and where to? dss records export FILE ... --to DIR.")
    actions[args.action](args)


def _export(args: argparse.Namespace) -> None:
    from dss_jax.data import prepare_child

    request = {"files": args.files, "folder": args.to, "name": args.name, "version": args.version}
    path = Path(prepare_child.run(request, "dss_jax.data.seqio_export"))
    name, version, folder = path.parent.name, path.name, path.parents[1]
    say(f"data set: {path}")
    say(f'seqio.TfdsDataSource(tfds_name="{name}:{version}", tfds_data_dir="{folder}")')


def _opened(args: argparse.Namespace) -> tuple[Header, Iterator[Record], DistillationTask]:
    header, records = read_records(Path(args.files[0]))
    return header, records, registry.load_task(header.task, args.task_dir)


def _stats(args: argparse.Namespace) -> None:
    from dss_jax.data.characters import Characters, vocabulary_at_hand
    from dss_jax.data.vocabulary import open_vocabulary, resolve

    header, records, task = _opened(args)
    scorer = task.scorer
    model = resolve(args.vocabulary) if args.vocabulary else vocabulary_at_hand(task)
    counts = Characters(open_vocabulary(model)) if model else None
    stats = record_stats(_counted(records, counts), scorer.correct)
    _print_stats(header, stats, scorer.name)
    if counts is None:
        say("characters are not counted: give the student's --vocabulary")
    else:
        print_characters(counts.found())
    if args.chart:
        from dss_jax.report.record_chart import plot_records

        title = f"{header.task}, {header.split}: {stats.rows:,} rows by {header.teacher}"
        plot_records(stats, Path(args.chart), title=title)
        say(f"wrote {args.chart}")


def _counted(records: Iterator[Record], counts: "Characters | None") -> Iterator[Record]:
    """The records; the characters of their texts are counted as they pass."""
    from dss_jax.data.text_rows import text_column

    while part := [*islice(records, RECORDS_AT_ONCE)]:
        if counts:
            for name in ("input", "gold", "teacher_label"):
                counts.add(name, text_column(getattr(record, name) for record in part))
            texts = (sample.rationale for record in part for sample in record.samples)
            counts.add("rationale", text_column(texts))
        yield from part


def _show(args: argparse.Namespace) -> None:
    if args.status is not None:
        among("--status", args.status, STATUSES)
    at_least("--limit", args.limit, 0)
    _, records, task = _opened(args)
    scorer = task.scorer
    chosen = (
        r
        for r in records
        if args.status in (None, r.status)
        and args.id in (None, r.id)
        and not (args.wrong and (not r.gold or scorer.correct(r.gold, r.teacher_label)))
    )
    # One more than is shown, to be able to say that there are more.
    shown = list(islice(chosen, args.limit + 1 if args.limit else None))
    if not shown:
        raise UsageError(f"{args.files[0]} has no such row.")
    table = Table(box=box.SIMPLE, show_lines=True, caption_justify="left")
    if args.limit and len(shown) > args.limit:
        table.caption = Text(f"There are more than these {args.limit}: --limit, --page.")
    widths = {"id, status": 2, "input": 5, "gold": 2, "teacher": 2, "rationale": 6}
    for column, ratio in widths.items():
        table.add_column(column, ratio=ratio)
    for r in shown[: args.limit or None]:
        who, gold = f"{visible(r.id)}\n{r.status}", visible(r.gold) or "-"
        rationales = Text("\n\n").join(_rationale(r, i) for i in range(len(r.samples)))
        row = (Text(who), Text(visible(r.input)), Text(gold), _label(r, scorer.correct), rationales)
        table.add_row(*row)
    console = terminal()
    paged = args.page and console.is_terminal
    with console.pager(styles=True) if paged else contextlib.nullcontext():
        console.print(table)


def _filter(args: argparse.Namespace) -> None:
    settings = {f.name: getattr(args, f.name) for f in fields(Filters)}
    settings |= {"only": tuple(args.only), "rationale_words": _bounds(args.rationale_words)}
    if args.ids:
        settings["ids"] = args.ids, ids_in(Path(args.ids))
    filters = Filters(**settings)
    if filters == Filters(duplicates_of=filters.duplicates_of):
        raise UsageError("no filter given, for example --only ok. See dss records --help.")
    header, lines, task = _opened(args)
    records = list(lines)
    filtered, kept = apply_filters(header, records, filters, task.scorer.correct)
    samples = sum(len(record.samples) for record in records)
    rows = [["(all)", "", "", "", len(records), samples]]
    for entry in filtered.filters[len(header.filters) :]:
        samples -= entry["samples_left_out"]
        counts = (*(entry[n] for n in ("rows_left_out", "samples_left_out", "rows_kept")), samples)
        rows.append([entry["filter"], _value(entry["value"]), *counts])
    columns = ("filter", "value", "rows out", "samples out", "rows kept", "samples kept")
    print_table("filters", columns, rows)
    if not kept:
        raise UsageError("no row is left; nothing was written. Loosen the filters.")
    write_records(Path(args.out), filtered, kept)
    say(f"wrote {args.out}: {len(kept):,} rows")


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


def _cut(args: argparse.Namespace) -> None:
    if args.student is None or args.words is None:
        raise UsageError("which words? Give dss records cut ... --student DIR --words N.")
    at_least("--words", args.words, 1)
    from dss_jax.student.load import load
    from dss_jax.student.telling import cut_file

    count = cut_file(load(args.student), Path(args.files[0]), args.out, args.words)
    say(f"wrote {args.out}: {count:,} rows")


def _merge(args: argparse.Namespace) -> None:
    if args.on_conflict is not None:
        among("--on_conflict", args.on_conflict, ("first", "last"))
    merged = merge([Path(f) for f in args.files], Path(args.out), args.on_conflict)
    say(f"wrote {args.out}: {merged.rows:,} rows of {len(args.files)} files")
    for count, what in (
        (merged.equal, "rows were there once more, and the same"),
        (merged.answered, "rows were an error in one file; the answer was taken"),
        (len(merged.conflicts), f"rows differed; the {args.on_conflict} was taken"),
    ):
        if count:
            say(f"{count:,} {what}")
    for row_id, first, other in merged.conflicts[:SHOWN_IDS]:
        say(f"  {row_id}: {first}, {other}")


def _print_stats(header: Header, stats: RecordStats, metric: str) -> None:
    """Prints statuses, agreement, accuracy and lengths of a record file, and its provenance."""
    say(f"{header.task}, {header.split}: {stats.rows:,} rows, {stats.samples:,} samples")
    shown = [(name, getattr(header, name)) for name in PROVENANCE.split()]
    for name, value in [*shown, *(("filter", entry) for entry in header.filters)]:
        if value:
            shown_value = _pairs(value) if isinstance(value, dict) else str(value)
            say(f"{name:<14}{shown_value}")
    say()
    rows, samples = stats.row_statuses, stats.sample_statuses
    statuses = [s for s in STATUSES if rows[s] + samples[s]]
    cells = [[s, *_part(rows[s], stats.rows), *_part(samples[s], stats.samples)] for s in statuses]
    print_table("status", ("", "rows", "%", "samples", "%"), cells)
    accuracies = {
        "samples, label as written": stats.as_written,
        "samples, label normalised": stats.normalised,
        "rows, vote": stats.vote,
        "rows, vote, where there is one": stats.voted,
    }
    cells = [[name, *_accuracy(accuracy)] for name, accuracy in accuracies.items()]
    note = "Of rows with a gold label. A label that is missing counts as wrong."
    title = f"accuracy against gold ({metric}, %)"
    print_table(title, ("", "right", "of", "%"), cells, note=note)
    if set(stats.agreement) - {10}:
        cells = []
        for tenths, count in sorted(stats.agreement.items()):
            right = stats.right_by_agreement.get(tenths, Accuracy())
            cells.append([f"{tenths / 10:.1f}", count, *_accuracy(right)])
        title = "agreement, of rows with a vote"
        print_table(title, ("agreement", "rows", "right", "of", "%"), cells)
    facts = {
        "rows with a label": stats.labels.total(),
        "samples with a rationale": stats.rationale_words.total(),
        "labels": len(stats.labels),
        "labels that one row alone has": stats.labels_once,
        "samples that name the label in their first sentence": stats.label_first,
        "samples with thoughts": stats.with_thoughts,
    }
    print_table("labels and rationales", ("", ""), [*facts.items()])
    cells = []
    for name, words in {"input": stats.input_words, "rationale": stats.rationale_words}.items():
        cells.append([name, number(words.mean, 1), *map(words.percentile, (0.5, 0.99))])
    print_table("words", ("", "mean", "p50", "p99"), cells)


def _pairs(content: Mapping[str, Any]) -> str:
    shown = {n: f"({_pairs(v)})" if isinstance(v, dict) else str(v) for n, v in content.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _accuracy(accuracy: Accuracy) -> list[Any]:
    return [accuracy.right, accuracy.all, accuracy.per_cent]


def _part(part: int, whole: int) -> list[Any]:
    return [part, number(100 * part / whole if whole else None, 1)]


def _value(value: Any) -> str:
    if value is True:
        return ""
    if isinstance(value, list):
        return ":".join("" if part is None else str(part) for part in value)
    return str(value)


def _label(record: Record, correct: Correct) -> Text:
    if not record.teacher_label:
        return Text("-")
    text = Text(visible(record.teacher_label))
    if record.gold:
        right = correct(record.gold, record.teacher_label)
        text.append("\nright" if right else "\nwrong", style="green" if right else "red")
    if len(record.samples) > 1:
        text.append(f"\nagreement {record.agreement:.2f}")
    return text


def _rationale(record: Record, place: int) -> Text:
    """The rationale; what does not go without saying about the sample before it."""
    sample = record.samples[place]
    head = f"{place + 1}. " if len(record.samples) > 1 else ""
    if sample.status != "ok":
        why = f": {visible(sample.reason)}" if sample.reason else ""
        written = f" ({visible(sample.raw_label)})" if sample.raw_label else ""
        head += f"[{sample.status}{written}{why}] "
    elif not record.votes(sample):
        head += f"[{visible(sample.label)}] "
    # Where no rationale could be read, what the teacher wrote says why.
    return Text(head, style="yellow") + Text(visible(sample.rationale or sample.text), style="none")
