"""Scores of a split: label accuracy by decoding, and token-level numbers of each task."""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dss_jax.core import config
from dss_jax.core.paths import write_whole
from dss_jax.core.types import Scorer
from dss_jax.data.batches import eval_batches
from dss_jax.data.blocks import ROLES, Batch
from dss_jax.data.columns import Examples
from dss_jax.data.layouts import Layout, make_layout
from dss_jax.data.shapes import Plan, Share, cost_of
from dss_jax.data.store import StoreSplit, TokenStore
from dss_jax.data.vocabulary import SentencePiece
from dss_jax.evaluate.engine import rows_at_once
from dss_jax.evaluate.predict import LabelRanker, Prediction, make_engine, texts_of
from dss_jax.train.compile import Compiled
from dss_jax.train.sharding import data_parallelism, put_whole
from dss_jax.train.step import Program

GOLD = config.Method(name="gold", label="gold", rationale=True)
GOLD_ONLY = config.Method(name="gold", label="gold", rationale=False)


@dataclass(frozen=True, kw_only=True)
class Result:
    """Scores and predictions of a split.

    Attributes:
      numbers: metric -> value: `<scorer>` (per cent), and for each task `<task>/loss` and
        `<task>/token_accuracy` (per cent), by teacher forcing against the gold label and the
        teacher's rationale.
      predictions: one dictionary a row: id, input, target, prediction, correct, and rationale
        where asked for.
    """

    numbers: dict[str, float]
    predictions: list[dict[str, Any]]


class Evaluator:
    """Scores splits of one store with one program. Gold labels judge, whatever was trained on."""

    def __init__(
        self, run: config.Run, program: Program, store: TokenStore, scorer: Scorer
    ) -> None:
        self._run, self._program, self._store = run, program, store
        self.scorer = scorer
        self._vocabulary = SentencePiece(store.vocabulary_path, store.extra_ids)
        self._labels = make_engine(run, program, run.evaluate.max_decode_length)
        self._rationales = make_engine(run, program, run.evaluate.max_rationale_length)
        self._ranker = LabelRanker(run, program, self._vocabulary)
        self._eval_step = Compiled(program.lower_eval)
        self._lengths: dict[str, tuple[int, ...]] = {}
        self._laid_out: dict[tuple[str, int], tuple[Layout, Any]] = {}

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
        numbers = self.scorer(targets, texts) | self._token_numbers(params, split, rows)
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
        if rationales and self._store.has("rationale_inputs"):
            lengths = self._padded_lengths("rationale_inputs", split_name)
            inputs = split.tokens("rationale_inputs")
            decoded = self._rationales(params, inputs, rows, lengths=lengths)
            explained = texts_of(decoded, self._vocabulary, vote=False)
            for prediction, rationale in zip(predictions, explained, strict=True):
                prediction["rationale"] = rationale["prediction"]
        return Result(numbers=numbers, predictions=predictions)

    def _padded_lengths(self, column: str, split_name: str) -> tuple[int, ...]:
        """Padded input lengths: the same for all splits that are scored, so that decoding compiles
        once.
        """
        if split_name == "train":
            split = self._store.split("train")
            return self._labels.lengths_for(split.tokens(column), np.arange(len(split)))
        if column not in self._lengths:
            scored = [self._store.split(s) for s in self._store.splits if s != "train"]
            found = [self._labels.lengths_for(s.tokens(column), np.arange(len(s))) for s in scored]
            # The split with the longest input decides.
            self._lengths[column] = max(found, key=lambda lengths: lengths[-1])
        return self._lengths[column]

    def _predict_labels(self, params: Any, split_name: str, rows: np.ndarray) -> list[Prediction]:
        split = self._store.split(split_name)
        inputs, decode = split.tokens("label_inputs"), self._run.evaluate.decode
        lengths = self._padded_lengths("label_inputs", split_name)
        if decode == "rank":
            return self._ranker(params, split, inputs, rows, lengths[-1])
        decoded = self._labels(params, inputs, rows, lengths=lengths)
        return texts_of(decoded, self._vocabulary, vote=decode == "sample")

    def _token_batches(self, split: StoreSplit, rows: np.ndarray) -> Iterator[Batch]:
        """Batches of one shape that hold these rows, for the losses."""
        key = split.name, len(rows)
        if key not in self._laid_out:
            self._laid_out[key] = self._lay_out(split, rows)
        layout, assigned = self._laid_out[key]
        return (layout.build(part, 0) for part in assigned)

    def _lay_out(self, split: StoreSplit, rows: np.ndarray) -> tuple[Layout, Any]:
        """The layout of these rows, and what it builds each batch from."""
        learns = self._run.method.rationale and self._store.has("rationale_targets")
        method = GOLD if learns else GOLD_ONLY
        mesh = self._program.mesh
        size = rows_at_once(len(rows), self._run.evaluate.batch_size, mesh)
        data = replace(self._run.data, batch_size=size)
        parts = np.stack(eval_batches(rows, size))
        # One shape, because each is compiled.
        plan = Plan(
            share=Share(data_parallelism(mesh)),
            batches=[parts],
            cost=cost_of(self._run.model),
            max_shapes=1,
        )
        layout = make_layout(split, data, method, rows, Examples(split, data, method), plan)
        return layout, layout.assign(parts)[0]

    def compile_ahead(self, split_name: str, limit: int | None, pool: ThreadPoolExecutor) -> None:
        """Begins to compile the step that gives a split's losses, in the pool."""
        if split_name in self._store.splits:
            split = self._store.split(split_name)
            rows = self.rows(split, limit)
            if len(rows):
                self._eval_step.ahead([next(self._token_batches(split, rows))], pool)

    def _token_numbers(self, params: Any, split: StoreSplit, rows: np.ndarray) -> dict[str, float]:
        if not len(rows):
            return {}
        totals = [
            self._eval_step(params, put_whole(batch, self._program.mesh))
            for batch in self._token_batches(split, rows)
        ]
        loss, correct, tokens = (np.sum([np.asarray(t[i]) for t in totals], 0) for i in range(3))
        numbers = {}
        for k, role in enumerate(ROLES):
            if tokens[k]:
                numbers[f"{role}/loss"] = float(loss[k] / tokens[k])
                numbers[f"{role}/token_accuracy"] = float(100.0 * correct[k] / tokens[k])
        return numbers


def write_predictions(file: Path, predictions: Iterable[dict[str, Any]]) -> None:
    """Writes predictions as JSONL; the file appears whole or not at all."""
    write_whole(file, "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in predictions))
