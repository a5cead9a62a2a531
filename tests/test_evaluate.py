"""Scoring: order of the rows, empty fillers, teacher-forced numbers, predictions on disk."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import toy

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.data.vocabulary import SentencePiece
from dss_jax.evaluate.evaluator import write_predictions
from dss_jax.model.decoding import decode
from dss_jax.model.sampling import SampleSearch
from dss_jax.run.session import Session, open_session, with_vocab_size


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory, toy_store) -> Session:
    model = dataclasses.replace(toy.MODEL, dropout_rate=0.0)
    run = toy.make_run(model=model, mesh=config.Mesh(data=4))
    return open_session(run, tmp_path_factory.mktemp("run"), toy_store, TEXT_ACCURACY)


@pytest.fixture(scope="module")
def params(session: Session):
    return session.program.init().params


def test_predictions_are_those_of_each_row_alone_in_input_order(session, params, toy_store) -> None:
    result = session.evaluator(params, "test", rationales=True)
    split = toy_store.split("test")
    vocabulary = SentencePiece(toy_store.vocabulary_path, toy_store.extra_ids)
    alone = jax.device_put(params, jax.devices()[0])
    model = session.program.model
    greedy = jax.jit(lambda p, x: decode(model, p, x, SampleSearch(), max_decode_length=5).tokens)
    assert [p["id"] for p in result.predictions] == [f"test-{i}" for i in range(len(split))]
    width = int(split.tokens("label_inputs").lengths().max())
    for row, prediction in enumerate(result.predictions):
        inputs = np.zeros((1, width), np.int32)
        ids = split.tokens("label_inputs")[row]
        inputs[0, : len(ids)] = ids
        assert prediction["prediction"] == vocabulary.decode(
            np.asarray(greedy(alone, inputs))[0, 0]
        )
        assert prediction["target"] == f"label {row % 3}"
        assert prediction["rationale"] != ""


def test_token_numbers_are_means_over_all_real_tokens(session, params, toy_store) -> None:
    numbers = session.evaluator(params, "validation").numbers
    split = toy_store.split("validation")
    model, total, tokens, right = session.program.model, 0.0, 0, 0
    width = 16
    for row in range(len(split)):
        inputs, targets = np.zeros((1, width), np.int32), np.zeros((1, width), np.int32)
        x, y = split.tokens("rationale_inputs")[row], split.tokens("rationale_targets")[row]
        inputs[0, : len(x)], targets[0, : len(y)] = x, y
        shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
        logits = np.asarray(model.apply({"params": params}, inputs, shifted), np.float64)[0]
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for place, token in enumerate(y):
            total -= log_probs[place, token]
            right += int(logits[place].argmax() == token)
            tokens += 1
    np.testing.assert_allclose(numbers["rationale/loss"], total / tokens, rtol=1e-5)
    np.testing.assert_allclose(numbers["rationale/token_accuracy"], 100 * right / tokens)


def test_a_limit_scores_the_first_rows(session, params) -> None:
    result = session.evaluator(params, "validation", limit=3)
    assert [p["id"] for p in result.predictions] == [f"validation-{i}" for i in range(3)]


def test_an_unknown_split_is_named(session, params) -> None:
    with pytest.raises(UsageError, match="no 'dev' split; it has: train, validation, test"):
        session.evaluator(params, "dev")


def test_predictions_are_written_whole(tmp_path: Path) -> None:
    file = tmp_path / "predictions" / "test.jsonl"
    write_predictions(file, [{"id": "ä", "prediction": "1"}, {"id": "b", "prediction": ""}])
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == ["ä", "b"]
    assert [f.name for f in file.parent.iterdir()] == ["test.jsonl"]


def test_the_models_rows_must_cover_the_vocabulary(toy_store) -> None:
    assert with_vocab_size(toy.make_run(), toy_store).model.vocab_size == 512
    small = toy.make_run(model=dataclasses.replace(toy.MODEL, vocab_size=100))
    with pytest.raises(UsageError, match="vocab_size is 100, but the vocabulary has"):
        with_vocab_size(small, toy_store)


@pytest.mark.parametrize("name", ["pad_token_id", "eos_token_id", "decoder_start_token_id"])
def test_another_id_than_the_vocabularys_is_refused(name: str, toy_store) -> None:
    other = toy.make_run(model=dataclasses.replace(toy.MODEL, **{name: 7}))
    said = rf"T5Config.{name} is 7, and the vocabulary .* has {int(name == 'eos_token_id')}\. Leave"
    with pytest.raises(UsageError, match=said):
        with_vocab_size(other, toy_store)
