"""Arithmetic word problems in SVAMP's manner, generated: no download, no key, no language model.

THE TEACHER IS SIMULATED. Its rationales come from the same templates as the problems, and 13 of
each 50 rows get a seeded mistake (PaLM 540B is wrong on 26.5 % of SVAMP train): a wrong operation,
operands the wrong way round, a number that has nothing to do with the question, or a step left
out. The rationale then argues for the wrong answer; the gold label stays right. Accuracies on this
data set show that the method runs, not how good it is on real text.

A problem is two to five short sentences and a question; numbers are 2 to 99. What has to be learned
is which numbers matter and what is done with them: most problems hold a number that does not
count, several templates tell the same story and differ only in the question, and many verbs mean
the same change. The rationale names each number that counts, in plain words, before it is used.

Rows are the same on each Python version: only `random.Random(seed).random()` is drawn from. A
problem's text decides by its checksum which split it may enter, so splits cannot overlap.
"""

import random
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

from dss_jax.core.arithmetic import evaluate
from dss_jax.core.completions import AnswerForm
from dss_jax.core.prompt import Exemplar, Prompt
from dss_jax.core.scoring import EQUATION_ACCURACY, same_value
from dss_jax.core.types import DistillationTask, Example, Generated, Row

SEED = 2305
ROWS = {"train": 8000, "validation": 400, "test": 400}
"""Rows a split."""
SMALL = (2, 12)
"""First and last value of numbers g, h, k: groups, hours, prices."""
LARGE = (2, 99)
"""First and last value of numbers a, b, c, e: amounts."""
ADDED_DISTRACTOR = 0.5
"""Share of problems that get one more sentence with a number that does not count."""
BLOCK, WRONG_IN_BLOCK = 50, 13
"""The teacher errs in exactly 13 of each 50 rows, at seeded places."""

_SPLIT_OF_CHECKSUM = {0: "test", 1: "validation"}
_CHECKSUMS = 20

NAMES = (
    "Faye", "Julia", "Danny", "Bobby", "Luke", "Paco", "Kelly", "Rachel", "Dave", "Mary",
    "Edward", "Jack", "Robin", "Emily", "Olivia", "Adam", "Haley", "Frank", "Lewis", "Megan",
    "Tom", "Nancy", "Henry", "Rosa",
)  # fmt: skip
OBJECTS = (
    "marbles", "cards", "stickers", "coins", "shells", "pencils", "crayons", "stamps", "buttons",
    "beads", "apples", "oranges", "cookies", "candies", "books", "toys", "balls", "cups",
    "plates", "flowers", "ribbons", "badges", "stones", "balloons",
)  # fmt: skip
GAINED = (
    "got", "bought", "found", "won", "received", "picked up", "collected", "earned", "borrowed",
    "was given", "dug up", "took home",
)  # fmt: skip
LOST = (
    "lost", "sold", "gave away", "threw away", "broke", "dropped", "lent out", "used up",
    "traded away", "donated", "left behind", "mislaid",
)  # fmt: skip
MAKES = ("makes", "paints", "wraps", "cleans", "checks", "sorts")
BOXES = (
    ("boxes", "box"), ("bags", "bag"), ("jars", "jar"), ("baskets", "basket"), ("trays", "tray"),
    ("packs", "pack"), ("crates", "crate"), ("bins", "bin"),
)  # fmt: skip
HOURS = (("hours", "hour"), ("days", "day"), ("weeks", "week"), ("minutes", "minute"))
COLOURS = ("red", "blue", "green", "yellow", "white", "black")


class Step(NamedTuple):
    """One operation. An operand is the key of a number, or the index of an earlier step."""

    operation: str
    left: str | int
    right: str | int
    sentence: str


class Template(NamedTuple):
    """A schema. Numbers: a, b, c, e large; g, h, k small. {n} {m} {q} people; {o} {p} {x} objects.

    A number that has a fact but is in no step is a distractor that belongs to the story.
    """

    name: str
    story: str
    question: str
    facts: dict[str, str]
    steps: tuple[Step, ...]


_HAD = {"a": "{n} had {a} {o}."}
_HAS = {"a": "{n} has {a} {o}."}
_NOW = {"a": "{n} has {a} {o} now."}
_GOT = {"b": "{n} got {b} {o}."}
_GAVE = {"b": "{n} lost {b} {o}."}
_MORE = {"b": "{m} has {b} more."}
_FEWER = {"b": "{m} has {b} fewer."}
_GROUPS = {"g": "There are {g} {boxes}.", "k": "Each {box} has {k} {o}."}
_FRIENDS = {"g": "There are {g} friends."}
_TABLE = "{n} has {a} {o} and {b} {p}. {m} has {c} {o}."
_TABLE_FACTS = _HAS | {"b": "{n} has {b} {p}.", "c": "{m} has {c} {o}."}
_BOTH_KINDS = "{n} has {g} {boxes}. Each {box} has {k} {o} and {h} {p}."
_BOTH_FACTS = _GROUPS | {"h": "Each {box} has {h} {p}."}
_IN_BOXES = Step("*", "g", "k", "So the {boxes} hold {value} {o}.")
_SO_HAS = "So {n} has {value} {o}."

TEMPLATES = (
    # Change: the result, the start or the change is asked for.
    Template("gain", "{n} had {a} {o}. {n} {gained} {b} {o}.",
             "How many {o} does {n} have now?", _HAD | _GOT, (Step("+", "a", "b", _SO_HAS),)),
    Template("loss", "{n} had {a} {o}. {n} {lost} {b} {o}.",
             "How many {o} does {n} have now?", _HAD | _GAVE, (Step("-", "a", "b", _SO_HAS),)),
    Template("start_before_gain", "{n} {gained} {b} {o}. Now {n} has {a} {o}.",
             "How many {o} did {n} have at first?", _NOW | _GOT,
             (Step("-", "a", "b", "So {n} had {value} {o}."),)),
    Template("start_before_loss", "{n} {lost} {b} {o}. Now {n} has {a} {o}.",
             "How many {o} did {n} have at first?", _NOW | _GAVE,
             (Step("+", "a", "b", "So {n} had {value} {o}."),)),
    Template("amount_gained", "{n} had {b} {o}. {n} {gained} some. Now {n} has {a} {o}.",
             "How many {o} did {n} get?", _NOW | {"b": "{n} had {b} {o}."},
             (Step("-", "a", "b", "So {n} got {value} {o}."),)),
    Template("amount_lost", "{n} had {a} {o}. {n} {lost} some. Now {n} has {b} {o}.",
             "How many {o} did {n} lose?", _HAD | {"b": "{n} has {b} {o} now."},
             (Step("-", "a", "b", "So {n} lost {value} {o}."),)),
    Template("gain_then_loss", "{n} had {a} {o}. {n} {gained} {b} {o}. {n} {lost} {c} {o}.",
             "How many {o} does {n} have now?", _HAD | _GOT | {"c": "{n} lost {c} {o}."},
             (Step("+", "a", "b", _SO_HAS), Step("-", 0, "c", _SO_HAS))),
    Template("two_losses", "{n} had {a} {o}. {n} {lost} {b} {o}. {m} took {c} more.",
             "How many {o} does {n} have now?", _HAD | _GAVE | {"c": "{m} took {c}."},
             (Step("-", "a", "b", _SO_HAS), Step("-", 0, "c", _SO_HAS))),
    Template("three_changes", "{n} had {a} {o}. {n} {lost} {b} {o}, {gained} {c} {o} and made {e}.",
             "How many {o} does {n} have now?",
             _HAD | _GAVE | {"c": "{n} got {c}.", "e": "{n} made {e}."},
             (Step("-", "a", "b", _SO_HAS), Step("+", 0, "c", _SO_HAS),
              Step("+", 1, "e", _SO_HAS))),
    # Combine and compare: one story, and the question decides.
    Template("combine_people", _TABLE, "How many {o} do {n} and {m} have altogether?",
             _TABLE_FACTS, (Step("+", "a", "c", "So they have {value} {o}."),)),
    Template("combine_kinds", _TABLE, "How many {o} and {p} does {n} have?",
             _TABLE_FACTS, (Step("+", "a", "b", "So {n} has {value} {o} and {p}."),)),
    Template("compare_kinds", _TABLE, "How many more {o} than {p} does {n} have?",
             _TABLE_FACTS, (Step("-", "a", "b", "So {n} has {value} more {o}."),)),
    Template("compare_people", _TABLE, "How many more {o} than {m} does {n} have?",
             _TABLE_FACTS, (Step("-", "a", "c", "So {n} has {value} more {o}."),)),
    Template("combine_all", _TABLE, "How many {o} and {p} do {n} and {m} have altogether?",
             _TABLE_FACTS, (Step("+", "a", "b", "So {n} has {value} {o} and {p}."),
                            Step("+", 0, "c", "So they have {value}."))),
    Template("part_of_whole", "{n} has {a} {o}. {b} of the {o} are {red} and the rest are {blue}.",
             "How many {blue} {o} does {n} have?", _HAS | {"b": "{b} {o} are {red}."},
             (Step("-", "a", "b", "So {value} {o} are {blue}."),)),
    Template("more_than", "{n} has {a} {o}. {m} has {b} more {o} than {n}.",
             "How many {o} does {m} have?", _HAS | _MORE,
             (Step("+", "a", "b", "So {m} has {value} {o}."),)),
    Template("fewer_than", "{n} has {a} {o}. {m} has {b} fewer {o} than {n}.",
             "How many {o} does {m} have?", _HAS | _FEWER,
             (Step("-", "a", "b", "So {m} has {value} {o}."),)),
    Template("more_reversed", "{n} has {a} {o}. {n} has {b} more {o} than {m}.",
             "How many {o} does {m} have?", _HAS | _FEWER,
             (Step("-", "a", "b", "So {m} has {value} {o}."),)),
    Template("fewer_reversed", "{n} has {a} {o}. {n} has {b} fewer {o} than {m}.",
             "How many {o} does {m} have?", _HAS | _MORE,
             (Step("+", "a", "b", "So {m} has {value} {o}."),)),
    # Equal groups.
    Template("groups", "{n} has {g} {boxes}. Each {box} has {k} {o}.",
             "How many {o} does {n} have?", _GROUPS, (Step("*", "g", "k", _SO_HAS),)),
    Template("groups_one_kind", _BOTH_KINDS, "How many {o} does {n} have?",
             _BOTH_FACTS, (Step("*", "g", "k", _SO_HAS),)),
    Template("groups_both_kinds", _BOTH_KINDS, "How many {o} and {p} does {n} have?",
             _BOTH_FACTS, (Step("+", "k", "h", "So each {box} has {value}."),
                           Step("*", 0, "g", "So {n} has {value}."))),
    Template("groups_then_loss", "{n} has {g} {boxes} with {k} {o} each. {n} {lost} {b} {o}.",
             "How many {o} does {n} have now?", _GROUPS | _GAVE,
             (_IN_BOXES, Step("-", 0, "b", _SO_HAS))),
    Template("groups_then_gain", "{n} has {g} {boxes} with {k} {o} each. {n} {gained} {b} {o}.",
             "How many {o} does {n} have now?", _GROUPS | _GOT,
             (_IN_BOXES, Step("+", 0, "b", _SO_HAS))),
    # Sharing.
    Template("share", "{n} has {a} {o}. {n} shares the {o} equally among {g} friends.",
             "How many {o} does each friend get?", _HAS | _FRIENDS,
             (Step("/", "a", "g", "So each gets {value} {o}."),)),
    Template("pack", "{n} has {a} {o}. {n} puts {k} {o} in each {box}.",
             "How many {boxes} does {n} need?", _HAS | {"k": "Each {box} has {k} {o}."},
             (Step("/", "a", "k", "So {n} needs {value} {boxes}."),)),
    Template("share_both", "{n} has {a} {o}. {m} has {b} {o}. {g} friends share all the {o}.",
             "How many {o} does each friend get?", _HAS | _FRIENDS | {"b": "{m} has {b} {o}."},
             (Step("+", "a", "b", "So they have {value} {o}."),
              Step("/", 0, "g", "So each gets {value} {o}."))),
    Template("share_rest", "{n} has {h} {boxes} with {k} {o} each. {n} {lost} {b} {o}. "
             "{g} friends share the rest.", "How many {o} does each friend get?",
             _FRIENDS | _GAVE | {"h": "There are {h} {boxes}.", "k": "Each {box} has {k} {o}."},
             (Step("*", "h", "k", "So the {boxes} hold {value} {o}."), Step("-", 0, "b", _SO_HAS),
              Step("/", 1, "g", "So each gets {value} {o}."))),
    # Rates and prices.
    Template("rate", "{n} {makes} {k} {o} each {hour}. {n} works for {h} {hours}.",
             "How many {o} will {n} finish?",
             {"k": "{n} does {k} {o} each {hour}.", "h": "There are {h} {hours}."},
             (Step("*", "k", "h", "So {n} does {value} {o}."),)),
    Template("rate_each", "{n} {makes} {a} {o} in {h} {hours}.",
             "How many {o} does {n} finish each {hour}?",
             {"a": "{n} does {a} {o}.", "h": "There are {h} {hours}."},
             (Step("/", "a", "h", "So {n} does {value} {o} each {hour}."),)),
    Template("rate_gap", "{n} {makes} {k} {o} each {hour}. {m} {makes} {g} {o} each {hour}. "
             "They work for {h} {hours}.", "How many more {o} will {n} finish than {m}?",
             {"k": "{n} does {k}.", "g": "{m} does {g}.", "h": "There are {h} {hours}."},
             (Step("-", "k", "g", "So {n} does {value} more each {hour}."),
              Step("*", 0, "h", "So {n} does {value} more."))),
    Template("cost", "A {box} of {o} costs {k} dollars. {n} buys {g} {boxes}.",
             "How many dollars does {n} pay?",
             {"k": "A {box} costs {k} dollars.", "g": "{n} buys {g} {boxes}."},
             (Step("*", "g", "k", "So {n} pays {value} dollars."),)),
    Template("money_left", "{n} had {a} dollars. {n} bought {g} {boxes} of {o} for {k} dollars "
             "each.", "How many dollars does {n} have now?",
             {"a": "{n} had {a} dollars.", "g": "{n} buys {g} {boxes}.",
              "k": "A {box} costs {k} dollars."},
             (Step("*", "g", "k", "So {n} pays {value} dollars."),
              Step("-", "a", 0, "So {n} has {value} dollars."))),
)  # fmt: skip

DISTRACTORS = (
    ("{n} has {d} {x}.", "{n} has {d} {x}."),
    ("{q} has {d} {o}.", "{q} has {d} {o}."),
    ("{q} {lost} {d} {o}.", "{q} lost {d} {o}."),
    ("{n} {gained} {d} {x}.", "{n} got {d} {x}."),
    ("{n} is {d} years old.", "{n} is {d}."),
    ("The shop has {d} {o}.", "The shop has {d} {o}."),
)
"""(sentence in the story, how a teacher that falls for it states it)."""

_T = TypeVar("_T")


class _Dice:
    """Draws that are the same on each Python version."""

    def __init__(self, seed: int) -> None:
        self.share = random.Random(seed).random

    def between(self, first: int, last: int) -> int:
        return first + int(self.share() * (last - first + 1))

    def pick(self, items: Sequence[_T]) -> _T:
        return items[int(self.share() * len(items))]

    def different(self, items: Sequence[_T], count: int) -> list[_T]:
        """`count` different items, in drawn order."""
        left = list(items)
        return [left.pop(int(self.share() * len(left))) for _ in range(count)]


class _Problem(NamedTuple):
    text: str
    facts: dict[str, str]
    steps: tuple[Step, ...]
    words: dict[str, str]
    numbers: dict[str, int]


def generate(split: str) -> Iterator[Row]:
    """Rows of `split`, the same each time: id, input, label, teacher_label, rationale (all str)."""
    dice = _Dice(SEED + sorted(ROWS).index(split))
    seen: set[str] = set()
    wrong: set[int] = set()
    while len(seen) < ROWS[split]:
        problem = _problem(dice)
        checksum = zlib.crc32(problem.text.encode()) % _CHECKSUMS
        if _SPLIT_OF_CHECKSUM.get(checksum, "train") != split or problem.text in seen:
            continue
        place = len(seen) % BLOCK
        if place == 0:
            wrong = set(dice.different(range(BLOCK), WRONG_IN_BLOCK))
        label = _equations(problem, problem.steps)[-1]
        steps = _mistake(problem, label, dice) if place in wrong else problem.steps
        yield {
            "id": f"{split}-{len(seen)}",
            "input": problem.text,
            "label": label,
            "teacher_label": _equations(problem, steps)[-1],
            "rationale": _rationale(problem, steps),
        }
        seen.add(problem.text)


def _problem(dice: _Dice) -> _Problem:
    template = dice.pick(TEMPLATES)
    words = _words(dice)
    facts = dict(template.facts)
    sentences = [f"{sentence}." for sentence in template.story[:-1].split(". ")]
    if dice.share() < ADDED_DISTRACTOR:
        sentence, facts["d"] = dice.pick(DISTRACTORS)
        sentences.insert(dice.between(0, len(sentences)), sentence)
    numbers = _numbers(facts, template.steps, dice)
    text = f"{' '.join(sentences)}\n{template.question}".format(**words, **numbers)
    return _Problem(text, facts, template.steps, words, numbers)


def _words(dice: _Dice) -> dict[str, str]:
    words = dict(zip("nmq", dice.different(NAMES, 3), strict=True))
    words |= zip("opx", dice.different(OBJECTS, 3), strict=True)
    words |= zip(("red", "blue"), dice.different(COLOURS, 2), strict=True)
    words |= zip(("boxes", "box"), dice.pick(BOXES), strict=True)
    words |= zip(("hours", "hour"), dice.pick(HOURS), strict=True)
    return words | {"gained": dice.pick(GAINED), "lost": dice.pick(LOST), "makes": dice.pick(MAKES)}


def _numbers(facts: dict[str, str], steps: tuple[Step, ...], dice: _Dice) -> dict[str, int]:
    """Different numbers by which each step gives a whole number above 0."""
    while True:
        numbers = {}
        for key in facts:
            small = key in "ghk" or (key == "d" and dice.share() < 0.5)
            numbers[key] = dice.between(*(SMALL if small else LARGE))
        if len(set(numbers.values())) == len(numbers) and _all_whole(steps, numbers):
            return numbers


def _all_whole(steps: tuple[Step, ...], numbers: dict[str, int]) -> bool:
    values: list[int] = []
    for operation, left, right, _ in steps:
        x, y = (values[z] if isinstance(z, int) else numbers[z] for z in (left, right))
        if operation == "/" and x % y:
            return False
        values.append({"+": x + y, "-": x - y, "*": x * y, "/": x // y}[operation])
        if values[-1] <= 0:
            return False
    return True


def _equations(problem: _Problem, steps: tuple[Step, ...]) -> list[str]:
    """The equation of each step, with those before it written out, as in SVAMP's labels."""
    found: list[str] = []
    for operation, left, right, _ in steps:
        x, y = (found[z] if isinstance(z, int) else problem.numbers[z] for z in (left, right))
        found.append(f"( {x} {operation} {y} )")
    return found


def _rationale(problem: _Problem, steps: tuple[Step, ...]) -> str:
    """What each number means, then what it is used for, step by step."""
    sentences = []
    for step, equation in zip(steps, _equations(problem, steps), strict=True):
        sentences += [problem.facts[z] for z in (step.left, step.right) if isinstance(z, str)]
        sentences.append(step.sentence.replace("{value}", equation[2:-2]))
    return " ".join(sentences).format(**problem.words, **problem.numbers)


def _mistake(problem: _Problem, label: str, dice: _Dice) -> tuple[Step, ...]:
    """Steps with one mistake, whose value is another than that of `label`."""
    while True:
        mistake = dice.pick((_wrong_operation, _swapped, _distracted, _step_dropped))
        steps = mistake(problem, dice)
        if steps is not None and not same_value(label, _equations(problem, steps)[-1]):
            return steps


def _changed(steps: tuple[Step, ...], at: int, step: Step) -> tuple[Step, ...]:
    return (*steps[:at], step, *steps[at + 1 :])


def _wrong_operation(problem: _Problem, dice: _Dice) -> tuple[Step, ...]:
    at = dice.between(0, len(problem.steps) - 1)
    step = problem.steps[at]
    other = dice.pick([x for x in "+-*/" if x != step.operation])
    return _changed(problem.steps, at, step._replace(operation=other))


def _swapped(problem: _Problem, dice: _Dice) -> tuple[Step, ...] | None:
    order_counts = [i for i, step in enumerate(problem.steps) if step.operation in "-/"]
    if not order_counts:
        return None
    at = dice.pick(order_counts)
    step = problem.steps[at]
    return _changed(problem.steps, at, step._replace(left=step.right, right=step.left))


def _distracted(problem: _Problem, dice: _Dice) -> tuple[Step, ...] | None:
    used = [(i, s) for i, step in enumerate(problem.steps) for s in ("left", "right")
            if isinstance(getattr(step, s), str)]  # fmt: skip
    unused = set(problem.facts) - {getattr(problem.steps[i], side) for i, side in used}
    if not unused:
        return None
    at, side = dice.pick(used)
    taken = dice.pick(sorted(unused))
    return _changed(problem.steps, at, problem.steps[at]._replace(**{side: taken}))


def _step_dropped(problem: _Problem, dice: _Dice) -> tuple[Step, ...] | None:
    return problem.steps[:-1] or None


# "RATIONALE The answer is ( 10 * 45 )."; all between the first and the last parenthesis of a line.
ANSWER = AnswerForm(run_on="Q:", marker="The answer is", label=r"(\(.*\))")

EXEMPLARS = (
    Exemplar(
        input="Clara had 31 beads. Clara found 16 beads.\nHow many beads does Clara have now?",
        rationale="Clara had 31 beads. Clara got 16 beads. So Clara has 31 + 16 beads.",
        output="( 31 + 16 )",
    ),
    Exemplar(
        input="Noah has 44 stamps and 9 coins. Noah sold 20 stamps.\nHow many stamps does Noah "
              "have now?",
        rationale="Noah had 44 stamps. Noah lost 20 stamps. So Noah has 44 - 20 stamps.",
        output="( 44 - 20 )",
    ),
    Exemplar(
        input="Ines has 7 trays. Each tray has 5 cups. Ines is 33 years old.\nHow many cups does "
              "Ines have?",
        rationale="There are 7 trays. Each tray has 5 cups. So Ines has 7 * 5 cups.",
        output="( 7 * 5 )",
    ),
    Exemplar(
        input="Viktor has 72 shells. Viktor shares the shells equally among 8 friends.\nHow many "
              "shells does each friend get?",
        rationale="Viktor has 72 shells. There are 8 friends. So each gets 72 / 8 shells.",
        output="( 72 / 8 )",
    ),
    Exemplar(
        input="Greta has 61 books. Greta has 26 more books than Amir.\nHow many books does Amir "
              "have?",
        rationale="Greta has 61 books. Amir has 26 fewer. So Amir has 61 - 26 books.",
        output="( 61 - 26 )",
    ),
    Exemplar(
        input="Simon has 6 bags with 4 stones each. Simon lost 10 stones.\nHow many stones does "
              "Simon have now?",
        rationale="There are 6 bags. Each bag has 4 stones. So the bags hold 6 * 4 stones. Simon "
                  "lost 10 stones. So Simon has ( 6 * 4 ) - 10 stones.",
        output="( ( 6 * 4 ) - 10 )",
    ),
)  # fmt: skip

PROMPT = Prompt(
    instruction=(
        "Solve arithmetic word problems. Name each number that counts, then end with "
        '"The answer is" and one equation in parentheses.'
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
    name="word_problems",
    description="Generated arithmetic word problems in SVAMP's manner; simulated teacher.",
    licence="Apache-2.0 (generated)",
    sources=(Generated(rows=generate),),
    to_example=lambda row, _: Example(**row),
    scorer=EQUATION_ACCURACY,
    prompt=PROMPT,
    default_vocabulary="vocabularies/word_problems.model",
)
