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
import re

MAX_CHARACTERS = 500
"""Longer text has no value. The longest SVAMP label, gold or PaLM's, has 46 characters."""

MAX_DEPTH = 50
"""Parentheses and powers open at one place. Keeps the parser far from Python's recursion
limit; SVAMP's labels nest 2 deep at most."""

_TOKEN = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+|and\b|\*\*|[-+*/()]")
_SPACE = " \t\r\n"


class _NoValueError(Exception):
    """The text is not arithmetic, or its value is not a finite real number."""


def evaluate(text: str) -> float | None:
    """Value of `text` as arithmetic on real numbers.

    Numbers become 64-bit floats before anything is computed, so that no power can take long or
    need much memory; time is linear in the length of the text, which is capped.

    Args:
      text: any string, for example "( ( 17.0 + 15.0 ) + 2.0 )".

    Returns:
      The value, finite. None where the text is not arithmetic from end to end, is longer than
      `MAX_CHARACTERS`, is nested deeper than `MAX_DEPTH`, divides by zero, or leaves the finite
      real numbers (overflow, root of a negative number). Never raises on a string.
    """
    if len(text) > MAX_CHARACTERS:
        return None
    try:
        return _Parser(_tokens(text)).parse()
    except (_NoValueError, ZeroDivisionError, OverflowError):
        return None


def _tokens(text: str) -> list[str]:
    tokens = []
    position = 0
    while position < len(text):
        if text[position] in _SPACE:
            position += 1
            continue
        match = _TOKEN.match(text, position)
        if match is None:
            raise _NoValueError
        tokens.append(match.group())
        position = match.end()
    return tokens


class _Parser:
    """Recursive descent over tokens; one method a line of the grammar."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._next = 0
        self._depth = 0

    def parse(self) -> float:
        value = self._answer()
        if self._next != len(self._tokens):
            raise _NoValueError
        return value

    def _take(self, *wanted: str) -> str | None:
        """The next token, consumed, where it is one of `wanted`."""
        if self._next < len(self._tokens) and self._tokens[self._next] in wanted:
            self._next += 1
            return self._tokens[self._next - 1]
        return None

    def _answer(self) -> float:
        value = self._sum()
        while self._take("and"):
            right = self._sum()
            value = right if value else value
        return value

    def _sum(self) -> float:
        value = self._product()
        while operator := self._take("+", "-"):
            right = self._product()
            value = _real(value + right if operator == "+" else value - right)
        return value

    def _product(self) -> float:
        value = self._signed()
        while operator := self._take("*", "/"):
            right = self._signed()
            value = _real(value * right if operator == "*" else value / right)
        return value

    def _signed(self) -> float:
        sign = 1.0
        while operator := self._take("+", "-"):
            sign = -sign if operator == "-" else sign
        return sign * self._power()

    def _power(self) -> float:
        # Every path that nests passes here, so this is the one place that counts depth.
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _NoValueError
        value = self._atom()
        if self._take("**"):
            value = _real(value ** self._signed())
        self._depth -= 1
        return value

    def _atom(self) -> float:
        if self._take("("):
            value = self._answer()
            if not self._take(")"):
                raise _NoValueError
            return value
        if self._next == len(self._tokens):
            raise _NoValueError
        token = self._tokens[self._next]
        if token[0] not in ".0123456789":
            raise _NoValueError
        self._next += 1
        return _real(float(token))


def _real(value: float | complex) -> float:
    """`value` where it is a finite real number; a negative base gives Python a complex one."""
    if isinstance(value, complex) or not math.isfinite(value):
        raise _NoValueError
    return value
