"""SVAMP: arithmetic word problems of one to two steps, an equation as answer.

Rows from the authors' release; an answer is right if both equations have the same value. Numbers
to expect (`dss tasks stats svamp`): train 800 rows, of which 80 become validation (720 stay), test
200. The teacher (PaLM 540B) is right on 73.50 % of the 800 and on 74.00 % of test; 13 of the 800
labels are empty. Rationales have 28 words, 99 % at most 66.
"""

from dss_jax.core.completions import AnswerForm, parse_completion
from dss_jax.core.scoring import EQUATION_ACCURACY
from dss_jax.core.types import DistillationTask, Example, Release, Row

# "RATIONALE The answer is (10 * 45)."; all between the first and the last parenthesis of a line,
# so that "(34 + 40) and (62 - 17)" stays whole.
ANSWER = AnswerForm(run_on="Q:", marker="The answer is", label=r"(\(.*\))")


def to_example(row: Row, completion: str | None) -> Example:
    answer = parse_completion(completion, ANSWER)
    return Example(
        id="",
        input=row["input"],
        label=row["label"],
        teacher_label=answer.label,
        rationale=answer.rationale,
    )


TASK = DistillationTask(
    name="svamp",
    description="SVAMP: arithmetic word problems, answered with an equation.",
    licence="MIT",
    sources=(
        Release(
            folder="svamp",
            files={"train": "svamp_train.json", "test": "svamp_test.json"},
            completions={"train": "llm/train_CoT_{k}.json", "test": "llm/test_CoT_{k}.json"},
        ),
    ),
    to_example=to_example,
    scorer=EQUATION_ACCURACY,
    validation_fraction=0.1,
    validation_seed=0,
)
