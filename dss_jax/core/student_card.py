"""What a student knows of itself: `student.json`, which travels with its weights. Standard library.

It lies in a run's folder, and `dss convert` copies it: so a student is asked without its task file,
its store or its configuration.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dss_jax.core import strict_json
from dss_jax.core.checks import Rule, Section, setting
from dss_jax.core.config import Run
from dss_jax.core.errors import UsageError
from dss_jax.core.method_config import FORMS, JOINT
from dss_jax.core.paths import write_whole
from dss_jax.core.prefixes import prefixes

FILE = "student.json"

FORMAT = 1
"""Rises when a reader of before would misunderstand the file; it passes over unknown fields."""

EXAMPLES = 20
"""Rows of the test split that are shown with a student."""

TEXTS = ("input", "label", "teacher_label", "rationale")
"""Fields of such a row that are text; all but the first may be left out."""


@dataclass(frozen=True, kw_only=True)
class StudentCard(Section):
    """How a student is asked, and how its answers are read.

    Attributes:
      task, description: of the task file, for people; "" where nothing is known.
      method: name of the gin file that it was trained with.
      form: of `Method.form`: how a label is read from what is generated.
      label_prefix: before an input, "[label] "; "" where there is none.
      rationale_prefix: the same for rationales; None: it was not trained to give them so.
      labels: the allowed labels of every row; (): rows have their own, or any text may be.
      row_labels: whether rows have their own allowed labels.
      columns: of a table, of which its inputs are made (`table.input_of`); (): of none.
      input_length: longest input, in tokens, end-of-sequence included; longer ones are cut.
      max_decode_length, max_rationale_length: longest label and rationale, in tokens.
      metric: name of the task's scorer.
      examples: rows of the test split: input, label, allowed_labels, teacher_label, rationale (the
        teacher's); "" where unknown, which a card written by hand may leave out.
    """

    task: str = ""
    description: str = ""
    method: str = ""
    form: str = setting("tasks", among=FORMS)
    label_prefix: str = ""
    rationale_prefix: str | None = None
    labels: tuple[str, ...] = ()
    row_labels: bool = False
    columns: tuple[str, ...] = ()
    input_length: int = setting(1024, low=2)
    max_decode_length: int = setting(64, low=1)
    max_rationale_length: int = setting(128, low=1)
    metric: str = "text_accuracy"
    examples: tuple[dict, ...] = ()

    def check(self) -> None:
        whole = tuple(map(_whole_example, self.examples))
        object.__setattr__(self, "examples", whole)

    @property
    def explains(self) -> bool:
        """Whether it was trained to give rationales."""
        return self.rationale_prefix is not None or self.form in JOINT

    @property
    def longest_label(self) -> int:
        """Most tokens of the text that a label is read from."""
        return self.max_decode_length + (self.max_rationale_length if self.form in JOINT else 0)


def _whole_example(example: dict[str, Any]) -> dict[str, Any]:
    """With all of the fields; UsageError: one is of another kind, or there is no input."""
    rule = Rule()
    found = dict.fromkeys(TEXTS, "") | {"input": None, "allowed_labels": []} | example
    for name in TEXTS:
        rule.check(f"{name} of an example", found[name], str)
    allowed = rule.tidy(found["allowed_labels"])
    rule.check("allowed_labels of an example", allowed, tuple[str, ...])
    return found


def of_run(run: Run, metric: str, **known: Any) -> StudentCard:
    """The card of a run's student. `known`: the fields that its configuration does not tell, of the
    task: description, labels, row_labels, columns, examples.
    """
    method = run.method
    # A SeqIO task of the user's has whole inputs.
    own = prefixes(run.task.prefixes) if run.task.name else None
    return StudentCard(
        task=run.task.shown_name,
        method=method.name,
        form=method.form,
        label_prefix=own.label if own else "",
        rationale_prefix=own.rationale if own and method.rationale else None,
        input_length=run.data.input_length,
        max_decode_length=run.evaluate.max_decode_length,
        max_rationale_length=run.evaluate.max_rationale_length,
        metric=metric,
        **known,
    )


def to_json(card: StudentCard) -> str:
    fields = {"format": FORMAT} | dataclasses.asdict(card)
    return json.dumps(fields, indent=1, ensure_ascii=False) + "\n"


def write(folder: Path, card: StudentCard) -> None:
    """Writes `student.json`; the folder may be remote (`dss_jax.core.storage.place`)."""
    write_whole(folder / FILE, to_json(card))


def read(folder: Path) -> StudentCard | None:
    """The card in a folder; None: there is none. Raises UsageError: the file is not one."""
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        found = strict_json.loads(file.read_bytes())
        if found["format"] > FORMAT:
            raise UsageError(f"its format is {found['format']}, and {FORMAT} the last known here.")
        names = {field.name for field in dataclasses.fields(StudentCard)}
        return StudentCard(**{name: value for name, value in found.items() if name in names})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}."
        raise UsageError(
            f"{file} cannot be read as a student's card: {what} `dss train` writes it, and `dss "
            "convert` copies it: take it from there, or a newer dss-jax, or remove it."
        ) from error
