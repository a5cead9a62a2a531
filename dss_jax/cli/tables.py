"""Tables on the terminal, drawn by rich, which is imported with the first: it takes 0.1 s."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from dss_jax.core import config
from dss_jax.core.texts import visible

if TYPE_CHECKING:
    from rich.console import Console


def say(*texts: object, **options: Any) -> None:
    """`print`, of texts that others may have written: see `visible`."""
    print(*(visible(str(text)) for text in texts), **options)


def number(value: float | int | None, digits: int = 2) -> str:
    """A number as text; "-" where there is none."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    note: str = "",
    texts: bool = False,
) -> None:
    """Prints a table of texts and numbers: the first column to the left, the others to the right
    unless `texts`.
    """
    from rich import box
    from rich.table import Table

    table = Table(title=visible(title), box=box.SIMPLE, title_justify="left")
    table.caption = visible(note) or None
    table.caption_justify = "left"
    for i, column in enumerate(columns):
        table.add_column(
            visible(column), justify="right" if i and not texts else "left", no_wrap=not i
        )
    for row in rows:
        cells = (cell if isinstance(cell, str) else number(cell) for cell in row)
        table.add_row(*map(visible, cells))
    terminal().print(table)


def print_characters(columns: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints what `data.characters` has found in columns; nothing where it has found nothing."""
    from dss_jax.data.characters import shown

    rows = [
        [name, found["lacking_rows"], lacking, found["changed_rows"], changed]
        for name, found in columns.items()
        for lacking, changed in [shown(found)]
    ]
    heads = ("column", "rows", "the vocabulary lacks", "rows", "it changes")
    note = "In brackets how often. What is lacking is read and written as \u2047."
    if rows:
        print_table("characters", heads, rows, note=note, texts=True)


def terminal() -> "Console":
    """Standard output, for rich."""
    from rich.console import Console

    # Texts come from data and models, and may hold what looks like markup.
    plain = partial(Console, highlight=False, markup=False, emoji=False)
    console = plain()
    # A file or a pipe has no width; wrapped cells would be hard to read there.
    return console if console.is_terminal else plain(width=160)


def print_scores(title: str, scores: dict, metric: str) -> None:
    """Prints split -> numbers as a table, and below it the metrics of a user's SeqIO task."""
    columns = ("split", "examples", "accuracy", "teacher", "label loss", "rationale loss")
    rows = []
    for split, numbers in scores.items():
        losses = [number(numbers.get(f"{task}/loss"), 4) for task in ("label", "rationale")]
        rows.append([split, numbers["examples"], numbers[metric], numbers.get("teacher"), *losses])
    print_table(title, columns, rows)
    shown = {metric, "examples", "teacher"}
    for split, numbers in scores.items():
        for name, value in numbers.items():
            if name not in shown and not name.startswith(("label/", "rationale/")):
                say(f"{split}  {name} {number(value)}")


def print_results(run: config.Run, results: dict[str, Any]) -> None:
    """Prints what a run, or the seeds of one, has come to."""
    name, metric = run.task.shown_name, results["metric"]
    scores = {split: results[split] for split in ("validation", "test") if split in results}
    if "seeds" in results:
        print_seeds(f"{name}, {run.method.name}", results)
    elif not run.method.trains:
        of_teacher = run.method.form == "teacher"
        own = "the teacher's own labels" if of_teacher else f"{run.train.init_from} as it is"
        print_scores(f"{name}, {own}: {metric}", scores, metric)
    else:
        which = "the best on validation" if "validation" in results else "the last"
        title = f"{name}, {run.method.name}: {metric} of step {results['best_step']}, {which}"
        print_scores(title, scores, metric)
    if run.method.trains:
        say(f"curves: {run.train.output_dir}/curves.png")


def print_seeds(title: str, numbers: dict) -> None:
    metric = numbers["metric"]
    splits = [split for split in ("validation", "test") if split in numbers]
    rows = [
        [seed, one["best_step"], *(one[split][metric] for split in splits)]
        for seed, one in numbers["seeds"].items()
    ]
    for name in ("mean", "standard error"):
        key = name.replace(" ", "_")
        rows.append([name, "", *(numbers[split][metric][key] for split in splits)])
    print_table(f"{title}: {metric}", ("seed", "best step", *splits), rows)
