"""SVAMP: arithmetic word problems of one to two steps, an equation as answer.

Rows from the authors' release; an answer is right if both equations have the same value. Numbers
to expect (`dss tasks stats svamp`): train 800 rows, of which 80 become validation (720 stay), test
200. The teacher (PaLM 540B) is right on 73.50 % of the 800 and on 74.00 % of test; 13 of the 800
labels are empty. Rationales have 28 words, 99 % at most 66.
"""

from dss_jax.core.arithmetic import evaluate
from dss_jax.core.completions import AnswerForm, parse_completion
from dss_jax.core.prompt import Exemplar, Prompt
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


EXEMPLARS = (
    Exemplar(
        input="A hotel has 10 floors with 45 rooms on each floor.\nHow many rooms does the hotel "
        "have?",
        rationale="Each floor has 45 rooms. There are 10 floors. So the hotel has 10 * 45 = 450 "
        "rooms.",
        output="(10 * 45)",
    ),
    Exemplar(
        input="Mira had 63 seashells. She gave 18 of them to her cousin.\nHow many seashells does "
        "Mira have left?",
        rationale="Mira had 63 seashells. She gave away 18. So she has 63 - 18 = 45 seashells "
        "left.",
        output="(63 - 18)",
    ),
    Exemplar(
        input="A baker made 27 rye loaves and 34 wheat loaves before noon.\nHow many loaves did "
        "the baker make?",
        rationale="The baker made 27 rye loaves and 34 wheat loaves. So the baker made 27 + 34 = "
        "61 loaves.",
        output="(27 + 34)",
    ),
    Exemplar(
        input="Omar puts 96 photos into 8 albums, the same number in each.\nHow many photos are in "
        "each album?",
        rationale="There are 96 photos and 8 albums with equally many. So each album has 96 / 8 = "
        "12 photos.",
        output="(96 / 8)",
    ),
    Exemplar(
        input="A tram had 41 riders. At the market 15 got off and 22 got on.\nHow many riders are "
        "on the tram now?",
        rationale="The tram had 41 riders. After 15 got off there were 41 - 15 = 26. Then 22 got "
        "on, which makes 26 + 22 = 48.",
        output="((41 - 15) + 22)",
    ),
    Exemplar(
        input="Lena buys 6 notebooks for 3 dollars each and a bag for 25 dollars.\nHow many "
        "dollars does she spend?",
        rationale="The notebooks cost 6 * 3 = 18 dollars. The bag costs 25 dollars. So she spends "
        "18 + 25 = 43 dollars.",
        output="((6 * 3) + 25)",
    ),
    Exemplar(
        input="Ivo planted 52 tulips and 19 roses. His sister planted 30 tulips.\nHow many more "
        "tulips than his sister did Ivo plant?",
        rationale="Only tulips count. Ivo planted 52 and his sister planted 30. So Ivo planted 52 "
        "- 30 = 22 more.",
        output="(52 - 30)",
    ),
    Exemplar(
        input="After selling 37 lamps a shop has 85 lamps. It also has 12 tables.\nHow many lamps "
        "did the shop have at first?",
        rationale="The shop has 85 lamps after it sold 37. The tables do not count. So it had 85 + "
        "37 = 122 lamps at first.",
        output="(85 + 37)",
    ),
    Exemplar(
        input="A coach has 74 balls. He keeps 14 and shares the others equally among 5 teams.\nHow "
        "many balls does each team get?",
        rationale="The coach shares 74 - 14 = 60 balls. There are 5 teams. So each team gets 60 / "
        "5 = 12 balls.",
        output="((74 - 14) / 5)",
    ),
    Exemplar(
        input="Each of 9 guides leads 16 visitors. There are also 4 drivers.\nHow many visitors "
        "are there?",
        rationale="There are 9 guides, and each leads 16 visitors. The drivers do not count. So "
        "there are 9 * 16 = 144 visitors.",
        output="(9 * 16)",
    ),
)

PROMPT = Prompt(
    instruction=(
        'Solve arithmetic word problems. Reason step by step, then end with "The answer is" and '
        "one equation in parentheses, made of the numbers in the problem."
    ),
    exemplars=EXEMPLARS,
    question="Q: {input}\n",
    answer="A: {rationale} The answer is {output}.",
    opening="A:",
    stop=("\nQ:",),
    form=ANSWER,
    valid=lambda text: evaluate(text) is not None,
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
    prompt=PROMPT,
    validation_fraction=0.1,
    validation_seed=0,
)
