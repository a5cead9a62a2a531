"""From a teacher's reply to rationale and label: tolerant in form, honest in what it counts.

Nothing is guessed: a label that cannot be read without doubt is "invalid_label", and the raw text
stays in the record. What the released code would have read is kept beside it (`raw_label`).
"""

import json
import re

from dss_jax.core.completions import parse_completion
from dss_jax.core.prompt import Prompt
from dss_jax.core.types import Example
from dss_jax.teacher.prompting import PromptOptions
from dss_jax.teacher.records import Reply, Sample

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def read_reply(reply: Reply, example: Example, prompt: Prompt, options: PromptOptions) -> Sample:
    """Takes one reply apart.

    A reply that was cut by the length limit after its answer is as good as a whole one.
    """
    if reply.finish_reason == "error":
        return _nothing("error", reply.text, reply.refusal)
    if reply.refusal or reply.finish_reason == "content_filter":
        return _nothing("refused", reply.text, reply.refusal or "content filter")
    if options.structured:
        found = _structured(reply.text)
        if found is None:
            return _nothing("truncated" if reply.finish_reason == "length" else "no_answer",
                            reply.text)  # fmt: skip
        rationale, answer = found
        raw = answer
    else:
        strict = parse_completion(_after_opening(reply.text, prompt), prompt.form)
        rationale, answer = _tolerant(reply.text, prompt)
        raw = strict.label
    cut = reply.finish_reason == "length"
    if not answer:
        return Sample(status="truncated" if cut else "no_answer", label="", raw_label=raw,
                      rationale=rationale, text=reply.text)  # fmt: skip
    label = normalised(answer, example.allowed_labels, prompt)
    if label is None:
        status, label = "invalid_label", ""
    else:
        status = "ok" if rationale else "no_rationale"
    return Sample(
        status=status, label=label, raw_label=raw, rationale=rationale, text=reply.text
    )


def normalised(answer: str, allowed: tuple[str, ...], prompt: Prompt) -> str | None:
    """The allowed label that an answer means; None where it is none of them, or two.

    Read are a label as it stands, in other case, in quotes or asterisks, with a full stop; where
    the labels are choices, also "(c)", "c", "c)" and "(c) TEXT", of which letter and text must
    agree.

    Args:
      answer: what stands where the prompt's answer does.
      allowed: the row's labels, in the order of their letters; () where any text is allowed.
      prompt: says which texts are labels where any is allowed.
    """
    text = _bare(answer)
    if not allowed:
        return text if prompt.valid(text) else None
    by_text: dict[str, list[str]] = {}
    for label in allowed:
        by_text.setdefault(_bare(label).casefold(), []).append(label)
    if text.casefold() in by_text:
        return by_text[text.casefold()][0]
    match = re.fullmatch(r"(?s)\(?([A-Za-z])(?:\)|[.:](?=\s|$)|$)\s*(.*)", text)
    if match is None:
        return None
    at, rest = LETTERS.find(match.group(1).lower()), _bare(match.group(2))
    if at >= len(allowed):
        return None
    if rest and rest.casefold() != _bare(allowed[at]).casefold():
        return None
    return allowed[at]


def _nothing(status: str, text: str, reason: str = "") -> Sample:
    return Sample(status=status, label="", raw_label="", rationale="", text=text, reason=reason)


def _bare(text: str) -> str:
    """A label without white space, quotes, markdown and a full stop around it."""
    text = " ".join(text.split())
    previous = None
    while text != previous:
        previous = text
        text = text.strip(" \t\"'*_`\u201c\u201d\u2018\u2019")
        # "U.S." keeps its stops.
        if text.endswith(".") and "." not in text[:-1]:
            text = text[:-1]
    return text


def _after_opening(text: str, prompt: Prompt) -> str:
    """A chat model often repeats the opening, as the exemplars' answers have it."""
    return text.lstrip().removeprefix(prompt.opening) if prompt.opening else text


def _tolerant(text: str, prompt: Prompt) -> tuple[str, str]:
    """Rationale and answer, as they stand: the task's marker in any case and any markdown."""
    form = prompt.form
    text = _after_opening(text, prompt).strip()
    # Only at the start of a line: a chat model's rationale may well say "Premise".
    text = re.split(rf"\n\s*{re.escape(form.run_on)}", text, maxsplit=1)[0].strip()
    words = r"[\s,*_`]+".join(re.escape(word) for word in form.marker.rstrip(":").split())
    parts = re.split(rf"[*_`]*{words}[*_`]*:?", text, maxsplit=1, flags=re.IGNORECASE)
    if len(parts) == 1:
        return (text if form.keep_unanswered else ""), ""
    rationale, rest = parts[0].strip(" \n\t*_`#"), parts[1].strip()
    answer = rest.strip("*_` \n")
    match = re.search(form.label, answer)
    # A pattern that reads "(c) TEXT" leaves the letter out; it is needed to see a contradiction.
    if match and match.start(1) == 0:
        answer = match.group(1)
    elif match and not _is_choice(answer):
        answer = match.group(1)
    return rationale, _first_line(answer)


def _is_choice(answer: str) -> bool:
    return re.match(r"\(?[A-Za-z][).:\s]", answer + " ") is not None


def _first_line(answer: str) -> str:
    return answer.strip().partition("\n")[0].strip()


def _structured(text: str) -> tuple[str, str] | None:
    """Rationale and answer of a JSON reply, also in a code fence; None where it is none."""
    fenced = re.search(r"(?s)```(?:json)?\s*(\{.*\})\s*```", text)
    try:
        value = json.loads(fenced.group(1) if fenced else text)
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    rationale, answer = value.get("rationale", ""), value.get("answer", "")
    if not isinstance(rationale, str) or not isinstance(answer, str):
        return None
    return rationale.strip(), answer.strip()
