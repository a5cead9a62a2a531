"""Which label an answer names: the one allowed label and no other, or a value; never a part of it.

An answer is read whole. Only what a sentence's end, or a word such as "because", parts from it is
not of the answer, and that may not name another label.
"""

import functools
import re
from collections.abc import Callable, Iterator

from dss_jax.core.arithmetic import evaluate
from dss_jax.core.prompt import Prompt
from dss_jax.core.scoring import folded_text, same_value
from dss_jax.core.types import Example
from dss_jax.core.words import places, word_in
from dss_jax.teacher.prompting import outputs, written

LONGEST = 500  # Characters of an answer that are looked at.
FREE_WORDS = 5  # Of a label where any text is one; more where the exemplars' have more.

WRAPPING = " \t\r\n\"'\u201c\u201d\u2018\u2019*_`:#"
"""What may stand around an answer: quotes, curly ones too, and Markdown."""

# In labels and answers alike: quotes, dashes, and what Unicode's folding would make a number.
_SPELLINGS = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc\u00b4`", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb", '"')
    | {"\u00b9": "^1", "\u00b2": "^2", "\u00b3": "^3"}
    | {"\u00bc": " 1/4", "\u00bd": " 1/2", "\u00be": " 3/4"}
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-")
)
# An allowed label as a teacher writes it, where its letter is an answer too: "(c) sea".
_LETTERED = re.compile(r"(?s)\(([a-z])\)\s*(.*)")
# Of a text without case: "(c) sea", "(c)", "c) sea", "c. sea", "c: sea", "option c", "c".
_LETTER_ANSWER = re.compile(
    r"(?s)(?:(?:the )?(?:option|choice|letter|answer) )?"
    r"(?:(?:\(([a-z])\)?|([a-z])(?:\)|[.:](?=\s)|(?= - )))\s*(.*)|([a-z]))"
)
_ADVERB = re.compile(r"(?:therefore|thus|hence|then|clearly|simply|indeed|thereby),?\s+", re.I)
_OR = re.compile(r"\W*or\b", re.IGNORECASE)
_OTHER_LETTER = re.compile(r"\(([a-z])\)")

# Where something else than the answer may begin; after a value no comma before more numbers.
_REASON = r"\s+(?=(?:because|since|as|due to|given|which)\b)|\s+(?=\((?:[a-z]{2}|\d+\s*[-+*/=]))"
_BREAKS = re.compile(rf"[.,;:!](?=\s)|{_REASON}|\s+(?=[-\u2013\u2014]\s)", re.IGNORECASE)
_VALUE_BREAKS = re.compile(rf"[.!](?=\s)|[,;](?=\s[^.\d]*(?:\.\s|\.?$))|{_REASON}", re.IGNORECASE)
_TEXT_BREAKS = re.compile(r"(?<=[a-z0-9)])[.!](?=\s+[A-Z])|,?\s+(?=(?:because|since|due to)\b)")

_MATH_NAMES = {r"\times": "*", r"\cdot": "*", r"\div": "/", r"\left": "", r"\right": ""}
_MATH_SIGNS = {"\u00d7": "*", "\u2217": "*", "\u22c5": "*", "\u00f7": "/", "\u2215": "/"}
_MATH_SIGNS |= {"\u2044": "/", "\u2212": "-"} | dict.fromkeys("\u2248\u2245", "=")
_SIGNS = str.maketrans(_MATH_SIGNS)
_BRACED = re.compile(r"\\(?:boxed|fbox|text(?:bf|it|rm)?|math(?:rm|bf)|mbox)\s*\{([^{}]*)\}")
_BOXED = re.compile(rf"\$*\s*{_BRACED.pattern}\s*\$*")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
# A value, and what it is of: words, a rate, an area; one letter alone may be a thousand.
_WORD = r"(?:[a-z]{2}[a-z'\u2019-]*|[mgl](?=[/^\u00b2\u00b3]))(?:\^?[23]|[\u00b2\u00b3])?"
_UNIT = re.compile(
    rf"(?s)(.*[\d)])(\s*(?:%|\u00b0(?:\s*[cf]\b)?|{_WORD}|\([a-z ]{{2,}}\))"
    rf"(?:[ /.]+{_WORD}|/[a-z])*\.?)",
    re.IGNORECASE,
)
_CURRENCY = re.compile(
    r"(?:\b(?:US|AU|CA|NZ|HK|[ACS]))?[$\u20ac\u00a3\u00a5\u20b9]"
    r"|\b(?:USD|EUR|GBP|JPY|CNY|INR|CHF|CAD|AUD|NZD|HKD|SGD|KRW|BRL|MXN|ZAR|SEK|NOK|DKK|Rs\.?)(?=\s*\d)"
)
# Words after a number that make another of it.
_NO_UNIT = re.compile(
    r"(?<![a-z])(?:or|and|not|plus|minus|times|over|by|divided|less|than|half|quarters?|thirds?"
    r"|dozens?|hundreds?|thousands?|lakhs?|crores?|(?:m|b|tr)illions?|bn|mn|squared|cubed"
    r"|factorial)(?![a-z])",
    re.IGNORECASE,
)


class Labels:
    """The labels that answers about one row may name.

    Where the row allows all, they are any text that the prompt finds valid.
    """

    def __init__(self, example: Example, prompt: Prompt) -> None:
        self.prompt, self.allowed, self._example = prompt, example.allowed_labels, example
        free = _TEXT_BREAKS if prompt.valid is bool else _VALUE_BREAKS
        self._breaks = _BREAKS if self.allowed else free

    @functools.cached_property
    def _plain(self) -> dict[str, str]:
        return {label: plain(label) for label in self.allowed}

    @functools.cached_property
    def _letters(self) -> dict[str, tuple[str, str]]:
        """Label -> its letter and its words, as they are compared; of choices that have letters."""
        return {
            label: (match.group(1), plain(match.group(2)))
            for label, output in outputs(self.prompt, self._example).items()
            if (match := _LETTERED.fullmatch(output.casefold()))
        }

    def label_in(self, line: str) -> tuple[str, str]:
        """The label that an answer's line names, and what stands in it after that.

        Both "" where it names none, or where letter and text contradict each other.
        """
        line = line[:LONGEST].strip()
        if adverb := _ADVERB.match(line):
            line = line[adverb.end() :]
        for head, rest in self._heads(line):
            if label := self.normalised(head):
                doubt = rest and (self._begins_another(rest, label) or _OR.match(rest))
                return ("", "") if doubt else (label, rest)
        return "", ""

    def normalised(self, text: str) -> str:
        """The one label that an answer names; "" for none, for two, or for a contradiction.

        Case, quotes, Markdown and a full stop are as a teacher likes. A value is taken as an
        equation has it, without currency and unit.
        """
        if not self.allowed:
            return self._free(text)
        exact = text.strip()
        # Most answers are one of these as they stand.
        if exact in self.allowed:
            return exact
        for label in self.allowed:
            if label in exact and written(self.prompt, self._example, label) == exact.rstrip("."):
                return label
        answer = plain(text)
        named = {label for label, known in self._plain.items() if known == answer}
        if self._letters and (match := _LETTER_ANSWER.fullmatch(answer)):
            letter = match.group(1) or match.group(2) or match.group(4)
            words = plain((match.group(3) or "").lstrip("- "))
            by_letter = {label for label, (known, _) in self._letters.items() if known == letter}
            by_words = {label for label, (_, known) in self._letters.items() if known == words}
            # A row may have one text twice. Its second letter is then no label's, and contradicts
            # none.
            named |= by_letter & by_words if words and by_letter else by_letter | by_words
        if not named and (inner := self._by_pattern(exact)):
            named = {label for label, known in self._plain.items() if known == plain(inner)}
        # Two labels that differ only in what is forgiven cannot be told apart.
        return named.pop() if len(named) == 1 else ""

    def names_another(self, text: str, label: str, *, by_words: bool = False) -> bool:
        """Whether the text after an answer names another allowed label.

        With `by_words` also of a choice that has a letter, whose words may stand in a reason.
        """
        if self._letters and not by_words:
            named = set(_OTHER_LETTER.findall(text.casefold()))
            return bool(named & {x for one, (x, _) in self._letters.items() if one != label})
        words = plain(text).replace(self._plain.get(label, label), "")
        return any(word_in(known, words) for one, known in self._plain.items() if one != label)

    def _heads(self, line: str) -> Iterator[tuple[str, str]]:
        """What may be the answer in a line, the longest first, each with what is left of it."""
        if self._breaks is _TEXT_BREAKS:  # Any text is one, so that the longest is always taken.
            first = self._breaks.search(line)
            places = [first.start() if first else len(line)]
        else:
            yield line, ""
            places = [match.start() for match in self._breaks.finditer(line)][::-1]
        for place in places:
            yield line[:place], line[place:].lstrip(" .,;:!")

    def _begins_another(self, text: str, label: str) -> bool:
        """As in "b. forest", where (b) is another."""
        words = plain(text)
        begun = [
            one
            for one, known in self._plain.items()
            if words.startswith(known) and next(places(known, words), None) == 0
        ]
        return max(begun, key=len, default=label) != label

    def _free(self, text: str) -> str:
        bare = unwrapped(text)
        inner = self._by_pattern(bare)
        if self.prompt.valid is bool:
            shown = (len(exemplar.output.split()) for exemplar in self.prompt.exemplars)
            most = max(FREE_WORDS, 2 * max(shown, default=0))
            return (inner or bare) if len(bare.split()) <= most else ""
        if text.rstrip(" .").endswith(" *"):  # An equation without its end; else Markdown's.
            return ""
        values = (bare, inner, _as_value(bare, self.prompt.valid))
        return next((value for value in values if value and self.prompt.valid(value)), "")

    def _by_pattern(self, text: str) -> str:
        """What the task's own pattern finds, if the whole text is of that form."""
        match = re.fullmatch(self.prompt.form.label, text.rstrip("!."))
        return (match.group(1) or "").strip() if match else ""


def same_label(a: str, b: str) -> bool:
    """Whether two labels are the same text, or equations of one value."""
    return a == b or same_value(a, b)


def plain(text: str) -> str:
    """A label as it is compared: without case, quotes and dashes of one kind, nothing around it."""
    return unwrapped(folded_text(text.translate(_SPELLINGS)))


def unwrapped(text: str) -> str:
    """A text without the quotes, Markdown, LaTeX's box and full stop around it."""
    # No full stop on the left: ".5 * 3" is an equation.
    text = text.lstrip(WRAPPING).rstrip(WRAPPING + ".")
    if "\\" in text and (match := _BOXED.fullmatch(text)):
        return unwrapped(match.group(1))
    return text


def _as_value(text: str, valid: Callable[[str], bool]) -> str:
    """As an equation has it: "$1,200", "45 shells", "8 * 2 = 16", LaTeX's "\\boxed{45}".

    "" where sides of an equation have different values. No Unicode folding: it makes 52 of 5².
    """
    text = text.rstrip("!")
    for _ in range(2):  # \boxed{\text{45}}
        text = _BRACED.sub(r" \1 ", text)
    text = _FRACTION.sub(r"((\1)/(\2))", text).replace("{,}", ",")
    for name, sign in _MATH_NAMES.items():
        text = text.replace(name, sign)
    text = re.sub(r"\\[()\[\],;!$% ]", " ", text).translate(_SIGNS)
    text = _CURRENCY.sub("", text)
    text = re.sub(r"\*\*(?!\s*[-\d(.])", "", re.sub(r"\*\*(\d[\d.,]*)\*\*", r"\1", text))
    text = _THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)
    text = re.sub(r"(?<=[\d)])\s*x\s*(?=[\d(])", " * ", text, flags=re.IGNORECASE)
    text = re.sub(r"(?<=\d) [\u2013\u2014] (?=\d)", " - ", text)
    sides = [unwrapped(side) for side in text.split("=")]
    # "x = 45", "total = 45".
    sides = [_without_unit(s, valid) for s in sides if not re.fullmatch(r"[A-Za-z ]*", s)]
    agree = sides and all(map(valid, sides)) and all(_equals(sides[0], s) for s in sides)
    return sides[0] if agree else ""


def _equals(value: str, side: str) -> bool:
    """Whether a side of an equation has the value, or is that to some decimals."""
    decimals = re.fullmatch(r"-?\d*\.(\d+)", side)
    exact = evaluate(value) if decimals else None
    if decimals is None or exact is None:
        return same_label(value, side)
    return abs(float(side) - exact) <= 0.500001 * 10.0 ** -len(decimals.group(1))


def _without_unit(text: str, valid: Callable[[str], bool]) -> str:
    if valid(text) or not (match := _UNIT.fullmatch(text)):
        return text
    return text if _NO_UNIT.search(match.group(2)) else match.group(1)
