"""The engine: order, batches that shrink, samples that do not depend on the batch, meshes."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from test_model_decoding import V1_0, V1_1, make

from dss_jax.core import config
from dss_jax.core.t5_config import GREEDY, Beam, Sample
from dss_jax.data.ragged import Ragged
from dss_jax.evaluate import engine as engines
from dss_jax.evaluate.engine import Engine, input_lengths
from dss_jax.model import decoding
from dss_jax.model.beam import BeamSearch
from dss_jax.model.decoding import Decoded, Search
from dss_jax.model.sampling import SampleSearch, processed
from dss_jax.model.t5 import T5
from dss_jax.train.sharding import make_mesh

pytestmark = [pytest.mark.usefixtures("strict"), pytest.mark.filterwarnings("error")]

LENGTH = 20
RULES = config.DEFAULT_LOGICAL_AXIS_RULES


def ragged(rows: int = 24) -> tuple[Any, Any, Ragged]:
    """A model, its parameters and the column of its inputs."""
    model, params, inputs = make(V1_1, rows)
    tokens = [row[row != 0] for row in np.asarray(inputs)]
    offsets = np.concatenate([[0], np.cumsum([len(t) for t in tokens])])
    return model, params, Ragged(np.concatenate(tokens), offsets)


def run(search: Search, batch_size: int, devices: int = 1, **changes: Any) -> Decoded:
    model, params, inputs = ragged()
    # An engine ends outputs with the model's own end.
    model = T5(dataclasses.replace(model.config, eos_token_id=search.eos_id))
    mesh = make_mesh(config.Mesh(), jax.devices()[:devices])
    settings: dict[str, Any] = {"max_decode_length": LENGTH, "length_multiple": 2} | changes
    engine = Engine(model, mesh, RULES, search, batch_size=batch_size, **settings)
    return engine(params, inputs, np.arange(len(inputs)))


def alone(search: Search) -> Decoded:
    """All inputs in one call of `decode`."""
    model, params, inputs = make(V1_1)
    return decoding.decode(model, params, inputs, search, max_decode_length=LENGTH)


def same(ours: Decoded, theirs: Decoded) -> None:
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_allclose(ours.log_probs, theirs.log_probs, rtol=1e-4, atol=1e-4)


def telling_eos() -> int:
    """The token that, as the end, ends the rows at the most different steps."""
    free = np.asarray(alone(SampleSearch(GREEDY, -1)).tokens[:, 0])
    ends = {t: {int(np.argmax(r == t)) for r in free if t in r} for t in range(2, 24)}
    return max(ends, key=lambda token: len(ends[token]))


def searches() -> list[Search]:
    eos_id = telling_eos()
    return [
        SampleSearch(GREEDY, eos_id),
        SampleSearch(Sample(num_samples=3, seed=4), eos_id),
        BeamSearch(Beam(num_beams=3), eos_id),
    ]


@pytest.mark.parametrize(
    "number",
    [0, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 2))],
    ids=["greedy", "sample", "beam"],
)
def test_batches_that_shrink_and_meshes_give_the_same_in_input_order(
    number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    search = searches()[number]
    expected = alone(search)
    # What an earlier run has kept is not traced, and would not be watched.
    monkeypatch.setenv("DSS_COMPILE_CACHE", str(tmp_path))
    monkeypatch.setattr(engines, "CHUNK", 2)
    monkeypatch.setattr(engines, "SMALLEST_BATCH", 2)
    sizes: list[int] = []
    real = decoding.take_rows

    def watched(prepared: Any, state: Any, rows: Any) -> Any:
        sizes.append(len(rows))
        return real(prepared, state, rows)

    monkeypatch.setattr(decoding, "take_rows", watched)
    same(run(search, batch_size=16), expected)
    assert sizes, "no batch has shrunk: this test tells nothing"
    same(run(search, batch_size=8, devices=4), expected)


def test_a_sample_depends_on_seed_input_and_number_alone() -> None:
    model, params, inputs = ragged()
    mesh = make_mesh(config.Mesh(), jax.devices()[:1])

    def decoded(settings: Sample, rows: list[int], ids: list[int] | None = None) -> np.ndarray:
        engine = Engine(
            model, mesh, RULES, SampleSearch(settings), max_decode_length=8, batch_size=4
        )
        numbers = None if ids is None else np.array(ids)
        return engine(params, inputs, np.array(rows), ids=numbers).tokens

    three = decoded(Sample(num_samples=3, seed=1), list(range(12)))
    np.testing.assert_array_equal(decoded(Sample(num_samples=3, seed=1), [7, 2]), three[[7, 2]])
    np.testing.assert_array_equal(decoded(Sample(num_samples=2, seed=1), [5]), three[[5], :2])
    assert (three[:, 0] != three[:, 1]).any()
    assert (decoded(Sample(num_samples=3, seed=2), list(range(12))) != three).any()
    assert (decoded(Sample(num_samples=3, seed=1), [7], ids=[8]) != three[7]).any()


def test_samples_follow_the_models_distribution() -> None:
    model, params, inputs = make(V1_1)
    number = 4000
    settings = Sample(num_samples=number, temperature=0.7, top_k=6)
    decoded = decoding.decode(
        model, params, inputs[:1], SampleSearch(settings), max_decode_length=1
    )
    logits = model.apply({"params": params}, inputs[:1], np.zeros((1, 1), np.int32))[0, 0]
    expected = np.asarray(jax.nn.softmax(processed(logits, settings)))
    counts = Counter(np.asarray(decoded.tokens)[0, :, 0].tolist())
    found = np.array([counts[token] / number for token in range(len(expected))])
    assert (expected > 0).sum() == 6
    # Five standard errors of a share.
    assert (abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / number)).all()
    exact = np.asarray(jax.nn.log_softmax(logits))[np.asarray(decoded.tokens)[0, :, 0]]
    np.testing.assert_allclose(np.asarray(decoded.log_probs)[0], exact, atol=1e-5)


def test_top_k_and_top_p_keep_what_they_say() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.05, 0.25, 0.2], np.float32))

    def kept(**settings: Any) -> list[int]:
        return np.flatnonzero(np.isfinite(processed(logits, Sample(**settings)))).tolist()

    assert kept(top_k=2) == [1, 3]
    assert kept(top_p=0.6) == [1, 3]
    assert kept(top_p=0.66) == [1, 3, 4]
    assert kept(top_p=0.0) == [1]
    assert kept(top_k=4, top_p=0.9) == [0, 1, 3, 4]
    assert kept(top_k=4, top_p=0.89) == [1, 3, 4]


@pytest.mark.slow
def test_log_probabilities_are_those_of_the_whole_model() -> None:
    model, params, inputs = make(V1_0)
    eos_id = 5
    for search in (SampleSearch(GREEDY, eos_id), BeamSearch(Beam(num_beams=3), eos_id)):
        decoded = decoding.decode(model, params, inputs[:4], search, max_decode_length=6)
        for row in range(4):
            for tokens, log_prob in zip(
                np.asarray(decoded.tokens)[row], np.asarray(decoded.log_probs)[row], strict=True
            ):
                ids = tokens[None]
                shifted = np.pad(ids, ((0, 0), (1, 0)))[:, :-1]
                logits = model.apply({"params": params}, inputs[row : row + 1], shifted)
                each = jax.nn.log_softmax(logits)[0, np.arange(6), ids[0]]
                # What comes after the end is padding; 0 may be a token as well.
                there = np.cumsum(np.pad(tokens[:-1] == eos_id, (1, 0))) == 0
                np.testing.assert_allclose(np.asarray(each)[there].sum(), log_prob, atol=1e-3)


def test_padded_lengths_waste_least() -> None:
    lengths = np.array([3, 3, 4, 4, 5, 5, 90, 100])
    assert input_lengths(lengths, 2, limit=1024, multiple=8, shapes=1) == (104,)
    assert input_lengths(lengths, 2, limit=1024, multiple=8, shapes=2) == (8, 104)
    assert input_lengths(lengths, 2, limit=64, multiple=8, shapes=2) == (8, 64)
    assert input_lengths(lengths, 8, limit=1024, multiple=8, shapes=3) == (104,)
    assert input_lengths(lengths[2:], 2, limit=1024, multiple=8, shapes=2) == (104,)
