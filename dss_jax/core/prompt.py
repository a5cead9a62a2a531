"""The few-shot prompt by which a teacher is asked. Standard library only."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

from dss_jax.core.completions import AnswerForm
from dss_jax.core.errors import UsageError
from dss_jax.core.example import Example


@dataclass(frozen=True, kw_only=True, slots=True)
class Exemplar:
    """One worked example, as in the paper."""

    input: str  # What follows the question's opening, for example a question with its choices.
    rationale: str  # The reasoning, in full sentences.
    output: str  # The answer as a teacher writes it, for example "(c) ANSWER".


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A few-shot chain-of-thought prompt, and how its answers are read."""

    instruction: str  # The system message; in the completion form, the prompt's head ("": none).
    exemplars: tuple[Exemplar, ...]  # Worked examples, in their default order; about ten.
    question: str  # How an input is asked; `{input}` is replaced.
    answer: str  # How an exemplar is answered; `{rationale}` and `{output}` are replaced.
    # What the completion form ends with, where the teacher goes on, for example "A:"; `answer`
    # begins with it.
    opening: str
    stop: tuple[str, ...]  # Stop sequences that are sent.
    form: AnswerForm  # How a completion is read.
    # Example -> text for `{input}`; the student's input where left out.
    input_of: Callable[[Example], str] = attrgetter("input")
    # Example -> its gold label as `{output}`, for the hint, and for each allowed label what a
    # teacher may write; the label itself where left out. "(c) TEXT" makes "(c)" an answer too.
    output_of: Callable[[Example], str] = attrgetter("label")
    # Label -> whether it can be one, where any text is allowed; an equation, for example, must have
    # a value.
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
