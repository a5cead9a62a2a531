"""ANLI, round 1: natural language inference, written to fool a model.

Rows from the authors' release where it has the split, else from TFDS (`anli/r1`), joined with the
release's completions by row. Numbers to expect (`dss tasks stats anli1`): train 16,946 rows,
validation 1,000, test 1,000. The teacher (PaLM 540B) is right on 66.80 % of validation and 65.60 %
of test. Rationales have 19 words, 99 % of train's at most 47 (43 in validation).
"""

from dss_jax.core.completions import UP_TO_FINAL_STOP, AnswerForm, parse_completion
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.types import DistillationTask, Example, Release, Row, Tfds

LABELS = ("entailment", "neutral", "contradiction")

# "RATIONALE So the answer is contradiction."
ANSWER = AnswerForm(run_on="Premise", marker="So the answer is", label=UP_TO_FINAL_STOP)

COMPLETIONS = {
    "train": "llm/train_CoT_{k}.json",
    "validation": "llm/valid_CoT_{k}.json",
    "test": "llm/test_CoT_{k}.json",
}


def to_example(row: Row, completion: str | None) -> Example:
    answer = parse_completion(completion, ANSWER)
    # The premise is called `context` in TFDS and `premise` in the release.
    premise = row["context"] if "context" in row else row["premise"]
    return Example(
        id=row["uid"],
        input=f"{premise}</s>{row['hypothesis']}",
        label=LABELS[row["label"]] if row["label"] >= 0 else "",
        teacher_label=answer.label,
        rationale=answer.rationale,
        allowed_labels=LABELS,
    )


TASK = DistillationTask(
    name="anli1",
    description="ANLI round 1: adversarial natural language inference.",
    licence="CC BY-NC 4.0",
    sources=(
        Release(
            folder="anli1",
            files={
                "train": "anli1_train.json",
                "validation": "anli1_valid.json",
                "test": "anli1_test.json",
            },
            completions=COMPLETIONS,
        ),
        Tfds(
            name="anli/r1:0.1.0",
            splits={"train": "train", "validation": "validation", "test": "test"},
            completions=COMPLETIONS,
            completions_folder="anli1",
        ),
    ),
    to_example=to_example,
    scorer=TEXT_ACCURACY,
)
