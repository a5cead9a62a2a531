"""Rows of a task as worked examples for its prompt; a teacher may explain their gold labels."""

import random
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dss_jax.core.types import DistillationTask, Example
from dss_jax.teacher import asking
from dss_jax.teacher.extraction import Extraction, answered
from dss_jax.teacher.journal import Journal
from dss_jax.teacher.prompting import PromptOptions

MAX_TOKENS = 256
"""Of an explanation."""


def draw(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """Rows with a gold label, of all labels in turn; of each, the drawn ones are of its shorter
    half, for a prompt has all of them.
    """
    of_label: dict[str, list[Example]] = defaultdict(list)
    for example in sorted(examples, key=lambda e: (len(e.input), e.id)):
        if example.label:
            of_label[example.label].append(example)
    # Only `random()` is the same on each Python version.
    dice = random.Random(seed).random
    decks = {}
    for label in sorted(of_label):
        shorter = of_label[label][: -(-len(of_label[label]) // 2)]
        decks[label] = sorted(shorter, key=lambda _: dice())
    drawn: list[Example] = []
    while len(drawn) < count and any(decks.values()):
        drawn += [deck.pop() for deck in decks.values() if deck][: count - len(drawn)]
    return drawn


def explained(
    task: DistillationTask, rows: Sequence[Example], model: str, teacher: asking.Teacher
) -> list[str]:
    """A teacher's rationales for the gold labels of rows, which it is shown; "" where it gave none
    for that label. UsageError: it answers nothing.
    """
    # Without exemplars of its own, for these become them.
    bare = replace(task, prompt=replace(task.prompt, exemplars=()) if task.prompt else None)
    extraction = Extraction(
        task=bare,
        split="train",
        model=model,
        options=PromptOptions(hint=True),
        sampling={"temperature": 0.0, "max_tokens": MAX_TOKENS},
    )
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal") as journal:
        run = asking.ExtractionRun(journal, extraction=extraction.sha256)
        teacher.ask(extraction.requests(rows), run)
        records = [record for record, _ in answered(extraction, rows, journal)]
    right = task.scorer.correct
    return [r.rationale if right(r.gold, r.teacher_label) else "" for r in records]
