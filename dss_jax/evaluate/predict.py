"""Rows of a split in, predicted texts out: by decoding, or by ranking the allowed labels."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dss_jax.core import config
from dss_jax.core.decode_config import GREEDY
from dss_jax.core.errors import UsageError
from dss_jax.core.ids import EOS_ID
from dss_jax.data.store import Slices, StoreSplit
from dss_jax.data.vocabulary import SentencePiece
from dss_jax.evaluate.engine import Engine, rows_at_once
from dss_jax.layouts.batches import eval_batches
from dss_jax.layouts.padded import pad_rows
from dss_jax.model.beam import BeamSearch
from dss_jax.model.decoding import Decoded, Search
from dss_jax.model.sampling import SampleSearch
from dss_jax.model.scoring import candidate_log_probs
from dss_jax.train.compile import first_together
from dss_jax.train.sharding import batch_sharding, on_mesh, put_whole
from dss_jax.train.step import Program

Prediction = dict[str, Any]
"""`prediction` (the text), `log_prob` (the model's, of its tokens), and what else there is."""


def search_of(run: config.Run) -> Search:
    """How a run decodes free text: Evaluate.decode, and greedily where that is "rank"."""
    if run.evaluate.decode == "beam":
        return BeamSearch(run.beam)
    return SampleSearch(run.sample if run.evaluate.decode == "sample" else GREEDY)


def make_engine(run: config.Run, program: Program, max_decode_length: int) -> Engine:
    """The decoding engine of a run."""
    return Engine(
        program.model,
        program.mesh,
        run.mesh.logical_axis_rules,
        search_of(run),
        max_decode_length=max_decode_length,
        batch_size=run.evaluate.batch_size,
        input_length=run.data.input_length,
        length_multiple=run.data.length_multiple,
    )


def texts_of(
    decoded: Decoded,
    vocabulary: SentencePiece,
    vote: bool,
    read: Callable[[str], str] | None = None,
) -> list[Prediction]:
    """One prediction an input.

    Args:
      decoded: of N inputs.
      vocabulary: of the tokens.
      vote: give all sequences, and the most frequent text; among equals the one whose best
        sequence is the most probable. Otherwise the first sequence.
      read: takes the prediction out of a generated text, which is then kept as `generated`.
    """
    predictions: list[Prediction] = []
    for tokens_KxT, log_probs_K in zip(decoded.tokens, decoded.log_probs, strict=True):
        whole = [vocabulary.decode(tokens_T) for tokens_T in tokens_KxT]
        texts = whole if read is None else [read(text) for text in whole]
        best: dict[str, int] = {}
        for k, text in enumerate(texts):
            if text not in best or log_probs_K[k] > log_probs_K[best[text]]:
                best[text] = k
        counts = Counter(texts)
        winner = texts[0]
        if vote:
            winner = max(counts, key=lambda text: (counts[text], log_probs_K[best[text]]))
        at = best[winner] if vote else 0
        prediction: Prediction = {"prediction": winner, "log_prob": float(log_probs_K[at])}
        if vote:
            prediction["samples"] = texts
        if read is not None:
            prediction["generated"] = whole[at]
        predictions.append(prediction)
    return predictions


class LabelRanker:
    """Predicts the most probable of each row's allowed labels."""

    def __init__(self, run: config.Run, program: Program, vocabulary: SentencePiece) -> None:
        self._run, self._program, self._vocabulary = run, program, vocabulary
        params = jax.tree.map(lambda x: x.sharding, program.abstract_params)
        rows = batch_sharding(program.mesh)
        self._score: Callable[[Any, Any, Any], jax.Array] = first_together(
            jax.jit(
                lambda params, inputs, labels: candidate_log_probs(
                    program.model, params, inputs, labels
                ),
                in_shardings=(params, rows, rows),
                out_shardings=NamedSharding(program.mesh, PartitionSpec()),
            )
        )

    def _labels(self, split: StoreSplit, rows: np.ndarray) -> list[list[str]]:
        labels = [json.loads(split.text("allowed_labels")[int(row)]) for row in rows]
        for row, allowed in zip(rows, labels, strict=True):
            if not allowed:
                raise UsageError(
                    f"row {row} of the split has no list of allowed labels, so there is nothing "
                    "to rank. Give another --decode (greedy, beam or sample), or set "
                    "Example.allowed_labels in the task file."
                )
        return labels

    def _tokens(self, labels: Sequence[Sequence[str]]) -> np.ndarray:
        """int32 [N, C, T], EOS at the end of each label."""
        ids = [[[*self._vocabulary.encode(text), EOS_ID] for text in row] for row in labels]
        longest = max(len(label) for row in ids for label in row)
        most = max(len(row) for row in ids)
        length = -(-longest // self._run.data.length_multiple) * self._run.data.length_multiple
        tokens = np.zeros((len(ids), most, length), np.int32)
        for n, row in enumerate(ids):
            for c, label in enumerate(row):
                tokens[n, c, : len(label)] = label
        return tokens

    def __call__(
        self, params: Any, split: StoreSplit, inputs: Slices, rows: np.ndarray, input_length: int
    ) -> list[Prediction]:
        """The predictions of rows, in their order, with the log-probability of each label.

        Raises:
          UsageError: a row has no allowed labels.
        """
        labels = self._labels(split, rows)
        if not labels:
            return []
        tokens_NxCxT = self._tokens(labels)
        predictions: list[Prediction] = []
        mesh = self._program.mesh
        # As many sequences at once as a batch has when it is decoded.
        at_once = max(1, self._run.evaluate.batch_size // tokens_NxCxT.shape[1])
        for at in eval_batches(np.arange(len(rows)), rows_at_once(len(rows), at_once, mesh)):
            real = at[at >= 0]
            padded = np.zeros((len(at), input_length), np.int32)
            padded[: len(real)] = pad_rows(inputs, rows[real], input_length)
            candidates = tokens_NxCxT[np.maximum(at, 0)]
            with on_mesh(mesh, self._run.mesh.logical_axis_rules):
                scores = self._score(params, *put_whole((padded, candidates), mesh))
            for n, log_probs in zip(real, np.asarray(scores), strict=False):
                allowed = labels[n]
                best = int(np.argmax(log_probs[: len(allowed)]))
                predictions.append(
                    {
                        "prediction": allowed[best],
                        "log_prob": float(log_probs[best]),
                        "label_log_probs": dict(zip(allowed, map(float, log_probs), strict=False)),
                    }
                )
        return predictions
