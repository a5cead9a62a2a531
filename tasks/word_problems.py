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
import re
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


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


NAMES = _listed(
    "Faye, Julia, Danny, Bobby, Luke, Paco, Kelly, Rachel, Dave, Mary, Edward, Jack, Robin, "
    "Emily, Olivia, Adam, Haley, Frank, Lewis, Megan, Tom, Nancy, Henry, Rosa"
)
OBJECTS = _listed(
    "marbles, cards, stickers, coins, shells, pencils, crayons, stamps, buttons, beads, apples, "
    "oranges, cookies, candies, books, toys, balls, cups, plates, flowers, ribbons, badges, "
    "stones, balloons"
)
GAINED = _listed(
    "got, bought, found, won, received, picked up, collected, earned, borrowed, was given, dug "
    "up, took home"
)
LOST = _listed(
    "lost, sold, gave away, threw away, broke, dropped, lent out, used up, traded away, donated, "
    "left behind, mislaid"
)
MAKES = ("makes", "paints", "wraps", "cleans", "checks", "sorts")
_BOX = _listed("box, bag, jar, basket, tray, pack, crate, bin")
BOXES = tuple((f"{box}es" if box == "box" else f"{box}s", box) for box in _BOX)
HOURS = (("hours", "hour"), ("days", "day"), ("weeks", "week"), ("minutes", "minute"))
COLOURS = ("red", "blue", "green", "yellow", "white", "black")


class Step(NamedTuple):
    """One operation. An operand is the key of a number, or the index of an earlier step."""

    operation: str
    left: str | int
    right: str | int
    sentence: str


class Template(NamedTuple):
    """A schema. Numbers: a, b, c, e large; g, h, k small. {n} {m} {q} people, {o} {p} {x} objects.

    A number that has a fact but is in no step is a distractor that belongs to the story.
    """

    name: str
    story: str
    question: str
    facts: dict[str, str]
    steps: tuple[Step, ...]


STORIES = """\
# Change: the result, the start or the change is asked for.
{n} had {a} {o}. {n} {gained} {b} {o}.
  a: {n} had {a} {o}. | b: {n} got {b} {o}.
  gain: How many {o} does {n} have now?
    a + b: So {n} has {value} {o}.
{n} had {a} {o}. {n} {lost} {b} {o}.
  a: {n} had {a} {o}. | b: {n} lost {b} {o}.
  loss: How many {o} does {n} have now?
    a - b: So {n} has {value} {o}.
{n} {gained} {b} {o}. Now {n} has {a} {o}.
  a: {n} has {a} {o} now. | b: {n} got {b} {o}.
  start_before_gain: How many {o} did {n} have at first?
    a - b: So {n} had {value} {o}.
{n} {lost} {b} {o}. Now {n} has {a} {o}.
  a: {n} has {a} {o} now. | b: {n} lost {b} {o}.
  start_before_loss: How many {o} did {n} have at first?
    a + b: So {n} had {value} {o}.
{n} had {b} {o}. {n} {gained} some. Now {n} has {a} {o}.
  a: {n} has {a} {o} now. | b: {n} had {b} {o}.
  amount_gained: How many {o} did {n} get?
    a - b: So {n} got {value} {o}.
{n} had {a} {o}. {n} {lost} some. Now {n} has {b} {o}.
  a: {n} had {a} {o}. | b: {n} has {b} {o} now.
  amount_lost: How many {o} did {n} lose?
    a - b: So {n} lost {value} {o}.
{n} had {a} {o}. {n} {gained} {b} {o}. {n} {lost} {c} {o}.
  a: {n} had {a} {o}. | b: {n} got {b} {o}. | c: {n} lost {c} {o}.
  gain_then_loss: How many {o} does {n} have now?
    a + b: So {n} has {value} {o}. | 0 - c: So {n} has {value} {o}.
{n} had {a} {o}. {n} {lost} {b} {o}. {m} took {c} more.
  a: {n} had {a} {o}. | b: {n} lost {b} {o}. | c: {m} took {c}.
  two_losses: How many {o} does {n} have now?
    a - b: So {n} has {value} {o}. | 0 - c: So {n} has {value} {o}.
{n} had {a} {o}. {n} {lost} {b} {o}, {gained} {c} {o} and made {e}.
  a: {n} had {a} {o}. | b: {n} lost {b} {o}. | c: {n} got {c}. | e: {n} made {e}.
  three_changes: How many {o} does {n} have now?
    a - b: So {n} has {value} {o}. | 0 + c: So {n} has {value} {o}. | 1 + e: So {n} has {value} {o}.
# Combine and compare: one story, and the question decides.
{n} has {a} {o} and {b} {p}. {m} has {c} {o}.
  a: {n} has {a} {o}. | b: {n} has {b} {p}. | c: {m} has {c} {o}.
  combine_people: How many {o} do {n} and {m} have altogether?
    a + c: So they have {value} {o}.
  combine_kinds: How many {o} and {p} does {n} have?
    a + b: So {n} has {value} {o} and {p}.
  compare_kinds: How many more {o} than {p} does {n} have?
    a - b: So {n} has {value} more {o}.
  compare_people: How many more {o} than {m} does {n} have?
    a - c: So {n} has {value} more {o}.
  combine_all: How many {o} and {p} do {n} and {m} have altogether?
    a + b: So {n} has {value} {o} and {p}. | 0 + c: So they have {value}.
{n} has {a} {o}. {b} of the {o} are {red} and the rest are {blue}.
  a: {n} has {a} {o}. | b: {b} {o} are {red}.
  part_of_whole: How many {blue} {o} does {n} have?
    a - b: So {value} {o} are {blue}.
{n} has {a} {o}. {m} has {b} more {o} than {n}.
  a: {n} has {a} {o}. | b: {m} has {b} more.
  more_than: How many {o} does {m} have?
    a + b: So {m} has {value} {o}.
{n} has {a} {o}. {m} has {b} fewer {o} than {n}.
  a: {n} has {a} {o}. | b: {m} has {b} fewer.
  fewer_than: How many {o} does {m} have?
    a - b: So {m} has {value} {o}.
{n} has {a} {o}. {n} has {b} more {o} than {m}.
  a: {n} has {a} {o}. | b: {m} has {b} fewer.
  more_reversed: How many {o} does {m} have?
    a - b: So {m} has {value} {o}.
{n} has {a} {o}. {n} has {b} fewer {o} than {m}.
  a: {n} has {a} {o}. | b: {m} has {b} more.
  fewer_reversed: How many {o} does {m} have?
    a + b: So {m} has {value} {o}.
# Equal groups.
{n} has {g} {boxes}. Each {box} has {k} {o}.
  g: There are {g} {boxes}. | k: Each {box} has {k} {o}.
  groups: How many {o} does {n} have?
    g * k: So {n} has {value} {o}.
{n} has {g} {boxes}. Each {box} has {k} {o} and {h} {p}.
  g: There are {g} {boxes}. | k: Each {box} has {k} {o}. | h: Each {box} has {h} {p}.
  groups_one_kind: How many {o} does {n} have?
    g * k: So {n} has {value} {o}.
  groups_both_kinds: How many {o} and {p} does {n} have?
    k + h: So each {box} has {value}. | 0 * g: So {n} has {value}.
{n} has {g} {boxes} with {k} {o} each. {n} {lost} {b} {o}.
  g: There are {g} {boxes}. | k: Each {box} has {k} {o}. | b: {n} lost {b} {o}.
  groups_then_loss: How many {o} does {n} have now?
    g * k: So the {boxes} hold {value} {o}. | 0 - b: So {n} has {value} {o}.
{n} has {g} {boxes} with {k} {o} each. {n} {gained} {b} {o}.
  g: There are {g} {boxes}. | k: Each {box} has {k} {o}. | b: {n} got {b} {o}.
  groups_then_gain: How many {o} does {n} have now?
    g * k: So the {boxes} hold {value} {o}. | 0 + b: So {n} has {value} {o}.
# Sharing.
{n} has {a} {o}. {n} shares the {o} equally among {g} friends.
  a: {n} has {a} {o}. | g: There are {g} friends.
  share: How many {o} does each friend get?
    a / g: So each gets {value} {o}.
{n} has {a} {o}. {n} puts {k} {o} in each {box}.
  a: {n} has {a} {o}. | k: Each {box} has {k} {o}.
  pack: How many {boxes} does {n} need?
    a / k: So {n} needs {value} {boxes}.
{n} has {a} {o}. {m} has {b} {o}. {g} friends share all the {o}.
  a: {n} has {a} {o}. | g: There are {g} friends. | b: {m} has {b} {o}.
  share_both: How many {o} does each friend get?
    a + b: So they have {value} {o}. | 0 / g: So each gets {value} {o}.
{n} has {h} {boxes} with {k} {o} each. {n} {lost} {b} {o}. {g} friends share the rest.
  g: There are {g} friends. | b: {n} lost {b} {o}.
    h: There are {h} {boxes}. | k: Each {box} has {k} {o}.
  share_rest: How many {o} does each friend get?
    h * k: So the {boxes} hold {value} {o}. | 0 - b: So {n} has {value} {o}.
    1 / g: So each gets {value} {o}.
# Rates and prices.
{n} {makes} {k} {o} each {hour}. {n} works for {h} {hours}.
  k: {n} does {k} {o} each {hour}. | h: There are {h} {hours}.
  rate: How many {o} will {n} finish?
    k * h: So {n} does {value} {o}.
{n} {makes} {a} {o} in {h} {hours}.
  a: {n} does {a} {o}. | h: There are {h} {hours}.
  rate_each: How many {o} does {n} finish each {hour}?
    a / h: So {n} does {value} {o} each {hour}.
{n} {makes} {k} {o} each {hour}. {m} {makes} {g} {o} each {hour}. They work for {h} {hours}.
  k: {n} does {k}. | g: {m} does {g}. | h: There are {h} {hours}.
  rate_gap: How many more {o} will {n} finish than {m}?
    k - g: So {n} does {value} more each {hour}. | 0 * h: So {n} does {value} more.
A {box} of {o} costs {k} dollars. {n} buys {g} {boxes}.
  k: A {box} costs {k} dollars. | g: {n} buys {g} {boxes}.
  cost: How many dollars does {n} pay?
    g * k: So {n} pays {value} dollars.
{n} had {a} dollars. {n} bought {g} {boxes} of {o} for {k} dollars each.
  a: {n} had {a} dollars. | g: {n} buys {g} {boxes}. | k: A {box} costs {k} dollars.
  money_left: How many dollars does {n} have now?
    g * k: So {n} pays {value} dollars. | a - 0: So {n} has {value} dollars.
"""
"""A story; what each of its numbers says; then each question's name and the steps to its answer."""


def _items(text: str) -> list[tuple[str, str]]:
    pairs = (item.partition(": ") for item in re.split(r" \| |\n +", text.strip()))
    return [(key, value) for key, _, value in pairs]


def _operand(text: str) -> str | int:
    return int(text) if text.isdigit() else text


def _templates(text: str) -> Iterator[Template]:
    for block in re.split(r"\n(?! )", re.sub(r"(?m)^#.*\n", "", text).strip()):
        story, facts, *questions = re.split(r"\n  (?! )", block)
        for (name, question), *lines in map(_items, questions):
            steps = []
            for formula, sentence in lines:
                left, operation, right = formula.split()
                steps.append(Step(operation, _operand(left), _operand(right), sentence))
            yield Template(name, story, question, dict(_items(facts)), tuple(steps))


TEMPLATES = tuple(_templates(STORIES))

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
    places = [(at, side) for at in range(len(problem.steps)) for side in ("left", "right")]
    used = [(at, s) for at, s in places if isinstance(getattr(problem.steps[at], s), str)]
    unused = set(problem.facts) - {getattr(problem.steps[at], side) for at, side in used}
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
)

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
