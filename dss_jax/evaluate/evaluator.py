"""Scores of a split: label accuracy by decoding, and token-level numbers of each task."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dss_jax.core import config, strict_json
from dss_jax.core.paths import write_whole
from dss_jax.core.types import Scorer
from dss_jax.data.columns import as_scored, label_in, label_inputs, rationale_in
from dss_jax.data.spans import Pieces, pieces_of
from dss_jax.data.store import Slices, StoreSplit, TokenStore
from dss_jax.evaluate.predict import LabelRanker, Prediction, make_engine, texts_of
from dss_jax.evaluate.token_losses import TokenLosses
from dss_jax.train.step import Program


@dataclass(frozen=True, kw_only=True)
class Result:
    """Scores and predictions of a split.

    Attributes:
      numbers: metric -> value: `<scorer>` (per cent), and for each task `<task>/loss` and
        `<task>/token_accuracy` (per cent), by teacher forcing against the gold label and the
        teacher's rationale.
      predictions: one dictionary a row: id, input, target, prediction, correct, and rationale
        where asked for; none where nothing is decoded.
      examples: rows scored.
    """

    numbers: dict[str, float]
    predictions: list[dict[str, Any]]
    examples: int


class Judge(Protocol):
    """What scores a student.

    Attributes:
      scorer: of labels.
      metric: name of the number that decides which checkpoint is the best.
    """

    scorer: Scorer

    @property
    def metric(self) -> str: ...

    def __call__(
        self, params: Any, split_name: str, *, limit: int | None = None, rationales: bool = False
    ) -> Result: ...

    def compile_ahead(
        self, split_name: str, limit: int | None, pool: ThreadPoolExecutor
    ) -> None: ...


def make_judge(run: config.Run, program: Program, store: TokenStore, scorer: Scorer) -> Judge:
    """What scores a run's student."""
    of_form = SpanLosses if run.method.form == "spans" else Evaluator
    return of_form(run, program, store, scorer)


class SpanLosses:
    """Scores pre-training: how many masked tokens are right, with the earlier ones given."""

    metric = "spans/token_accuracy"

    def __init__(
        self, run: config.Run, program: Program, store: TokenStore, scorer: Scorer
    ) -> None:
        self.scorer = scorer
        self._program, self._splits = program, store.splits
        # The same masks whatever the run's seed.
        run = replace(run, data=replace(run.data, seed=0))
        self._losses = TokenLosses(run, program, run.method)
        self._pieces = cache(lambda split_name: pieces_of(store, split_name, run))

    def _rows(self, split_name: str, limit: int | None) -> tuple[Pieces, np.ndarray]:
        pieces = self._pieces(split_name)
        return pieces, np.arange(len(pieces))[:limit]

    def __call__(
        self, params: Any, split_name: str, *, limit: int | None = None, rationales: bool = False
    ) -> Result:
        """Scores a split's text, masked as in epoch 0; nothing is decoded."""
        pieces, rows = self._rows(split_name, limit)
        numbers = self._losses(self._program.merge(params), pieces, rows)
        return Result(numbers=numbers, predictions=[], examples=len(rows))

    def compile_ahead(self, split_name: str, limit: int | None, pool: ThreadPoolExecutor) -> None:
        """Begins to compile the step that gives a split's losses, in the pool."""
        if split_name in self._splits:
            self._losses.compile_ahead(*self._rows(split_name, limit), pool)


class Evaluator:
    """Scores splits of one store with one program. Gold labels judge, whatever was trained on."""

    def __init__(
        self, run: config.Run, program: Program, store: TokenStore, scorer: Scorer
    ) -> None:
        self._run, self._program, self._store = run, program, store
        self.scorer = scorer
        self._form = run.method.form
        evaluate = run.evaluate
        longest = evaluate.max_decode_length
        if run.method.joint:
            longest += evaluate.max_rationale_length
        self._labels = make_engine(run, program, longest)
        self._rationales = make_engine(run, program, evaluate.max_rationale_length)
        self._ranker = LabelRanker(run, program, store.vocabulary)
        self._losses = TokenLosses(run, program, as_scored(run.method))
        self._lengths: dict[str, tuple[int, ...]] = {}
        self._inputs = cache(self._inputs_of)

    @property
    def metric(self) -> str:
        """Name of the score that decides which checkpoint is the best."""
        return self.scorer.name

    def rows(self, split: StoreSplit, limit: int | None = None) -> np.ndarray:
        """Rows with a gold label, the first `limit` of them."""
        return np.flatnonzero(split.tokens("label_targets").lengths() > 0)[:limit]

    def __call__(
        self, params: Any, split_name: str, *, limit: int | None = None, rationales: bool = False
    ) -> Result:
        """Decodes and scores a split.

        Args:
          params: of the state, on the mesh; LoRA is merged first.
          split_name: "train", "validation" or "test".
          limit: score the first rows only.
          rationales: generate a rationale for each row too, which takes several times as long.
        """
        params = self._program.merge(params)
        split = self._store.split(split_name)
        rows = self.rows(split, limit)
        labels = self._predict_labels(params, split_name, rows)
        texts = [label["prediction"] for label in labels]
        targets = [split.text("label")[int(r)] for r in rows]
        numbers = self.scorer(targets, texts) | self._losses(params, split, rows)
        predictions: list[dict[str, Any]] = [
            {
                "id": split.text("id")[int(r)],
                "input": split.text("input")[int(r)],
                "target": target,
                **label,
                "correct": self.scorer.correct(target, label["prediction"]),
            }
            for r, target, label in zip(rows, targets, labels, strict=True)
        ]
        if rationales and self._form == "tasks" and self._store.has("rationale_inputs"):
            lengths = self._padded_lengths("rationale_inputs", split_name)
            inputs = self._inputs("rationale_inputs", split_name)
            decoded = self._rationales(params, inputs, rows, lengths=lengths)
            explained = texts_of(decoded, self._store.vocabulary, vote=False)
            for prediction, rationale in zip(predictions, explained, strict=True):
                prediction["rationale"] = rationale["prediction"]
        return Result(numbers=numbers, predictions=predictions, examples=len(rows))

    def _inputs_of(self, column: str, split_name: str) -> Slices:
        """What is predicted from: a column of the store, or, for labels, what the form makes it."""
        split = self._store.split(split_name)
        return label_inputs(split, self._form) if column == "label_inputs" else split.tokens(column)

    def _padded_lengths(self, column: str, split_name: str) -> tuple[int, ...]:
        """Padded input lengths: the same for all splits that are scored, so that decoding compiles
        once.
        """
        if split_name == "train":
            inputs = self._inputs(column, "train")
            return self._labels.lengths_for(inputs, np.arange(len(inputs)))
        if column not in self._lengths:
            scored = [self._inputs(column, s) for s in self._store.splits if s != "train"]
            found = [self._labels.lengths_for(s, np.arange(len(s))) for s in scored]
            # The split with the longest input decides.
            self._lengths[column] = max(found, key=lambda lengths: lengths[-1])
        return self._lengths[column]

    def _predict_labels(self, params: Any, split_name: str, rows: np.ndarray) -> list[Prediction]:
        split = self._store.split(split_name)
        inputs, decode = self._inputs("label_inputs", split_name), self._run.evaluate.decode
        lengths = self._padded_lengths("label_inputs", split_name)
        if decode == "rank":
            return self._ranker(params, split, inputs, rows, lengths[-1])
        decoded = self._labels(params, inputs, rows, lengths=lengths)
        read = None if not self._run.method.joint else lambda text: label_in(text, self._form)
        found = texts_of(decoded, self._store.vocabulary, vote=decode == "sample", read=read)
        if read is not None:
            for one in found:
                one["rationale"] = rationale_in(one["generated"], self._form)
        return found

    def compile_ahead(self, split_name: str, limit: int | None, pool: ThreadPoolExecutor) -> None:
        """Begins to compile the step that gives a split's losses, in the pool."""
        if split_name in self._store.splits:
            split = self._store.split(split_name)
            self._losses.compile_ahead(split, self.rows(split, limit), pool)


def write_predictions(file: Path, predictions: Iterable[dict[str, Any]]) -> None:
    """Writes predictions as JSONL; the file appears whole or not at all."""
    write_whole(file, "".join(strict_json.dumps(p, ensure_ascii=False) + "\n" for p in predictions))
