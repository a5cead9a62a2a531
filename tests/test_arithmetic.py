"""The arithmetic evaluator: values, refusals, and that no string makes it raise."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dss_jax.core.arithmetic import MAX_CHARACTERS, MAX_DEPTH, evaluate


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("( 84.0 / 2.0 )", 42),
        ("(10 * 45)", 450),
        ("( ( 17.0 + 15.0 ) + 2.0 )", 34),
        ("(45 - (-1))", 46),
        ("7", 7),
        (" 7.\n", 7),
        (".5 + 1.25", 1.75),
        ("007", 7),
        ("2 + 3 * 4", 14),
        ("10 - 4 - 3", 3),
        ("24 / 4 / 3", 2),
        ("- 3 + 5", 2),
        ("+3", 3),
        ("2 - -3", 5),
        ("--- 2", -2),
        ("2 ** 3", 8),
        ("2 ** 3 ** 2", 512),
        ("-2 ** 2", -4),
        ("2 ** -1", 0.5),
        ("(34 + 40) and (62 - 17)", 45),
        ("((29/2) and (30/2))", 15),
        ("0 and 5", 0),
    ],
)
def test_value(text: str, value: float) -> None:
    assert evaluate(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "42 marbles",
        "(2 * x)",
        "(some - 8)",
        "(some bags + 4 bags)",
        "(7x = 14)",
        "(175, 5)",
        "11,210",
        "1_000",
        "1e3",
        "0x10",
        "1.2.3",
        "1 2",
        "2 (3)",
        "(2) (3)",
        "(1 + 2",
        "1 + 2)",
        ")1(",
        "()",
        "1 +",
        "* 2",
        "1 // 2",
        "7 % 2",
        "2 ^ 3",
        "3 and",
        "and 3",
        "3 android 4",
        "3 and4",
        "3 or 4",
        "1 / 0",
        "1 / (2 - 2)",
        "0 ** -1",
        "(-8) ** (1 / 3)",
        "9 ** 9 ** 9",
        "9 ** 9 ** 9 ** 9",
        "10 ** 308 * 10",
        "9" * 400,
        "inf",
        "nan",
        "(9)" * 2,
        "٣ + ٤",  # Arabic-Indic digits, which str.isdigit takes
        "1٣",
        "²",
        "1\u00a0+ 1",  # no-break space
        "__import__('os').system('true')",
        "().__class__",
        "[1]",
        "1 if 1 else 2",
        "lambda: 1",
        "True",
    ],
)
def test_no_value(text: str) -> None:
    assert evaluate(text) is None


def test_length_is_capped() -> None:
    longest = "1" + "+1" * ((MAX_CHARACTERS - 1) // 2)
    assert evaluate(longest) == (MAX_CHARACTERS + 1) // 2
    assert evaluate("+1" * MAX_CHARACTERS) is None


@pytest.mark.parametrize(
    "nested",
    [
        lambda depth: "(" * (depth - 1) + "1" + ")" * (depth - 1),
        lambda depth: "**".join(["1"] * depth),
    ],
)
def test_depth_is_capped(nested) -> None:
    assert evaluate(nested(MAX_DEPTH)) == 1
    assert evaluate(nested(MAX_DEPTH + 1)) is None


def test_depth_is_of_one_place_not_of_the_whole_text() -> None:
    assert evaluate("+".join(["((1))"] * 80)) == 80


def test_hostile_text_takes_no_time() -> None:
    hostile = ["(" * 500, "-" * 500, "9**" * 166 + "9", "1" * 500, "((((1)+1)+1)" * 40, "(" * 10**6]
    start = time.perf_counter()
    for text in hostile:
        evaluate(text)
    assert time.perf_counter() - start < 0.5


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=600) | st.text("0123456789.+-*/() and", max_size=600))
def test_never_raises(text: str) -> None:
    value = evaluate(text)
    assert value is None or isinstance(value, float)


_expressions = st.recursive(
    st.integers(0, 99).map(lambda n: (str(n), float(n))),
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(
        lambda t: (
            f"( {t[0][0]} {t[1]} {t[2][0]} )",
            {"+": t[0][1] + t[2][1], "-": t[0][1] - t[2][1], "*": t[0][1] * t[2][1]}[t[1]],
        )
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(_expressions)
def test_agrees_with_arithmetic_done_alongside(case: tuple[str, float]) -> None:
    text, value = case
    assert evaluate(text) == value
