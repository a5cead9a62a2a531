"""Makes a token store with Apache Beam: the same bytes as `seqio_prepare` makes, on many machines.

Run as a child process: it imports TensorFlow. Ranges of rows are tokenised by the workers, each
into a file of its own; then one machine puts the files together.
"""

import hashlib
import io
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from dss_jax.core.registry import load_task_file
from dss_jax.core.types import SPLITS
from dss_jax.data import rows, seqio_prepare
from dss_jax.data.rationales import join_records
from dss_jax.data.seqio_child import find_provider, serve
from dss_jax.data.store_writer import SplitBuilder

Say = Callable[[str], None]

_LOCK = threading.Lock()
"""SeqIO's registry is one a process, and Beam may run threads."""

_OPEN: dict[str, Any] = {}
"""What a worker has loaded already, by digest."""


class Unit(NamedTuple):
    """Rows `first` to `last` (without it) of a split; of the SeqIO task number `task`."""

    split: str
    task: int
    first: int
    last: int

    @property
    def file(self) -> str:
        """Name of the file with its tokens."""
        return f"{self.split}-{self.task:04}-{self.first:012}.npz"


def make(request: Mapping[str, Any], say: Say) -> None:
    """Makes the store that a request describes.

    Args:
      request: as for `seqio_prepare.make`, and `beam`: `pipeline_options` (of Beam, one a string),
        `temp_dir` (that all workers can write to; None: a local one), `rows` (of a unit),
        `data_dir` and `rationales` as the workers shall read them.
      say: is told of progress.

    Raises:
      UsageError: see `seqio_prepare.make`.
    """
    wanted = request["beam"]
    with tempfile.TemporaryDirectory(prefix="dss-beam-") as local:
        folder = FileSystems.join(wanted["temp_dir"] or local, f"dss-{request['key'][:16]}")
        if not FileSystems.exists(folder):
            FileSystems.mkdirs(folder)
        try:
            seqio_prepare.make(request, say, lambda r, s: _build(r, folder, s))
        finally:
            FileSystems.delete([folder])


def _build(request: Mapping[str, Any], folder: str, say: Say) -> seqio_prepare.Built:
    plan: Callable[..., tuple[Any, list[Unit], seqio_prepare.Built]]
    plan = _plan_seqio if request["kind"] == "seqio" else _plan_task
    tokenise, units, built = plan(request, request["beam"]["rows"], say)
    say(f"  Apache Beam: {len(units)} parts")
    with beam.Pipeline(options=PipelineOptions(request["beam"]["pipeline_options"])) as pipeline:
        (
            pipeline
            | beam.Create(units)
            # Else all of them would be done where they were made.
            | beam.Reshuffle()
            | beam.ParDo(_Write(tokenise, folder))
        )
    splits: dict[str, SplitBuilder] = {}
    for split, empty in built[0].items():
        own = [u for u in units if u.split == split]
        merged = Merged(empty, [FileSystems.join(folder, u.file) for u in own])
        if isinstance(tokenise, _SeqioRows):
            merged.number([tokenise.names[u.task] for u in own])
        splits[split] = merged
        say(f"  {split}: {len(splits[split]):,} rows")
    return (splits, *built[1:])


class _Write(beam.DoFn):
    """Tokenises a unit, and writes its columns as one file."""

    def __init__(self, tokenise: "_TaskRows | _SeqioRows", folder: str) -> None:
        self._tokenise, self._folder = tokenise, folder

    def process(self, unit: Unit) -> None:
        """Writes the file; a unit that Beam repeats writes the same again."""
        with _LOCK:
            builder = self._tokenise(unit)
        arrays: dict[str, Any] = {}
        for column, values, offsets in builder.columns():
            arrays |= {f"{column}.values": values, f"{column}.offsets": offsets}
        content = io.BytesIO()
        np.savez(content, **arrays)
        # The bytes are not to be compressed, whatever a runner makes of the name's end.
        plain = beam.io.filesystem.CompressionTypes.UNCOMPRESSED
        with FileSystems.create(
            FileSystems.join(self._folder, unit.file), compression_type=plain
        ) as out:
            out.write(content.getvalue())


class Merged(SplitBuilder):
    """A split whose rows are in files, one column of which is in memory at a time."""

    def __init__(self, empty: SplitBuilder, files: Sequence[str]) -> None:
        """Takes the columns of `empty`."""
        self._empty, self._files = empty, files
        self._ids: list[str] | None = None
        first = empty.names[0]
        self._rows = [len(offsets) - 1 for _, offsets in self._parts(first)]

    def number(self, names: Sequence[str]) -> None:
        """Gives each row the id of its SeqIO task: its name, and the row's number in it."""
        counts: dict[str, int] = {}
        self._ids = []
        for name, many in zip(names, self._rows, strict=True):
            start = counts.get(name, 0)
            self._ids += [f"{name}-{start + i}" for i in range(many)]
            counts[name] = start + many

    def __len__(self) -> int:
        return sum(self._rows)

    @property
    def names(self) -> list[str]:
        """The columns."""
        return self._empty.names

    def columns(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """(column, values, offsets)."""
        for column, no_values, no_offsets in self._empty.columns():
            if column == "id" and self._ids is not None:
                ids = SplitBuilder((), ("id",))
                for text in self._ids:
                    ids.append({}, {"id": text})
                yield from ids.columns()
                continue
            parts = list(self._parts(column))
            values = np.concatenate([no_values, *(v for v, _ in parts)])
            lengths = np.concatenate([np.diff(no_offsets), *(np.diff(o) for _, o in parts)])
            dtype = np.min_scalar_type(int(values.max(initial=0)))
            yield column, values.astype(dtype), np.concatenate([[0], np.cumsum(lengths)])

    def _parts(self, column: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        plain = beam.io.filesystem.CompressionTypes.UNCOMPRESSED
        for name in self._files:
            with FileSystems.open(name, compression_type=plain) as file:
                arrays = np.load(io.BytesIO(file.read()))
            yield arrays[f"{column}.values"], arrays[f"{column}.offsets"]


def _ranges(split: str, task: int, count: int, size: int) -> list[Unit]:
    return [Unit(split, task, a, min(a + size, count)) for a in range(0, count, size)]


@dataclass(frozen=True)
class _TaskRows:
    """Rows of a task file. Its text and the vocabulary go along to the workers."""

    file: str
    text: bytes
    name: str
    vocabulary: bytes
    extra_ids: int
    prefixes: str
    data_dir: str | None
    rationales: tuple[str, ...]
    splits: tuple[str, ...]

    def _load(self) -> tuple[Any, dict[str, Any], Any]:
        key = hashlib.sha256(self.text + self.vocabulary + repr(self).encode()).hexdigest()
        if key not in _OPEN:
            from dss_jax.core import storage
            from dss_jax.data.vocabulary import SentencePiece

            folder = Path(tempfile.mkdtemp(prefix="dss-worker-"))
            (folder / "vocabulary.model").write_bytes(self.vocabulary)
            file = Path(self.file)
            # Where it is here too, so may be the data beside it.
            if not (file.is_file() and file.read_bytes() == self.text):
                file = folder / f"{self.name}.py"
                file.write_bytes(self.text)
            task = load_task_file(file)
            found = {s: rows.examples(task, s, self.data_dir) for s in self.splits}
            records = [str(storage.local_file(f)) for f in self.rationales]
            examples, _ = join_records(task, found, records, self.data_dir)
            model = SentencePiece(folder / "vocabulary.model", self.extra_ids)
            _OPEN[key] = task, examples, model
        loaded: tuple[Any, dict[str, Any], Any] = _OPEN[key]
        return loaded

    def __call__(self, unit: Unit) -> SplitBuilder:
        """The unit's rows, tokenised."""
        task, examples, model = self._load()
        own = examples[unit.split][unit.first : unit.last]
        tokens = seqio_prepare.seqio_tokens(
            task, unit.split, own, model, self.prefixes, lambda _: None
        )
        return seqio_prepare.filled(own, tokens)


def _plan_task(
    request: Mapping[str, Any], size: int, say: Say
) -> tuple[_TaskRows, list[Unit], seqio_prepare.Built]:
    del say
    _, examples, model, description = seqio_prepare.task_rows(request)
    tokenise = _TaskRows(
        file=request["task_file"],
        text=Path(request["task_file"]).read_bytes(),
        name=request["name"],
        vocabulary=model.path.read_bytes(),
        extra_ids=model.extra_ids,
        prefixes=request["prefixes"],
        data_dir=request["beam"]["data_dir"],
        rationales=tuple(request["beam"]["rationales"]),
        splits=tuple(examples),
    )
    units = [u for split, found in examples.items() for u in _ranges(split, 0, len(found), size)]
    empty = {split: seqio_prepare.new_split() for split in examples}
    return tokenise, units, (empty, model.path, model.extra_ids, description)


@dataclass(frozen=True)
class _SeqioRows:
    """Rows of a user's SeqIO task or mixture, whose module must be on the workers."""

    module: str
    name: str
    names: tuple[str, ...]

    def __call__(self, unit: Unit) -> SplitBuilder:
        """The rows that the preprocessors make of the unit's part of the source."""
        import seqio

        provider = find_provider(self.module, self.name)
        task = seqio.get_subtasks(provider)[unit.task]
        assert task.name == self.names[unit.task]
        part = seqio.Task(
            task.name,
            source=_part_of(task.source, unit),
            output_features=task.output_features,
            preprocessors=task.preprocessors,
        )
        builder = seqio_prepare.new_pairs()
        model = seqio_prepare.vocabulary_of(provider, seqio)
        seqio_prepare.add_rows(builder, part, unit.split, model, use_cached=False)
        return builder


def _part_of(source: Any, unit: Unit) -> Any:
    import seqio

    def dataset_fn(split: str, shuffle_files: bool = False, seed: int | None = None) -> Any:
        del shuffle_files, seed
        whole = source.get_dataset(split, shuffle=False)
        return whole.skip(unit.first).take(unit.last - unit.first)

    return seqio.FunctionDataSource(dataset_fn, splits=[unit.split])


def _plan_seqio(
    request: Mapping[str, Any], size: int, say: Say
) -> tuple[_SeqioRows, list[Unit], seqio_prepare.Built]:
    import seqio

    provider, tasks, model, description = seqio_prepare.seqio_rows(request)
    units, empty = [], {}
    for split in (s for s in SPLITS if s in provider.splits):
        empty[split] = seqio_prepare.new_pairs()
        for number, task in enumerate(tasks):
            if split in task.splits:
                count = _count(task.source, split)
                say(f"  {split}: {task.name} has {count:,} rows")
                units += _ranges(split, number, count, size)
    names = tuple(task.name for task in seqio.get_subtasks(provider))
    tokenise = _SeqioRows(request["module"], request["name"], names)
    return tokenise, units, (empty, Path(model.path), model.extra_ids, description)


def _count(source: Any, split: str) -> int:
    known = source.num_input_examples(split)
    if known is not None:
        return int(known)
    return int(source.get_dataset(split, shuffle=False).reduce(np.int64(0), lambda n, _: n + 1))


if __name__ == "__main__":
    # By its name, for what is pickled under "__main__" a worker on another machine cannot find.
    from dss_jax.data import seqio_beam

    sys.exit(serve(seqio_beam.make))
