"""Tables of `dss records`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from dss_jax.cli.tables import number, print_table, terminal
from dss_jax.records.filters import Correct
from dss_jax.records.records import STATUSES, Header, Record
from dss_jax.records.stats import RecordStats, Share


def print_stats(header: Header, stats: RecordStats, metric: str) -> None:
    """Prints statuses, agreement, accuracy and lengths of a record file, and its provenance."""
    print(f"{header.task}, {header.split}: {stats.rows:,} rows, {stats.samples:,} samples")
    for name in (
        "teacher",
        "endpoint",
        "date",
        "terms",
        "prices",
        "prompt_sha256",
        "sampling",
        "totals",
    ):
        if value := getattr(header, name):
            print(f"{name:<14}{_pairs(value) if isinstance(value, dict) else value}")
    for entry in header.filters:
        print(f"{'filter':<14}{_pairs(entry)}")
    print()
    print_table(
        "status",
        ("", "rows", "%", "samples", "%"),
        [
            [status, number(rows), _per_cent(rows, stats.rows),
             number(samples), _per_cent(samples, stats.samples)]
            for status in STATUSES
            if (rows := stats.row_statuses[status]) + (samples := stats.sample_statuses[status])
        ],
    )  # fmt: skip
    lengths = (("input", stats.input_words), ("rationale", stats.rationale_words))
    accuracies = (
        ("samples, label as written", stats.as_written),
        ("samples, label normalised", stats.normalised),
        ("rows, vote", stats.vote),
        ("rows, vote, where there is one", stats.voted),
    )
    print_table(
        f"accuracy against gold ({metric}, %)",
        ("", "right", "of", "%"),
        [[name, *_share(share)] for name, share in accuracies],
        note="Of rows with a gold label. A label that is missing counts as wrong.",
    )
    if set(stats.agreement) - {10}:
        print_table(
            "agreement, of rows with a vote",
            ("agreement", "rows", "right", "of", "%"),
            [
                [f"{tenths / 10:.1f}", number(stats.agreement[tenths]),
                 *_share(stats.right_by_agreement.get(tenths, Share()))]
                for tenths in sorted(stats.agreement)
            ],
        )  # fmt: skip
    print_table(
        "words",
        ("", "mean", "p50", "p99"),
        [
            [name, number(words.mean, 1), number(words.percentile(0.5)),
             number(words.percentile(0.99))]
            for name, words in lengths
        ],
    )  # fmt: skip


def _pairs(content: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} ({_pairs(value)})" if isinstance(value, dict) else f"{name} {value}"
        for name, value in content.items()
    )


def _share(share: Share) -> list[str]:
    return [number(share.right), number(share.all), number(share.per_cent)]


def _per_cent(part: int, whole: int) -> str:
    return number(100 * part / whole if whole else None, 1)


def print_filters(rows: int, samples: int, entries: Sequence[Mapping[str, Any]]) -> None:
    """Prints what each filter left out.

    Args:
      rows, samples: before the first filter.
      entries: as in `Header.filters`.
    """
    lines = [["(all)", "", "", "", number(rows), number(samples)]]
    for entry in entries:
        samples -= entry["samples_left_out"]
        lines.append([
            entry["filter"], _value(entry["value"]), number(entry["rows_left_out"]),
            number(entry["samples_left_out"]), number(entry["rows_kept"]), number(samples),
        ])  # fmt: skip
    columns = ("filter", "value", "rows out", "samples out", "rows kept", "samples kept")
    print_table("filters", columns, lines)


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
    table.add_column("id, status", ratio=2)
    table.add_column("input", ratio=5)
    table.add_column("gold", ratio=2)
    table.add_column("teacher", ratio=2)
    table.add_column("rationale", ratio=6)
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
    if page and console.is_terminal:
        with console.pager(styles=True):
            console.print(table)
    else:
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


def _sample(record: Record, number: int) -> Text:
    """The rationale; what does not go without saying about the sample before it."""
    sample = record.samples[number]
    head = f"{number + 1}. " if len(record.samples) > 1 else ""
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
