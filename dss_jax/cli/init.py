"""Make a task of a labelled table: its file, its settings, its splits. Nothing is overwritten.

  dss init tickets --from tickets.csv --input subject,body --label category --id number
  dss init reviews --from reviews.tsv --input text --label stars --exemplars 8 --model gpt-4o-mini
  dss init emotion --from hf:dair-ai/emotion --input text --label label

Prints what was found, and the next three commands. docs/your_data.md.
"""

import argparse
import os
import shlex
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from dss_jax.cli import init_files, options
from dss_jax.cli.tables import number, print_table, say
from dss_jax.core.checks import at_least
from dss_jax.core.errors import UsageError, unknown_name
from dss_jax.core.paths import shipped, write_whole
from dss_jax.core.prompt import Exemplar
from dss_jax.core.registry import load_task_file
from dss_jax.core.table import FORMS, TableSource
from dss_jax.core.texts import AS_UTF8
from dss_jax.core.types import SPLITS, DistillationTask, Example
from dss_jax.interop.hub import SCHEME

FEWEST = 20
"""Labelled rows."""

SMALL_TABLE = 1_000
"""With fewer labelled rows, 15 % each are validation and test; else 10 %."""

SHOWN = 20
"""Labels in the table that is printed."""


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", help="of the new task")
    text = "the table: .csv, .tsv, .jsonl, .parquet, or hf:DATASET[:CONFIG] of the hub"
    add("--from", dest="source", required=True, metavar="FILE", help=text)
    text = "columns that the student reads; may be given several times"
    add("--input", metavar="COL,COL", type=_names, action="extend", help=text)
    add("--label", metavar="COL", help="the column with the gold label")
    add("--id", metavar="COL", help="a column that names each row (default: known by its text)")
    add("--group", metavar="COL", help="rows that agree in it stay in one split")
    add("--rationale", metavar="COL", help="a column that says why")
    options.add_bad_rows_flag(parser)
    add("--dir", type=Path, default=Path(), help="where to write (default: here)")
    student = "google/flan-t5-base"
    text = f"the checkpoint of the train command that is printed (default: {student})"
    add("--init_from", default=student, help=text)
    add = parser.add_argument_group("worked examples for the teacher's prompt").add_argument
    add("--exemplars", type=int, default=0, metavar="N", help="draw so many rows of train")
    add("--exemplar_seed", type=int, default=0, help="of the draw (default 0)")
    add("--model", help="the teacher, which explains their gold labels")
    add("--base_url", help="of its server (default: OpenAI's)")
    key = "variable that holds the key (default: OPENAI_API_KEY)"
    add("--api_key_env", default="OPENAI_API_KEY", metavar="NAME", help=key)


class FoundTable(NamedTuple):
    """A task that is not written yet, and what there is to say of its table."""

    task: DistillationTask
    table: TableSource
    rows: int
    slips: Mapping[str, str]
    counts: Mapping[str, int]


def main(args: argparse.Namespace) -> None:
    at_least("--exemplars", args.exemplars, 0)
    args.skip = args.bad_rows == "skip"
    if not args.name.isidentifier():
        raise UsageError(
            f"{args.name!r} cannot be a task's name: letters, digits and _ only, no digit first."
        )
    files = {
        "task": args.dir / "tasks" / f"{args.name}.py",
        "gin": args.dir / "gin_configs" / "tasks" / f"{args.name}.gin",
    }
    _check_new(args, files)

    from dss_jax.data.characters import vocabulary_at_hand
    from dss_jax.data.survey import longest_label

    with ExitStack() as undo:
        if args.source.startswith(SCHEME):
            undo.callback(shutil.rmtree, files["task"].with_suffix(""), ignore_errors=True)
        found = _look(args, files["task"], _table(args, files["task"].parent))
        splits = _examples(args, found.task)
        exemplars = _exemplars(args, found.task, splits["train"])
        vocabulary = vocabulary_at_hand(found.task)
        labels = {*found.task.labels, *(e.label for rows in splits.values() for e in rows)}
        longest, measured = longest_label(labels, vocabulary), vocabulary is not None
        about = args.name, _title(args), found.table, found.task.labels, exemplars
        write_whole(files["task"], init_files.task_file(*about))
        undo.pop_all()
    gin = init_files.gin_file(args.name, _title(args), splits, longest, measured, args.skip)
    write_whole(files["gin"], gin)
    _report(found, splits, longest, measured)
    _next(args, files, exemplars)


def _title(args: argparse.Namespace) -> str:
    return " ".join(f"{args.label} of {Path(args.source).name}, by {', '.join(args.input)}".split())


def _check_new(args: argparse.Namespace, files: Mapping[str, Path]) -> None:
    data = [args.dir / "tasks" / args.name] if args.source.startswith(SCHEME) else []
    there = [file for file in [*files.values(), *data] if file.exists()]
    if there:
        raise UsageError(
            f"{there[0]} is there already, and nothing is overwritten. Edit it, give another name, "
            "or remove it."
        )
    if (shipped("tasks") / f"{args.name}.py").is_file():
        raise UsageError(f"{args.name!r} is a task that comes with the package. Give another name.")


def _table(args: argparse.Namespace, tasks: Path) -> TableSource:
    """The table as asked for; of a data set of the hub, with its splits' own files."""
    if args.source.startswith(SCHEME):
        if not (args.input and args.label):
            raise UsageError("which columns? Give --input COL,COL and --label COL.")
        return _of_hub(args, tasks)
    file = Path(args.source).expanduser()
    if not file.is_file():
        raise UsageError(f"--from {args.source}: there is no such file.")
    if file.suffix.lower() not in FORMS:
        excel = f" {AS_UTF8}" if file.suffix.startswith(".xl") else ""
        raise UsageError(f"--from {file}: must end in one of {', '.join(FORMS)}.{excel}")
    known = _columns_of(file)
    if not (args.input and args.label):
        listed = ", ".join(map(repr, known))
        raise UsageError(f"which columns? Give --input and --label, of {args.source}'s: {listed}.")
    inside = file.resolve().is_relative_to(args.dir.resolve())
    name = os.path.relpath(file.resolve(), tasks.resolve()) if inside else str(file.resolve())
    table = TableSource(file=Path(name).as_posix(), **_columns(args))
    for column in table.columns:
        if column not in known:
            raise unknown_name(f"column of {args.source}", column, known)
    return table


def _columns_of(file: Path) -> dict[str, None]:
    """Of all rows, for those of JSONL may differ; UsageError: none can be read."""
    from dss_jax.data.rows import table_rows

    names, wrong = dict[str, None](), ""
    for located in table_rows(file):
        names |= dict.fromkeys(located.row)
        wrong = wrong or located.wrong
    if not names:
        raise UsageError(wrong or f"{file} has no rows.")
    return names


def _columns(args: argparse.Namespace) -> dict[str, Any]:
    """The columns of a `TableSource`."""
    columns: dict[str, Any] = {n: getattr(args, n) for n in ("label", "id", "rationale", "group")}
    columns["inputs"] = tuple(args.input)
    if args.label in columns["inputs"]:
        raise UsageError(f"--input has the column of the label, {args.label!r}: it would tell it.")
    return columns


def _of_hub(args: argparse.Namespace, tasks: Path) -> TableSource:
    from dss_jax.interop import hub_data

    columns = _columns(args)
    wanted = TableSource(file="", **columns).columns
    own = hub_data.fetch(args.source, wanted, args.label, tasks / args.name)
    names = {split: f"{args.name}/{file.name}" for split, file in own.items()}
    return TableSource(file=names.pop("train"), files=names, **columns)


def _look(args: argparse.Namespace, task_file: Path, table: TableSource) -> FoundTable:
    """Finds labels, what is none, slips, shares and seed."""
    from dss_jax.data import survey

    path = Path(os.path.normpath(task_file.parent / table.file))
    every = survey.survey(table, path)
    none = tuple(label for label in every.labels if label.casefold() in survey.NO_LABEL)
    table = replace(table, no_label=none)
    found = every.without(table.no_label)
    if len(found.keys) < FEWEST:
        raise UsageError(
            f"{args.source}: {len(found.keys)} of {found.rows} rows have a label in "
            f"{args.label!r}, and at least {FEWEST} are needed to train and to score."
        )
    share = 0.15 if len(found.keys) < SMALL_TABLE else 0.1
    table = replace(table, validation=share, test=share)
    table = replace(table, seed=survey.evenest_seed(table, found.keys))
    labels, slips = survey.closed_labels(found.labels)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / task_file.name
        write_whole(file, init_files.task_file(args.name, _title(args), table, labels))
        task = replace(load_task_file(file), file=str(task_file))
    return FoundTable(task, table, found.rows, slips, found.labels)


def _examples(args: argparse.Namespace, task: DistillationTask) -> dict[str, list[Example]]:
    """All splits; UsageError: rows that cannot be used, with file and line, unless skipped."""
    from dss_jax.data import rows, sources

    left: list[str] | None = [] if args.skip else None
    splits = {s: rows.examples(task, s, None, left) for s in sources.available_splits(task)}
    if left:
        say(f"{number(len(left))} rows are left out that cannot be used, as {left[0]}")
    return splits


def _exemplars(
    args: argparse.Namespace, task: DistillationTask, train: Sequence[Example]
) -> Sequence[Exemplar]:
    if not args.exemplars:
        return ()
    from dss_jax.teacher import asking, client, exemplars, prices

    known = [e for e in train if not task.labels or e.label in task.labels]
    rows = exemplars.draw(known, args.exemplars, args.exemplar_seed)
    rationales = [e.rationale for e in rows]
    if args.model and not all(rationales):
        server = prices.HOSTED if args.base_url is None else args.base_url
        teacher = asking.ServerTeacher(client.Client(server, args.api_key_env))
        rationales = exemplars.explained(task, rows, args.model, teacher)
    pairs = zip(rows, rationales, strict=True)
    return [Exemplar(input=e.input, rationale=text, output=e.label) for e, text in pairs]


def _report(
    found: FoundTable, splits: Mapping[str, Sequence[Example]], longest: int, measured: bool
) -> None:
    """What was found."""
    names = [split for split in SPLITS if split in splits]
    each = {s: Counter(e.label for e in splits[s] if e.label) for s in names}
    every = sum(each.values(), Counter[str]())
    rows = [[one, n, *(each[s][one] for s in names)] for one, n in every.most_common(SHOWN)]
    if len(every) > SHOWN:
        rows.append([f"and {len(every) - SHOWN:,} more", "", *([""] * len(names))])
    rows.append(["labelled rows", every.total(), *(each[s].total() for s in names)])
    print_table(f"{found.task.name}: labels in {found.table.label!r}", ("", "all", *names), rows)
    marks = ", ".join(map(repr, found.table.no_label))
    if without := found.rows - sum(found.counts.values()):
        said = f" ({marks} counts as none)" if marks else ""
        say(f"{number(without)} rows without a label{said} are kept aside: unlabelled in TABLE")
    for slip, meant in found.slips.items():
        say(
            f"{slip!r} ({found.counts[slip]}) looks like a slip of {meant!r} "
            f"({found.counts[meant]}): put it right in the table, or add it to LABELS"
        )
    if not found.task.labels:
        say(f"{len(every):,} different labels: any text may be an answer")
    how = "with T5's vocabulary" if measured else "at most: an estimate, no vocabulary is at hand"
    say(f"the longest label has {longest} tokens ({how})")


def _next(
    args: argparse.Namespace, files: Mapping[str, Path], exemplars: Sequence[Exemplar]
) -> None:
    """What was written, and what to do now."""
    for what, file in zip(("the task", "its settings"), files.values(), strict=True):
        say(f"wrote {file}: {what}")
    if exemplars:
        bare = sum(not e.rationale for e in exemplars)
        say(
            f"{len(exemplars)} exemplars are in {files['task']}, {bare} of them without a "
            "rationale, so not shown yet. Read them before you ask for more."
        )
    where = [] if args.dir.resolve() == Path.cwd() else ["--task_dir", str(args.dir / "tasks")]
    ending = ".jsonl" if args.source.startswith(SCHEME) else Path(args.source).suffix
    records, run = f"{args.name}_train.jsonl", f"runs/{args.name}"
    server = ["--base_url", args.base_url] if args.base_url else []
    server += ["--bad_rows", "skip"] if args.skip else []
    teacher = ["--model", args.model or "gpt-4o-mini", *server]
    start = ["--init_from", args.init_from]
    commands = [
        ["extract", "--task", args.name, *where, *teacher, "--out", records],
        ["train", "--task", args.name, *where, "--rationales", records, *start],
        ["predict", "--student", run, "--input", f"new{ending}", "--out", f"labelled{ending}"],
    ]
    if args.rationale:
        commands = [[w for w in c if w not in ("--rationales", records)] for c in commands[1:]]
    say(f"\nLook first: dss tasks check {shlex.join([args.name, *where])}\nThen:")
    for command in commands:
        say(f"  dss {shlex.join(command)}")
