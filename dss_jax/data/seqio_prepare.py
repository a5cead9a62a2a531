"""Makes a token store from SeqIO tasks. Run as a child process: it imports TensorFlow."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dss_jax.core.errors import UsageError
from dss_jax.core.ids import EOS_ID
from dss_jax.core.prefixes import prefixes
from dss_jax.core.registry import load_task_file
from dss_jax.core.types import SPLITS, DistillationTask, Example
from dss_jax.data import prepare, rows
from dss_jax.data.rationales import join_records
from dss_jax.data.row_files import SplitUnavailable
from dss_jax.data.seqio_cached import cached_files, check_cache
from dss_jax.data.seqio_child import find_provider, ints_and_texts, serve
from dss_jax.data.store import SAMPLES, TEXT_COLUMNS, TOKEN_COLUMNS
from dss_jax.data.store_writer import SplitBuilder, write_store
from dss_jax.data.tokens import PROGRESS_SECONDS, token_columns
from dss_jax.data.vocabulary import SentencePiece

Say = Callable[[str], None]

SAMPLE = 256
"""Rows of each split that SeqIO tokenises too."""


def make(
    request: Mapping[str, Any],
    say: Say,
    build: "Callable[[Mapping[str, Any], Say], Built] | None" = None,
) -> None:
    """Makes the store that a request of `dss_jax.data.prepare` describes.

    Args:
      request: what to make.
      say: is told of progress.
      build: makes the rows; None: this module, in this process.

    Raises:
      UsageError: ill-formed or missing data; or the sources changed since the request was made.
    """
    path = Path(request["path"])
    if build is None:
        build = _from_seqio if request["kind"] == "seqio" else _from_task
    splits, vocabulary_file, extra_ids, description = build(request, say)
    if prepare.key_of(prepare.made_from(dict(request))) != request["key"]:
        raise UsageError(
            f"the files that {request['name']!r} is made from changed while its token store was "
            "made. Run the command again."
        )
    fields = {k: request[k] for k in ("name", "kind", "key", "made_from")} | description
    # The caller has looked: what is there is damaged, stale or incomplete.
    write_store(path, splits, vocabulary_file, extra_ids, fields, replace=True)


Built = tuple[dict[str, SplitBuilder], Path, int, dict[str, Any]]


def _from_task(request: Mapping[str, Any], say: Say) -> Built:
    task, examples, vocabulary, description = task_rows(request)
    tokens = task_tokens(task, examples, vocabulary, request["prefixes"], say)
    for split, found in examples.items():
        if any(example.rationales for example in found):
            tokens[split][SAMPLES] = sample_tokens(found, vocabulary)
    builders = {split: filled(found, tokens[split]) for split, found in examples.items()}
    return builders, vocabulary.path, vocabulary.extra_ids, description


def task_rows(
    request: Mapping[str, Any],
) -> tuple[DistillationTask, dict[str, list[Example]], SentencePiece, dict[str, Any]]:
    """The task, its rows by split, its vocabulary, and what the manifest says of them."""
    task = load_task_file(Path(request["task_file"]))
    # Before TensorFlow is imported, so that a mistake in the data shows at once.
    read, unavailable = _read(task, request["data_dir"])
    examples, joined = join_records(task, read, request["rationales"], request["data_dir"])
    vocabulary = SentencePiece(request["vocabulary"], request["extra_ids"])
    description = {
        "prefixes": request["prefixes"],
        "counts": {split: _counts(found) for split, found in examples.items()},
        "unavailable": unavailable,
        "rationales": joined,
    }
    return task, dict(examples), vocabulary, description


def new_split() -> SplitBuilder:
    """An empty split of a task file."""
    return SplitBuilder(TOKEN_COLUMNS, TEXT_COLUMNS)


def new_pairs() -> SplitBuilder:
    """An empty split of a SeqIO task."""
    return SplitBuilder(("label_inputs", "label_targets"), ("id", "input", "label"))


def sample_tokens(found: list[Example], vocabulary: SentencePiece) -> list[list[int]]:
    """All rationales of each row, each ended by EOS; [] for a row that has one or none."""
    rows = []
    for example in found:
        ids = vocabulary.encode_all(example.rationales) if example.rationales else []
        rows.append([i for one in ids for i in (*one, EOS_ID)])
    return rows


def filled(found: list[Example], tokens: Mapping[str, list[Any]]) -> SplitBuilder:
    """A split of these rows and their tokens."""
    builder = SplitBuilder(tuple(tokens), TEXT_COLUMNS)
    for row, example in enumerate(found):
        texts = {c: getattr(example, c) for c in TEXT_COLUMNS}
        texts["allowed_labels"] = json.dumps(example.allowed_labels, ensure_ascii=False)
        builder.append({c: ids[row] for c, ids in tokens.items()}, texts)
    return builder


def _read(
    task: DistillationTask, data_dir: str | None
) -> tuple[dict[str, list[Example]], dict[str, str]]:
    """The rows of every split that can be had, and why the others cannot."""
    found, unavailable = {}, {}
    folder = rows.data_folder(data_dir)
    for split in rows.available_splits(task, folder):
        try:
            found[split] = rows.examples(task, split, folder)
        except SplitUnavailable as error:
            unavailable[split] = str(error)
    if not found:
        raise UsageError("\n".join(unavailable.values()))
    return found, unavailable


def quick_tokens(
    examples: Mapping[str, list[Example]], vocabulary: SentencePiece, style: str, say: Say
) -> dict[str, dict[str, list[list[int]]]]:
    """Tokens of all splits, many texts at once: split -> column -> ids of each row."""
    from dss_jax.data.seqio_encode import encoder

    with encoder(vocabulary.path, vocabulary.extra_ids) as encode:
        return {
            split: token_columns(own, encode, style, split=split, say=say)
            for split, own in examples.items()
        }


def task_tokens(
    task: DistillationTask,
    examples: Mapping[str, list[Example]],
    vocabulary: SentencePiece,
    style: str,
    say: Say,
) -> dict[str, dict[str, list[Any]]]:
    """Tokens of all splits: split -> column -> ids of each row.

    All rows are tokenised at once, and some of each split by SeqIO too. Where these differ, which
    would be a fault, SeqIO does it all.
    """
    found, sample, sampled = quick_tokens(examples, vocabulary, style, say), [], []
    for split, own in examples.items():
        for row in np.unique(np.linspace(0, len(own) - 1, min(SAMPLE, len(own))).astype(int)):
            sample.append(own[row])
            sampled.append({column: ids[row] for column, ids in found[split].items()})
    # The samples together, because setting up SeqIO's pipelines takes longer than running them.
    expected = seqio_tokens(task, "train", sample, vocabulary, style, lambda _: None)
    if all(
        list(expected[column][i]) == ids[column]
        for i, ids in enumerate(sampled)
        for column in TOKEN_COLUMNS
    ):
        for split, own in examples.items():
            say(f"  {split}: {len(own):,} rows")
        return found
    say("  tokens differ from SeqIO's, so SeqIO makes all of them, row by row")
    return {
        split: seqio_tokens(task, split, own, vocabulary, style, say)
        for split, own in examples.items()
    }


def seqio_tokens(
    task: DistillationTask,
    split: str,
    examples: list[Example],
    vocabulary: SentencePiece,
    style: str,
    say: Say,
) -> dict[str, list[Any]]:
    """Tokens of rows as the SeqIO tasks give them: column -> ids of each row, () where empty."""
    from dss_jax.data import seqio_tasks

    tasks = seqio_tasks.register(
        task,
        vocabulary_path=vocabulary.path,
        extra_ids=vocabulary.extra_ids,
        prefixes=style,
        examples={split: examples},
    )
    columns = _tokens(tasks, split, len(examples), say)
    _fill_inputs(columns, examples, vocabulary, style)
    say(f"  {split}: {len(examples):,} rows")
    return columns


def _tokens(tasks: Mapping[str, Any], split: str, count: int, say: Say) -> dict[str, list[Any]]:
    """Runs the SeqIO tasks over a split: token column -> ids of each row, () where it has none."""
    columns: dict[str, list[Any]] = {c: [()] * count for c in TOKEN_COLUMNS}
    said = time.monotonic()
    for suffix in ("label", "teacher_label", "rationale"):
        seqio_task = tasks[suffix]
        inputs = columns["rationale_inputs" if suffix == "rationale" else "label_inputs"]
        targets = columns[f"{suffix}_targets"]
        dataset = seqio_task.get_dataset(sequence_length=None, split=split, shuffle=False)
        for done, example in enumerate(dataset.as_numpy_iterator()):
            row = int(example["row"])
            inputs[row], targets[row] = example["inputs"], example["targets"]
            if time.monotonic() - said > PROGRESS_SECONDS:
                said = time.monotonic()
                say(f"  {split}: {suffix} {done + 1:,} of {count:,} rows")
    return columns


def _fill_inputs(
    tokens: Mapping[str, list[Any]], examples: list[Example], vocabulary: SentencePiece, style: str
) -> None:
    """Inputs of rows that no SeqIO task has, for want of a target: they can still be predicted."""
    for column, prefix in prefixes(style).of_columns.items():
        for row, ids in enumerate(tokens[column]):
            if not len(ids):
                tokens[column][row] = vocabulary.encode_input(prefix + examples[row].input)


def _counts(examples: list[Example]) -> dict[str, int]:
    fields = ("label", "teacher_label", "rationale")
    return {
        "rows": len(examples),
        **{f: sum(bool(getattr(e, f)) for e in examples) for f in fields},
    }


def _from_seqio(request: Mapping[str, Any], say: Say) -> Built:
    """A user's own SeqIO task or mixture: each row of each of its tasks once, whatever its rate."""
    provider, tasks, vocabulary, description = seqio_rows(request)
    builders = {}
    for split in (s for s in SPLITS if s in provider.splits):
        builder = new_pairs()
        for task in tasks:
            if split in task.splits:
                add_rows(builder, task, split, vocabulary, request["use_cached"])
        say(f"  {split}: {len(builder):,} rows")
        builders[split] = builder
    if not any(len(b) for b in builders.values()):
        raise UsageError(f"the SeqIO task {request['name']!r} has no rows in {', '.join(SPLITS)}.")
    return builders, Path(vocabulary.path), vocabulary.extra_ids, description


def seqio_rows(request: Mapping[str, Any]) -> tuple[Any, list[Any], SentencePiece, dict[str, Any]]:
    """The provider, its tasks, their vocabulary, and what the manifest says of them."""
    import seqio

    provider = find_provider(request["module"], request["name"])
    tasks = check_cache(provider, request["use_cached"], request["cache_dirs"])
    vocabulary = vocabulary_of(provider, seqio)
    files = cached_files(tasks) if request["use_cached"] else _source_files(provider, seqio)
    return provider, tasks, vocabulary, {"prefixes": None, "source_files": files}


def vocabulary_of(provider: Any, seqio: Any) -> SentencePiece:
    """The SentencePiece vocabulary that inputs and targets share."""
    features = provider.output_features
    missing = {"inputs", "targets"} - set(features)
    if missing:
        raise UsageError(
            f"the SeqIO task {provider.name!r} must have the features inputs and targets; it has "
            f"{', '.join(features)}."
        )
    vocabularies = [features[f].vocabulary for f in ("inputs", "targets")]
    if not all(isinstance(v, seqio.SentencePieceVocabulary) for v in vocabularies):
        raise UsageError(
            f"the SeqIO task {provider.name!r} must use a seqio.SentencePieceVocabulary, not "
            f"{type(vocabularies[0]).__name__}."
        )
    if vocabularies[0] != vocabularies[1]:
        raise UsageError(f"inputs and targets of {provider.name!r} must share one vocabulary.")
    file = vocabularies[0].sentencepiece_model_file
    from dss_jax.data.vocabulary import resolve

    return SentencePiece(resolve(file), vocabularies[0].extra_ids)


def add_rows(
    builder: SplitBuilder, task: Any, split: str, vocabulary: SentencePiece, use_cached: bool
) -> None:
    """Adds the rows of one SeqIO task."""
    dataset = task.get_dataset(
        sequence_length=None, split=split, shuffle=False, use_cached=use_cached
    )
    for number, row in enumerate(ints_and_texts(dataset)):
        texts = {"id": f"{task.name}-{number}"}
        for column, feature in (("input", "inputs"), ("label", "targets")):
            kept = row.get(f"{feature}_pretokenized")
            texts[column] = vocabulary.decode(row[feature]) if kept is None else kept
        builder.append({"label_inputs": row["inputs"], "label_targets": row["targets"]}, texts)


def _source_files(provider: Any, seqio: Any) -> dict[str, tuple[int, int]]:
    """Local files that the rows come from, where SeqIO knows them: path -> (bytes, mtime in ns)."""
    files = {}
    for task in seqio.get_subtasks(provider):
        if isinstance(task.source, seqio.FileDataSource):
            for split in task.splits:
                for name in task.source.list_shards(split):
                    file = Path(name).absolute()
                    if file.is_file():
                        files[str(file)] = (file.stat().st_size, file.stat().st_mtime_ns)
    return files


if __name__ == "__main__":
    sys.exit(serve(make))
