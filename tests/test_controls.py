"""Spoiled rationales: what each keeps, and what it takes away."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import entropy

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.ids import RATIONALE
from dss_jax.core.method_config import CONTROLS
from dss_jax.data.controls import _telling, controlled
from dss_jax.data.ragged import Ragged
from dss_jax.data.views import examples_of

END = 1
INPUTS = [[7, 8, 20, 21], [7, 8, 22], [7, 8, 20, 23, 24], [7, 8, 25], [7, 8, 26], [7, 8, 27]]
LABELS = [[40], [41, 42], [40], [41, 42], [40], [43]]
RATIONALES = [[50, 51, 52, 53, 54], [60, 61, 50], [70, 71, 72, 50], [80, 50], [], [90, 91, 92]]


def column(rows: list[list[int]]) -> Ragged:
    ended = [[*row, END] if row else [] for row in rows]
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in ended])])
    return Ragged(np.array([t for r in ended for t in r], np.uint16), offsets)


def made(control: str, seed: int = 0, tokens: int = 2) -> list[list[int]]:
    method = config.Method(control=control, control_tokens=tokens)
    found = controlled(method, seed, column(INPUTS), column(LABELS), column(RATIONALES))
    rows = [found[i].tolist() for i in range(len(found))]
    assert all(row[-1] == END for row in rows if row), "each ends"
    assert rows[4] == [], "a row without a rationale stays without"
    return [row[:-1] for row in rows]


@pytest.mark.parametrize("control", [c for c in CONTROLS if c not in ("none", "truncated")])
def test_each_is_a_function_of_the_seed_and_the_row(control: str) -> None:
    assert made(control, 3) == made(control, 3)
    drawn = control in ("shuffled", "other", "random")
    assert (len({str(made(control, seed)) for seed in range(8)}) > 1) == drawn


def test_shuffled_keeps_the_tokens_of_each_row() -> None:
    found = made("shuffled")
    assert [Counter(row) for row in found] == [Counter(row) for row in RATIONALES]
    assert found != RATIONALES


def test_other_rows() -> None:
    for seed in range(8):
        found = made("other", seed)
        assert sorted(found) == sorted(RATIONALES), "each is used once"
        assert not any(f and f == r for f, r in zip(found, RATIONALES, strict=True)), "nobody's own"


def test_other_rows_of_the_same_label() -> None:
    a, b, c, d, _, _ = RATIONALES
    # The last row's label is nobody else's.
    assert made("same_label") == [c, d, a, b, [], []]


def test_truncated() -> None:
    assert made("truncated") == [r[:2] for r in RATIONALES]
    assert made("truncated", tokens=9) == RATIONALES


def test_telling_keeps_the_most_telling_in_their_order() -> None:
    """50 is in rationales of two labels; of tokens that are in one alone the first are kept."""
    assert made("telling") == [[51, 52], [60, 61], [70, 71], [80, 50], [], [90, 91]]
    assert made("telling", tokens=9) == RATIONALES


def test_what_a_token_tells_adds_up_to_scipys_divergence() -> None:
    values, labels = np.array([1, 1, 2, 2, 3, 2]), np.array([0, 0, 0, 1, 1, 1])
    found = _telling(values, labels)
    everywhere = np.bincount(values)[1:] / 6
    for label in (0, 1):
        own, at = np.unique(values[labels == label], return_index=True)
        given = np.array([(values[labels == label] == t).mean() for t in (1, 2, 3)])
        assert found[labels == label][at].sum() == pytest.approx(entropy(given, everywhere))
        assert len(own) == 2


def test_the_input_without_its_prefix_and_the_label() -> None:
    kept = [bool(r) for r in RATIONALES]
    assert made("input") == [i[2:] if k else [] for i, k in zip(INPUTS, kept, strict=True)]
    assert made("label") == [x if k else [] for x, k in zip(LABELS, kept, strict=True)]


def test_an_input_of_two_parts_is_one_target() -> None:
    """NLI's has an end-of-sequence after each, at which decoding would stop."""
    parts = [[7, 8, 20, END, 21], [7, 8, 22, END, 23], [7, 8, END, 24], *INPUTS[3:]]
    method = config.Method(control="input")
    found = controlled(method, 0, column(parts), column(LABELS), column(RATIONALES))
    assert [found[i].tolist() for i in range(3)] == [[20, 21, END], [22, 23, END], [24, END]]


def test_random_tokens_are_as_many_and_from_all_rationales() -> None:
    found = made("random")
    assert [len(row) for row in found] == [len(row) for row in RATIONALES]
    assert {t for r in found for t in r} <= {t for r in RATIONALES for t in r}


def test_what_a_tokenizer_puts_before_each_text_stays_there() -> None:
    begun = [[[99, *row] if row else [] for row in rows] for rows in (INPUTS, LABELS, RATIONALES)]
    columns = [column(rows) for rows in begun]
    for control in CONTROLS[1:]:
        method = config.Method(control=control, control_tokens=2)
        plain, found = made(control), controlled(method, 0, *columns, begin=1)
        rows = [found[i].tolist() for i in range(len(found))]
        assert rows == [[99, *row, END] if row else [] for row in plain], control


def test_a_methods_view_has_the_spoiled_rationales(toy_store) -> None:
    split, data = toy_store.split("train"), config.Data(seed=2)
    rows = np.arange(len(split))

    def targets(control: str) -> tuple[np.ndarray, np.ndarray]:
        examples = examples_of(split, data, config.Method(control=control))
        return examples.targets(rows), examples.lengths(rows)[1]

    plain, lengths = targets("none")
    shuffled, same_lengths = targets("shuffled")
    np.testing.assert_array_equal(lengths, same_lengths)
    labels = lengths[0].sum()
    np.testing.assert_array_equal(plain[:labels], shuffled[:labels])
    assert (plain[labels:] != shuffled[labels:]).any()
    np.testing.assert_array_equal(np.sort(plain), np.sort(shuffled))
    assert RATIONALE in examples_of(split, data, config.Method(control="label")).roles


def test_a_control_needs_rationales() -> None:
    with pytest.raises(UsageError, match=r'Method\.control = "shuffled" is for methods that learn'):
        config.Method(rationale=False, control="shuffled")
    with pytest.raises(UsageError, match="for methods that learn"):
        config.Method(rationale=False, form="rationale_input", control="shuffled")
    with pytest.raises(UsageError, match=r'or Method\.rationales to "first"'):
        replace(config.Method(control="other"), rationales="drawn")
