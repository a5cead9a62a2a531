"""What a data set is: the types that files in `tasks/` fill in. Standard library only.

A task file describes; it never reads. The readers of the sources below live in
`dss_jax.data.rows`, so that a task file loads in milliseconds.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dss_jax.core.errors import UsageError
from dss_jax.core.example import Answer, Example

if TYPE_CHECKING:
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
    """Rows in the layout of the authors' public release, below `--data_dir`."""

    folder: str  # Sub-folder of the data directory, for example "cqa".
    files: Mapping[str, str]  # Split -> file in the folder, one JSON object a line.
    # Split -> pattern of the files with the teacher's raw completions, for example
    # "llm/train_CoT_{k}.json" for k = 0, 1, ...; each a JSON list of strings, in row order.
    completions: Mapping[str, str]
    # Whether the rows can be read where these files are not there.
    completions_optional: bool = False


@dataclass(frozen=True, kw_only=True)
class Tfds:
    """Rows of a TensorFlow Datasets data set, read through SeqIO's `TfdsDataSource`."""

    name: str  # With version, for example "esnli:0.1.0".
    splits: Mapping[str, str]  # Our split name -> its name in TFDS.
    # As in `Release`; joined to the rows by position, from the same data directory.
    completions: Mapping[str, str] = field(default_factory=dict)
    completions_folder: str = ""  # Sub-folder of the data directory that holds them.


@dataclass(frozen=True, kw_only=True)
class Jsonl:
    """One JSON object a line. Files are relative to `--data_dir`, or to the task file."""

    files: Mapping[str, str]


class Csv(Jsonl):
    """Comma-separated values with a header line."""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """Rows that are computed: `rows`, split -> rows, must give the same each time."""

    rows: Callable[[str], Iterator[Row]]
    splits: tuple[str, ...] = SPLITS


@dataclass(frozen=True, kw_only=True)
class SeqioSource:
    """Any `seqio.DataSource`, which `make` makes when it is needed, so that nothing imports
    TensorFlow early; `splits`: those that it offers, by our names.
    """

    make: Callable[[], Any]
    splits: tuple[str, ...] = SPLITS


Source = Release | Tfds | Jsonl | Generated | SeqioSource


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Accuracy by a yes-or-no rule for each item, and SeqIO's form of a metric function."""

    name: str  # Of the metric, for example "text_accuracy".
    correct: Callable[[str, str], bool]  # (target, prediction) -> whether the prediction is right.

    @property
    def __name__(self) -> str:  # SeqIO logs metric functions by this name.
        return self.name

    def __call__(self, targets: list[str], predictions: list[str]) -> dict[str, float]:
        """`name` -> per cent right."""
        if len(targets) != len(predictions):
            raise ValueError(f"{len(targets)} targets but {len(predictions)} predictions")
        right = sum(map(self.correct, targets, predictions))
        return {self.name: 100.0 * right / len(targets) if targets else 0.0}

    def as_spelt(self, spell: Callable[[str], str]) -> "Scorer":
        """Of a student's labels: one may also be as the student can write it, `spell`: text ->
        decode(encode(text)). SentencePiece makes 52 of 5², and ⁇ of what its vocabulary lacks.
        """

        def correct(target: str, prediction: str) -> bool:
            return self.correct(target, prediction) or self.correct(spell(target), prediction)

        return replace(self, correct=correct)


@dataclass(frozen=True, kw_only=True)
class DistillationTask:
    """A data set with labels and a teacher's rationales."""

    name: str  # Also the file's name and the name of the SeqIO mixture.
    description: str  # One line.
    licence: str  # Of the data.
    # Tried in order, split by split; the first that has the split serves it.
    sources: tuple[Source, ...]
    to_example: Callable[[Row, str | None], Example]  # (row, raw completion or None) -> `Example`.
    scorer: Scorer  # Judges predicted labels.
    # The allowed labels of rows without any of their own; (): `dss extract` takes the gold labels
    # of train where they are few, else any text.
    labels: tuple[str, ...] = ()
    # How `dss extract` asks a teacher; None: this task cannot be extracted.
    prompt: "Prompt | None" = None
    # Share of train that becomes validation where the source has no validation split (rounded up,
    # as `datasets.train_test_split` does), and its seed.
    validation_fraction: float = 0.0
    validation_seed: int = 0
    # Path of a SentencePiece model relative to the task file, for a data set that ships its own;
    # None means that the model's vocabulary is used.
    default_vocabulary: str | None = None
    file: str | None = None  # Path of the task file; the registry fills it in.
    # Path -> SHA-256 of the task file and all that it executes, but for the standard library and
    # installed packages; the registry fills it in.
    files: Mapping[str, str] = field(default_factory=dict)


def plain_example(row: Row, completion: str | None) -> Example:
    """`to_example` for rows that have the fields already, as in plain JSONL or CSV: `input`, and as
    far as known `label`, `teacher_label`, `rationale`, `id`. Text of white space alone is none.

    Raises:
      KeyError: there is no input.
      UsageError: a field's name is a slip of the pen, or its value no text; see `core.fields`.
    """
    del completion
    from dss_jax.core.fields import FIELDS, check_names, text_of

    check_names(tuple(row))
    texts = {name: text_of(row, name) for name in FIELDS if name in row}
    given = {name: text for name, text in texts.items() if text.strip()}
    named: dict[str, Any] = {"id": "", "input": texts["input"], **given}
    return Example(**named)
