"""Stage 1 of the demo: the simulated teacher is asked over HTTP, its records are filtered."""

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

from dss_jax.core import config
from dss_jax.core.paths import make_folder
from dss_jax.core.types import SPLITS, DistillationTask, Example
from dss_jax.data import rows
from dss_jax.layouts.batches import subset_rows
from dss_jax.records.files import read_records, write_records
from dss_jax.records.filters import Filters, apply_filters
from dss_jax.records.ids import ids_in
from dss_jax.teacher import extraction
from dss_jax.teacher.asking import ExtractionProgress, ExtractionRun, SendOptions, ServerTeacher
from dss_jax.teacher.client import Client, host_of
from dss_jax.teacher.journal import Journal
from dss_jax.teacher.simulated import MODEL, simulated_teacher

log = logging.getLogger(__name__)

CONCURRENCY = 16  # Requests at once: more than the server answers in the time that one takes.
TELL_EVERY = 2000  # Answers between lines of progress.

TERMS = "Generated and simulated: free to use."


def simulated_records(task: DistillationTask, subset: config.Task, folder: Path) -> list[Path]:
    """Extracts records of every split, unless they are there already, for all rows.

    Args:
      task: a generated task with a prompt.
      subset: which training rows are asked about.
      folder: of the journal and of the record files, SPLIT.jsonl (only "ok") and SPLIT_raw.jsonl.

    Returns:
      The record files that are filtered.

    Raises:
      KeyboardInterrupt: stopped; what was answered is in the journal.
    """
    files = {split: folder / f"{split}.jsonl" for split in SPLITS}
    wanted = {split: _rows(task, split, subset) for split in files}
    asked = {
        s: own for s, own in wanted.items() if not _has(files[s], folder / f"{s}_raw.jsonl", own)
    }
    if asked:
        make_folder(folder)
        with Journal(folder / "journal") as journal, simulated_teacher(str(task.file)) as base_url:
            # The requests are the same whatever the split is called.
            everything = [*itertools.chain(*asked.values())]
            _ask(_extraction(task, "train"), everything, journal, base_url)
            about = {"endpoint": host_of(base_url), "terms": TERMS}
            for split, examples in asked.items():
                what, raw = _extraction(task, split), folder / f"{split}_raw.jsonl"
                extraction.write(what, examples, journal, raw, price=lambda *_: 0.0, **about)
    for split in asked:
        header, read = read_records(folder / f"{split}_raw.jsonl")
        header, kept = apply_filters(header, list(read), Filters(only=("ok",)), task.scorer.correct)
        write_records(files[split], header, kept)
        log.info(f"{files[split]}: {len(kept):,} of {len(asked[split]):,} records are ok")
    return list(files.values())


def _has(file: Path, raw: Path, examples: Sequence[Example]) -> bool:
    """Whether all of these were asked about; a demo of before may have had fewer."""
    return file.exists() and raw.exists() and ids_in(raw) >= {e.id for e in examples}


def _rows(task: DistillationTask, split: str, subset: config.Task) -> Sequence[Example]:
    found = rows.examples(task, split)
    return [found[i] for i in subset_rows(len(found), subset)] if split == "train" else found


def _extraction(task: DistillationTask, split: str) -> extraction.Extraction:
    sampling = {"temperature": 0.0, "max_tokens": 256}
    return extraction.Extraction(task=task, split=split, model=MODEL, sampling=sampling)


def _ask(
    what: extraction.Extraction, examples: list[Example], journal: Journal, base_url: str
) -> None:
    log.info(f"asking the simulated teacher at {base_url} for {len(examples):,} rationales")

    def on_progress(progress: ExtractionProgress) -> None:
        if progress.answered and progress.answered % TELL_EVERY == 0:
            rate = progress.answered / max(progress.seconds, 1e-9)
            log.info(f"  {progress.done:,} of {len(examples):,} rows, {rate:,.0f} a second")

    client = Client(base_url, connections=CONCURRENCY)
    teacher = ServerTeacher(client, SendOptions(concurrency=CONCURRENCY))
    run = ExtractionRun(journal, on_progress=on_progress)
    if teacher.ask(what.requests(examples), run).stopped:
        raise KeyboardInterrupt
