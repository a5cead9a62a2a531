"""What a data set is: the types that files in `tasks/` fill in. Standard library only.

A task file describes; it never reads. The readers of the sources below live in
`dss_jax.data.rows`, so that a task file loads in milliseconds.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dss_jax.core.errors import UsageError
from dss_jax.core.examples import Answer, Example
from dss_jax.core.prompt import Prompt

__all__ = ("Answer", "Example")  # Task files take them from here.

SPLITS = ("train", "validation", "test")
"""Names of splits, as in SeqIO and TFDS."""

Row = Mapping[str, Any]
"""One row as the source holds it: field name -> value."""


class SplitUnavailable(UsageError):  # noqa: N818
    """A split that exists in the world but could not be downloaded."""


CHECKPOINT_FORMATS = ("hf", "orbax", "t5x")
"""Hugging Face's, our own, and T5X's; `dss_jax.interop` reads and writes them."""

ENGINES = ("jax", "t5x")
"""What runs the training loop: this package, or T5X (docs/t5x.md)."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """Rows in the layout of the authors' public release, below `--data_dir`.

    Attributes:
      folder: sub-folder of the data directory, for example "cqa".
      files: split -> file in the folder, one JSON object a line.
      completions: split -> pattern of the files with the teacher's raw completions, for example
        "llm/train_CoT_{k}.json" for k = 0, 1, ...; each a JSON list of strings, in row order.
      completions_optional: whether the rows can be read where these files are not there.
    """

    folder: str
    files: Mapping[str, str]
    completions: Mapping[str, str]
    completions_optional: bool = False


@dataclass(frozen=True, kw_only=True)
class Tfds:
    """Rows of a TensorFlow Datasets data set, read through SeqIO's `TfdsDataSource`.

    Attributes:
      name: with version, for example "esnli:0.1.0".
      splits: our split name -> its name in TFDS.
      completions: as in `Release`; joined to the rows by position, from the same data directory.
      completions_folder: sub-folder of the data directory that holds them.
    """

    name: str
    splits: Mapping[str, str]
    completions: Mapping[str, str] = field(default_factory=dict)
    completions_folder: str = ""


@dataclass(frozen=True, kw_only=True)
class Jsonl:
    """One JSON object a line. Files are relative to `--data_dir`, or to the task file."""

    files: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Csv:
    """Comma-separated values with a header line. Files as in `Jsonl`."""

    files: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Generated:
    """Rows from a function of the split, for data sets that are computed.

    Attributes:
      rows: split -> rows; must give the same rows each time.
      splits: the splits it knows.
    """

    rows: Callable[[str], Iterator[Row]]
    splits: tuple[str, ...] = SPLITS


@dataclass(frozen=True, kw_only=True)
class SeqioSource:
    """Any `seqio.DataSource`, made when it is needed (so that nothing imports TensorFlow early).

    Attributes:
      make: returns the `seqio.DataSource`.
      splits: the splits it offers, by our names.
    """

    make: Callable[[], Any]
    splits: tuple[str, ...] = SPLITS


Source = Release | Tfds | Jsonl | Csv | Generated | SeqioSource


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Accuracy by a yes-or-no rule for each item.

    Calling it gives SeqIO's form of a metric function:
    `scorer(targets, predictions) -> {name: per cent right}`.

    Attributes:
      name: name of the metric, for example "text_accuracy".
      correct: (target, prediction) -> whether the prediction is right.
    """

    name: str
    correct: Callable[[str, str], bool]

    @property
    def __name__(self) -> str:  # SeqIO logs metric functions by this name.
        return self.name

    def __call__(self, targets: list[str], predictions: list[str]) -> dict[str, float]:
        if len(targets) != len(predictions):
            raise ValueError(f"{len(targets)} targets but {len(predictions)} predictions")
        right = sum(self.correct(t, p) for t, p in zip(targets, predictions, strict=True))
        return {self.name: 100.0 * right / len(targets) if targets else 0.0}


@dataclass(frozen=True, kw_only=True)
class DistillationTask:
    """A data set with labels and a teacher's rationales.

    Attributes:
      name: also the file's name and the name of the SeqIO mixture.
      description: one line.
      licence: of the data.
      sources: tried in order, split by split; the first that has the split serves it.
      to_example: (row, raw completion or None) -> `Example`.
      scorer: judges predicted labels.
      labels: what a teacher may answer about rows that have no `allowed_labels` of their own; ():
        `dss extract` takes the gold labels of train where they are few, else any text.
      prompt: how `dss extract` asks a teacher; None: this task cannot be extracted.
      validation_fraction: share of train that becomes validation where the source has no
        validation split (rounded up, as `datasets.train_test_split` does).
      validation_seed: seed of that split.
      default_vocabulary: path of a SentencePiece model relative to the task file, for a data set
        that ships its own; None means that the model's vocabulary is used.
      file: path of the task file; the registry fills it in.
      files: path -> SHA-256 of the task file and all that it executes, but for the standard library
        and installed packages; the registry fills it in.
    """

    name: str
    description: str
    licence: str
    sources: tuple[Source, ...]
    to_example: Callable[[Row, str | None], Example]
    scorer: Scorer
    labels: tuple[str, ...] = ()
    prompt: Prompt | None = None
    validation_fraction: float = 0.0
    validation_seed: int = 0
    default_vocabulary: str | None = None
    file: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)


def plain_example(row: Row, completion: str | None) -> Example:
    """`to_example` for rows that have the fields already, as in plain JSONL or CSV.

    Args:
      row: `input`, and as far as known `label`, `teacher_label`, `rationale`, `id`.
      completion: not used.
    """
    del completion
    return Example(
        id=_text(row.get("id")),
        input=_text(row["input"]),
        label=_text(row.get("label")),
        teacher_label=_text(row.get("teacher_label")),
        rationale=_text(row.get("rationale")),
    )


def _text(value: Any) -> str:
    return "" if value is None else str(value)
