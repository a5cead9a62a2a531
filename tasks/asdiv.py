"""ASDiv: arithmetic word problems, the unlabelled data that the paper adds to SVAMP.

Rows from the authors' release, `asdiv/asdiv_train.json` (2,305 problems, a JSON object a line with
`Body`, `Question` and `Answer`); Miao et al. 2020 (arXiv 2106.15772). As extra data beside SVAMP
only the teacher's text is used, never the answer:

    dss train --task svamp --extra_task asdiv --method dss_unlabeled ...

Where the release has no completions, ask a teacher: `dss extract --task asdiv --split train`, and
give the records with --rationales.
"""

from dss_jax.core.completions import AnswerForm, parse_completion
from dss_jax.core.fields import text_of
from dss_jax.core.registry import load_task
from dss_jax.core.scoring import EQUATION_ACCURACY
from dss_jax.core.types import DistillationTask, Example, Release, Row

# As SVAMP's, with which these problems are to be mixed.
_SVAMP = load_task("svamp")
assert _SVAMP.prompt is not None
PROMPT = _SVAMP.prompt
ANSWER: AnswerForm = PROMPT.form


def to_example(row: Row, completion: str | None) -> Example:
    answer = parse_completion(completion, ANSWER)
    # "9 (apples)": the number alone. An equation of that value is right.
    gold = text_of(row, "Answer").split(" ")[0] if "Answer" in row else ""
    return Example(
        id="",
        input=f"{text_of(row, 'Body')}\n{text_of(row, 'Question')}",
        label=gold,
        teacher_label=answer.label,
        rationale=answer.rationale,
    )


TASK = DistillationTask(
    name="asdiv",
    description="ASDiv: arithmetic word problems, to be mixed with SVAMP without labels.",
    licence="CC BY-NC 4.0",
    sources=(
        Release(
            folder="asdiv",
            files={"train": "asdiv_train.json", "test": "asdiv_test.json"},
            completions={"train": "llm/train_CoT_{k}.json", "test": "llm/test_CoT_{k}.json"},
            completions_optional=True,
        ),
    ),
    to_example=to_example,
    scorer=EQUATION_ACCURACY,
    prompt=PROMPT,
    validation_fraction=0.1,
    validation_seed=0,
)
