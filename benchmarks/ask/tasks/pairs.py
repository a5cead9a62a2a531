"""Tasks whose right answer to `dss ask` is known, because they are made so.

Each of 98 numbers has a hidden colour. An input is two of them, and its label says whether they
have the same. Labels tell little of any one number; rationales may tell the colours.

  pairs_content  each colour as "red blue" or "blue red": all rationales have the same words, and
                 only their order tells
  pairs_words    the numbers that are red, in drawn order: the words tell all, and their order
                 nothing
  pairs_noise    as pairs_content, of drawn colours

Each pair is in one split, once. The words are pieces of word_problems' vocabulary.
"""

import random
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.types import DistillationTask, Generated, Row, plain_example

NUMBERS = range(2, 100)
RED = frozenset(random.Random(24).sample(NUMBERS, len(NUMBERS) // 2))
ROWS = {"train": (0, 3300), "validation": (3300, 3700), "test": (3700, 4753)}
"""First and last of the pairs, in drawn order."""

Pair = tuple[int, int]
Told = Callable[[Pair, random.Random], str]


def order(*red: bool) -> str:
    return " ".join("red blue" if one else "blue red" for one in red)


def content(pair: Pair, _: random.Random) -> str:
    return order(*(number in RED for number in pair))


def words(pair: Pair, dice: random.Random) -> str:
    told = [str(number) for number in pair if number in RED]
    return " ".join(dice.sample(told, len(told))) or "all blue"


def noise(_: Pair, dice: random.Random) -> str:
    return order(dice.random() < 0.5, dice.random() < 0.5)


def task(name: str, rationale: Told) -> DistillationTask:
    def rows(split: str) -> Iterator[Row]:
        dice = random.Random("pairs")
        pairs: list[Any] = [tuple(dice.sample(pair, 2)) for pair in combinations(NUMBERS, 2)]
        first, last = ROWS[split]
        for pair in dice.sample(pairs, len(pairs))[first:last]:
            label = "more" if (pair[0] in RED) == (pair[1] in RED) else "fewer"
            row = {"input": f"{pair[0]} {pair[1]}", "label": label, "teacher_label": label}
            yield {**row, "rationale": rationale(pair, dice)}

    return DistillationTask(
        name=name,
        description="Whether two numbers have the same hidden colour; generated.",
        licence="Apache-2.0 (generated)",
        sources=(Generated(rows=rows),),
        to_example=plain_example,
        scorer=TEXT_ACCURACY,
        labels=("more", "fewer"),
    )


TASK = task("pairs", content)
