"""Predictions: ranked labels, the vote of samples, and every way to decode."""

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import toy

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.t5_config import Beam, Sample
from dss_jax.data.vocabulary import SentencePiece
from dss_jax.evaluate.evaluator import Evaluator, texts_of
from dss_jax.evaluate.ranking import LabelRanker
from dss_jax.model.decoding import Decoded
from dss_jax.run import score
from dss_jax.run.session import with_vocab_size
from dss_jax.train.sharding import make_mesh
from dss_jax.train.step import Program

MODEL = dataclasses.replace(toy.MODEL, dropout_rate=0.0)
ALLOWED = [
    ["3", "the answer is 12", "yes"],
    ["no", "maybe"],
    ["42"],
    ["1", "2", "3", "4 + 4"],
    ["5", "6"],
]
"""Of the rows in turn: other numbers of labels, and labels of other lengths. They are 5, so that
batches of 4 rows do not begin with the same ones.
"""


@pytest.fixture(scope="module")
def vocabulary(toy_store) -> SentencePiece:
    return SentencePiece(toy_store.vocabulary_path, toy_store.extra_ids)


def ranked(
    store: Any, vocabulary: SentencePiece, devices: int, model: config.T5Config = MODEL
) -> tuple[Any, Any, list[dict]]:
    """Model, parameters and what the ranker says of the rows of validation, last row first."""
    evaluate = config.Evaluate(decode="rank", batch_size=16)
    run = with_vocab_size(toy.make_run(model=model, evaluate=evaluate), store)
    program = Program(run, make_mesh(run.mesh, jax.devices()[:devices]))
    # Larger than they are drawn, so that the inputs matter to the choice.
    params = jax.tree.map(lambda x: 2 * x, program.init().params)
    split = store.split("validation")
    rows = np.arange(len(split))[::-1]
    labels = [json.dumps(ALLOWED[row % len(ALLOWED)]) for row in range(len(split))]
    fake: Any = SimpleNamespace(text=lambda column: {"allowed_labels": labels}[column])
    ranker = LabelRanker(run, program, vocabulary)
    return program.model, params, ranker(params, fake, split.tokens("label_inputs"), rows)


@pytest.fixture(scope="module")
def on_one_device(toy_store, vocabulary: SentencePiece) -> tuple[Any, Any, list[dict]]:
    return ranked(toy_store, vocabulary, devices=1)


def test_the_ranker_takes_the_most_probable_label_as_the_whole_model_says(
    toy_store, vocabulary: SentencePiece, on_one_device: tuple[Any, Any, list[dict]]
) -> None:
    check_ranking(toy_store, vocabulary, *on_one_device)


@pytest.mark.slow
def test_the_same_of_umt5(toy_store, vocabulary: SentencePiece) -> None:
    model = dataclasses.replace(MODEL, relative_attention_per_layer=True)
    found = ranked(toy_store, vocabulary, 1, model)
    check_ranking(toy_store, vocabulary, *found)


def check_ranking(
    toy_store, vocabulary: SentencePiece, model: Any, params: Any, predictions: list[dict]
) -> None:
    inputs = toy_store.split("validation").tokens("label_inputs")
    apply = jax.jit(lambda x, y: model.apply({"params": params}, x, y))
    for row, prediction in zip(reversed(range(len(inputs))), predictions, strict=True):
        expected = {}
        for label in ALLOWED[row % len(ALLOWED)]:
            targets = [*vocabulary.encode(label), 1]
            x, y = np.zeros((1, 12), np.int32), np.zeros((1, 24), np.int32)
            x[0, : len(inputs[row])], y[0, 1 : len(targets)] = inputs[row], targets[:-1]
            logits = np.asarray(apply(x, y), np.float64)[0, : len(targets)]
            log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            expected[label] = log_probs[np.arange(len(targets)), targets].sum()
        assert prediction["label_log_probs"] == pytest.approx(expected, rel=1e-4)
        assert list(prediction["label_log_probs"]) == ALLOWED[row % len(ALLOWED)]
        assert prediction["prediction"] == max(expected, key=lambda label: expected[label])
        assert prediction["log_prob"] == pytest.approx(max(expected.values()), rel=1e-4)


def test_four_devices_rank_as_one(
    toy_store, vocabulary: SentencePiece, on_one_device: tuple[Any, Any, list[dict]]
) -> None:
    four = ranked(toy_store, vocabulary, devices=4)[2]
    for a, b in zip(on_one_device[2], four, strict=True):
        assert a["prediction"] == b["prediction"]
        assert a["label_log_probs"] == pytest.approx(b["label_log_probs"], rel=1e-4)


def decoded(*rows: list[tuple[list[int], float]]) -> Decoded:
    """Sequences of inputs, each with its log-probability."""
    tokens = np.array([[t for t, _ in row] for row in rows], np.int32)
    log_probs = np.array([[p for _, p in row] for row in rows], np.float32)
    return Decoded(tokens, log_probs, log_probs)


def test_samples_vote_and_among_equals_the_most_probable_wins(vocabulary: SentencePiece) -> None:
    a, b, c = ([ids, 1] for ids in (20, 30, 40))
    text = {t[0]: vocabulary.decode(t) for t in (a, b, c)}
    assert len(set(text.values())) == 3
    more, tie, mixed = texts_of(
        decoded(
            [(a, -1.0), (b, -5.0), (b, -6.0), (c, -2.0)],
            [(a, -3.0), (b, -4.0), (a, -9.0), (b, -2.5)],
            [(a, -3.0), (b, -2.0), (c, -1.0), (a, -7.0)],
        ),
        vocabulary,
        vote=True,
    )
    assert (more["prediction"], more["log_prob"]) == (text[30], -5.0)
    assert more["samples"] == [text[20], text[30], text[30], text[40]]
    assert (tie["prediction"], tie["log_prob"]) == (text[30], -2.5)
    assert (mixed["prediction"], mixed["log_prob"]) == (text[20], -3.0)
    first = texts_of(decoded([(c, -8.0), (b, -1.0), (b, -1.0)]), vocabulary, vote=False)
    assert first == [{"prediction": text[40], "log_prob": -8.0}]


@pytest.fixture(scope="module")
def results(toy_store) -> dict[str, list[dict]]:
    """Way to decode -> predictions of test, by the same parameters."""
    run = toy.make_run(model=MODEL, beam=Beam(num_beams=3), sample=Sample(num_samples=3))
    run = with_vocab_size(run, toy_store)
    program = Program(run, make_mesh(run.mesh, jax.devices()[:1]))
    params, found = program.init().params, {}
    for decode in ("greedy", "beam", "sample", "rank"):
        evaluate = config.Evaluate(decode=decode, batch_size=8, max_decode_length=5)
        evaluator = Evaluator(
            dataclasses.replace(run, evaluate=evaluate), program, toy_store, TEXT_ACCURACY
        )
        found[decode] = evaluator(params, "test").predictions
    return found


def test_every_way_to_decode_predicts_each_row(results: dict[str, list[dict]]) -> None:
    for predictions in results.values():
        assert [p["id"] for p in predictions] == [f"test-{i}" for i in range(toy.SIZES["test"])]
        assert all(np.isfinite(p["log_prob"]) and p["log_prob"] < 0 for p in predictions)
    assert all(len(p["samples"]) == 3 for p in results["sample"])
    assert all(p["prediction"] in p["samples"] for p in results["sample"])
    assert all(
        set(p["label_log_probs"]) == {"label 0", "label 1", "label 2"} for p in results["rank"]
    )
    assert "samples" not in results["greedy"][0]
    # Each is really another search.
    texts = {decode: [p["prediction"] for p in found] for decode, found in results.items()}
    assert len({tuple(found) for found in texts.values()}) == 4
    better = [
        b["log_prob"] - g["log_prob"]
        for b, g in zip(results["beam"], results["greedy"], strict=True)
    ]
    assert sum(better) > 0


def test_a_row_without_allowed_labels_cannot_be_ranked(
    toy_store, vocabulary: SentencePiece
) -> None:
    run = with_vocab_size(toy.make_run(model=MODEL), toy_store)
    program = Program(run, make_mesh(run.mesh, jax.devices()[:1]))
    split: Any = SimpleNamespace(text=lambda _: ['["yes"]', "[]"])
    inputs = toy_store.split("test").tokens("label_inputs")
    ranker = LabelRanker(run, program, vocabulary)
    with pytest.raises(UsageError, match="row 1 of the split has no list of allowed labels"):
        ranker(None, split, inputs, np.arange(2))


def test_predictions_of_another_kind_have_a_file_of_their_own() -> None:
    def name(decode: str, limit: int | None = None) -> str:
        run = toy.make_run(evaluate=config.Evaluate(decode=decode))
        return score.predictions_name(run, "test", 250, limit)

    assert name("greedy") == "test-250.jsonl"
    assert name("greedy", 20) == "test-250-first20.jsonl"
    assert name("rank") == "test-250-rank.jsonl"
    assert name("beam", 20) == "test-250-beam-first20.jsonl"
