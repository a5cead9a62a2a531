"""What a run should know of its data before it begins: a line of numbers, and what is wrong."""

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.ids import UNK_ID
from dss_jax.data.ragged import Slices
from dss_jax.data.store import TOKEN_COLUMNS, StoreSplit, TokenStore
from dss_jax.layouts.batches import subset_rows

log = logging.getLogger(__name__)

SCORED = ("validation", "test")

MISSING = 0.1
"""From this share of rows without a rationale on, a line says so."""


@dataclass(frozen=True, kw_only=True)
class TokenLengths:
    """Lengths of a column in tokens, prefix and EOS included; rows without it left out. `cut`:
    rows that are longer than is trained on; `unknown`: rows with a piece that the vocabulary lacks.
    """

    split: str
    column: str
    mean: float
    median: float
    p99: float
    longest: int
    cut: int
    unknown: int


def unknown_rows(tokens: Slices, unk_id: int | None = UNK_ID) -> np.ndarray:
    """The rows of a token column that have an unknown piece, `unk_id`: int64, ascending."""
    at = np.flatnonzero(np.asarray(tokens.values) == (-1 if unk_id is None else unk_id))
    return np.unique(np.searchsorted(tokens.ends, at, side="right"))


def length_limit(column: str, data: config.Data) -> int:
    """The longest row of a column that is not cut, in tokens."""
    return data.input_length if column.endswith("_inputs") else data.target_length


def count_overlong(split: StoreSplit, column: str, limit: int) -> int:
    """How many rows of a token column have more than `limit` tokens and would be cut."""
    return int((split.tokens(column).lengths() > limit).sum())


def token_lengths(store: TokenStore, data: config.Data) -> Iterator[TokenLengths]:
    """Lengths of every column of every split of a store."""
    splits = [store.split(name) for name in store.splits]
    for split, column in itertools.product(splits, TOKEN_COLUMNS):
        lengths = split.tokens(column).lengths() if split.has(column) else np.zeros(0)
        real = lengths[lengths > 0]
        if len(real):
            yield TokenLengths(
                split=split.name,
                column=column,
                mean=float(real.mean()),
                median=float(np.median(real)),
                p99=float(np.percentile(real, 99)),
                longest=int(real.max()),
                cut=count_overlong(split, column, length_limit(column, data)),
                unknown=len(unknown_rows(split.tokens(column), store.vocabulary.unk_id)),
            )


def say_and_check(run: config.Run, store: TokenStore) -> None:
    """Before a run: `report`, `check` and `plan`. Text for pre-training is cut so that it fits."""
    if run.method.form == "spans":
        return
    report(store, run.data)
    check(run, store)
    if run.method.trains:
        log.info(plan(run, store))


def report(store: TokenStore, data: config.Data) -> None:
    """Logs a line of numbers for each split, and what will be cut, or cannot be written as it is.
    Of labels it is a warning.
    """
    for name in store.splits:
        log.info(health_line(store, name, data))
    for lengths in token_lengths(store, data):
        if lengths.cut:
            limit = length_limit(lengths.column, data)
            log.info(
                f"{lengths.split}: {lengths.cut:,} {lengths.column} are longer than {limit} tokens "
                f"(up to {lengths.longest:,}) and are cut there"
            )
    if odd := store.manifest.get("characters"):
        from dss_jax.data.characters import REMEDY, lines

        for column, line in lines(odd):
            # A student cannot write such a label as it is.
            if column.endswith(" label"):
                log.warning(f"{line}. {REMEDY}.")
            else:
                log.info(line)


def health_line(store: TokenStore, name: str, data: config.Data) -> str:
    """Rows of a split, with label, with rationale, teacher right, cut, unknown characters."""
    split, made = store.split(name), store.manifest.get("health", {}).get(name, {})
    columns = [c for c in TOKEN_COLUMNS if split.has(c)]
    cut = np.zeros(len(split), bool)
    for column in columns:
        cut |= split.tokens(column).lengths() > length_limit(column, data)
    unknown = (unknown_rows(split.tokens(c), store.vocabulary.unk_id) for c in columns)
    odd = {int(row) for rows in unknown for row in rows}
    labelled = _has(split, "label_targets")
    labels = int(labelled.sum())
    parts = [f"{len(split):,} rows", f"{labels:,} with a label"]
    if split.has("rationale_targets"):
        parts.append(f"{int(_has(split, 'rationale_targets').sum()):,} with a rationale")
    # Of the others nobody knows here whether a teacher was asked about them.
    answered = int((labelled & _has(split, "teacher_label_targets")).sum())
    if answered and made:
        some = "" if answered == labels else f" of {answered:,} answers"
        parts.append(f"teacher right {100 * made['teacher_right'] / answered:.2f} %{some}")
    parts += [f"{int(cut.sum()):,} cut", f"{len(odd):,} with unknown characters"]
    if made.get("left_out"):
        parts.append(f"{made['left_out']:,} left out that cannot be used")
    return f"{name}: {', '.join(parts)}"


def _has(split: StoreSplit, column: str) -> np.ndarray:
    """bool [rows]; a store of a user's own SeqIO task has no teacher's labels and no rationales."""
    known = split.has(column)
    return split.tokens(column).lengths() > 0 if known else np.zeros(len(split), bool)


def check(run: config.Run, store: TokenStore) -> None:
    """Raises UsageError for what a run could not learn or never be right about, and says loudly
    what it will do in part only.
    """
    if run.method.uses_rationales:
        _check_rationales(run, store)
    _check_allowed(run, store)
    for name in (s for s in SCORED if s in store.splits):
        split = store.split(name)
        if not _has(split, "label_targets").any():
            best = ", and the last checkpoint counts as the best" if name == "validation" else ""
            log.warning(
                f"no row of {name} has a gold label: it gets no score{best}. Give its rows their "
                "labels, or leave the split out."
            )
        elif run.method.trains and run.evaluate.decode != "rank":
            _check_lengths(run, split)


def plan(run: config.Run, store: TokenStore) -> str:
    """What a run will do, in a few lines."""
    method, task, train = run.method, run.task, run.train
    rows, explained = _usable(run, store)
    text = f"{rows:,} rows with a {method.label} label"
    if method.uses_rationales:
        files = f" of {', '.join(task.record_files)}" if task.record_files else ""
        text += f", {explained:,} of them with a rationale{files}"
    scored = [f"{s} ({len(store.split(s)):,} rows)" for s in SCORED if s in store.splits]
    epochs = train.steps * run.data.batch_size / max(1, rows)
    start = train.init_from or f"random parameters (Train.seed = {train.seed})"
    lines = [
        f"plan: --method {method.name} on {task.shown_name}: {text}",
        f"student: from {start}, into {train.output_dir}",
        f"{train.steps:,} steps of {run.data.batch_size} rows, {epochs:,.1f} times through them; "
        f"validation every {run.evaluate.every:,} steps. Scored: {', '.join(scored) or 'nothing'}",
        "how long: measured by the first steps, and shown with them (ETA)",
    ]
    return "\n  ".join(lines)


def _usable(run: config.Run, store: TokenStore) -> tuple[int, int]:
    """Training rows that the method can use, those of extra tasks too, and of them with a
    rationale.
    """
    train, teacher = store.split("train"), "teacher_label_targets"
    label = "label_targets" if run.method.label == "gold" else teacher
    parts = [(train, label, subset_rows(len(train), run.task))]
    parts += [(s, teacher, np.arange(len(s))) for s in (e.split("train") for e in store.extras)]
    rows = explained = 0
    for split, column, own in parts:
        usable = _has(split, column)[own]
        rows += int(usable.sum())
        explained += int((usable & _has(split, "rationale_targets")[own]).sum())
    return rows, explained


def _check_rationales(run: config.Run, store: TokenStore) -> None:
    rows, explained = _usable(run, store)
    missing = rows - explained
    if rows and not explained:
        raise UsageError(
            f"--method {run.method.name} learns from rationales, but none of the {rows:,} training "
            'rows has one. Give rows a field "rationale", or records of dss extract whose replies '
            "are ok with --rationales; or take --method standard (gold labels) or distill (the "
            "teacher's)."
        )
    if missing >= MISSING * rows > 0:
        log.warning(
            f"{missing:,} of {rows:,} training rows have no rationale: they train the label only. "
            "dss extract asks a teacher for them."
        )


def right_rows(
    run: config.Run, split: StoreSplit, correct: Callable[[str, str], bool]
) -> np.ndarray:
    """For `Method.only_correct`: the rows whose teacher label is right, or that have no gold label;
    bool [rows]. UsageError: none of them has a rationale.
    """
    pairs = zip(split.text("label")[:], split.text("teacher_label")[:], strict=True)
    right = np.array([not gold or correct(gold, teacher) for gold, teacher in pairs], bool)
    if run.method.uses_rationales:
        explained = _has(split, "rationale_targets")
        kept = int((explained & right).sum())
        if explained.any() and not kept:
            raise UsageError(
                "Method.only_correct keeps the rationales of rows whose teacher label is right: "
                "there is no such row. Leave it out, or take --method standard."
            )
        log.info(f"Method.only_correct: {kept:,} of {explained.sum():,} rationales are kept")
    return right


def _check_allowed(run: config.Run, store: TokenStore) -> None:
    """Warns of gold labels that are none of the row's, where the task names labels; UsageError:
    one was renamed.
    """
    health = store.manifest.get("health", {}).values()
    wrong = sum((Counter(own.get("not_allowed", {})) for own in health), Counter[str]())
    if not wrong:
        return
    from dss_jax.data.old_records import some
    from dss_jax.data.survey import renamed

    if said := renamed(wrong, store.manifest.get("unused_labels", ())):
        raise UsageError(f"{run.task.shown_name}: {said}")
    named = some(f"{label!r} ({n:,})" for label, n in wrong.most_common())
    log.warning(
        f"gold labels that are not allowed: {named}. They are trained on, and "
        f"never predicted. `dss tasks check {run.task.shown_name}` says more."
    )


def _check_lengths(run: config.Run, split: StoreSplit) -> None:
    """Of labels against what is decoded."""
    both = run.evaluate.max_rationale_length if run.method.joint else 0
    limit = run.evaluate.max_decode_length + both
    tokens = split.tokens("label_targets").lengths()
    # The last token that fits need not be end-of-sequence.
    long, labels = int((tokens - 1 > limit).sum()), int((tokens > 0).sum())
    if not long:
        return
    text = (
        f"{long:,} of {labels:,} labels of {split.name} are longer than the {limit} tokens that "
        f"are decoded, so that they cannot be predicted. The longest has {int(tokens.max())}: give "
        f"--gin.Evaluate.max_decode_length={int(tokens.max()) - both}."
    )
    if long == labels:
        raise UsageError(text)
    log.warning(text)
