"""How a run decodes, and the predictions in what was decoded."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from dss_jax.core import config
from dss_jax.core.decode_config import GREEDY
from dss_jax.data.vocabulary import SentencePiece
from dss_jax.evaluate.engine import Engine
from dss_jax.model.decoding import Decoded, Search
from dss_jax.model.sampling import SampleSearch
from dss_jax.train.step import Program

Prediction = dict[str, Any]
"""`prediction` (the text), `log_prob` (the model's, of its tokens), and what else there is."""


def search_of(run: config.Run) -> Search:
    """How a run decodes free text: Evaluate.decode, and greedily where that is "rank"."""
    if run.evaluate.decode == "beam":
        from dss_jax.model.beam import BeamSearch

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
