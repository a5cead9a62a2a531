"""The files that `dss init` writes: a task and its settings. Values of the data are written as
Python's own literals, so that nothing in them is ever code.
"""

import pprint
from collections.abc import Mapping, Sequence
from typing import Any

from dss_jax.core.example import Example
from dss_jax.core.prompt import Exemplar
from dss_jax.core.table import TableSource
from dss_jax.core.texts import visible

TASK = '''"""{title}. Written by `dss init`, to be edited: docs/your_data.md."""

from dss_jax.core.completions import UP_TO_FINAL_STOP, AnswerForm
from dss_jax.core.prompt import Exemplar, Prompt
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.table import TableSource
from dss_jax.core.types import DistillationTask

# The file stays the one source. A hash of a row's {key} tells its split, so rows that are added
# move none of the others. Leave the shares and the seed as they are: they would move all.
TABLE = TableSource(
{table}
)

# {labels_note}
LABELS = {labels}

# Worked examples for the teacher, about eight, of all labels. One is shown to it as soon as it has
# a rationale: read each, and put it right.
EXEMPLARS: tuple[Exemplar, ...] = {exemplars}

PROMPT = Prompt(
    instruction={instruction}
    + 'Give the reason in one to three sentences, then end with "So the answer is" and {answer}.',
    exemplars=tuple(e for e in EXEMPLARS if e.rationale),
    question="Q: {{input}}\\n",
    answer="A: {{rationale}} So the answer is {{output}}.",
    opening="A:",
    stop=("\\nQ:",),
    form=AnswerForm(run_on="\\nQ:", marker="So the answer is", label=UP_TO_FINAL_STOP),
)

TASK = DistillationTask(
    name={name},
    description={title_literal},
    licence="not given",
    sources=(TABLE,),
    to_example=TABLE.to_example,
    scorer=TEXT_ACCURACY,
    labels=LABELS,
    prompt=PROMPT,
)
'''

GIN = """# {title}: {counts}.
# Settings of every command that is given --task {name}. Written by `dss init`, to be edited.
Task.name = "{name}"
Train.output_dir = "runs/{name}"
{skip}
# {epochs} times through {train} labelled rows. 1e-4 to 3e-4 is what Hugging Face advises for T5
# that starts from a checkpoint.
Train.steps = {steps}
Data.batch_size = {batch}
Optimizer.learning_rate = 3e-4
Evaluate.every = {every}  # steps; the best checkpoint is scored on test

{decode}Evaluate.max_decode_length = {length}  # tokens; {length_note}
"""

RANK = """# The most probable of LABELS, as dss predict answers; "greedy": what the student writes.
Evaluate.decode = "rank"
"""

EPOCHS = 20
SMALL, LARGE = 16, 64
"""Rows of a batch."""

MANY = 5_000
"""From so many rows on batches are large."""


def literal(value: Any, indent: int = 0) -> str:
    """A value as Python source, over several lines where it is long."""
    lines = pprint.pformat(value, width=96 - indent, sort_dicts=False).splitlines()
    return f"\n{' ' * indent}".join(lines)


def _table(table: TableSource) -> str:
    files = {s: file for s, file in table.files.items() if file != table.file}
    given = {"file": table.file, "files": files, "inputs": table.inputs, "label": table.label}
    given |= {name: getattr(table, name) for name in ("id", "rationale", "group", "no_label")}
    shown = {name: value for name, value in given.items() if value}
    shown |= {name: getattr(table, name) for name in ("validation", "test", "seed")}
    lines = [f"    {name}={literal(value, 4)}," for name, value in shown.items()]
    note = "  # True: rows of train without a label too, for --method dss_unlabeled"
    lines.insert(-3, f"    unlabelled=False,{note}")
    return "\n".join(lines)


def _exemplars(exemplars: Sequence[Exemplar]) -> str:
    if not exemplars:
        return "()"
    parts = []
    for one in exemplars:
        fields = ("input", "rationale", "output")
        lines = [f"        {name}={literal(getattr(one, name), 8)}," for name in fields]
        parts.append("\n".join(["    Exemplar(", *lines, "    ),"]))
    return "\n".join(["(", *parts, ")"])


def task_file(
    name: str,
    title: str,
    table: TableSource,
    labels: tuple[str, ...],
    exemplars: Sequence[Exemplar] = (),
) -> str:
    """The text of `tasks/NAME.py`. labels (): any text may be one."""
    closed = """f"Read the text and decide which label fits: {', '.join(LABELS)}. \""""
    free = literal(f"Read the text and say what its {table.label} is. ", 8)
    note = "What the teacher and the student may answer." if labels else "Any text may be a label."
    return TASK.format(
        title=visible(title).replace('"', "'").replace("\\", "/"),
        title_literal=literal(title),
        key="group" if table.group else "id" if table.id else "text",
        table=_table(table),
        labels_note=note,
        labels=literal(labels),
        exemplars=_exemplars(exemplars),
        instruction=closed if labels else free,
        answer="the label" if labels else "the answer",
        name=literal(name),
    )


def gin_file(
    name: str,
    title: str,
    splits: Mapping[str, Sequence[Example]],
    longest: int,
    measured: bool,
    skip: bool = False,
) -> str:
    """The text of `gin_configs/tasks/NAME.gin`. `longest`: tokens of the longest label, or the most
    that it could have; `skip`: rows that cannot be used are left out.
    """
    rows = splits["train"]
    train = sum(bool(e.label) for e in rows)
    batch = LARGE if train >= MANY else SMALL
    steps = max(100, -(-EPOCHS * train // (50 * batch)) * 50)
    had = f"the longest label has {longest} with T5's vocabulary"
    return GIN.format(
        title=visible(title),
        counts=", ".join(f"{split} {len(own):,}" for split, own in splits.items()),
        name=name,
        skip='Task.bad_rows = "skip"\n' if skip else "",
        epochs=round(steps * batch / max(1, train)),
        train=f"{train:,}",
        steps=steps,
        batch=batch,
        every=steps // 10,
        decode=RANK if rows[0].allowed_labels else "",
        length=-(-longest // 8) * 8,
        length_note=had if measured else f"an estimate: the longest label has at most {longest}",
    )
