"""The value of an equation that a student or a teacher wrote. Standard library only.

Text from a model is never executed. The grammar below is all there is, so names, calls, commas
and other words simply have no value:

    answer  := sum ("and" sum)*
    sum     := product (("+" | "-") product)*
    product := signed (("*" | "/") signed)*
    signed  := ("+" | "-")* power
    power   := atom ["**" signed]
    atom    := number | "(" answer ")"
    number  := digits ["." [digits]] | "." digits

Precedence is Python's, because the released code scores with Python's own arithmetic: `**` binds
tighter than a sign on its left and groups to the right. For the same reason there is `and`:
PaLM wrote it in 5 of the 1,000 released SVAMP labels, as in `(34 + 40) and (62 - 17)`, Python takes
the last part (or the first that is 0), and so two of them count as right; the teacher's 73.50 %
on train has them in it (without: 73.25 %). `^` is left out: Python reads it as exclusive or, a
writer means a power, and no released completion holds either.
"""

import math
import operator
import re
from collections.abc import Collection

MAX_CHARACTERS = 500
"""Longer text has no value. The longest SVAMP label, gold or PaLM's, has 46 characters."""

MAX_DEPTH = 50
"""Parentheses and powers open at one place. Keeps the parser far from Python's recursion
limit; SVAMP's labels nest 2 deep at most."""

_TOKEN = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+|and\b|\*\*|[-+*/()]")
_SPACE = re.compile(r"[ \t\r\n]+")

_LEVELS = (
    {"and": lambda left, right: right if left else left},
    {"+": operator.add, "-": operator.sub},
    {"*": operator.mul, "/": operator.truediv},
)
"""`answer`, `sum` and `product` of the grammar: operators that group to the left, loosest first."""


class _NoValueError(Exception):
    """The text is not arithmetic, or its value is not a finite real number."""


def evaluate(text: str) -> float | None:
    """Value of `text` as arithmetic on real numbers, finite.

    Numbers become 64-bit floats before anything is computed, so that no power can take long or need
    much memory; time is linear in the length of the text, which is capped. None where the text is
    not arithmetic from end to end, is longer than `MAX_CHARACTERS`, is nested deeper than
    `MAX_DEPTH`, divides by zero, or leaves the finite real numbers (overflow, root of a negative
    number). Never raises on a string.
    """
    tokens = _TOKEN.findall(text[: MAX_CHARACTERS + 1])
    if len(text) > MAX_CHARACTERS or "".join(tokens) != _SPACE.sub("", text):
        return None
    parser = _Parser(tokens)
    try:
        value = parser.binary()
    except (_NoValueError, ZeroDivisionError, OverflowError):
        return None
    return None if parser.left else value


class _Parser:
    """Recursive descent over tokens."""

    def __init__(self, tokens: list[str]) -> None:
        self.left = tokens[::-1]  # The next one is the last.
        self._depth = 0

    def _take(self, wanted: Collection[str]) -> str | None:
        """The next token, consumed, where it is one of `wanted`."""
        return self.left.pop() if self.left and self.left[-1] in wanted else None

    def binary(self, level: int = 0) -> float:
        if level == len(_LEVELS):
            return self._signed()
        value = self.binary(level + 1)
        while sign := self._take(_LEVELS[level]):
            value = _real(_LEVELS[level][sign](value, self.binary(level + 1)))
        return value

    def _signed(self) -> float:
        sign = 1.0
        while taken := self._take("+-"):
            sign = -sign if taken == "-" else sign
        return sign * self._power()

    def _power(self) -> float:
        # Every path that nests passes here, so this is the one place that counts depth.
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _NoValueError
        value = self._atom()
        if self._take(["**"]):
            value = _real(value ** self._signed())
        self._depth -= 1
        return value

    def _atom(self) -> float:
        if self._take("("):
            value = self.binary()
            if not self._take(")"):
                raise _NoValueError
            return value
        if not self.left or self.left[-1][0] not in ".0123456789":
            raise _NoValueError
        return _real(float(self.left.pop()))


def _real(value: float | complex) -> float:
    """`value` where it is a finite real number; a negative base gives Python a complex one."""
    if isinstance(value, complex) or not math.isfinite(value):
        raise _NoValueError
    return value
