"""CommonsenseQA: a question, five choices, the choice's text as answer.

Rows as CoS-E v1.11 has them, in the authors' release. Numbers to expect (`dss tasks stats cqa`):
train 9,741 rows, of which 975 become validation (8,766 stay), test 1,221. The teacher (PaLM 540B)
is right on 74.26 % of the 9,741 and on 77.23 % of test; of its 9,741 labels 448 are none of the
five choices as they stand (3 of these are empty): two choices at once ("ocean or (b) sea"), other
capitals, a spelling put right. They are kept as they are, as the released code does. Rationales
have 24 words, 99 % at most 37.
"""

from dss_jax.core.completions import AnswerForm, parse_completion
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.types import DistillationTask, Example, Release, Row

# "RATIONALE So the answer is (c) ANSWER."
ANSWER = AnswerForm(run_on="Q:", marker="So the answer is", label=r"(?s)\)(.*?)\.?$")


def to_example(row: Row, completion: str | None) -> Example:
    choices = [f"({letter}) {text}" for letter, text in zip("abcde", row["choices"], strict=True)]
    answer = parse_completion(completion, ANSWER)
    return Example(
        id=row["id"],
        input="\n".join([row["question"], "Answer Choices:", *choices]),
        label=row["answer"],
        teacher_label=answer.label,
        rationale=answer.rationale,
        allowed_labels=tuple(row["choices"]),
    )


TASK = DistillationTask(
    name="cqa",
    description="CommonsenseQA (CoS-E v1.11): common-sense questions with five choices.",
    licence="BSD-3 (CoS-E), MIT (CommonsenseQA)",
    sources=(
        Release(
            folder="cqa",
            files={"train": "cqa_train.json", "test": "cqa_test.json"},
            completions={"train": "llm/train_CoT_{k}.json", "test": "llm/test_CoT_{k}.json"},
        ),
    ),
    to_example=to_example,
    scorer=TEXT_ACCURACY,
    validation_fraction=0.1,
    validation_seed=0,
)
