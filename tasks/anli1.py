"""ANLI, round 1: natural language inference, written to fool a model.

Rows from the authors' release where it has the split, else from TFDS (`anli/r1`), joined with the
release's completions by row. Numbers to expect (`dss tasks stats anli1`): train 16,946 rows,
validation 1,000, test 1,000. The teacher (PaLM 540B) is right on 66.80 % of validation and 65.60 %
of test. Rationales have 19 words, 99 % of train's at most 47 (43 in validation).
"""

from dss_jax.core.completions import UP_TO_FINAL_STOP, AnswerForm
from dss_jax.core.nli import exemplar, nli_task

# "RATIONALE So the answer is contradiction."
ANSWER = AnswerForm(run_on="Premise", marker="So the answer is", label=UP_TO_FINAL_STOP)

EXEMPLARS = (
    exemplar(
        "The Harlow Bridge is a stone arch bridge over the river Tenn. It was opened in 1874 and "
        "carries a road and a footpath. A railway bridge was built beside it in 1902.",
        "The Harlow Bridge is older than the railway bridge beside it.",
        "The Harlow Bridge was opened in 1874 and the railway bridge was built in 1902. Since 1874 "
        "is before 1902, the Harlow Bridge is older.",
        "entailment",
    ),
    exemplar(
        "Marta Velin (born 3 May 1951) is a Swedish painter. She studied in Lund, Sweden, and "
        "taught there until 1990, before she moved to Oslo.",
        "Marta Velin never lived in Sweden.",
        "She studied in Lund, Sweden, and taught there until 1990, so she did live in Sweden.",
        "contradiction",
    ),
    exemplar(
        "Green Lantern Road is the second album by the folk group The Millers. It was recorded in "
        "nine days and released in March 2004.",
        "Green Lantern Road sold more copies than the group's first album.",
        "The text gives the time of recording and of release, but says nothing about how many "
        "copies either album sold.",
        "neutral",
    ),
    exemplar(
        "The Corran Cup is a sailing race held every two years. It was first held in 1988, and "
        "eleven boats took part in it.",
        "The Corran Cup was held in 1990.",
        "The race is held every two years and began in 1988. Two years after 1988 is 1990.",
        "entailment",
    ),
    exemplar(
        "Peter Osei is a Ghanaian engineer who holds four patents. He founded a pump factory in "
        "Kumasi that employs 60 people.",
        "Peter Osei's factory employs over a hundred people.",
        "The factory employs 60 people, and 60 is not over a hundred.",
        "contradiction",
    ),
    exemplar(
        "Dunmore Hall is a country house from the 18th century. Since 1967 it has been a school, "
        "and its gardens are open to visitors on Sundays.",
        "Dunmore Hall is visited by many tourists each year.",
        "Its gardens are open on Sundays, but how many visitors come is not said.",
        "neutral",
    ),
    exemplar(
        "The northern reed frog lives in marshes and lays its eggs on leaves above the water. "
        "Males call only at night.",
        "The eggs of the northern reed frog are laid under water.",
        "The frog lays its eggs on leaves above the water, which is not under water.",
        "contradiction",
    ),
    exemplar(
        '"Salt and Iron" is a 1996 film directed by Ana Reyes. It was her first film, and she '
        "wrote and edited it as well.",
        'Ana Reyes had more than one job on "Salt and Iron".',
        "She directed the film, wrote it and edited it. Those are three jobs.",
        "entailment",
    ),
    exemplar(
        "The Fenwick line is a tram line with 14 stops between the harbour and the university. The "
        "ride takes 35 minutes.",
        "Most riders of the Fenwick line are students.",
        "The line ends at the university, but nothing is said about who rides on it.",
        "neutral",
    ),
    exemplar(
        "Colin Brandt played 212 matches for Ashford Town and scored 48 goals, all of them before "
        "1980, when he retired because of an injury.",
        "Colin Brandt scored a goal for Ashford Town in 1983.",
        "All of his goals were scored before 1980, and he retired in that year. So he scored none "
        "in 1983.",
        "contradiction",
    ),
)

TASK = nli_task(
    name="anli1",
    description="ANLI round 1: adversarial natural language inference.",
    licence="CC BY-NC 4.0",
    tfds="anli/r1:0.1.0",
    premise="context",
    id_field="uid",
    form=ANSWER,
    exemplars=EXEMPLARS,
    how='Reason from what the premise says, then end with "So the answer is" and one word: '
    "entailment, neutral or contradiction.",
    answer="Reasoning: {rationale} So the answer is {output}.",
)
