"""The two scorers, and the teacher accuracy of SVAMP that they must give."""

import json
import re
from pathlib import Path

import pytest

from dss_jax.core.scoring import EQUATION_ACCURACY, TEXT_ACCURACY

SVAMP = Path(__file__).resolve().parents[2] / "shared/data/release/svamp"


@pytest.mark.parametrize(
    ("target", "prediction", "right"),
    [
        ("populated areas", "populated areas", True),
        ("populated areas", "  populated \n areas ", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("\uff21\u00a0b", "A b", True),  # full-width letter, no-break space
        ("\ufb01sh", "fish", True),  # ligature
        ("neutral", "Neutral", False),
        ("entailment", "entail", False),
        ("race track", "racetrack", False),
        ("yes", "", False),
        ("yes.", "yes", False),
    ],
)
def test_text(target: str, prediction: str, right: bool) -> None:
    assert TEXT_ACCURACY.correct(target, prediction) is right


@pytest.mark.parametrize(
    ("target", "prediction", "right"),
    [
        ("( 84.0 / 2.0 )", "(84 / 2)", True),
        ("( 84.0 / 2.0 )", "42", True),
        ("( 84.0 / 2.0 )", "( 21 + 21 )", True),
        ("( 1.0 / 3.0 )", "( 2.0 / 6.0 )", True),
        ("( ( 0.1 + 0.2 ) - 0.3 )", "0", True),  # differ in the 17th digit only
        ("( 2.0 / 3.0 )", "0.667", False),
        ("( 5.0 - 3.0 )", "( 3.0 - 5.0 )", False),
        ("( 7.0 * 30.0 )", "( 7.0 * 30.0", False),
        ("( 7.0 * 30.0 )", "", False),
        ("( 7.0 * 30.0 )", "210 crayons", False),
        ("( 7.0 * 30.0 )", "1 / 0", False),
        ("x", "x", False),
        ("", "", False),
        ("1 / 0", "1 / 0", False),
    ],
)
def test_equation(target: str, prediction: str, right: bool) -> None:
    assert EQUATION_ACCURACY.correct(target, prediction) is right


def test_form_is_that_of_a_seqio_metric() -> None:
    assert TEXT_ACCURACY(["a", "b", "c", "d"], ["a", "b", "c", "x"]) == {"text_accuracy": 75.0}
    assert EQUATION_ACCURACY(["1", "2"], ["1", "3"]) == {"equation_accuracy": 50.0}
    assert EQUATION_ACCURACY.__name__ == "equation_accuracy"


@pytest.mark.parametrize(("split", "accuracy"), [("train", 73.5), ("test", 74.0)])
@pytest.mark.skipif(not SVAMP.is_dir(), reason="needs ../shared/data/release/svamp")
def test_accuracy_of_palm_on_svamp(split: str, accuracy: float) -> None:
    """METHOD.md's figures, with the parse rule written out once more, in the shortest form."""
    rows = (SVAMP / f"svamp_{split}.json").read_text().splitlines()
    labels = [json.loads(row)["label"] for row in rows]
    completions: list[str] = []
    for file in sorted((SVAMP / "llm").glob(f"{split}_CoT_*.json")):
        completions += json.loads(file.read_text())
    found = [re.search(r"The answer is.*?(\(.*\))", c.split("Q:")[0]) for c in completions]
    answers = [match.group(1) if match else "" for match in found]
    assert EQUATION_ACCURACY(labels, answers) == {"equation_accuracy": accuracy}
    assert answers.count("") == {"train": 13, "test": 2}[split]
