"""e-SNLI: does the premise entail the hypothesis, contradict it, or neither?

Rows from the authors' release where it has the split, else from TFDS (`esnli`), joined with the
release's completions by row. Numbers to expect (`dss tasks stats esnli`): train 549,367 rows,
validation 9,842, test 9,824. The teacher (PaLM 540B) is right on 73.17 % of validation and 72.99 %
of test. Some labels of train are cut short ("entail", "neutral\\n\\nPre"); they are kept as they
are. Rationales have 10.5 words, 99 % of train's at most 27 (28 in validation).
"""

from dss_jax.core.completions import UP_TO_FINAL_STOP, AnswerForm, parse_completion
from dss_jax.core.prompt import Exemplar, Prompt
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


def asked(example: Example) -> str:
    """Premise and hypothesis, each with its name."""
    premise, _, hypothesis = example.input.partition("</s>")
    return f"Premise: {premise}\nHypothesis: {hypothesis}"


EXEMPLARS = (
    Exemplar(
        input="Premise: A woman in a red apron is slicing bread at a long table.\nHypothesis: A "
              "person is cutting bread.",
        rationale="A woman is a person, and slicing bread is cutting it.",
        output="entailment",
    ),
    Exemplar(
        input="Premise: Two boys paddle a canoe across a lake.\nHypothesis: The boys are asleep "
              "in a tent.",
        rationale="Boys who paddle a canoe are awake and on the water, not asleep in a tent.",
        output="contradiction",
    ),
    Exemplar(
        input="Premise: A man with a guitar sits on a bench in a park.\nHypothesis: The man is "
              "waiting for his band.",
        rationale="Sitting on a bench with a guitar does not say that he waits for a band.",
        output="neutral",
    ),
    Exemplar(
        input="Premise: Three cyclists climb a steep road in the rain.\nHypothesis: People are "
              "riding bicycles outdoors.",
        rationale="Cyclists are people who ride bicycles, and a road in the rain is outdoors.",
        output="entailment",
    ),
    Exemplar(
        input="Premise: A girl blows out the candles on a cake.\nHypothesis: It is her seventh "
              "birthday.",
        rationale="Candles on a cake may mean a birthday, but her age is not given.",
        output="neutral",
    ),
    Exemplar(
        input="Premise: An old man feeds pigeons on a square.\nHypothesis: There are no birds on "
              "the square.",
        rationale="Pigeons are birds, so there are birds on the square.",
        output="contradiction",
    ),
    Exemplar(
        input="Premise: A chef tosses dough into the air while customers watch.\nHypothesis: "
              "Someone is watching the chef.",
        rationale="Customers watch the chef, so someone is watching.",
        output="entailment",
    ),
    Exemplar(
        input="Premise: A dog runs along the beach with a stick in its mouth.\nHypothesis: The "
              "dog will bring the stick to its owner.",
        rationale="A dog with a stick need not bring it to anybody, and no owner is mentioned.",
        output="neutral",
    ),
    Exemplar(
        input="Premise: A crowded train stands at the platform.\nHypothesis: The train is empty.",
        rationale="A train cannot be crowded and empty at the same time.",
        output="contradiction",
    ),
    Exemplar(
        input="Premise: A student in a library reads a book about stars.\nHypothesis: A student "
              "is reading.",
        rationale="Reading a book about stars is reading.",
        output="entailment",
    ),
)  # fmt: skip

PROMPT = Prompt(
    instruction=(
        "Does the premise entail the hypothesis, contradict it, or neither? Give the reason "
        'in a sentence, then on a line of its own "Answer:" and one word: entailment, neutral or '
        "contradiction."
    ),
    exemplars=EXEMPLARS,
    question="{input}\n",
    answer="Reasoning: {rationale}\nAnswer: {output}",
    opening="Reasoning:",
    stop=("\nPremise:",),
    form=ANSWER,
    input_of=asked,
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
    prompt=PROMPT,
)
