"""One look at a data set before money is spent on it: what is wrong with rows, labels and texts. No
TensorFlow, no token store.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from dss_jax.core import config
from dss_jax.core.errors import UsageError, nearest
from dss_jax.core.prefixes import prefixes
from dss_jax.core.scoring import folded_text
from dss_jax.core.types import DistillationTask, Example
from dss_jax.core.words import word_in
from dss_jax.data.characters import Characters, check_labels
from dss_jax.data.characters import lines as character_lines
from dss_jax.data.old_records import some
from dss_jax.data.survey import closed_labels, not_allowed, renamed, unused_labels
from dss_jax.data.text_rows import text_column
from dss_jax.data.tokenizer import Tokenizer

Splits = Mapping[str, Sequence[Example]]
Texts = Mapping[str, Sequence[str]]
"""Split -> a text of each of its rows."""

SHARED_STOP = 0.01
"""From this share of a scored split's rows on that are in train too, its score says little."""

TELLS_NOTE, TELLS_STOP, TELLS_RIGHT = 0.2, 0.9, 0.95
"""Shares of rows whose input names one label alone, and of these the share where it is the gold
one: from there on a line says so; that the label is given away."""

FEW_ROWS = 8
"""A label with fewer rows in train is hardly learned."""


class Finding(NamedTuple):
    """What was looked at; what was found, by split or for all; whether it should stop one."""

    what: str
    found: Mapping[str, str]
    stop: str = ""  # Why; "": it is as it should be, or worth a look.
    note: str = ""


@dataclass
class TaskCheck:
    """All findings, and what the picture shows.

    Attributes:
      labels: split -> gold label -> rows; at most the commonest are drawn.
      tokens: split -> column -> lengths; empty without a vocabulary.
      limits: column -> most tokens.
    """

    findings: list[Finding] = field(default_factory=list)
    labels: dict[str, Counter[str]] = field(default_factory=dict)
    tokens: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)

    @property
    def stops(self) -> list[str]:
        return [one.stop for one in self.findings if one.stop]


def check(
    task: DistillationTask, splits: Splits, run: config.Run, vocabulary: Tokenizer | None
) -> TaskCheck:
    """Looks at the splits of a task, teacher text joined; without a vocabulary not at tokens."""
    found = TaskCheck(labels={s: Counter(e.label for e in r if e.label) for s, r in splits.items()})
    every = sum(found.labels.values(), Counter[str]())
    known, slips = (task.labels, {}) if task.labels else closed_labels(every)
    folded = {s: [folded_text(e.input) for e in rows] for s, rows in splits.items()}
    found.findings += [
        _rows(splits),
        _majority(found.labels),
        _balance(found.labels),
        _allowed(known, slips, splits),
        _exemplars(task),
        _within(splits, folded),
        *_across(splits, folded),
        _told(known, splits, folded),
    ]
    if any(e.teacher_label for rows in splits.values() for e in rows):
        found.findings.append(_teacher(task, splits))
    if vocabulary is not None:
        found.limits = {
            "input": run.data.input_length,
            "label": run.evaluate.max_decode_length,
            "rationale": run.data.target_length,
        }
        found.tokens = _tokens(splits, vocabulary, run.task.prefixes)
        found.findings += [*_lengths(found), *_characters(task, splits, vocabulary)]
    return found


def check_labels_asked(
    task: DistillationTask, examples: Sequence[Example], exemplars: bool
) -> None:
    """Raises UsageError where a teacher would be asked by labels that the rows, or the worked
    examples (if they are shown: `exemplars`), do not have any more.
    """
    wrong = renamed(not_allowed(examples, task.labels), unused_labels(task, examples))
    if exemplars and not wrong and (wrong := _exemplars(task).stop):
        wrong += ". Mend them in the task file, or ask without them: --exemplars 0"
    if wrong:
        raise UsageError(f"task {task.name!r}: {wrong.rstrip('.')}. Nothing was sent.")


def _rows(splits: Splits) -> Finding:
    without = {s: sum(not e.label for e in rows) for s, rows in splits.items()}
    shown = {
        s: f"{len(rows):,}" + (f", {without[s]:,} without a label" if without[s] else "")
        for s, rows in splits.items()
    }
    bare = [s for s, rows in splits.items() if without[s] == len(rows)]
    stop = f"no row of {', '.join(bare)} has a gold label" if bare else ""
    return Finding("rows", shown, stop)


def _majority(labels: Mapping[str, Counter[str]]) -> Finding:
    """What one scores who always says the commonest label."""
    (common, _), *_ = _of_train(labels).most_common(1) or [("", 0)]
    shown = {s: f"{100 * c[common] / c.total():.1f} %" for s, c in labels.items() if c}
    return Finding(f"right who always says {common!r}", shown)


def _balance(labels: Mapping[str, Counter[str]]) -> Finding:
    train = _of_train(labels)
    shown = {s: f"{len(c):,} labels" for s, c in labels.items()}
    if not closed_labels(train)[0]:
        return Finding("labels", shown, note="too many to be a set to choose from")
    new = sorted({label for s, c in labels.items() if s != "train" for label in c} - train.keys())
    rare = [f"{label!r} ({n})" for label, n in train.items() if n < FEW_ROWS]
    stop = f"labels that train has not: {some(map(repr, new))}" if new else ""
    note = f"fewer than {FEW_ROWS} rows in train: {some(rare)}" if rare else ""
    return Finding("labels", shown, stop, note)


def _of_train(labels: Mapping[str, Counter[str]]) -> Counter[str]:
    """Of another split, where that of train cannot be had."""
    return labels.get("train") or next(iter(labels.values()))


def _allowed(known: tuple[str, ...], slips: Mapping[str, str], splits: Splits) -> Finding:
    """Gold labels that are none of the allowed; where none are named, what looks like a slip."""
    found = {split: not_allowed(rows, known) for split, rows in splits.items()}
    outside = sum(found.values(), Counter[str]())
    near = dict(slips)
    for example in itertools.chain.from_iterable(splits.values()):
        allowed = example.allowed_labels or known
        if example.label in outside and example.label not in {*near, *allowed}:
            near[example.label] = nearest(example.label, allowed) or ""
    named = [
        f"{label!r} ({n})" + (f", near {near[label]!r}" if near.get(label) else "")
        for label, n in outside.most_common()
    ]
    stop = f"gold labels that are not allowed: {some(named)}" if named else ""
    shown = {split: f"{counts.total():,}" for split, counts in found.items()}
    return Finding("labels that are not allowed", shown, stop)


def _exemplars(task: DistillationTask) -> Finding:
    """Worked examples of the prompt whose answers name a label that is not allowed: a teacher takes
    them as its measure.
    """
    texts = [example.output for example in (task.prompt.exemplars if task.prompt else ())]
    labels = [folded_text(label) for label in task.labels]
    other = [x for x in texts if labels and not any(word_in(o, folded_text(x)) for o in labels)]
    stop = f"exemplars answer with no allowed label: {some(map(repr, other))}" if other else ""
    return Finding("worked examples", {}, stop)


def _within(splits: Splits, folded: Texts) -> Finding:
    """Rows whose text is there before in the split; with another label, one of them is wrong."""
    shown, torn = {}, []
    for split, rows in splits.items():
        seen: dict[str, Example] = {}
        copies = 0
        for example, text in zip(rows, folded[split], strict=True):
            first = seen.setdefault(text, example)
            copies += first is not example
            if first.label and example.label and first.label != example.label:
                torn.append(f"{first.id} {first.label!r} and {example.id} {example.label!r}")
        shown[split] = f"{copies:,}"
    note = f"same text, different labels: {some(torn)}" if torn else ""
    return Finding("copies within a split", shown, note=note)


def _across(splits: Splits, folded: Texts) -> list[Finding]:
    """Rows of a split whose text is in a split before it: as it is, and without case and space."""
    findings = []
    as_it_is = {split: [e.input for e in rows] for split, rows in splits.items()}
    for what, texts in (("exact", as_it_is), ("normalised", folded)):
        before: dict[str, tuple[str, str]] = {}
        shown, pairs, stop = {}, [], ""
        for split, rows in splits.items():
            own = [*zip(rows, texts[split], strict=True)]
            hits = [(e.id, *before[text]) for e, text in own if text in before]
            for example, text in own:
                before.setdefault(text, (split, example.id))
            shown[split] = f"{len(hits):,}" if split != "train" else ""
            pairs += [f"{split} {row} and {other} {theirs}" for row, other, theirs in hits]
            if split != "train" and len(hits) > SHARED_STOP * len(rows):
                stop = f"rows of {split} are in a split before it, too ({what}): {some(pairs)}"
        note = "" if stop or not pairs else some(pairs)
        findings.append(Finding(f"copies across splits, {what}", shown, stop, note))
    # What is the same as it is, is the same normalised: said once.
    exact, normalised = findings
    return [exact, normalised._replace(stop="" if exact.stop else normalised.stop)]


def _told(labels: tuple[str, ...], splits: Splits, folded: Texts) -> Finding:
    """Rows whose input names one of the labels and no other, and how often it is the gold one."""
    words: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    shown, told, right, total = {}, 0, 0, 0
    for split, rows in splits.items():
        own = hits = 0
        for example, text in zip(rows, folded[split], strict=True):
            if not example.label:
                continue
            choices = example.allowed_labels or labels
            if choices not in words:
                words[choices] = [(c, folded_text(c)) for c in choices]
            named = [c for c, word in words[choices] if word_in(word, text)]
            total += 1
            if len(named) == 1:
                own += 1
                hits += named[0] == example.label
        told, right = told + own, right + hits
        shown[split] = f"{own:,}, right {100 * hits / own:.0f} %" if own else "0"
    share, sure = told / max(1, total), right / max(1, told)
    said = (
        f"{100 * share:.0f} % of the inputs name one label alone, and {100 * sure:.0f} % of these "
        "the gold one"
    )
    stop = f"the input tells its label: {said}" if share > TELLS_STOP and sure > TELLS_RIGHT else ""
    note = said if not stop and share > TELLS_NOTE and sure > TELLS_RIGHT else ""
    return Finding("label is in the input", shown, stop, note)


def _teacher(task: DistillationTask, splits: Splits) -> Finding:
    shown = {}
    for split, rows in splits.items():
        text = sum(bool(e.rationale) for e in rows)
        judged = [e for e in rows if e.label and e.teacher_label]
        shown[split] = f"{text:,} of {len(rows):,}"
        if judged:  # Else nobody was asked about this split.
            right = sum(task.scorer.correct(e.label, e.teacher_label) for e in judged)
            shown[split] += f", right {100 * right / len(judged):.1f} %"
    bare = "train" in splits and not any(e.rationale for e in splits["train"])
    stop = "no row of train has a rationale" if bare else ""
    return Finding("with a rationale", shown, stop)


def _tokens(splits: Splits, vocabulary: Tokenizer, style: str) -> dict[str, dict[str, np.ndarray]]:
    """Split -> column -> lengths, int [rows that have it], prefix and end-of-sequence included."""
    prefix = prefixes(style).label

    def lengths(texts: list[str]) -> np.ndarray:
        return np.array([len(ids) + 1 for ids in vocabulary.encode_all(texts)], int)

    found: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for split, rows in splits.items():
        texts = {
            "label": [e.label for e in rows if e.label],
            "rationale": [e.rationale for e in rows if e.rationale],
        }
        inputs = [vocabulary.parts(prefix + e.input) for e in rows]
        parts = lengths([*itertools.chain.from_iterable(inputs)])
        begins = np.cumsum([0, *map(len, inputs)])[:-1]
        found[split] = {"input": np.add.reduceat(parts, begins)} if rows else {}
        found[split] |= {column: lengths(own) for column, own in texts.items() if own}
    return found


def _lengths(check: TaskCheck) -> list[Finding]:
    findings = []
    for column, limit in check.limits.items():
        shown, over, longest = {}, 0, 0
        for split, columns in check.tokens.items():
            if (own := columns.get(column)) is None:
                continue
            # The end-of-sequence of a label need not fit.
            long = int((own - (column == "label") > limit).sum())
            over, longest = over + long, max(longest, int(own.max()))
            shown[split] = f"{own.mean():.0f}, at most {own.max():,}" + (
                f", {long:,} too long" if long else ""
            )
        if not shown:
            continue
        stop = note = ""
        if over and column == "label":
            stop = (
                f"{over:,} labels are longer than the {limit} tokens that are decoded: "
                f"Evaluate.max_decode_length = {longest}"
            )
        elif over:
            name = "input" if column == "input" else "target"
            note = f"{over:,} are cut at {limit} tokens (Data.{name}_length)"
        findings.append(Finding(f"tokens of the {column}", shown, stop, note))
    return findings


def _characters(task: DistillationTask, splits: Splits, vocabulary: Tokenizer) -> list[Finding]:
    counts = Characters(vocabulary)
    every = [e for rows in splits.values() for e in rows]
    for name in ("input", "label", "rationale"):
        counts.add(name, text_column([getattr(e, name) for e in every]))
    notes = [line for _, line in character_lines(counts.found())]
    try:
        check_labels(task, every, vocabulary)
        stop = ""
    except UsageError as error:
        stop = str(error)
    return [Finding("characters", {}, stop, "\n".join(notes) or "the vocabulary has them all")]
