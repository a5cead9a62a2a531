"""ANLI, round 1: natural language inference, written to fool a model.

Rows from the authors' release where it has the split, else from TFDS (`anli/r1`), joined with the
release's completions by row. Numbers to expect (`dss tasks stats anli1`): train 16,946 rows,
validation 1,000, test 1,000. The teacher (PaLM 540B) is right on 66.80 % of validation and 65.60 %
of test. Rationales have 19 words, 99 % of train's at most 47 (43 in validation).
"""

from dss_jax.core.completions import UP_TO_FINAL_STOP, AnswerForm, parse_completion
from dss_jax.core.prompt import Exemplar, Prompt
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


def asked(example: Example) -> str:
    """Premise and hypothesis, each with its name."""
    premise, _, hypothesis = example.input.partition("</s>")
    return f"Premise: {premise}\nHypothesis: {hypothesis}"


EXEMPLARS = (
    Exemplar(
        input="Premise: The Harlow Bridge is a stone arch bridge over the river Tenn. It was "
              "opened in 1874 and carries a road and a footpath. A railway bridge was built "
              "beside it in 1902.\nHypothesis: The Harlow Bridge is older than the railway "
              "bridge beside it.",
        rationale="The Harlow Bridge was opened in 1874 and the railway bridge was built in "
                  "1902. Since 1874 is before 1902, the Harlow Bridge is older.",
        output="entailment",
    ),
    Exemplar(
        input="Premise: Marta Velin (born 3 May 1951) is a Swedish painter. She studied in Lund, "
              "Sweden, and taught there until 1990, before she moved to Oslo.\nHypothesis: Marta "
              "Velin never lived in Sweden.",
        rationale="She studied in Lund, Sweden, and taught there until 1990, so she did live in "
                  "Sweden.",
        output="contradiction",
    ),
    Exemplar(
        input="Premise: Green Lantern Road is the second album by the folk group The Millers. It "
              "was recorded in nine days and released in March 2004.\nHypothesis: Green Lantern "
              "Road sold more copies than the group's first album.",
        rationale="The text gives the time of recording and of release, but says nothing about "
                  "how many copies either album sold.",
        output="neutral",
    ),
    Exemplar(
        input="Premise: The Corran Cup is a sailing race held every two years. It was first held "
              "in 1988, and eleven boats took part in it.\nHypothesis: The Corran Cup was held "
              "in 1990.",
        rationale="The race is held every two years and began in 1988. Two years after 1988 is "
                  "1990.",
        output="entailment",
    ),
    Exemplar(
        input="Premise: Peter Osei is a Ghanaian engineer who holds four patents. He founded a "
              "pump factory in Kumasi that employs 60 people.\nHypothesis: Peter Osei's factory "
              "employs over a hundred people.",
        rationale="The factory employs 60 people, and 60 is not over a hundred.",
        output="contradiction",
    ),
    Exemplar(
        input="Premise: Dunmore Hall is a country house from the 18th century. Since 1967 it has "
              "been a school, and its gardens are open to visitors on Sundays.\nHypothesis: "
              "Dunmore Hall is visited by many tourists each year.",
        rationale="Its gardens are open on Sundays, but how many visitors come is not said.",
        output="neutral",
    ),
    Exemplar(
        input="Premise: The northern reed frog lives in marshes and lays its eggs on leaves "
              "above the water. Males call only at night.\nHypothesis: The eggs of the northern "
              "reed frog are laid under water.",
        rationale="The frog lays its eggs on leaves above the water, which is not under water.",
        output="contradiction",
    ),
    Exemplar(
        input="Premise: \"Salt and Iron\" is a 1996 film directed by Ana Reyes. It was her first "
              "film, and she wrote and edited it as well.\nHypothesis: Ana Reyes had more than "
              "one job on \"Salt and Iron\".",
        rationale="She directed the film, wrote it and edited it. Those are three jobs.",
        output="entailment",
    ),
    Exemplar(
        input="Premise: The Fenwick line is a tram line with 14 stops between the harbour and "
              "the university. The ride takes 35 minutes.\nHypothesis: Most riders of the "
              "Fenwick line are students.",
        rationale="The line ends at the university, but nothing is said about who rides on it.",
        output="neutral",
    ),
    Exemplar(
        input="Premise: Colin Brandt played 212 matches for Ashford Town and scored 48 goals, "
              "all of them before 1980, when he retired because of an injury.\nHypothesis: Colin "
              "Brandt scored a goal for Ashford Town in 1983.",
        rationale="All of his goals were scored before 1980, and he retired in that year. So he "
                  "scored none in 1983.",
        output="contradiction",
    ),
)  # fmt: skip

PROMPT = Prompt(
    instruction=(
        "Does the premise entail the hypothesis, contradict it, or neither? Reason from "
        'what the premise says, then end with "So the answer is" and one word: entailment, neutral '
        "or contradiction."
    ),
    exemplars=EXEMPLARS,
    question="{input}\n",
    answer="Reasoning: {rationale} So the answer is {output}.",
    opening="Reasoning:",
    stop=("\nPremise:",),
    form=ANSWER,
    input_of=asked,
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
    prompt=PROMPT,
)
