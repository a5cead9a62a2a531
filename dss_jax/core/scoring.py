"""The two rules by which a predicted label is right, and labels' shares of what a student gives all
of them. Standard library only.
"""

import math
import unicodedata
from collections.abc import Mapping

from dss_jax.core.arithmetic import evaluate
from dss_jax.core.types import Scorer

RELATIVE_TOLERANCE = 1e-9
"""Of the larger value. Only forgives the rounding of 64-bit floats: 2 / 3 is not 0.667."""

ABSOLUTE_TOLERANCE = 1e-9
"""Near zero, where a relative tolerance forgives nothing."""

_OTHER_CHARACTERS = ("<super>", "<sub>", "<fraction>", "<circle>")
"""Unicode's folds that say something else: 5² would be 52, and 3½ 31/2."""


def same_text(target: str, prediction: str) -> bool:
    """Whether two labels are the same text: in the same `normal_text`, so that full-width letters,
    ligatures, no-break and doubled spaces count as the plain ones. Case and punctuation count.
    """
    return normal_text(target) == normal_text(prediction)


def same_value(target: str, prediction: str) -> bool:
    """Whether two equations have the same number as value, as SVAMP is scored.

    A side without a value (see `dss_jax.core.arithmetic.evaluate`) is just wrong, also where both
    sides are the same text. `( 84.0 / 2.0 )` equals `(84 / 2)` and `42`.
    """
    wanted, got = evaluate(target), evaluate(prediction)
    if wanted is None or got is None:
        return False
    return math.isclose(wanted, got, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE)


def normal_text(text: str) -> str:
    """The text in Unicode NFKC, each run of white space as one space, none at its ends.

    Superscripts, subscripts, fractions and numbers in circles stay what they are.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", "".join(map(_folded, text)))
    return " ".join(text.split())


def folded_text(text: str) -> str:
    """The text under which two are the same to most readers: `normal_text`, case folded."""
    return normal_text(text).casefold()


def _folded(character: str) -> str:
    if unicodedata.decomposition(character).startswith(_OTHER_CHARACTERS):
        return character
    return unicodedata.normalize("NFKD", character)


TEXT_ACCURACY = Scorer(name="text_accuracy", correct=same_text)
EQUATION_ACCURACY = Scorer(name="equation_accuracy", correct=same_value)


def label_shares(log_probs: Mapping[str, float]) -> dict[str, float]:
    """Label -> its probability among these; they add up to 1. Not all are -inf; {} gives {}."""
    best = max(log_probs.values(), default=0.0)
    odds = {label: math.exp(x - best) for label, x in log_probs.items()}
    total = sum(odds.values())
    return {label: x / total for label, x in odds.items()}
