"""A row of a task, and the few-shot prompt by which a teacher is asked. Standard library only."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

from dss_jax.core.completions import AnswerForm
from dss_jax.core.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One row of a task as text, before prefixes.

    Attributes:
      id: unique within its split; "": the reader gives it the row's number.
      input: what the student reads.
      label: the gold label; "" where the row has none (it is then left out where the gold
        label is trained on or scored).
      teacher_label: the teacher's label; "" where it gave none.
      rationale: the teacher's rationale; "" where it gave none (such a row trains only the
        label task).
      rationales: all of the teacher's rationales for its label, where it gave several.
      allowed_labels: the labels that are valid answers here; () where any text may be.
    """

    id: str
    input: str
    label: str = ""
    teacher_label: str = ""
    rationale: str = ""
    rationales: tuple[str, ...] = ()
    allowed_labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Exemplar:
    """One worked example, as in the paper.

    Attributes:
      input: what follows the question's opening, for example a question with its choices.
      rationale: the reasoning, in full sentences.
      output: the answer as a teacher writes it, for example "(c) ANSWER".
    """

    input: str
    rationale: str
    output: str


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A few-shot chain-of-thought prompt, and how its answers are read.

    Attributes:
      instruction: the system message; in the completion form, the prompt's head ("": none).
      exemplars: worked examples, in their default order; about ten.
      question: how an input is asked; `{input}` is replaced.
      answer: how an exemplar is answered; `{rationale}` and `{output}` are replaced.
      opening: what the completion form ends with, where the teacher goes on, for example "A:";
        `answer` begins with it.
      stop: stop sequences that are sent.
      form: how a completion is read.
      input_of: example -> text for `{input}`; the student's input where left out.
      output_of: example -> its gold label as `{output}`, for the hint, and for each allowed label
        what a teacher may write; the label itself where left out. "(c) TEXT" makes "(c)" an
        answer too.
      valid: label -> whether it can be one, where any text is allowed; an equation, for example,
        must have a value.
    """

    instruction: str
    exemplars: tuple[Exemplar, ...]
    question: str
    answer: str
    opening: str
    stop: tuple[str, ...]
    form: AnswerForm
    input_of: Callable[[Example], str] = attrgetter("input")
    output_of: Callable[[Example], str] = attrgetter("label")
    valid: Callable[[str], bool] = bool

    def __post_init__(self) -> None:
        if "{input}" not in self.question:
            raise UsageError(f"Prompt.question needs {{input}}: {self.question!r}.")
        for name in ("{rationale}", "{output}"):
            if name not in self.answer:
                raise UsageError(f"Prompt.answer needs {name}: {self.answer!r}.")
        if not self.answer.startswith(self.opening):
            raise UsageError(
                f"Prompt.answer must begin with Prompt.opening, {self.opening!r}: {self.answer!r}."
            )
