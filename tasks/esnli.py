"""e-SNLI: does the premise entail the hypothesis, contradict it, or neither?

Rows from the authors' release where it has the split, else from TFDS (`esnli`), joined with the
release's completions by row. Numbers to expect (`dss tasks stats esnli`): train 549,367 rows,
validation 9,842, test 9,824. The teacher (PaLM 540B) is right on 73.17 % of validation and 72.99 %
of test. Some labels of train are cut short ("entail", "neutral\\n\\nPre"); they are kept as they
are. Rationales have 10.5 words, 99 % of train's at most 27 (28 in validation).
"""

from dss_jax.core.completions import UP_TO_FINAL_STOP, AnswerForm
from dss_jax.core.nli import exemplar, nli_task

# "RATIONALE\nAnswer: neutral"
ANSWER = AnswerForm(
    run_on="Premise", marker="Answer:", label=UP_TO_FINAL_STOP, keep_unanswered=True
)

EXEMPLARS = (
    exemplar(
        "A woman in a red apron is slicing bread at a long table.",
        "A person is cutting bread.",
        "A woman is a person, and slicing bread is cutting it.",
        "entailment",
    ),
    exemplar(
        "Two boys paddle a canoe across a lake.",
        "The boys are asleep in a tent.",
        "Boys who paddle a canoe are awake and on the water, not asleep in a tent.",
        "contradiction",
    ),
    exemplar(
        "A man with a guitar sits on a bench in a park.",
        "The man is waiting for his band.",
        "Sitting on a bench with a guitar does not say that he waits for a band.",
        "neutral",
    ),
    exemplar(
        "Three cyclists climb a steep road in the rain.",
        "People are riding bicycles outdoors.",
        "Cyclists are people who ride bicycles, and a road in the rain is outdoors.",
        "entailment",
    ),
    exemplar(
        "A girl blows out the candles on a cake.",
        "It is her seventh birthday.",
        "Candles on a cake may mean a birthday, but her age is not given.",
        "neutral",
    ),
    exemplar(
        "An old man feeds pigeons on a square.",
        "There are no birds on the square.",
        "Pigeons are birds, so there are birds on the square.",
        "contradiction",
    ),
    exemplar(
        "A chef tosses dough into the air while customers watch.",
        "Someone is watching the chef.",
        "Customers watch the chef, so someone is watching.",
        "entailment",
    ),
    exemplar(
        "A dog runs along the beach with a stick in its mouth.",
        "The dog will bring the stick to its owner.",
        "A dog with a stick need not bring it to anybody, and no owner is mentioned.",
        "neutral",
    ),
    exemplar(
        "A crowded train stands at the platform.",
        "The train is empty.",
        "A train cannot be crowded and empty at the same time.",
        "contradiction",
    ),
    exemplar(
        "A student in a library reads a book about stars.",
        "A student is reading.",
        "Reading a book about stars is reading.",
        "entailment",
    ),
)

TASK = nli_task(
    name="esnli",
    description="e-SNLI: natural language inference with explanations.",
    licence="MIT",
    tfds="esnli:0.1.0",
    form=ANSWER,
    exemplars=EXEMPLARS,
    how='Give the reason in a sentence, then on a line of its own "Answer:" and one word: '
    "entailment, neutral or contradiction.",
    answer="Reasoning: {rationale}\nAnswer: {output}",
)
