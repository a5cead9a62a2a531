"""Labels by CTranslate2: the same as if each was scored, at few passes of the encoder."""

import itertools
from typing import Any

import numpy as np
import pytest
from t5_weights import BASE, random_weights

from dss_jax.core.ids import EOS_ID
from dss_jax.interop.weights import from_tree
from dss_jax.student import ct2

pytest.importorskip("ctranslate2", reason="needs pip install 'dss-jax[ctranslate2]'")


class TestFollow:
    def test_a_text_gives_scores_and_bounds(self) -> None:
        rng = np.random.default_rng(0)
        labels = [[2, 3], [2, 3, 4], [2, 4], [5, 6], [3], [2]]
        logits = {
            prefix: rng.normal(0, 2, 7).astype(np.float32)
            for length in range(5)
            for prefix in itertools.product(range(2, 7), repeat=length)
        }

        def log_prob(ids: list[int]) -> float:
            steps = [logits[tuple(ids[:n])].astype(np.float64) for n in range(len(ids))]
            return sum(x[i] - np.log(np.exp(x).sum()) for x, i in zip(steps, ids, strict=True))

        ids = [2, 3, 5, 6]
        scores = ct2.LabelScores(labels)
        scores.follow(ids, [logits[tuple(ids[:n])] for n in range(4)])
        # Until they leave the text: [2, 3, 5] is no beginning of any.
        until = [[2, 3, EOS_ID], [2, 3, 4], [2, 4], [5], [3], [2, EOS_ID]]
        assert scores.known.tolist() == [True, False, False, False, False, True]
        assert scores.log_probs == pytest.approx([log_prob(one) for one in until], abs=1e-6)

    def test_what_is_open_depends_on_the_best_that_is_known(self) -> None:
        scores = ct2.LabelScores([[2], [3], [4], [5]])
        assert scores.open().tolist() == [0, 1, 2, 3]
        for label, log_prob in ((1, -3.0), (2, -13.0), (3, -10.0)):
            scores.set(label, log_prob, False)
        scores.set(0, -2.0, True)
        # e^-9.2 is NEGLIGIBLE.
        assert scores.open().tolist() == [1, 3]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[float, str], Any]:
    """(How sure, quantization) -> the engine of a student."""
    from dss_jax.interop.ctranslate2 import write_ct2

    made: dict[tuple[float, str], Any] = {}
    for sure, quantization in ((1, "float32"), (6, "float32"), (6, "int8")):
        weights = random_weights(BASE)
        tree = weights.tree()
        tree["decoder"]["logits_dense"]["kernel"] *= sure
        own = from_tree(
            BASE, tree, origin="a test", vocabulary=weights.vocabulary, extra_ids=weights.extra_ids
        )
        folder = tmp_path_factory.mktemp("ct2") / "folder"
        write_ct2(own, folder, quantization)
        made[sure, quantization] = ct2.open_engine(folder, threads=1)[0]
    return made


class Spy:
    """A translator that notes what it is asked."""

    def __init__(self, translator: Any) -> None:
        self._translator = translator
        self.encoded = {"translate_batch": 0, "score_batch": 0}

    def __getattr__(self, name: str) -> Any:
        def call(sources: list, *args: Any, **options: Any) -> Any:
            self.encoded[name] += len(sources)
            return getattr(self._translator, name)(sources, *args, **options)

        return call


def asked(engine: ct2.CTranslate2Engine, count: int = 120) -> tuple[list, list]:
    """Inputs, and labels of which one is what the student writes."""
    rng = np.random.default_rng(3)
    inputs = [[*map(int, rng.integers(2, 426, n)), EOS_ID] for n in rng.integers(1, 40, count)]
    texts = engine.generate(inputs, 6)
    ended = [n for n, one in enumerate(texts) if one.ended and one.ids]
    labels = []
    for n in ended:
        own = tuple(texts[n].ids)
        others = [tuple(map(int, rng.integers(2, 426, n))) for n in (1, 2, 3)]
        labels.append([*dict.fromkeys([*others, own, (*own, 7), own[:1]])])
    return [inputs[n] for n in ended], labels


def every_score(engine: ct2.CTranslate2Engine, inputs: list, labels: list) -> list[np.ndarray]:
    """Of each label, scored by itself."""
    named = engine._named(inputs)
    found = []
    for source, row in zip(named, labels, strict=True):
        scored = engine._translator.score_batch([source] * len(row), engine._named(row))
        found.append(np.array([sum(one.log_probs) for one in scored]))
    return found


def shares(log_probs: np.ndarray) -> np.ndarray:
    each = np.exp(np.float64(log_probs) - max(log_probs))
    return each / each.sum()


@pytest.mark.parametrize(("sure", "quantization"), [(1, "float32"), (6, "float32"), (6, "int8")])
def test_labels_are_ranked_as_if_each_was_scored(
    sure: float, quantization: str, engines: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines[sure, quantization]
    inputs, labels = asked(engine)
    expected = every_score(engine, inputs, labels)
    spy = Spy(engine._translator)
    monkeypatch.setattr(engine, "_translator", spy)
    # int8 rounds otherwise in another batch.
    rounding = 1e-3 if quantization == "float32" else 0.3
    left_out = 0
    for found, own in zip(engine.rank(inputs, labels), expected, strict=True):
        best = int(np.argmax(found))
        assert own[best] == pytest.approx(own.max(), abs=rounding)
        assert found[best] == pytest.approx(own[best], abs=rounding)
        assert np.all(found > own - rounding)
        assert shares(found) == pytest.approx(
            shares(own), abs=ct2.NEGLIGIBLE * len(own) + rounding / 4
        )
        left_out += int(np.sum(found > own + rounding))
    every = sum(map(len, labels))
    if sure > 1:
        assert left_out > 20
        assert sum(spy.encoded.values()) < 0.5 * every


def test_one_pass_is_enough_for_a_sure_student(
    engines: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines[6, "float32"]
    inputs, labels = asked(engine)
    expected = every_score(engine, inputs, labels)
    sure = [
        n
        for n, (own, scores) in enumerate(zip(labels, expected, strict=True))
        if shares(scores).max() > 1 - 1e-6 and len(own) > 3
    ]
    spy = Spy(engine._translator)
    monkeypatch.setattr(engine, "_translator", spy)
    for n in sure:
        engine.rank([inputs[n]], [labels[n]])
    assert len(sure) > 4
    # Some labels begin like one that is written, and are bounded late.
    assert sum(spy.encoded.values()) < 2 * len(sure)


def test_a_student_that_writes_no_label_costs_no_more_than_to_score_each(
    engines: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ct2.CTranslate2Engine(engines[1, "float32"]._translator, engines[1, "float32"]._tokens)
    inputs, labels = asked(engine, 150)
    # None is what it writes, and all are as long.
    labels = [[row[2][::-1], [*row[2][1:], 3]] for row in labels]
    every = sum(map(len, labels))
    spy = Spy(engine._translator)
    monkeypatch.setattr(engine, "_translator", spy)
    first = engine.rank(inputs, labels)
    assert every < sum(spy.encoded.values()) <= every + 2 * ct2.AT_ONCE
    spy.encoded = dict.fromkeys(spy.encoded, 0)
    for one, other in zip(first, engine.rank(inputs, labels), strict=True):
        assert shares(one) == pytest.approx(shares(other), abs=2e-3)
    assert sum(spy.encoded.values()) == every


def test_a_search_finds_what_would_be_scored_one_by_one(
    engines: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines[6, "float32"]
    inputs, _ = asked(engine)
    # The likeliest texts of each input.
    texts = engine._written(engine._named(inputs), 6, beam_size=4, num_hypotheses=4)
    labels = []
    for one in texts:
        ended = [[engine._ids[n] for n in h[:-1]] for h in one.hypotheses if h[-1] == "</s>"]
        labels.append([ids for ids in ended if ids] or [[9]])
    several = [n for n, row in enumerate(labels) if len(row) > 2]
    assert len(several) > 5
    inputs, labels = [inputs[n] for n in several], [labels[n] for n in several]
    expected = every_score(engine, inputs, labels)
    spy = Spy(engine._translator)
    monkeypatch.setattr(engine, "_translator", spy)
    found = engine.rank(inputs, labels)
    for ours, own in zip(found, expected, strict=True):
        assert shares(ours) == pytest.approx(shares(own), abs=2e-3)
    encoded = sum(spy.encoded.values())
    spy.encoded = dict.fromkeys(spy.encoded, 0)
    monkeypatch.setattr(engine, "_search", lambda *_: None)
    engine.rank(inputs, labels)
    assert encoded < 0.9 * sum(spy.encoded.values())


def test_long_labels_need_no_more_memory(engines: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engines[6, "float32"]
    inputs, labels = asked(engine)
    whole = engine.rank(inputs, labels)
    asked_for = []
    real = engine._written

    def written(named: list, longest: int, **options: Any) -> Any:
        asked_for.append(longest if "return_logits_vocab" in options else 0)
        return real(named, longest, **options)

    monkeypatch.setattr(engine, "_written", written)
    monkeypatch.setattr(ct2, "LOGITS_BYTES", 2 * 4 * ct2.AT_ONCE * BASE.vocab_size)
    for cut, own in zip(engine.rank(inputs, labels), whole, strict=True):
        assert shares(cut) == pytest.approx(shares(own), abs=2e-3)
    assert max(asked_for) == 2
