"""A user's own SeqIO task or mixture: found, checked, read, scored. Imports TensorFlow."""

import importlib
import itertools
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import seqio

from dss_jax.core.errors import UsageError
from dss_jax.data.ragged import Ragged
from dss_jax.data.seqio_vocabulary import TokenizerVocabulary
from dss_jax.data.store import TextColumn
from dss_jax.data.store_writer import Columns, SplitBuilder
from dss_jax.data.text_rows import text_column
from dss_jax.data.tokenizer import Tokenizer
from dss_jax.data.vocabulary import BYTES, open_vocabulary, resolve

COLUMNS = ("label_inputs", "label_targets", "id", "input", "label")
"""Those of a store of such a task."""


def find_provider(module: str, name: str) -> Any:
    """A user's SeqIO task or mixture, after importing the module that registers it."""
    # Like `python -m`, so that a module in the working folder is found.
    if str(Path.cwd()) not in sys.path[:1]:
        sys.path.insert(0, str(Path.cwd()))
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"Task.mixture_or_task_module {module!r} cannot be imported: {error}. "
            "Run from the folder that holds it, or put that folder on PYTHONPATH."
        ) from error
    except Exception as error:
        raise UsageError(
            f"Task.mixture_or_task_module {module!r} fails to import: "
            f"{type(error).__name__}: {error}"
        ) from error
    try:
        return seqio.get_mixture_or_task(name)
    except ValueError as error:
        known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
        raise UsageError(
            f"{module} registers no SeqIO task or mixture {name!r}. "
            f"It has: {', '.join(sorted(known))}."
        ) from error


def tasks_of(provider: Any, use_cached: bool, cache_dirs: Sequence[str]) -> list[Any]:
    """The tasks of a SeqIO task or mixture, after a look at whether they are cached.

    `use_cached`: whether the rows shall come from what `seqio_cache_tasks` has written;
    `cache_dirs`: folders of caches, local or of TensorFlow's file systems (gs://). UsageError: a
    task is not cached although it shall be or has to be; or it cannot be.
    """
    seqio.add_global_cache_dirs(list(cache_dirs))
    tasks: list[Any] = list(seqio.get_subtasks(provider))
    for task in tasks:
        if not use_cached:
            if task.requires_caching:
                raise UsageError(
                    f"the SeqIO task {task.name!r} has a CacheDatasetPlaceholder(required=True), "
                    "so its rows come from a cache only. Give --use_cached."
                )
        elif not task.supports_caching:
            raise UsageError(
                f"the SeqIO task {task.name!r} cannot be cached: it has no CacheDatasetPlaceholder."
                " Leave --use_cached out."
            )
        elif not task.cache_dir:
            looked = ", ".join(seqio.get_global_cache_dirs()) or "no folder: none was given"
            raise UsageError(
                f"the SeqIO task {task.name!r} is not cached. Looked in {looked}. Name the folder "
                "with --seqio_additional_cache_dirs DIR, or make the cache: seqio_cache_tasks "
                f"--tasks={task.name} --output_cache_dir=DIR --module_import=MODULE."
            )
    return tasks


KNOWN = (seqio.SentencePieceVocabulary, seqio.ByteVocabulary, TokenizerVocabulary)
"""Vocabularies that a user's task may have."""


def vocabulary_of(provider: Any) -> Tokenizer:
    """The vocabulary that inputs and targets share."""
    features = provider.output_features
    if {"inputs", "targets"} - set(features):
        raise UsageError(
            f"the SeqIO task {provider.name!r} must have the features inputs and targets; it has "
            f"{', '.join(features)}."
        )
    inputs, targets = (features[f].vocabulary for f in ("inputs", "targets"))
    for vocabulary in (inputs, targets):
        if not isinstance(vocabulary, KNOWN):
            raise UsageError(
                f"the SeqIO task {provider.name!r} must use a seqio.SentencePieceVocabulary, a "
                "seqio.ByteVocabulary or seqio_vocabulary(FOLDER) of "
                f"dss_jax.data.seqio_vocabulary, not {type(vocabulary).__name__}."
            )
    if inputs != targets:
        raise UsageError(f"inputs and targets of {provider.name!r} must share one vocabulary.")
    if isinstance(inputs, TokenizerVocabulary):
        return inputs.own
    if isinstance(inputs, seqio.ByteVocabulary):
        return open_vocabulary(resolve(BYTES))
    return open_vocabulary(resolve(inputs.sentencepiece_model_file), inputs.extra_ids)


def file_stamps(
    source: Any, splits: Iterable[str], cache: str | None = None
) -> dict[str, tuple[int, int]]:
    """Local files that are read, of a data source as far as SeqIO knows them, or of a task's cache:
    path -> (bytes, mtime in ns).
    """
    names: list[Any] = sorted(Path(cache).glob("*")) if cache else []
    if not cache and isinstance(source, seqio.FileDataSource):
        names = [name for split in splits for name in source.list_shards(split)]
    files = [file for name in names if (file := Path(name).absolute()).is_file()]
    return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in files}


def ints_and_texts(dataset: Any) -> Iterator[dict[str, Any]]:
    """Rows of a `tf.data.Dataset`, byte strings decoded."""
    for row in dataset.as_numpy_iterator():
        yield {k: v.decode("utf-8") if isinstance(v, bytes) else v for k, v in row.items()}


class SourcePart(NamedTuple):
    """Rows of the source of one SeqIO task: `first` to `last` (without it; None: to the end)."""

    split: str
    task: str
    first: int = 0
    last: int | None = None


def parts_of(task: Any, split: str, size: int | None) -> list[SourcePart]:
    """A split of a task in parts of `size` rows; None: as one, whose rows need not be counted."""
    if size is None:
        return [SourcePart(split, task.name)]
    count = task.source.num_input_examples(split)
    if count is None:
        rows = task.source.get_dataset(split, shuffle=False)
        count = int(rows.reduce(np.int64(0), lambda n, _: n + 1))
    return [SourcePart(split, task.name, a, min(a + size, count)) for a in range(0, count, size)]


@dataclass(frozen=True)
class SeqioRows:
    """Rows of a task or mixture by its name; its module must be where this is called."""

    module: str
    name: str
    use_cached: bool

    def __call__(self, part: SourcePart) -> Columns:
        """The rows that the preprocessors make of a part; `id` is the task's name: `numbered`."""
        provider = find_provider(self.module, self.name)
        vocabulary = vocabulary_of(provider)
        task = next(t for t in seqio.get_subtasks(provider) if t.name == part.task)
        if part.last is not None:
            source, first, count = task.source, part.first, part.last - part.first

            def rows(split: str, shuffle_files: bool = False, seed: int | None = None) -> Any:
                return source.get_dataset(split, shuffle=False).skip(first).take(count)

            own = seqio.FunctionDataSource(rows, splits=source.splits)
            task = seqio.Task(task.name, own, task.output_features, task.preprocessors)
        dataset = task.get_dataset(
            sequence_length=None, split=part.split, shuffle=False, use_cached=self.use_cached
        )
        builder = SplitBuilder(COLUMNS[:2], COLUMNS[2:])
        for row in ints_and_texts(dataset):
            texts = {"id": task.name}
            for column, feature in (("input", "inputs"), ("label", "targets")):
                kept = row.get(f"{feature}_pretokenized")
                texts[column] = vocabulary.decode(row[feature]) if kept is None else kept
            builder.append({"label_inputs": row["inputs"], "label_targets": row["targets"]}, texts)
        return dict(builder)


def numbered(names: Ragged) -> Ragged:
    """Names of tasks -> ids of their rows, which count for each task: "first-0", "first-1", ..."""
    counts: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)
    return text_column(f"{name}-{next(counts[name])}" for name in TextColumn(names)[:])


def answer(request: Mapping[str, Any]) -> dict[str, float]:
    """Runs `postprocess_fn` and the `metric_fns` over predictions, as SeqIO's evaluator does; for a
    parent process.

    Args:
      request: `module` and `name` of the task or mixture, `split`, and `predictions`: id of the
        row in the token store -> predicted text.

    Returns:
      `<task>/<metric>` -> value; metrics that are no numbers are left out.
    """
    provider = find_provider(request["module"], request["name"])
    predictions, found = request["predictions"], {}
    for task in seqio.get_subtasks(provider):
        if request["split"] not in task.splits or not task.predict_metric_fns:
            continue
        decode = task.output_features["targets"].vocabulary.decode
        targets, predicted = [], []
        dataset = task.get_dataset(sequence_length=None, split=request["split"], shuffle=False)
        for number, row in enumerate(ints_and_texts(dataset)):
            text = predictions.get(f"{task.name}-{number}")
            if text is None:
                continue
            target = row.get("targets_pretokenized")
            target = decode([int(i) for i in row["targets"]]) if target is None else target
            targets.append(task.postprocess_fn(target, example=row, is_target=True))
            predicted.append(task.postprocess_fn(text, example=row, is_target=False))
        for metric_fn in task.predict_metric_fns:
            for name, value in metric_fn(targets, predicted).items():
                value = getattr(value, "value", value)
                if isinstance(value, Number):
                    found[f"{task.name}/{name}"] = float(value)  # type: ignore[arg-type]
    return found
