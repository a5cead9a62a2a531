"""What tasks of natural language inference share. Standard library only."""

from dss_jax.core.completions import AnswerForm, parse_completion
from dss_jax.core.fields import text_of
from dss_jax.core.prompt import Exemplar, Prompt
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.types import DistillationTask, Example, Release, Row, Tfds

LABELS = ("entailment", "neutral", "contradiction")
_FILES = {"train": "train", "validation": "valid", "test": "test"}
"""Split -> its name in the files of the authors' release."""


def _question(premise: str, hypothesis: str) -> str:
    return f"Premise: {premise}\nHypothesis: {hypothesis}"


def _asked(example: Example) -> str:
    premise, _, hypothesis = example.input.partition("</s>")
    return _question(premise, hypothesis)


def exemplar(premise: str, hypothesis: str, rationale: str, label: str) -> Exemplar:
    """A worked example for a teacher."""
    return Exemplar(input=_question(premise, hypothesis), rationale=rationale, output=label)


def nli_task(
    *,
    name: str,
    description: str,
    licence: str,
    tfds: str,
    form: AnswerForm,
    exemplars: tuple[Exemplar, ...],
    how: str,
    answer: str,
    premise: str = "premise",
    id_field: str | None = None,
) -> DistillationTask:
    """A task whose rows have a premise, a hypothesis and the number of a label.

    Rows come from the authors' release where it has the split, else from TFDS, joined with the
    release's completions by row.

    Args:
      how: in which form a teacher shall answer.
      premise: what TFDS calls the premise; the release says "premise".
      id_field: the field of a row's id; None: rows are numbered.
    """

    def to_example(row: Row, completion: str | None) -> Example:
        read = parse_completion(completion, form)
        first = text_of(row, premise if premise in row else "premise")
        return Example(
            id=row[id_field] if id_field else "",
            input=f"{first}</s>{text_of(row, 'hypothesis')}",
            label=LABELS[row["label"]] if row["label"] >= 0 else "",
            teacher_label=read.label,
            rationale=read.rationale,
            allowed_labels=LABELS,
        )

    completions = {split: f"llm/{stem}_CoT_{{k}}.json" for split, stem in _FILES.items()}
    files = {split: f"{name}_{stem}.json" for split, stem in _FILES.items()}
    splits = {split: split for split in _FILES}
    return DistillationTask(
        name=name,
        description=description,
        licence=licence,
        sources=(
            Release(folder=name, files=files, completions=completions),
            Tfds(name=tfds, splits=splits, completions=completions, completions_folder=name),
        ),
        to_example=to_example,
        scorer=TEXT_ACCURACY,
        prompt=Prompt(
            instruction="Does the premise entail the hypothesis, contradict it, or neither? " + how,
            exemplars=exemplars,
            question="{input}\n",
            answer=answer,
            opening="Reasoning:",
            stop=("\nPremise:",),
            form=form,
            input_of=_asked,
        ),
    )
