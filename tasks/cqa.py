"""CommonsenseQA: a question, five choices, the choice's text as answer.

Rows as CoS-E v1.11 has them, in the authors' release. Numbers to expect (`dss tasks stats cqa`):
train 9,741 rows, of which 975 become validation (8,766 stay), test 1,221. The teacher (PaLM 540B)
is right on 74.26 % of the 9,741 and on 77.23 % of test; of its 9,741 labels 448 are none of the
five choices as they stand (3 of these are empty): two choices at once ("ocean or (b) sea"), other
capitals, a spelling put right. They are kept as they are, as the released code does. Rationales
have 24 words, 99 % at most 37.
"""

from dss_jax.core.completions import AnswerForm, parse_completion
from dss_jax.core.prompt import Exemplar, Prompt
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


def written(example: Example) -> str:
    """The label as a teacher writes it: "(c) ANSWER"."""
    if example.label not in example.allowed_labels:
        return example.label
    return f"({'abcde'[example.allowed_labels.index(example.label)]}) {example.label}"


EXEMPLARS = (
    Exemplar(
        input="Where would a hiker look for a place to refill an empty bottle far from any town?\n"
        "Answer Choices:\n(a) mountain spring\n(b) vending machine\n(c) kitchen tap\n(d) swimming "
        "pool\n(e) petrol station",
        rationale="The answer must be a source of drinking water that is found far from towns. Of "
        "the above choices, only a mountain spring gives drinking water far from towns.",
        output="(a) mountain spring",
    ),
    Exemplar(
        input="What does a driver press to make a car come to a stop?\nAnswer Choices:\n(a) horn\n"
        "(b) brake pedal\n(c) radio\n(d) seat belt\n(e) headlight",
        rationale="The answer must be a part of a car that slows it down. Of the above choices, "
        "only the brake pedal slows a car down.",
        output="(b) brake pedal",
    ),
    Exemplar(
        input="If a child leaves chocolate on a sunny window sill, what will happen to it?\nAnswer "
        "Choices:\n(a) grow\n(b) freeze\n(c) melt\n(d) rust\n(e) bark",
        rationale="The answer must be what heat does to chocolate. Of the above choices, only melt "
        "is what chocolate does in the heat.",
        output="(c) melt",
    ),
    Exemplar(
        input="Which tool would a carpenter take to drive a nail into a board?\nAnswer Choices:\n"
        "(a) saw\n(b) paint brush\n(c) tape measure\n(d) hammer\n(e) ladder",
        rationale="The answer must be a tool that strikes nails. Of the above choices, only a "
        "hammer is a tool for striking nails.",
        output="(d) hammer",
    ),
    Exemplar(
        input="Why might someone put on a thick coat before going out in January?\nAnswer "
        "Choices:\n(a) to look taller\n(b) to run faster\n(c) to hear better\n(d) to get hungry\n"
        "(e) to keep warm",
        rationale="The answer must be what a thick coat does for a person in winter. Of the above "
        "choices, only to keep warm is what a coat is for.",
        output="(e) to keep warm",
    ),
    Exemplar(
        input="Where do people usually stand in line to have their luggage weighed?\nAnswer "
        "Choices:\n(a) check-in desk\n(b) bakery\n(c) fire station\n(d) car wash\n(e) balcony",
        rationale="The answer must be a place where luggage is weighed before a journey. Of the "
        "above choices, only the check-in desk is a place where luggage is weighed.",
        output="(a) check-in desk",
    ),
    Exemplar(
        input="What is a musician likely to feel when the audience claps for a long time?\nAnswer "
        "Choices:\n(a) thirst\n(b) pride\n(c) boredom\n(d) itching\n(e) envy",
        rationale="The answer must be a feeling that comes from being praised. Of the above "
        "choices, only pride comes from being praised.",
        output="(b) pride",
    ),
    Exemplar(
        input="What do you need to have before you can borrow novels from the town for free?\n"
        "Answer Choices:\n(a) passport\n(b) swimsuit\n(c) driving licence\n(d) library card\n(e) "
        "shopping list",
        rationale="The answer must be something with which books can be borrowed. Of the above "
        "choices, only a library card lets a person borrow books.",
        output="(d) library card",
    ),
    Exemplar(
        input="The hen sat on her eggs for three weeks, so what did the farmer expect to see "
        "soon?\nAnswer Choices:\n(a) puppies\n(b) harvest\n(c) chicks\n(d) rainbow\n(e) milk",
        rationale="The answer must be what comes out of the eggs of a hen. Of the above choices, "
        "only chicks come out of the eggs of a hen.",
        output="(c) chicks",
    ),
    Exemplar(
        input="Where would you put leftover soup so that it stays fresh until tomorrow?\nAnswer "
        "Choices:\n(a) bookcase\n(b) mailbox\n(c) toolbox\n(d) wardrobe\n(e) refrigerator",
        rationale="The answer must be a place that keeps food cold. Of the above choices, only a "
        "refrigerator keeps food cold.",
        output="(e) refrigerator",
    ),
)

PROMPT = Prompt(
    instruction=(
        "Answer questions about common sense. Say what the answer must be and which of the choices "
        'fits, then end with "So the answer is" and the choice.'
    ),
    exemplars=EXEMPLARS,
    question="Q: {input}\n",
    answer="A: {rationale} So the answer is {output}.",
    opening="A:",
    stop=("\nQ:",),
    form=ANSWER,
    output_of=written,
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
    prompt=PROMPT,
    validation_fraction=0.1,
    validation_seed=0,
)
