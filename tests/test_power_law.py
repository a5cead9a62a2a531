"""Power laws of learning curves: constructed curves, values by hand, and SciPy's `curve_fit`."""

import numpy as np
import pytest
from scipy import optimize

from dss_jax.evaluate import power_law
from dss_jax.evaluate.power_law import learning_curve, reached

SIZES = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)


def accuracies(a: float, b: float, c: float, shares: tuple[float, ...] = SIZES) -> dict:
    return {share: [100 - a * share**-b - c] for share in shares}


def noisy(seed: int, a: float, b: float, c: float, seeds: int = 5) -> dict:
    rng = np.random.default_rng(seed)
    return {
        s: [x + rng.normal(0, 1) for _ in range(seeds)] for s, [x] in accuracies(a, b, c).items()
    }


@pytest.mark.parametrize("law", [(8, 0.5, 12), (20, 0.35, 0), (3, 1.2, 30), (25, 0.05, 5)])
def test_a_constructed_curve_gives_its_law(law: tuple[float, float, float]) -> None:
    found = learning_curve(accuracies(*law))
    assert found is not None
    assert (found.a[0], found.b[0], found.c[0]) == pytest.approx(law, rel=1e-3, abs=2e-3)
    assert found.rest < 1e-3


def test_four_sizes_have_a_law_by_hand() -> None:
    # The error halves with each doubling of the data: 5 / share.
    found = learning_curve({1 / 8: [60.0], 1 / 4: [80.0], 1 / 2: [90.0], 1.0: [95.0]})
    assert found is not None
    assert (found.a[0], found.b[0], found.c[0]) == pytest.approx((5, 1, 0), abs=1e-6)
    # Error 10 is at half of the data, 2.5 at twice as much; 0.4 beyond what counts.
    for target, share in ((90.0, 0.5), (97.5, 2.0), (99.6, None)):
        at = reached(found, [target])
        assert at.share == (None if share is None else pytest.approx(share))
        assert at[1:] == (None, None, float(share is None), False), "one seed tells no interval"
    assert learning_curve({1 / 4: [80.0], 1 / 2: [90.0], 1.0: [95.0]}) is None


def test_below_the_smallest_size_that_was_run_it_says_no_more() -> None:
    found = learning_curve({1 / 8: [60.0], 1 / 4: [80.0], 1 / 2: [90.0], 1.0: [95.0]})
    assert found is not None
    assert reached(found, [50.0])[:1] + reached(found, [50.0])[-1:] == (1 / 8, True)
    assert not reached(found, [61.0]).at_least


def test_the_target_is_drawn_apart_from_the_curve() -> None:
    # All sizes and the target of the same seeds: the same draws would go up and down together.
    rng = np.random.default_rng(3)
    curve = {s: (x + rng.normal(0, 1, 5)).tolist() for s, [x] in accuracies(5, 1, 0).items()}
    found = learning_curve(curve)
    assert found is not None
    first = np.random.default_rng(0).integers(5, size=(power_law.RESAMPLES, 5))
    own = np.random.default_rng([0, 1]).integers(5, size=(power_law.RESAMPLES, 5))
    target = np.array(curve[0.4])
    for at, same in ((first, False), (own, True)):
        goals = np.concatenate([[target.mean()], target[at].mean(axis=1)])
        shares = np.maximum(found.shares(100 - goals), found.least)[1:]
        low = pytest.approx(np.nanquantile(shares, 0.025), rel=1e-9)
        assert (reached(found, target.tolist()).low == low) == same


def test_the_error_never_falls_below_c() -> None:
    found = learning_curve(accuracies(8, 0.5, 12))
    assert found is not None
    assert reached(found, [89.0]).share is None
    # a * share ** -0.5 = 16 at a quarter.
    assert reached(found, [72.0]).share == pytest.approx(0.25, rel=1e-3)
    assert found.errors(np.array([0.25, 1.0]))[0] == pytest.approx([28.0, 20.0], abs=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_least_squares_are_scipys(seed: int) -> None:
    curve = noisy(seed, 8, 0.5, 12)
    found = learning_curve(curve)
    assert found is not None
    shares = np.array([*curve])
    errors = 100 - np.array([np.mean(v) for v in curve.values()])
    (a, b, c), _ = optimize.curve_fit(
        lambda x, a, b, c: a * x**-b + c,
        shares,
        errors,
        p0=(8, 0.5, 12),
        bounds=(0, [100, 10, 100]),
        ftol=1e-12,
        xtol=1e-12,
        gtol=1e-12,
    )
    assert found.errors(shares)[0] == pytest.approx(a * shares**-b + c, abs=0.01)
    rest = ((a * shares**-b + c - errors) ** 2).mean() ** 0.5
    assert found.rest <= rest + 1e-6


def test_a_and_c_are_never_below_nought() -> None:
    rising = {share: [60.0 - 20 * share] for share in SIZES}
    found = learning_curve(rising)
    assert found is not None
    mean = np.mean([100 - v[0] for v in rising.values()])
    assert (found.a[0], found.c[0]) == (0, pytest.approx(mean))
    # In a straight line of logarithms, which bends down more than any law with c above 0.
    bent = {share: [100 + 10 * np.log(share / 3)] for share in SIZES}
    found = learning_curve(bent)
    assert found is not None
    assert found.c[0] == 0
    assert found.a[0] > 0
    perfect = learning_curve({share: [100.0, 100.0] for share in SIZES})
    assert perfect is not None
    assert not perfect.errors(np.array(SIZES)).any()


def test_intervals_hold_the_truth_nearly_as_often_as_they_say() -> None:
    """Of few seeds a bootstrap's intervals are too narrow."""
    held = []
    for seed in range(40):
        found = learning_curve(noisy(seed, 8, 0.5, 12))
        assert found is not None
        assert len(found.a) == 1 + power_law.RESAMPLES
        target = np.random.default_rng(100 + seed).normal(75, 1, 5)  # Reached at (8 / 13) ** 2.
        at = reached(found, target.tolist())
        assert at.low is not None
        assert at.high is not None
        assert at.share is not None
        assert at.low <= at.share <= at.high
        held.append(at.low <= (8 / 13) ** 2 <= at.high)
    assert 0.7 <= np.mean(held) < 1


def test_the_same_runs_give_the_same_law() -> None:
    one, other = (learning_curve(noisy(1, 8, 0.5, 12)) for _ in range(2))
    assert one is not None
    assert other is not None
    for x, y in zip(one, other, strict=True):
        np.testing.assert_array_equal(x, y)
    assert reached(one, [70.0, 71.0]) == reached(other, [70.0, 71.0])


def test_what_resamples_do_not_reach_is_counted() -> None:
    found = learning_curve(noisy(2, 8, 0.5, 12))
    assert found is not None
    near = reached(found, [85.0])  # Near the floor of 12, beyond all the data.
    assert 0 < near.never < 1
    never = reached(found, [99.0])
    assert never == (None, None, None, 1.0, False)
