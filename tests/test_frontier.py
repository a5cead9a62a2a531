"""The search for the smallest model and the least data: how many runs it takes, what it finds."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dss_jax.sweep.frontier import Dip, Found, search

MODELS = ("small", "base", "large")
FRACTIONS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)


def grows(model: str, fraction: float) -> float:
    """Accuracy that grows with both."""
    return 30 + 20 * MODELS.index(model) + 30 * fraction


def best(found: Found) -> tuple[str, float] | None:
    """The smallest model that reaches the target and its least data."""
    return next(iter(found.least.items()), None)


class Oracle:
    """Counts what it is asked for, and never the same twice."""

    def __init__(self, accuracy=grows) -> None:
        self.asked: list[tuple[str, float]] = []
        self._accuracy = accuracy

    def __call__(self, model: str, fraction: float) -> float:
        assert (model, fraction) not in self.asked
        self.asked.append((model, fraction))
        return self._accuracy(model, fraction)


def test_the_smallest_model_first_then_the_least_data() -> None:
    oracle = Oracle()
    found = search(MODELS, FRACTIONS, 57, oracle)
    assert best(found) == ("small", 1.0)
    found = search(MODELS, FRACTIONS, 61, oracle := Oracle())
    assert best(found) == ("base", 0.4)
    assert oracle.asked[:2] == [("small", 1.0), ("base", 1.0)]
    assert len(oracle.asked) <= 2 + math.ceil(math.log2(len(FRACTIONS)))
    assert [(t.model, t.fraction) for t in found.path] == oracle.asked
    assert not found.dips


def test_where_no_model_reaches_it_each_is_tried_once() -> None:
    oracle = Oracle()
    found = search(MODELS, FRACTIONS, 101, oracle)
    assert best(found) is None
    assert oracle.asked == [(m, 1.0) for m in MODELS]


def test_one_fraction_and_one_model() -> None:
    assert best(search(("a",), (1.0,), 5, Oracle(lambda *_: 5.0))) == ("a", 1.0)
    assert best(search(("a",), (1.0,), 5, Oracle(lambda *_: 4.0))) is None


def test_all_data_do_at_the_least() -> None:
    oracle = Oracle()
    found = search(MODELS, FRACTIONS, 31, oracle, whole_map=True)
    assert best(found) == ("small", 0.05)
    assert {m for m, _ in oracle.asked} == {"small"}, "no model can need less data"


def test_the_map_tries_larger_models_below_only() -> None:
    oracle = Oracle()
    found = search(MODELS, FRACTIONS, 54, oracle, whole_map=True)
    assert found.least == {"small": 0.8, "base": 0.2, "large": 0.05}
    assert best(found) == ("small", 0.8)
    assert next(f for m, f in oracle.asked if m == "base") == 0.6
    assert [f for m, f in oracle.asked if m == "large"] == [0.1, 0.05]


def test_what_is_known_costs_nothing() -> None:
    known = {("base", f): grows("base", f) for f in (0.2, 0.4, 1.0)}
    known |= {("small", 1.0): grows("small", 1.0)}
    oracle = Oracle()
    found = search(MODELS, FRACTIONS, 61, oracle, known=known)
    assert best(found) == ("base", 0.4)
    assert oracle.asked == []
    assert all(t.known for t in found.path)


@given(
    st.lists(st.floats(0, 100), min_size=7, max_size=7),
    st.floats(0, 100),
    st.sets(st.integers(0, 6)),
    st.booleans(),
)
def test_a_curve_of_any_form(values, target, known, monotone) -> None:
    values = sorted(values) if monotone else values
    curve = dict(zip(FRACTIONS, values, strict=True))
    oracle = Oracle(lambda _, f: curve[f])
    saved = {("m", FRACTIONS[i]): values[i] for i in known}
    found = search(("m",), FRACTIONS, target, oracle, known=saved)
    assert len(oracle.asked) <= 1 + math.ceil(math.log2(len(FRACTIONS)))
    reached = [f for f in FRACTIONS if curve[f] >= target]
    if best(found) is None:
        assert curve[1.0] < target
        return
    least = best(found)[1]
    assert least in reached, "the answer reaches the target whatever the curve's form"
    below = [t for t in found.path if t.fraction < least]
    assert not any(t.reached for t in below)
    assert all(t.accuracy == curve[t.fraction] for t in found.path)
    if monotone:
        assert least == min(reached)
        assert not found.dips
    elif least != FRACTIONS[0]:
        assert FRACTIONS[FRACTIONS.index(least) - 1] in [t.fraction for t in below]


def test_a_fall_with_more_data_is_named() -> None:
    curve = {0.05: 10.0, 0.1: 20.0, 0.2: 30.0, 0.4: 45.0, 0.6: 40.0, 0.8: 41.0, 1.0: 42.0}
    found = search(("m",), FRACTIONS, 30.0, Oracle(lambda _, f: curve[f]))
    assert best(found) == ("m", 0.2)
    assert [t.fraction for t in found.path] == [1.0, 0.4, 0.1, 0.2]
    assert found.dips == [Dip("m", 0.4, 1.0, 3.0)]


def test_models_that_do_not_grow() -> None:
    """A larger model that is worse: the smallest that does is found all the same."""
    found = search(MODELS, FRACTIONS, 50, Oracle(lambda m, _: {"base": 60.0}.get(m, 10.0)))
    assert best(found) == ("base", 0.05)
    with pytest.raises(ZeroDivisionError):
        search(MODELS, FRACTIONS, 50, lambda *_: 1 / 0)
