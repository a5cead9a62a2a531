"""Scores of a split: label accuracy by decoding, and token-level numbers of each task."""

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dss_jax.core import config, strict_json
from dss_jax.core.paths import write_whole
from dss_jax.core.types import Scorer
from dss_jax.data.ragged import Slices
from dss_jax.data.store import StoreSplit, TokenStore
from dss_jax.data.tokenizer import Tokenizer
from dss_jax.data.views import as_scored
from dss_jax.evaluate.engine import Engine, make_engine, rows_at_once
from dss_jax.layouts.batches import eval_batches, make_examples, make_layout
from dss_jax.layouts.blocks import Batch
from dss_jax.layouts.layout import LayoutPlan, cost_of
from dss_jax.model.decoding import Decoded
from dss_jax.train.sharding import data_parallelism, put_whole
from dss_jax.train.step import Program

if TYPE_CHECKING:
    from dss_jax.data.spans import Pieces
    from dss_jax.evaluate.ranking import LabelRanker


Prediction = dict[str, Any]
"""`prediction` (the text), `log_prob` (the model's, of its tokens), and what else there is."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """Scores and predictions of a split.

    Attributes:
      numbers: metric -> value: `<scorer>` (per cent; left out where no row has a gold label), and
        those of `TokenLosses` against the gold label and the teacher's rationale.
      predictions: one dictionary a row: id, input, prediction, of rows with a gold label target and
        correct, and rationale where asked for; none where nothing is decoded.
      examples: rows scored; predicted, where no row has a gold label.
    """

    numbers: dict[str, float]
    predictions: list[dict[str, Any]]
    examples: int


class Evaluator:
    """Scores splits of one store with one program. Gold labels judge, whatever was trained on;
    pre-training is judged by how many masked tokens are right, with the earlier ones given.

    Attributes:
      scorer: of labels; of a student's, as it can write them (`Scorer.as_spelt`).
      metric: name of the number that decides which checkpoint is the best.
    """

    def __init__(
        self, run: config.Run, program: Program, store: TokenStore, scorer: Scorer
    ) -> None:
        self.scorer, self.metric = scorer, scorer.name
        if run.method.form == "spans":
            self.metric = "spans/token_accuracy"
            # The same masks whatever the run's seed.
            run = replace(run, data=replace(run.data, seed=0))
        self._run, self._program, self._store = run, program, store
        self._student = scorer.as_spelt(self._spelt)
        self._form = run.method.form
        self._losses = TokenLosses(run, program, as_scored(run.method))
        self._lengths: dict[str, tuple[int, ...]] = {}
        self._split = cache(self._open_split)
        self._inputs = cache(self._inputs_of)
        self._engine = cache(partial(make_engine, run, program))

    def _open_split(self, name: str) -> "StoreSplit | Pieces":
        if self._form != "spans":
            return self._store.split(name)
        from dss_jax.data.spans import pieces_of

        return pieces_of(self._store, name, self._run)

    def _spelt(self, text: str) -> str:
        return self._store.vocabulary.decode(self._store.vocabulary.encode(text))

    def _rows(self, split: "StoreSplit | Pieces", limit: int | None) -> np.ndarray:
        """The first `limit` rows with a gold label; all count where none has one, and in text for
        pre-training.
        """
        labelled = np.empty(0, int)
        if isinstance(split, StoreSplit):
            labelled = np.flatnonzero(split.tokens("label_targets").lengths() > 0)
        return (labelled if len(labelled) else np.arange(len(split)))[:limit]

    def __call__(
        self, params: Any, split_name: str, *, limit: int | None = None, rationales: bool = False
    ) -> Result:
        """Decodes a split, and scores it where it has gold labels. Text for pre-training is masked
        as in epoch 0, and nothing is decoded.

        Args:
          params: of the state, on the mesh; LoRA is merged first.
          limit: score the first rows only.
          rationales: generate a rationale for each row too, which takes several times as long.
        """
        params = self._program.merge(params)
        split = self._split(split_name)
        rows = self._rows(split, limit)
        numbers: dict[str, float] = {}
        predictions: list[dict[str, Any]] = []
        if isinstance(split, StoreSplit):
            labels = self._predict_labels(params, split, rows)
            judged = split.tokens("label_targets").lengths()[rows].any()
            shown = {"id": "id", "input": "input"} | ({"target": "label"} if judged else {})
            for row, label in zip(map(int, rows), labels, strict=True):
                texts = {name: split.text(column)[row] for name, column in shown.items()}
                predictions.append({**texts, **label})
            if judged:
                for one in predictions:
                    one["correct"] = self._student.correct(one["target"], one["prediction"])
                targets = [prediction["target"] for prediction in predictions]
                numbers = self._student(targets, [label["prediction"] for label in labels])
            if rationales and self._form == "tasks" and self._store.has("rationale_inputs"):
                longest = self._run.evaluate.max_rationale_length
                decoded = self._decode(params, "rationale_inputs", split_name, rows, longest)
                explained = texts_of(decoded, self._store.vocabulary, vote=False)
                for prediction, rationale in zip(predictions, explained, strict=True):
                    prediction["rationale"] = rationale["prediction"]
        numbers = numbers | self._losses(params, split, rows)
        return Result(numbers=numbers, predictions=predictions, examples=len(rows))

    def _inputs_of(self, column: str, split_name: str) -> Slices:
        """What is predicted from: a column of the store, or, for labels, what the form makes it."""
        split = self._store.split(split_name)
        if column == "label_inputs" and self._form != "tasks":
            from dss_jax.data.joint import label_inputs

            return label_inputs(split, self._form)
        return split.tokens(column)

    def _padded_lengths(self, engine: Engine, column: str, split_name: str) -> tuple[int, ...]:
        """Padded input lengths: the same for all splits that are scored, so that decoding compiles
        once.
        """
        if split_name == "train":
            inputs = self._inputs(column, "train")
            return engine.lengths_for(inputs, np.arange(len(inputs)))
        if column not in self._lengths:
            scored = [self._inputs(column, s) for s in self._store.splits if s != "train"]
            found = [engine.lengths_for(s, np.arange(len(s))) for s in scored]
            # The split with the longest input decides.
            self._lengths[column] = max(found, key=lambda lengths: lengths[-1])
        return self._lengths[column]

    def _decode(
        self, params: Any, column: str, split_name: str, rows: np.ndarray, longest: int
    ) -> Decoded:
        engine = self._engine(longest)
        lengths = self._padded_lengths(engine, column, split_name)
        return engine(params, self._inputs(column, split_name), rows, lengths=lengths)

    def _predict_labels(self, params: Any, split: StoreSplit, rows: np.ndarray) -> list[Prediction]:
        evaluate, joint = self._run.evaluate, self._run.method.joint
        longest = evaluate.max_decode_length + (evaluate.max_rationale_length if joint else 0)
        if evaluate.decode == "rank":
            return self._ranker(params, split, self._inputs("label_inputs", split.name), rows)
        decoded = self._decode(params, "label_inputs", split.name, rows, longest)
        vocabulary, vote = self._store.vocabulary, evaluate.decode == "sample"
        if not joint:
            return texts_of(decoded, vocabulary, vote=vote)
        from dss_jax.data.joint import label_in, rationale_in

        read = partial(label_in, form=self._form)
        found = texts_of(decoded, vocabulary, vote=vote, read=read)
        for one in found:
            one["rationale"] = rationale_in(one["generated"], self._form)
        return found

    @cached_property
    def _ranker(self) -> "LabelRanker":
        from dss_jax.evaluate.ranking import LabelRanker

        return LabelRanker(self._run, self._program, self._store.vocabulary)

    def compile_ahead(self, split_name: str, limit: int | None, pool: ThreadPoolExecutor) -> None:
        """Begins to compile the step that gives a split's losses, in the pool."""
        if split_name in self._store.splits:
            split = self._split(split_name)
            rows = self._rows(split, limit)
            if len(rows):
                self._program.eval_step.ahead([self._losses.batches(split, rows)[0]()], pool)


class TokenLosses:
    """Losses and token accuracies of a method's tasks, by teacher forcing, without dropout."""

    def __init__(self, run: config.Run, program: Program, method: config.Method) -> None:
        """`method`: whose inputs and targets."""
        self._run, self._program, self._method = run, program, method
        self._laid_out: dict[tuple[str, int], list[Callable[[], Batch]]] = {}

    def batches(self, split: "StoreSplit | Pieces", rows: np.ndarray) -> list[Callable[[], Batch]]:
        """What builds each batch of these rows; all are of one shape, because each is compiled."""
        key = split.name, len(rows)
        if key not in self._laid_out:
            mesh = self._program.mesh
            size = rows_at_once(len(rows), self._run.evaluate.batch_size, mesh)
            data = replace(self._run.data, batch_size=size)
            parts = np.stack(eval_batches(rows, size))
            cost = cost_of(self._run.model)
            ids = self._run.model.pad_and_start
            plan = LayoutPlan([parts], data_parallelism(mesh), 0, 1, cost, 1, False, *ids)
            layout = make_layout(data, rows, make_examples(split, data, self._method), plan)
            self._laid_out[key] = [partial(layout.build, x, 0) for x in layout.assign(parts)[0]]
        return self._laid_out[key]

    def __call__(
        self, params: Any, split: "StoreSplit | Pieces", rows: np.ndarray
    ) -> dict[str, float]:
        """`<task>/loss` and `<task>/token_accuracy` (per cent) of rows: int [N].

        A task without a token in them is left out.
        """
        if not len(rows):
            return {}
        totals = [
            self._program.eval_step(params, put_whole(build(), self._program.mesh))
            for build in self.batches(split, rows)
        ]
        loss, correct, tokens = (np.sum([np.asarray(t[i]) for t in totals], 0) for i in range(3))
        numbers = {}
        for k, name in enumerate(self._method.tasks):
            if tokens[k]:
                numbers[f"{name}/loss"] = float(loss[k] / tokens[k])
                numbers[f"{name}/token_accuracy"] = float(100.0 * correct[k] / tokens[k])
        return numbers


def texts_of(
    decoded: Decoded, vocabulary: Tokenizer, vote: bool, read: Callable[[str], str] | None = None
) -> list[Prediction]:
    """One prediction an input.

    Args:
      vote: give all sequences, and the most frequent text; among equals the one whose best
        sequence is the most probable. Otherwise the first sequence.
      read: takes the prediction out of a generated text, which is then kept as `generated`.
    """
    predictions: list[Prediction] = []
    for tokens_KxT, log_probs_K in zip(decoded.tokens, decoded.log_probs, strict=True):
        whole = [vocabulary.decode(tokens_T) for tokens_T in tokens_KxT]
        texts = whole if read is None else [read(text) for text in whole]
        at, counts = 0, Counter(texts)
        if vote:
            pairs = zip(texts, log_probs_K, strict=True)
            votes = [(counts[text], p, -texts.index(text)) for text, p in pairs]
            at = max(range(len(texts)), key=votes.__getitem__)
        prediction: Prediction = {"prediction": texts[at], "log_prob": float(log_probs_K[at])}
        if vote:
            prediction["samples"] = texts
        if read is not None:
            prediction["generated"] = whole[at]
        predictions.append(prediction)
    return predictions


def write_predictions(file: Path, predictions: Iterable[dict[str, Any]]) -> None:
    """Writes predictions as JSONL; the file appears whole or not at all."""
    write_whole(file, "".join(strict_json.dumps(p, ensure_ascii=False) + "\n" for p in predictions))
