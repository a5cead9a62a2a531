"""From a reply to a sample: rationale, label, status. Tolerant of form, never of content.

An instruction-tuned teacher seldom keeps to the letter of its exemplars: it writes Markdown, other
capitals, only the letter of a choice, "The answer is" for "So the answer is". Such an answer
counts as long as it names one allowed label and no other. `RecordSample.raw_label` is always what
the strict rule of `dss_jax.core.completions` gives, so figures of the paper's teacher stay
comparable.
"""

import json
import re
from typing import NamedTuple

from dss_jax.core.completions import AnswerForm, parse_completion
from dss_jax.core.prompt import Prompt
from dss_jax.core.types import Example
from dss_jax.records.near import folded_text
from dss_jax.records.records import RecordSample, Reply
from dss_jax.teacher.prompting import PromptOptions, outputs

_THOUGHT = re.compile(r"(?s)^\s*<think>.*?(?:</think>|$)")
"""Reasoning models behind vLLM and Ollama put their draft in front of the completion."""

_FENCED = re.compile(r"(?s)```(?:json)?\s*(.*?)\s*(?:```|$)")
_LETTERED = re.compile(r"(?s)\(([a-z])\)\s*(.*)")
"""An allowed label as a teacher writes it, where its letter is an answer too: "(c) sea"."""

_LETTER_ANSWER = re.compile(r"(?s)(?:\(([a-z])\)?|([a-z])(?:\)|[.:](?=\s)))\s*(.*)|([a-z])")
"""Of a text without case: "(c) sea", "(c)", "c) sea", "c. sea", "c: sea", "c"."""

_OTHER_LETTER = re.compile(r"\(([a-z])\)")
_WRAPPING = " \t\r\n\"'\u201c\u201d\u2018\u2019*_`:"
"""What may stand around an answer: quotes, curly ones too, and Markdown."""

_LOOSE_MARKER = (
    r"(?:\b(?:so|thus|hence|therefore),?\s+)?(?:\bthe\s+)?\b(?:final\s+)?answer(?:\s+is\b|\s*:)"
)


class _Found(NamedTuple):
    """An answer, or that there is none.

    Attributes:
      label: "" where it names none that is allowed, or several.
      rationale: the text before it.
      at_end: whether nothing follows it, so that a length limit may have cut it.
      announced: whether there is an answer, of whatever kind.
    """

    label: str
    rationale: str
    at_end: bool = False
    announced: bool = True

    def status(self, *, cut: bool) -> str:
        """One of STATUSES, of a reply that came; `cut`: by the length limit."""
        if self.label:
            return "ok" if self.rationale else "no_rationale"
        if cut and self.at_end:
            return "truncated"
        return "invalid_label" if self.announced else "no_answer"


_NOTHING = _Found("", "", at_end=True, announced=False)


def read_reply(
    reply: Reply, example: Example, prompt: Prompt, options: PromptOptions
) -> RecordSample:
    """Takes a reply apart.

    Args:
      reply: as it came.
      example: the row that was asked; its allowed labels decide what an answer is.
      prompt: the task's.
      options: `structured` says whether the reply is to be JSON; the rest is not used.

    Returns:
      The sample. Where several answers in it differ, none counts: "invalid_label". "truncated" is
      only a reply that was cut before its answer; a finished answer before the cut stays "ok".
    """
    found, raw_label = _NOTHING, parse_completion(reply.text, prompt.form).label
    text = _THOUGHT.sub("", reply.text)
    status = reason = ""
    if reply.failed:
        status, reason = "error", reply.refusal
    elif reply.refusal or reply.finish_reason == "content_filter":
        status, reason = "refused", reply.refusal or reply.finish_reason
    elif options.structured:
        found, raw_label = _read_json(text, example, prompt)
    else:
        found = _read_text(text, example, prompt)
    return RecordSample(
        status=status or found.status(cut=reply.finish_reason == "length"),
        label=found.label,
        raw_label=raw_label,
        rationale=found.rationale,
        text=reply.text,
        reason=reason,
    )


def normalised(text: str, example: Example, prompt: Prompt) -> str:
    """The one allowed label that an answer names; "" for none, for two, or for a contradiction.

    Args:
      text: what a teacher wrote as answer, with case, quotes, Markdown or a full stop as it likes.
      example: its allowed labels; where it has none, any text that the prompt finds valid stays as
        it is, without what wraps it.
      prompt: how a label is written, and which are valid.
    """
    if not example.allowed_labels:
        plain = _unwrapped(text)
        return plain if prompt.valid(plain) else ""
    exact = text.strip()
    if exact in example.allowed_labels:
        return exact
    labels = {label: _plain(label) for label in example.allowed_labels}
    letters = {
        label: (match.group(1), _plain(match.group(2)))
        for label, output in outputs(prompt, example).items()
        if (match := _LETTERED.fullmatch(output.casefold()))
    }
    answer = _plain(text)
    named = {label for label, plain in labels.items() if plain == answer}
    if letters and (match := _LETTER_ANSWER.fullmatch(answer)):
        letter = match.group(1) or match.group(2) or match.group(4)
        words = _plain(match.group(3) or "")
        by_letter = {label for label, (known, _) in letters.items() if known == letter}
        by_words = {label for label, (_, plain) in letters.items() if plain == words}
        # A row may have one text twice. Its second letter is then no label's, and contradicts none.
        named |= by_letter & by_words if words and by_letter else by_letter | by_words
    # Two labels that differ only in what is forgiven cannot be told apart.
    return named.pop() if len(named) == 1 else ""


def _unwrapped(text: str) -> str:
    # No full stop on the left: ".5 * 3" is an equation.
    return text.lstrip(_WRAPPING).rstrip(_WRAPPING + ".")


def _plain(text: str) -> str:
    return _unwrapped(folded_text(text))


def _read_json(text: str, example: Example, prompt: Prompt) -> tuple[_Found, str]:
    """The answer of a structured reply, and the answer as given."""
    fenced = _FENCED.search(text)
    try:
        given = json.loads(fenced.group(1) if fenced else text)
    except (json.JSONDecodeError, RecursionError):
        return _NOTHING, ""
    answer = given.get("answer") if isinstance(given, dict) else None
    if not isinstance(answer, str) or not (answer := answer.strip()):
        return _NOTHING, ""
    rationale = given.get("rationale")
    rationale = rationale.strip() if isinstance(rationale, str) else ""
    return _Found(normalised(answer, example, prompt), rationale), answer


def _read_text(whole: str, example: Example, prompt: Prompt) -> _Found:
    """The answer of a text."""
    text = _before_run_on(whole, prompt.form)
    strict = re.escape(prompt.form.marker).replace(r"\ ", r"\s+")
    found: list[_Found] = []
    for marker in (strict, _LOOSE_MARKER):
        places = list(re.finditer(marker, text, re.IGNORECASE))
        ends = [place.start() for place in places] + [len(text)]
        for place, end in zip(places, ends[1:], strict=True):
            if answer := text[place.end() : end].lstrip(_WRAPPING):
                rationale = _cleaned_rationale(text[: place.start()], prompt)
                at_end = end == len(whole) and "\n" not in answer
                found.append(_Found(_label(answer, example, prompt), rationale, at_end))
        if found:
            break
    else:
        kept = _cleaned_rationale(text, prompt) if prompt.form.keep_unanswered else ""
        return _NOTHING._replace(rationale=kept)
    named = [answer for answer in found if answer.label]
    if len({answer.label for answer in named}) != 1:
        return found[-1]._replace(label="", rationale=found[0].rationale)
    return named[0]


def _label(answer: str, example: Example, prompt: Prompt) -> str:
    """The label of what follows the marker."""
    line = answer.partition("\n")[0]
    match = re.search(prompt.form.label, answer.strip())
    pattern = match.group(1) if match else ""
    if not example.allowed_labels:
        return normalised(pattern or line, example, prompt)
    if label := normalised(line, example, prompt):
        return label
    lettered = any(_LETTERED.match(o.casefold()) for o in outputs(prompt, example).values())
    if not lettered and (label := normalised(pattern, example, prompt)):
        return label
    # "(c) sea. It is wet.": the first sentence, unless what follows names another choice.
    sentence, _, more = line.partition(". ")
    label = normalised(sentence, example, prompt)
    return "" if label and _names_another(more, label, example, lettered) else label


def _names_another(text: str, label: str, example: Example, lettered: bool) -> bool:
    if lettered:
        return _OTHER_LETTER.search(text.casefold()) is not None
    words = _plain(text)
    others = [_plain(other) for other in example.allowed_labels if other != label]
    return any(re.search(rf"(?<!\w){re.escape(other)}(?!\w)", words) for other in others)


def _before_run_on(text: str, form: AnswerForm) -> str:
    """Up to a question that the teacher made up; only at the start of a line, so that a rationale
    may hold the word."""
    run_on = re.search(rf"\n\s*{re.escape(form.run_on)}", text)
    return text[: run_on.start()] if run_on else text


def _cleaned_rationale(text: str, prompt: Prompt) -> str:
    text = text.strip()
    if prompt.opening:
        text = text.removeprefix(prompt.opening).lstrip()
    # What is left of Markdown around the marker: "**So the answer is**".
    return text.rstrip(" \t\r\n*_#>")
