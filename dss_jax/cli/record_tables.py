"""Tables of `dss records`."""

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from dss_jax.cli.tables import number, print_table, terminal
from dss_jax.records.filters import Correct
from dss_jax.records.records import STATUSES, Header, Record
from dss_jax.records.stats import Accuracy, RecordStats

PROVENANCE = "teacher endpoint date terms prices prompt_sha256 sampling totals"
"""Fields of a header that are shown."""


def print_stats(header: Header, stats: RecordStats, metric: str) -> None:
    """Prints statuses, agreement, accuracy and lengths of a record file, and its provenance."""
    print(f"{header.task}, {header.split}: {stats.rows:,} rows, {stats.samples:,} samples")
    shown = [(name, getattr(header, name)) for name in PROVENANCE.split()]
    for name, value in [*shown, *(("filter", entry) for entry in header.filters)]:
        if value:
            print(f"{name:<14}{_pairs(value) if isinstance(value, dict) else value}")
    print()
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
    print_table(
        f"accuracy against gold ({metric}, %)",
        ("", "right", "of", "%"),
        [[name, *_accuracy(accuracy)] for name, accuracy in accuracies.items()],
        note="Of rows with a gold label. A label that is missing counts as wrong.",
    )
    if set(stats.agreement) - {10}:
        right = stats.right_by_agreement
        cells = [
            [f"{tenths / 10:.1f}", number(count), *_accuracy(right.get(tenths, Accuracy()))]
            for tenths, count in sorted(stats.agreement.items())
        ]
        title = "agreement, of rows with a vote"
        print_table(title, ("agreement", "rows", "right", "of", "%"), cells)
    lengths = {"input": stats.input_words, "rationale": stats.rationale_words}
    cells = [
        [name, number(words.mean, 1), *(number(words.percentile(p)) for p in (0.5, 0.99))]
        for name, words in lengths.items()
    ]
    print_table("words", ("", "mean", "p50", "p99"), cells)


def _pairs(content: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} ({_pairs(value)})" if isinstance(value, dict) else f"{name} {value}"
        for name, value in content.items()
    )


def _accuracy(accuracy: Accuracy) -> list[str]:
    return [number(accuracy.right), number(accuracy.all), number(accuracy.per_cent)]


def _part(part: int, whole: int) -> list[str]:
    return [number(part), number(100 * part / whole if whole else None, 1)]


def print_filters(rows: int, samples: int, entries: Sequence[Mapping[str, Any]]) -> None:
    """Prints what each filter left out.

    Args:
      rows, samples: before the first filter.
      entries: as in `Header.filters`.
    """
    cells = [["(all)", "", "", "", number(rows), number(samples)]]
    for entry in entries:
        samples -= entry["samples_left_out"]
        counts = (*(entry[n] for n in ("rows_left_out", "samples_left_out", "rows_kept")), samples)
        cells.append([entry["filter"], _value(entry["value"]), *map(number, counts)])
    columns = ("filter", "value", "rows out", "samples out", "rows kept", "samples kept")
    print_table("filters", columns, cells)


def _value(value: Any) -> str:
    if value is True:
        return ""
    if isinstance(value, list):
        return ":".join("" if part is None else str(part) for part in value)
    return str(value)


def show(records: Sequence[Record], correct: Correct, *, more: bool, page: bool) -> None:
    """Prints rows side by side: input, gold, the teacher's label, rationales.

    Args:
      records: the rows.
      correct: (gold, label) -> whether it is right.
      more: whether there are more that are not shown.
      page: go through $PAGER where the output is a terminal.
    """
    table = Table(box=box.SIMPLE, show_lines=True, caption_justify="left")
    if more:
        table.caption = Text(f"There are more than these {len(records)}: --limit, --page.")
    widths = {"id, status": 2, "input": 5, "gold": 2, "teacher": 2, "rationale": 6}
    for column, ratio in widths.items():
        table.add_column(column, ratio=ratio)
    for record in records:
        samples = Text("\n\n").join(_sample(record, i) for i in range(len(record.samples)))
        table.add_row(
            Text(f"{plain(record.id)}\n{record.status}"),
            Text(plain(record.input)),
            Text(plain(record.gold) or "-"),
            _label(record, correct),
            samples,
        )
    console = terminal()
    paged = page and console.is_terminal
    with console.pager(styles=True) if paged else contextlib.nullcontext():
        console.print(table)


def _label(record: Record, correct: Correct) -> Text:
    if not record.teacher_label:
        return Text("-")
    text = Text(plain(record.teacher_label))
    if record.gold:
        right = correct(record.gold, record.teacher_label)
        text.append("\nright" if right else "\nwrong", style="green" if right else "red")
    if len(record.samples) > 1:
        text.append(f"\nagreement {record.agreement:.2f}")
    return text


def _sample(record: Record, place: int) -> Text:
    """The rationale; what does not go without saying about the sample before it."""
    sample = record.samples[place]
    head = f"{place + 1}. " if len(record.samples) > 1 else ""
    if sample.status != "ok":
        why = f": {plain(sample.reason)}" if sample.reason else ""
        written = f" ({plain(sample.raw_label)})" if sample.raw_label else ""
        head += f"[{sample.status}{written}{why}] "
    elif not record.votes(sample):
        head += f"[{plain(sample.label)}] "
    # Where no rationale could be read, what the teacher wrote says why.
    return Text(head, style="yellow") + Text(plain(sample.rationale or sample.text), style="none")


def plain(text: str) -> str:
    """Text without what a terminal would obey: a teacher may have written anything."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)
