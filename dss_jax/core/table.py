"""One table as the source of all splits: a hash of its id tells which split a row is in, so that
rows may be added, removed and sorted, and none of the others moves. Standard library only.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from dss_jax.core.errors import UsageError
from dss_jax.core.fields import text_of
from dss_jax.core.scoring import folded_text
from dss_jax.core.texts import utf8
from dss_jax.core.types import SPLITS, DistillationTask, Example, Jsonl, Row

FORMS = {
    **{".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"},
    **{".jsonl": "jsonl", ".json": "jsonl"},  # The authors' release has lines in .json.
}
"""Ending of a table's name -> its form."""


@dataclass(frozen=True, kw_only=True)
class TableSource(Jsonl):
    """Rows of a CSV, TSV, JSONL or Parquet file with any columns, and how they become examples.

    Attributes:
      file: relative to `--data_dir`, or to the task file.
      files: splits that have a file of their own; the others are parts of `file`.
      inputs: columns that the student reads: see `input_of`.
      label, id, rationale: columns; None: there is none. A row without an id is known by its text.
      group: a column whose equal values stay on one side (a customer, a thread); None: rows alone.
      no_label: texts in the column `label` that mean that there is none, beside the empty one.
      unlabelled: whether rows of train without a label are read, for `--method dss_unlabeled`; else
        they are left out, as in validation and test.
      validation, test: shares of `file`.
      seed: of the hash.
    """

    file: str
    files: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...]
    label: str
    id: str | None = None
    rationale: str | None = None
    group: str | None = None
    no_label: tuple[str, ...] = ()
    unlabelled: bool = False
    validation: float = 0.1
    test: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.validation >= 0 <= self.test and self.validation + self.test < 1):
            raise UsageError(
                f"TableSource.validation ({self.validation}) and .test ({self.test}) are shares of "
                "the rows, which together must leave some for train."
            )
        carved = {split: self.file for split, share in self.shares.items() if share}
        object.__setattr__(self, "files", carved | dict(self.files))

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that must be there."""
        others = (self.label, self.id, self.rationale, self.group)
        return (*self.inputs, *(name for name in others if name is not None))

    def to_example(self, row: Row, completion: str | None = None) -> Example:
        """For `DistillationTask.to_example`, and for new rows, which may have the inputs alone.
        UsageError: a cell is no text.
        """
        del completion
        label = _cell(row, self.label)
        return Example(
            id=_cell(row, self.id),
            input=input_of(row, self.inputs),
            label="" if label in self.no_label else label,
            rationale=_cell(row, self.rationale),
        )

    def key(self, row: Row) -> str:
        """What the side of a row hangs on: its group, else its id, else its text, without case and
        white space, so that copies are on one side.
        """
        own = _cell(row, self.group) or _cell(row, self.id)
        return own or folded_text(input_of(row, self.inputs))

    @property
    def shares(self) -> dict[str, float]:
        """Split -> its part of `file`."""
        parts = (1 - self.validation - self.test, self.validation, self.test)
        return dict(zip(SPLITS, parts, strict=True))

    def split_of(self, row: Row, asked: str) -> str:
        """The split of a row that is in the file of the split `asked`."""
        return self.side(self.key(row)) if self.files[asked] == self.file else asked

    def side(self, key: str) -> str:
        """The split of a row of `file`."""
        digest = hashlib.blake2b(utf8(f"{self.seed}:{key}"), digest_size=8).digest()
        place = int.from_bytes(digest) / 2**64
        # Fixed parts of [0, 1): a split that gets a file of its own leaves its part to train.
        if place < self.test:
            side = "test"
        else:
            side = "validation" if place < self.test + self.validation else "train"
        return side if self.files.get(side) == self.file else "train"


def shard_numbers(shard: str | None) -> tuple[int, int]:
    """I and n of --shard "i/n": every n-th row from the i-th on, i from 0; None: all rows."""
    index, _, count = ("0/1" if shard is None else shard).partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UsageError(f"--shard must be i/n with i from 0 to n - 1, not {shard!r}.")
    return int(index), int(count)


def text_id(text: str) -> str:
    """The id of a row that has none, whatever else is in the table: a digest of its text."""
    return hashlib.blake2b(utf8(folded_text(text)), digest_size=6).hexdigest()


def input_of(row: Row, columns: tuple[str, ...]) -> str:
    """What is read of a row: the text of one column; of several, those that are not empty, a line
    each, after their names.
    """
    texts = [(name, _cell(row, name)) for name in columns]
    if len(columns) == 1:
        return texts[0][1]
    return "\n".join(f"{name}: {text}" for name, text in texts if text)


def input_columns(task: DistillationTask) -> tuple[str, ...]:
    """The columns of a table that the task's inputs are made of by `TableSource`; (): otherwise."""
    own = (
        s.inputs
        for s in task.sources
        if isinstance(s, TableSource) and task.to_example == s.to_example
    )
    return next(own, ())


def _cell(row: Row, name: str | None) -> str:
    """A cell as text without white space around it; "" where there is none."""
    if name is None or name not in row:
        return ""
    if isinstance(row[name], bool):  # A column of a Parquet file.
        return str(row[name]).lower()
    return text_of(row, name).strip()
