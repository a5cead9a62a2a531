"""e-SNLI: does the premise entail the hypothesis, contradict it, or neither?

Rows from the authors' release where it has the split, else from TFDS (`esnli`), joined with the
release's completions by row. Numbers to expect (`dss tasks stats esnli`): train 549,367 rows,
validation 9,842, test 9,824. The teacher (PaLM 540B) is right on 73.17 % of validation and 72.99 %
of test. Some labels of train are cut short ("entail", "neutral\\n\\nPre"); they are kept as they
are. Rationales have 10.5 words, 99 % of train's at most 27 (28 in validation).
"""

from dss_jax.core.completions import UP_TO_FINAL_STOP, AnswerForm, parse_completion
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.types import DistillationTask, Example, Release, Row, Tfds

LABELS = ("entailment", "neutral", "contradiction")

# "RATIONALE\nAnswer: neutral"
ANSWER = AnswerForm(
    run_on="Premise", marker="Answer:", label=UP_TO_FINAL_STOP, keep_unanswered=True
)

COMPLETIONS = {
    "train": "llm/train_CoT_{k}.json",
    "validation": "llm/valid_CoT_{k}.json",
    "test": "llm/test_CoT_{k}.json",
}


def to_example(row: Row, completion: str | None) -> Example:
    answer = parse_completion(completion, ANSWER)
    return Example(
        id="",
        input=f"{row['premise']}</s>{row['hypothesis']}",
        label=LABELS[row["label"]] if row["label"] >= 0 else "",
        teacher_label=answer.label,
        rationale=answer.rationale,
        allowed_labels=LABELS,
    )


TASK = DistillationTask(
    name="esnli",
    description="e-SNLI: natural language inference with explanations.",
    licence="MIT",
    sources=(
        Release(
            folder="esnli",
            files={
                "train": "esnli_train.json",
                "validation": "esnli_valid.json",
                "test": "esnli_test.json",
            },
            completions=COMPLETIONS,
        ),
        Tfds(
            name="esnli:0.1.0",
            splits={"train": "train", "validation": "validation", "test": "test"},
            completions=COMPLETIONS,
            completions_folder="esnli",
        ),
    ),
    to_example=to_example,
    scorer=TEXT_ACCURACY,
)
