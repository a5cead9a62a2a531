"""What a task's rows and tokens look like: counts, lengths, and examples as the model sees them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dss_jax.core import config
from dss_jax.core.config import LAYOUTS
from dss_jax.core.types import DistillationTask, Example
from dss_jax.data import rows
from dss_jax.data.rationales import join_records
from dss_jax.data.store import TOKEN_COLUMNS, TokenStore
from dss_jax.data.tokenizer import SEPARATOR
from dss_jax.layouts.batches import TrainBatches
from dss_jax.layouts.health import length_limit
from dss_jax.layouts.layout import cost_of


@dataclass(frozen=True, kw_only=True)
class LabelCounts:
    """The teacher against the gold labels on one split.

    Attributes:
      split: name; "train + validation" is the training file as released, before the hold-out.
      teacher_accuracy: per cent by the task's scorer, of rows with a gold label; None where the
        teacher labelled nothing.
      invalid_labels: teacher labels that are none of the row's allowed ones (where any text is
        allowed: that are empty).
      labels: with a gold label.
      kinds, once: different gold labels, and those of them that one row alone has.
      teacher_once: labels that the teacher gave to one row alone; where labels are few, they are
        seldom right.
      rationale_words: mean and 99th percentile over rows that have a rationale.
    """

    split: str
    rows: int
    labels: int
    kinds: int
    once: int
    teacher_once: int
    teacher_accuracy: float | None
    invalid_labels: int
    empty_labels: int
    empty_rationales: int
    rationale_words: tuple[float, float]


def _count(name: str, examples: list[Example], task: DistillationTask) -> LabelCounts:
    def invalid(example: Example) -> bool:
        if not example.allowed_labels:
            return not example.teacher_label
        return example.teacher_label not in example.allowed_labels

    judged = [(e.label, e.teacher_label) for e in examples if e.label]
    taught = any(e.teacher_label for e in examples)
    accuracy = None
    if taught and judged:
        gold, given = map(list, zip(*judged, strict=True))
        accuracy = task.scorer(gold, given)[task.scorer.name]
    kinds = Counter(e.label for e in examples if e.label)
    given_once = Counter(e.teacher_label for e in examples if e.teacher_label)
    words = [len(e.rationale.split()) for e in examples if e.rationale] or [0]
    return LabelCounts(
        split=name,
        rows=len(examples),
        labels=kinds.total(),
        kinds=len(kinds),
        once=_once(kinds),
        teacher_once=_once(given_once),
        teacher_accuracy=accuracy,
        invalid_labels=sum(map(invalid, examples)) if taught else 0,
        empty_labels=sum(not e.teacher_label for e in examples) if taught else 0,
        empty_rationales=sum(not e.rationale for e in examples),
        # The row at that place, not a value between two rows: so the published figures were made.
        rationale_words=(float(np.mean(words)), float(np.sort(words)[int(0.99 * len(words))])),
    )


def _once(labels: Counter[str]) -> int:
    return sum(count == 1 for count in labels.values())


def label_counts(
    task: DistillationTask,
    data_dir: str | None,
    split_names: Sequence[str],
    rationales: Sequence[str],
    skip: bool = False,
) -> list[LabelCounts]:
    """Counts of each of the splits; with a hold-out also of train and validation together. `skip`:
    whether rows that cannot be used are left out.
    """
    read = {s: rows.examples(task, s, data_dir, [] if skip else None) for s in split_names}
    splits, _ = join_records(task, read, rationales, data_dir)
    counts = [_count(name, examples, task) for name, examples in splits.items()]
    if task.validation_fraction and {"train", "validation"} <= splits.keys():
        both = splits["train"] + splits["validation"]
        counts.insert(2, _count("train + validation", both, task))
    return counts


@dataclass(frozen=True, kw_only=True)
class Padding:
    """What a layout executes of a task's training batches: how many shapes are compiled, how long
    a row of attention is at most (input and target, in tokens), and executed over useful FLOPs.
    """

    layout: str
    shapes: int
    length: tuple[int, int]
    waste: float


def padding(store: TokenStore, run: config.Run) -> list[Padding]:
    """What each layout executes, on one device, in the first thousand batches of a run."""
    has = store.has("rationale_targets") and run.task.mixture_or_task_name is None
    method = run.method if has else replace(run.method, rationale=False)
    found = []
    for layout in LAYOUTS[1:]:
        batches = TrainBatches(
            store.split("train"),
            run.task,
            replace(run.data, layout=layout),
            method,
            steps=min(run.train.steps, 1000),
            cost=cost_of(run.model if run.model.vocab_size else config.T5Config()),
        )
        count = batches.layout.shapes
        shapes = batches.layout.block_shapes(count - 1)
        s = max(int(shape.encoder_length) for shape in shapes)
        t = max(int(shape.decoder_length) for shape in shapes)
        waste = batches.padding_overhead(1000)
        found.append(Padding(layout=layout, shapes=count, length=(s, t), waste=waste))
    return found


def describe_examples(
    store: TokenStore, split_name: str, n: int, data: config.Data
) -> Iterator[str]:
    """The first n examples of a split: text, tokens, and the tokens decoded back."""
    split = store.split(split_name)
    for row in range(min(n, len(split))):
        lines = [f"--- {split_name} {row}  id {split.text('id')[row]}"]
        for column in TOKEN_COLUMNS:
            if not split.has(column):
                continue
            ids = split.tokens(column)[row]
            if not len(ids):
                lines.append(f"{column}: none")
                continue
            cut = ", cut" if len(ids) > length_limit(column, data) else ""
            lines.append(f"{column} ({len(ids)} tokens{cut}): {ids.tolist()}")
            # Decoding stops at an end of sequence, and NLI has two.
            parts = np.split(ids, np.flatnonzero(ids == store.vocabulary.eos_id) + 1)
            lines.append(f"    {SEPARATOR.join(map(store.vocabulary.decode, parts))}")
        yield "\n".join(lines)
