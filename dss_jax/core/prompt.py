"""How a task asks a teacher: the few-shot prompt of a task file. Standard library only."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

from dss_jax.core.completions import AnswerForm
from dss_jax.core.errors import UsageError
from dss_jax.core.examples import Example


@dataclass(frozen=True, kw_only=True, slots=True)
class Exemplar:
    """One worked example: (input, rationale, output), as in the paper.

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
