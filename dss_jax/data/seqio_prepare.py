"""Makes a token store: rows -> tokens -> store. Runs in a child process: it imports TensorFlow.

Rows come in parts. A part is tokenised by itself, here or by a worker of Apache Beam
(`seqio_beam`), and the parts are put together again; whoever tokenises, the bytes are the same.
"""

import json
import logging
import re
import time
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from dss_jax.core.errors import UsageError
from dss_jax.core.registry import load_task_file
from dss_jax.core.table import input_columns
from dss_jax.core.types import SPLITS, DistillationTask, Example, SeqioSource, SplitUnavailable
from dss_jax.data import prepare, rows, sources
from dss_jax.data.characters import Characters, check_labels
from dss_jax.data.rationales import join_records
from dss_jax.data.store import SAMPLES, TEXT_COLUMNS, TOKEN_COLUMNS
from dss_jax.data.store_writer import ColumnPart, Columns, Joined, write_store
from dss_jax.data.survey import not_allowed, unused_labels
from dss_jax.data.text_rows import text_column
from dss_jax.data.tokenizer import Tokenizer
from dss_jax.data.vocabulary import files_of, is_tokenizer, open_vocabulary

log = logging.getLogger(__name__)

PART = 16_384
"""Rows of a task file that are tokenised at once."""

PROGRESS_SECONDS = 2.0

CHARACTERS_OF = ("input", "label", "teacher_label", "rationale")
"""Text columns whose characters are counted."""

_ESCAPED = re.compile(r'["\\\x00-\x1f]').search

Tokenise = Callable[[Any], Columns]
"""A part's rows, or what tells them -> its columns. Can be pickled, as can the part."""

Parts = Mapping[str, Sequence[Any]]
"""Split -> its parts."""


class StorePlan(NamedTuple):
    """What a store is made of: `tokenise` makes `columns` of each of `parts`; `description` are
    further fields of the manifest.
    """

    tokenise: Tokenise
    parts: Parts
    columns: Sequence[str]
    vocabulary: Tokenizer
    description: Mapping[str, Any]


@dataclass(frozen=True)
class TaskRows:
    """The columns of a task file's rows, by SeqIO's tokeniser; arguments as of `seqio_tokens`."""

    vocabulary: bytes | tuple[tuple[str, bytes], ...]
    extra_ids: int
    style: str

    def __call__(self, examples: Sequence[Example]) -> Columns:
        """Token columns, `SAMPLES` among them, and text columns."""
        # Not before the rows are read, so that a mistake in the data shows at once.
        from dss_jax.data.seqio_tokens import encoder, token_columns

        texts = {column: [*map(attrgetter(column), examples)] for column in TEXT_COLUMNS}
        texts["allowed_labels"] = [*map(_listed, texts["allowed_labels"])]
        encode = encoder(self.vocabulary, self.extra_ids)
        return {
            **token_columns(examples, encode, self.style),
            **{column: text_column(own) for column, own in texts.items()},
        }


def _listed(labels: Sequence[str]) -> str:
    """As JSON, in a quarter of json's own time where no label needs an escape."""
    if _ESCAPED("".join(labels)):
        return json.dumps(labels, ensure_ascii=False)
    return '["' + '", "'.join(labels) + '"]' if labels else "[]"


def content_of(vocabulary: Path) -> bytes | tuple[tuple[str, bytes], ...]:
    """What a worker elsewhere opens a vocabulary from; see `seqio_tokens.Content`."""
    if not is_tokenizer(vocabulary):
        return vocabulary.read_bytes()
    return tuple((name, file.read_bytes()) for name, file in files_of(vocabulary).items())


def _plan_task(request: Mapping[str, Any], size: int) -> StorePlan:
    task = load_task_file(Path(request["task_file"]))
    read: dict[str, list[Example]] = {}
    unavailable: dict[str, str] = {}
    folder = sources.data_folder(request["data_dir"])
    left_out: dict[str, int] = {}
    wrong: list[str] = []
    for split in sources.available_splits(task, folder):
        before = len(wrong)
        try:
            skipped = wrong if request["bad_rows"] == "skip" else None
            read[split] = rows.examples(task, split, folder, skipped)
        except SplitUnavailable as error:
            unavailable[split] = str(error)
        if new := wrong[before:]:
            left_out[split] = len(new)
            log.warning("\n".join([f"{split}: {len(new):,} rows are left out", *new[:3]]))
    if not read:
        raise UsageError("\n".join(unavailable.values()))
    old: list[str] = []
    examples, joined = join_records(task, read, request["rationales"], folder, old)
    vocabulary = open_vocabulary(request["vocabulary"], request["extra_ids"])
    check_labels(task, chain.from_iterable(examples.values()), vocabulary)
    health = {s: {"left_out": left_out.get(s, 0), **_health(task, e)} for s, e in examples.items()}
    # Of SeqIO's own sources, which the key does not cover.
    files: dict[str, Any] = {}
    for source in task.sources:
        if isinstance(source, SeqioSource):
            from dss_jax.data.seqio_user import file_stamps

            files |= file_stamps(source.make(), source.splits)
    return StorePlan(
        tokenise=TaskRows(content_of(vocabulary.path), request["extra_ids"], request["prefixes"]),
        parts={
            split: [found[start : start + size] for start in range(0, len(found), size)]
            for split, found in examples.items()
        },
        columns=(*TOKEN_COLUMNS, SAMPLES, *TEXT_COLUMNS),
        vocabulary=vocabulary,
        description={
            "description": task.description,
            "labels": task.labels,
            "unused_labels": unused_labels(task, chain.from_iterable(examples.values())),
            "columns": input_columns(task),
            "prefixes": request["prefixes"],
            "counts": {s: _counts(found) for s, found in examples.items()},
            "health": health,
            "unavailable": unavailable,
            "rationales": joined,
            "old_records": old,
            **({"source_files": files} if files else {}),
        },
    )


def _counts(examples: Sequence[Example]) -> dict[str, int]:
    fields = ("label", "teacher_label", "rationale")
    return {"rows": len(examples)} | {f: sum(bool(getattr(e, f)) for e in examples) for f in fields}


def _health(task: DistillationTask, examples: Sequence[Example]) -> dict[str, Any]:
    """What `layouts.health` says of a split's rows."""
    judged = (e for e in examples if e.label and e.teacher_label)
    right = sum(task.scorer.correct(e.label, e.teacher_label) for e in judged)
    outside = {"not_allowed": not_allowed(examples)} if task.labels else {}
    return {"teacher_right": right} | outside


def _plan_seqio(request: Mapping[str, Any], size: int | None) -> StorePlan:
    """Each row of each task once, whatever its rate."""
    from dss_jax.data import seqio_user

    provider = seqio_user.find_provider(request["module"], request["name"])
    cached = request["use_cached"]
    tasks = seqio_user.tasks_of(provider, cached, request["cache_dirs"])
    files: dict[str, Any] = {}
    parts: dict[str, list[Any]] = {s: [] for s in SPLITS if s in provider.splits}
    for task in tasks:
        cache = task.cache_dir if cached else None
        files |= seqio_user.file_stamps(task.source, task.splits, cache)
        for split in parts.keys() & task.splits:
            parts[split] += seqio_user.parts_of(task, split, size)
    return StorePlan(
        tokenise=seqio_user.SeqioRows(request["module"], request["name"], cached),
        parts=parts,
        columns=seqio_user.COLUMNS,
        vocabulary=seqio_user.vocabulary_of(provider),
        description={"prefixes": None, "source_files": files},
    )


def here(tokenise: Tokenise, parts: Parts) -> dict[str, list[Columns]]:
    """Tokenises all parts in this process."""
    found: dict[str, list[Columns]] = {split: [] for split in parts}
    said = time.monotonic()
    for split, own in parts.items():
        for number, part in enumerate(own):
            if number and time.monotonic() - said > PROGRESS_SECONDS:
                said = time.monotonic()
                log.info(f"  {split}: {number} of {len(own)} parts")
            found[split].append(tokenise(part))
    return found


def make(
    request: Mapping[str, Any],
    run: Callable[[Tokenise, Parts], Mapping[str, Sequence[ColumnPart]]] = here,
    size: int | None = None,
) -> None:
    """Makes the store that a request of `dss_jax.data.prepare` describes.

    `run`: (tokenise, parts) -> split -> the columns of its parts. `size`: rows of a part; None: as
    is best for this process alone. UsageError: ill-formed or missing data; or the sources changed
    since the request was made.
    """
    own = request["kind"] == "task"
    plan = _plan_task(request, size or PART) if own else _plan_seqio(request, size)
    splits: dict[str, Columns] = {}
    total, characters = 0, Characters(plan.vocabulary)
    for split, parts in run(plan.tokenise, plan.parts).items():
        whole = Joined(plan.columns, parts)
        count = len(whole["label_inputs"])
        total += count
        log.info(f"  {split}: {count:,} rows")
        for column in (c for c in CHARACTERS_OF if c in plan.columns):
            characters.add(f"{split} {column}", whole[column])
        if not own:
            from dss_jax.data.seqio_user import numbered

            # Only now it is known how many rows of a task come before a part.
            ids: Any = {"id": numbered(whole["id"])}
            splits[split] = ChainMap(ids, whole)  # type: ignore[arg-type]
        elif len(whole[SAMPLES].values):
            splits[split] = whole
        else:
            splits[split] = Joined([c for c in whole if c != SAMPLES], parts)
    if not total:
        raise UsageError(f"the SeqIO task {request['name']!r} has no rows in {', '.join(SPLITS)}.")
    if prepare.key_of(prepare.made_from(dict(request))) != request["key"]:
        raise UsageError(
            f"the files that {request['name']!r} is made from changed while its token store was "
            "made. Run the command again."
        )
    fields = {k: request[k] for k in ("name", "kind", "key", "made_from")} | {**plan.description}
    fields["characters"] = characters.found()
    model = plan.vocabulary.path
    extra_ids = request["extra_ids"] if own else plan.vocabulary.extra_ids
    # The caller has looked: what is there is damaged, stale or incomplete.
    write_store(Path(request["path"]), splits, model, extra_ids, fields, replace=True)


def answer(request: Mapping[str, Any]) -> None:
    """For the parent process."""
    make(request)
