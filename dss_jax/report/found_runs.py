"""Finished runs in a folder, gathered into the cells of a comparison.

A cell is a task, a model, a method and a number of training examples; its runs differ in their seed
alone.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dss_jax.core import config, strict_json
from dss_jax.core.errors import UsageError
from dss_jax.core.sweep_config import TEACHER
from dss_jax.core.types import SPLITS
from dss_jax.run import run_folder, trained_on
from dss_jax.sweep.plan import read_grid

PASSED_OVER = ("checkpoints", run_folder.TENSORBOARD, run_folder.PREDICTIONS)
"""Folders of a run in which there are no runs."""

BASELINES = ("standard", "distill")
"""What other methods are held against, the first that is there."""

SEEDS = ("Train.seed", "Data.seed", "Task.subset_seed")
COUNTS = "train_examples", "train_total", "parameters"
ANSWER = "id", "input", "target", "prediction", "correct"
LATER = "rationale", "label_log_probs", "reader", "reader_agrees"
TEXTS = "task", "metric", "method"
FIELDS = (*TEXTS, "seed", *COUNTS)


MOST_LABELS = 12
"""Gold labels that count as classes; with more, what is predicted is none."""


class View(NamedTuple):
    """How a report shows runs: of which split, marking cells with fewer seeds, and with the paper's
    numbers beside, as such.
    """

    split: str = "test"
    min_seeds: int = 3
    published: bool = False


@dataclass(frozen=True)
class FoundRun:
    """A finished run, and what its `results.json` holds."""

    folder: Path
    results: dict[str, Any]

    @property
    def seed(self) -> int:
        return int(self.results["seed"])

    @cached_property
    def settings(self) -> dict[str, str]:
        """Name -> value, of all that makes the run what it is."""
        lines = run_folder.fixed_lines((self.folder / run_folder.CONFIG).read_text())
        return dict(line.split(" = ", 1) for line in lines if " = " in line)

    def score(self, split: str) -> float:
        """Accuracy, per cent, of the checkpoint that was best on validation."""
        return float(self.results[split][self.results["metric"]])

    def has(self, split: str) -> bool:
        return split in self.results

    def predictions_file(self, split: str) -> Path:
        return self.folder / run_folder.PREDICTIONS / f"{split}-best.jsonl"

    def without_predictions(self) -> list[str]:
        """Splits whose answers were written when they were scored, and are missing."""
        spans = "/" in self.results["metric"]  # Of pre-training, which has no answers.
        scored = () if spans else filter(self.has, SPLITS[1:])
        return [s for s in scored if not self.predictions_file(s).is_file()]

    def predictions(self, split: str) -> list[dict[str, Any]]:
        """The run's answers to each row of a split, with the rationales and the probabilities of
        labels that `dss eval` has written since of the same checkpoint; [] where none are there, or
        the split is not scored.
        Raises UsageError where there are not as many as rows were scored.
        """
        file = self.predictions_file(split)
        if not (self.has(split) and file.is_file()):
            return []
        more: dict[str, dict[str, Any]] = defaultdict(dict)
        step = self.results.get("best_step")
        later = file.parent.glob(f"{split}-{step}[-.]*jsonl") if isinstance(step, int) else ()
        for other in sorted(later, key=lambda file: file.stat().st_mtime):
            if run_folder.OTHER not in other.name:
                for p in _lines(other):
                    more[p["id"]] |= {name: p[name] for name in LATER if name in p}
        found = [{"rationale": None, **more.get(p["id"], {}), **p} for p in _lines(file, ANSWER)]
        if len(found) != (rows := self.results[split].get("examples", len(found))):
            raise UsageError(
                f"{file} has {len(found):,} lines, but {run_folder.RESULTS} counts {rows:,} rows: "
                "it was cut short or changed. Take a whole copy, or move "
                f"{run_folder.RESULTS} away and give the run's dss train again: it scores anew."
            )
        return found


@dataclass
class FoundCell:
    """The runs of a cell, by seed.

    Attributes:
      task, model, method: names; the model's is its number of parameters where no sweep gives one.
      examples: of the training data, out of `total`; 0: nothing was trained.
      metric: name of the accuracy.
      parameters: of the model.
    """

    task: str
    model: str
    method: str
    examples: int
    total: int
    metric: str
    parameters: int
    runs: list[FoundRun] = field(default_factory=list)

    @property
    def fraction(self) -> float:
        """Share of the training split, in (0, 1]."""
        return self.examples / self.total if self.total else 0.0

    @property
    def percent(self) -> float:
        return 100 * self.fraction

    @property
    def subsets(self) -> int:
        """How many subsets of the training data its runs have, by `Task.subset_seed`."""
        return len({run.settings.get("Task.subset_seed") for run in self.runs})

    @property
    def trained_rows(self) -> set[int]:
        """How many examples each run really had, extra tasks' too, where it says so."""
        return {n for run in self.runs if (n := run.results.get("trained_rows")) is not None}

    @property
    def flops(self) -> float | None:
        """Of its training, mean over its runs; None: not known, or nothing was trained."""
        known = [flops for run in self.runs if (flops := run.results.get("training_flops"))]
        return sum(known) / len(known) if known and len(known) == len(self.runs) else None

    def scores(self, split: str) -> list[float]:
        """Accuracy of each seed that has the split, per cent."""
        return [run.score(split) for run in self.runs if run.has(split)]


@dataclass
class FoundRuns:
    """What is in a folder.

    Attributes:
      cells: of students, ordered by task, model size, method, number of examples.
      teachers: task -> the run of method "teacher".
      left: a line for each run that is not finished, or not there yet, or whose answers are not.
      mixed: a line for each task whose runs are of different rows, which are tasks apart then.
    """

    folder: Path
    cells: list[FoundCell]
    teachers: dict[str, FoundRun]
    left: list[str]
    mixed: list[str] = field(default_factory=list)

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys([*(cell.task for cell in self.cells), *self.teachers]))

    def scored(self, task: str, split: str) -> list[FoundCell]:
        """The cells of a task that have scores on a split."""
        return [c for c in self.cells if c.task == task and c.scores(split)]

    def metric(self, task: str) -> str:
        of_cells = (c.metric for c in self.cells if c.task == task)
        return next(of_cells, None) or str(self.teachers[task].results["metric"])

    def with_most_data(self, task: str, split: str) -> list[FoundCell]:
        """Of each method and model the scored cell with the most data."""
        return [*{(c.method, c.model): c for c in self.scored(task, split)}.values()]

    def teacher_score(self, task: str, split: str) -> float | None:
        """The teacher's own accuracy, per cent: of its run, or as a student's run notes it."""
        if task in self.teachers and self.teachers[task].has(split):
            return self.teachers[task].score(split)
        runs = [run for cell in self.cells if cell.task == task for run in cell.runs]
        noted = (run.results.get(split, {}).get("teacher") for run in runs)
        return next((float(score) for score in noted if score is not None), None)


def _json(text: str | bytes, where: str) -> Any:
    try:
        return strict_json.loads(text)
    except ValueError as error:
        raise UsageError(f"{where}: not JSON ({error}). Score the run again.") from error


def _lines(file: Path, needed: Sequence[str] = ("id",)) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8", errors="replace") as lines:
        found = [_json(line, f"{file}:{n}") for n, line in enumerate(lines, 1)]
    for n, line in enumerate(found, 1):
        whole = isinstance(line, dict) and line.keys() >= {*needed}
        if not (whole and isinstance(line["id"], str) and _probable(line)):
            raise UsageError(
                f"{file}:{n}: no line of predictions, which has {', '.join(needed)}. The file is "
                "damaged: take a whole copy."
            )
    return found


def _probable(line: dict[str, Any]) -> bool:
    """Whether log-probabilities, samples and what a reader says are such, where there are any; None
    is a number that was not finite.
    """
    labels, reader = line.get("label_log_probs", {}), line.get("reader_agrees", [False] * 3)
    numbers = [line.get("log_prob", 0.0), *(labels.values() if isinstance(labels, dict) else "?")]
    is_read = isinstance(reader, list) and [*map(type, reader)] == [bool] * 3
    are_lists = isinstance(line.get("samples", []), list) and is_read
    return are_lists and all(isinstance(number, int | float | None) for number in numbers)


def _check_scores(file: Path, results: Any) -> None:
    """Raises UsageError where a `results.json` of this version is not what was written."""
    if not all(isinstance(results[n], str) for n in TEXTS):
        raise UsageError(f"{file}: no text of {', '.join(TEXTS)}. It is damaged.")
    for split in SPLITS:
        scored = results.get(split, {})
        if not (isinstance(scored, dict) and (not scored or _is_score(scored, results["metric"]))):
            raise UsageError(f"{file}: no score of {split}. It is damaged: take a whole copy.")
    if not all(isinstance(results.get(n, 0), int) for n in ("seed", *COUNTS, "training_flops")):
        raise UsageError(f"{file}: no number of {', '.join(COUNTS)}. It is damaged.")


def _is_score(scored: dict, metric: str) -> bool:
    numbers = scored.get(metric), scored.get("examples", 0)
    return all(isinstance(number, int | float) for number in numbers)


def _folders(folder: Path) -> Iterator[Path]:
    for at, names, files in os.walk(folder):
        if run_folder.CONFIG in files:
            yield Path(at)
        names[:] = sorted(n for n in names if n not in PASSED_OVER)


def _other_data(run: FoundRun, other: FoundRun) -> list[str]:
    """What differs between the data of two runs, where both say what these were."""
    return [*trained_on.changed(trained_on.read(run.folder), trained_on.read(other.folder))]


class _Versions:
    """The data that runs of a task were of: a name for each, and a line for each but the first."""

    def __init__(self) -> None:
        self._firsts: dict[str, list[FoundRun]] = {}
        self.lines: list[str] = []

    def name(self, run: FoundRun) -> str:
        """The run's task, and which of its versions where the rows are not the first run's."""
        task = str(run.results["task"])
        firsts = self._firsts.setdefault(task, [])
        differ: list[str] = []
        for i, first in enumerate(firsts):
            found = [x for x in _other_data(first, run) if trained_on.OTHER_ROWS in x]
            if not found:
                return _version(task, i)
            differ = differ or found
        firsts.append(run)
        name = _version(task, len(firsts) - 1)
        if differ:
            self.lines.append(
                f"{firsts[0].folder} and {run.folder} are of different data ({'; '.join(differ)}), "
                f"so that their scores do not compare: the latter is shown apart, as {name}. To "
                "compare them, train one again on the other's."
            )
        return name


def _version(task: str, number: int) -> str:
    return f"{task}, data {number + 1}" if number else task


def _check_same(cell: FoundCell, new: FoundRun) -> None:
    """Raises UsageError where a run does not belong beside the others of its cell."""
    if not cell.runs:
        return
    old = cell.runs[0]
    before, now = old.settings, new.settings
    # A version that had not a setting yet did what it does at its default.
    defaults = {name: repr(field.default) for name, field in config.SETTINGS.items()}
    names = [name for name in defaults | before | now if name not in SEEDS]
    values = ((n, *((defaults | one).get(n, "not set") for one in (before, now))) for n in names)
    if shown := [f"  {n}: {one} and {other}\n" for n, one, other in values if one != other]:
        raise UsageError(
            f"{old.folder} and {new.folder} are both {cell.task}, {cell.model}, {cell.method} with "
            f"{cell.examples:,} examples, but differ in more than their seed:\n{''.join(shown)}"
            "Report them apart, or give one of them a Method.name of its own (docs/methods.md)."
        )
    if differ := _other_data(old, new):
        raise UsageError(
            f"{old.folder} and {new.folder} are both {cell.task}, {cell.model}, {cell.method} with "
            f"{cell.examples:,} examples, but of different data: {'; '.join(differ)}. Report them "
            "apart, or train one of them again."
        )
    if new.seed in [run.seed for run in cell.runs]:
        raise UsageError(
            f"{new.folder} and another run of the same cell both have seed {new.seed}. Move one "
            "of them out of the folder."
        )


def find_runs(folder: Path) -> FoundRuns:
    """All runs in a folder and below.

    Raises:
      UsageError: the folder is not there or holds no finished run; a file is damaged; two runs of
        one cell differ in more than their seed.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder. Give one with runs, or of `dss sweep`.")
    models = {str(cell["folder"]): cell["model"] for cell in read_grid(folder)["cells"]}
    left: list[str] = []
    cells: dict[tuple[str, str, str, int], FoundCell] = {}
    teachers: dict[str, FoundRun] = {}
    versions = _Versions()
    folders = {at.relative_to(folder).as_posix(): at for at in _folders(folder)}
    for name, at in folders.items():
        file = at / run_folder.RESULTS
        if not file.is_file():
            left.append(f"{name}: {'not finished' if run_folder.begun(at) else 'not begun'}")
            continue
        results = _json(file.read_bytes(), str(file))
        if not isinstance(results, dict):
            raise UsageError(f"{file}: no object. It is damaged: take a whole copy.")
        if lacking := [f for f in FIELDS if f not in results]:
            left.append(f"{name}: made by an older version ({file.name} has no {lacking[0]})")
            continue
        _check_scores(file, results)
        run = FoundRun(at, results)
        left += [
            f"{name}: answers to {split} (its {run.predictions_file(split).name} is missing)"
            for split in run.without_predictions()
        ]
        if results["method"] == TEACHER:
            teachers[versions.name(run)] = run
            continue
        model = models.get(name) or f"{results['parameters'] / 1e6:,.1f}M"
        names = versions.name(run), model, results["method"], results["train_examples"]
        numbers = (results[n] for n in ("train_total", "metric", "parameters"))
        cell = cells.setdefault(names, FoundCell(*names, *numbers))
        _check_same(cell, run)
        cell.runs.append(run)
    left += [f"{name}: not begun" for name in models if name not in folders]
    if not cells and not teachers:
        why = f": {'; '.join(left[:3])}" if left else ""
        raise UsageError(f"{folder} holds no finished run{why}.")
    for cell in cells.values():
        cell.runs.sort(key=lambda run: run.seed)

    def order(c: FoundCell) -> tuple:
        """Baselines first."""
        rank = [*BASELINES, c.method].index(c.method)
        return c.task, c.parameters, c.model, rank, c.method, c.examples

    ordered = sorted(cells.values(), key=order)
    return FoundRuns(folder, ordered, teachers, left, versions.lines)


def closed_labels(predictions: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The gold labels of some answers, and the share of the items that have each, the most frequent
    first; {} where they are no classes: one, more than `MOST_LABELS`, or nearly as many as the
    items.
    """
    gold = Counter({p["id"]: p["target"] for p in predictions}.values())
    classes = 2 <= len(gold) <= min(MOST_LABELS, gold.total() / 2)
    return {label: n / gold.total() for label, n in gold.most_common() if classes}


def right_answers(runs: list[FoundRun], split: str) -> tuple[list[str], np.ndarray]:
    """Which answers of some runs are right: ids of the rows that all runs have, and bool [runs,
    rows].
    """
    by_id = [{p["id"]: bool(p["correct"]) for p in run.predictions(split)} for run in runs]
    ids = [i for i in by_id[0] if all(i in one for one in by_id)] if by_id else []
    return ids, np.array([[one[i] for i in ids] for one in by_id], bool).reshape(len(runs), -1)
