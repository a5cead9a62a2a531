"""`dss tasks check`: reads the splits, looks at them, and shows what was found."""

import argparse
from collections.abc import Mapping
from dataclasses import replace

from dss_jax.cli import options
from dss_jax.cli.tables import print_table, say
from dss_jax.core import config, storage
from dss_jax.core.errors import UsageError
from dss_jax.core.types import DistillationTask, Example, SplitUnavailable
from dss_jax.data import rows, sources
from dss_jax.data.characters import vocabulary_at_hand
from dss_jax.data.check import Finding, TaskCheck, check
from dss_jax.data.rationales import join_records
from dss_jax.data.vocabulary import open_vocabulary
from dss_jax.data.vocabulary import resolve as vocabulary_file
from dss_jax.interop.model_files import T5_CONFIG, read_model_files


def main(args: argparse.Namespace) -> int:
    """Prints a table, and what should stop one; draws it where asked. The exit status: 1 for such
    a finding.
    """
    resolved = resolve(args)
    run, task = resolved.run, resolved.task
    assert task is not None
    splits, findings = _splits(task, run.task.data_dir, run.task.bad_rows == "skip")
    own, old = run.task, list[str]()
    try:
        splits, said = join_records(task, splits, own.record_files, own.data_dir, old)
        findings += [Finding("records", {}, note=line) for line in [*said, *old]]
    except UsageError as error:
        findings.append(Finding("records", {}, str(error)))
    given = run.vocabulary.path
    file = vocabulary_at_hand(task) if given is None else vocabulary_file(given)
    vocabulary = None if file is None else open_vocabulary(file, run.vocabulary.extra_ids)
    found = check(task, splits, run, vocabulary)
    found.findings += findings
    _print(task.name, found, tuple(splits))
    if vocabulary is None:
        say("no vocabulary is at hand: tokens and characters were not looked at. --vocabulary FILE")
    if args.out is not None:
        from dss_jax.report.check_chart import plot_check

        plot_check(found, args.out, title=f"{task.name}: the data")
        say(f"picture: {args.out}")
    for stop in found.stops:
        say(f"stop: {stop}")
    if not found.stops:
        say("nothing found that should stop you")
    return 1 if found.stops else 0


def resolve(args: argparse.Namespace) -> options.Resolved:
    """As `options.resolve`; where no vocabulary was given, and the task's own output folder has a
    run, with that run's.
    """
    found = options.resolve(args)
    given, place = found.run.vocabulary.path, found.run.train.output_dir
    if given is not None or place is None:
        return found
    if not ((folder := storage.place(place)) / T5_CONFIG).is_file():
        return found
    files = read_model_files(folder)
    own = config.Vocabulary(path=str(files.vocabulary), extra_ids=files.extra_ids)
    return replace(found, run=replace(found.run, vocabulary=own)) if files.vocabulary else found


def _splits(
    task: DistillationTask, data_dir: str | None, skip: bool
) -> tuple[Mapping[str, list[Example]], list[Finding]]:
    """The rows of the splits that can be had, and what is to be said of the others."""
    splits, findings = {}, []
    left_out: list[str] = []
    for split in sources.available_splits(task, data_dir):
        before = len(left_out)
        try:
            splits[split] = rows.examples(task, split, data_dir, left_out if skip else None)
        except SplitUnavailable as error:
            findings.append(Finding(split, {}, note=str(error)))
        if new := len(left_out) - before:
            text = f"{new:,} rows are left out that cannot be used"
            findings.append(Finding(split, {}, note=text))
    if not splits:
        raise sources.no_split(task, "train", sources.data_folder(data_dir))
    return splits, findings


def _print(name: str, found: TaskCheck, splits: tuple[str, ...]) -> None:
    def state(one: Finding) -> str:
        return "STOP" if one.stop else "look" if one.note else "ok"

    table = [
        [one.what, *(one.found.get(s, "") for s in splits), state(one)]
        for one in found.findings
        if one.found
    ]
    print_table(f"{name}: the data", ("", *splits, ""), table, texts=True)
    for one in found.findings:
        if one.note:
            say(f"{one.what}: {one.note}")
