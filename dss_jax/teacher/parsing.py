"""From a reply to a sample: rationale, label, status. Tolerant of form, never of content.

An instruction-tuned teacher seldom keeps to the letter of its exemplars: it writes Markdown, other
capitals, only the letter of a choice, "The answer is" for "So the answer is". Such an answer
counts as long as it names one label and no other (`labels.Labels`), and nothing after it takes it
back. `RecordSample.raw_label` is always what the strict rule of `dss_jax.core.completions` gives,
so figures of the paper's teacher stay comparable.
"""

import functools
import itertools
import json
import re
from typing import NamedTuple

from dss_jax.core.completions import parse_completion
from dss_jax.core.prompt import Prompt
from dss_jax.core.types import Example
from dss_jax.core.words import word_in
from dss_jax.records.records import LABEL_FIRST, RecordSample, Reply
from dss_jax.teacher.labels import LONGEST, WRAPPING, Labels, same_label
from dss_jax.teacher.prompting import PromptOptions
from dss_jax.teacher.replies import how_it_ended
from dss_jax.teacher.thoughts import split_thoughts

ONLY_THOUGHTS = "nothing but thoughts"  # `RecordSample.reason`.
ANNOUNCED = 40  # Characters that an answer has besides its label, at most.
OBJECTS = 20  # Places in a reply at which a JSON object is looked for.

_CORRECT = r"(?:(?<=correct\s.{6})|(?<=right\s.{6})|(?<=best\s.{6}))[\s*_]*(?:is\b|:)"
# Words before an answer besides the task's own, in small letters; what leads there is `_TAIL`.
# Each begins with one letter as it is: the search for them takes a third of the time.
_MARKER = (
    r"answer(?:[\s*_]*(?:is\b|would\s+be\b|:|[-=\u2013\u2014]\s)"
    r"|(?:(?<=[#*_].{6})|(?<=[#*_]\s.{6})|(?<=final\s.{6}))[ \t*_]*$)"
    rf"|choice{_CORRECT}|option{_CORRECT}"
    r"|<answer>|\#\#\#\#(?=\s*[-$(\d])"  # Of models trained by their rewards, and of GSM8K.
    r"|\\boxed\s*\{(?P<box>(?:[^{}]|\{[^{}]*\})*)\}"
)
# What leads from a rationale to the answer, and is of neither.
_TAIL = re.compile(
    r"(?:(?:^|(?<=[\s,:(*_]))(?:so|thus|hence|therefore|consequently|overall|finally|then|and|we|i"
    r"|you|can|conclude|believe|think|that|in (?:conclusion|summary|short)|to conclude"
    r"|to summari[sz]e|based on (?:this|that|the above)|as a result|because of this"
    r"|for th(?:is|at|ese) reasons?"
    r"|this means|the|my|our|final|correct|right|best|most|likely)[\s,:*_]*)+$",
    re.IGNORECASE,
)
_AROUND = " \t\r\n*_#>$-<"  # What Markdown and LaTeX leave: "**So the answer is** $".

_HEADING = re.compile(
    r"\A[\s*_#]*(?:step[- ]by[- ]step\s+)?(?:reasoning|rationale|explanation|analysis|solution"
    r"|thought process|(?:let'?s|let us) think step by step)[\s*_]*(?:[:.]|(?=\n))[\s*_]*",
    re.IGNORECASE,
)

_TAKEN_BACK = re.compile(
    r"(?:\A|[.!?\n(][ \t]*)(?:(?:oh|no|but|hmm+|well),?\s+)?(?:wait|hmm+|oops|correction|sorry"
    r"|actually,"
    r"|on second thoughts?|scratch that|i(?: have|'ve)? made (?:a|an) (?:mistake|error)|my mistake"
    r"|i apologi[sz]e|i meant|let me (?:re-?think|reconsider|correct|revise))\b"
    r"|\b(?:that|this|it|answer|which)(?: is|'s| was) (?:not (?:right|correct)|wrong|incorrect)\b"
    r"|\bshould (?:have been|be(?! noted))\b",
    re.IGNORECASE,
)
_CONTRAST = re.compile(
    r"\b(?:however|but|instead|rather|better|i think|in fact|no)\b", re.IGNORECASE
)
# A letter or a number, with which an answer without its words begins.
_BARE = re.compile(r"\W*(?:[a-z]\b|\d)")
_SENTENCE = re.compile(r"[.!?](?:\s+|$)|\n+")
_SAID = re.compile(r".*(?::| is| be)\s+", re.IGNORECASE | re.DOTALL)


class _Answer(NamedTuple):
    """One answer of a reply."""

    label: str  # "" where it names none that is allowed, or several.
    rationale: str  # The text before it.
    by_task: bool = True  # Whether the task's own marker announces it.
    doubtful: bool = False  # Whether what follows takes it back or names another.


def read_reply(
    reply: Reply, example: Example, prompt: Prompt, options: PromptOptions
) -> RecordSample:
    """Takes a reply apart.

    Args:
      reply: as it came.
      example: the row that was asked; its allowed labels decide what an answer is.
      prompt: the task's.
      options: of which `structured` and `thoughts_as_rationale` are used.

    Returns:
      The sample. Where several answers in it differ, none counts: "ambiguous". A reply that was cut
      is "truncated" unless its text had ended before, with a question that the teacher made up.
    """
    raw_label = parse_completion(reply.text, prompt.form).label
    turn = split_thoughts(reply.text)
    thoughts = "\n".join(filter(None, (reply.thoughts, turn.thoughts)))
    text, ran_on = _before_run_on(turn.text, prompt.form.run_on)
    ended, labels = turn.ended or ran_on, Labels(example, prompt)
    how = how_it_ended(reply.finish_reason)
    status = reason = label = rationale = ""
    if reply.failed:
        status, reason = "error", reply.refusal
    elif reply.refusal or how == "refused":
        status, reason = "refused", reply.refusal or reply.finish_reason
    else:
        given = _objects(text, numbers=not labels.allowed) if "{" in text else []
        if given or options.structured:
            answers = [_from_json(text, one, labels) for one in given]
            ended, raw_label = ended or bool(given), given[0][0] if given else ""
        else:
            answers = _from_text(text, labels)
        status, label, rationale = _verdict(answers, text, prompt)
        if how in ("cut", "lost") and not ended:
            status, label = "truncated", ""
        if status == "no_answer":
            reason = reply.note or (ONLY_THOUGHTS if thoughts and not text else "")
    if options.thoughts_as_rationale and label and thoughts:
        status, rationale = "ok", thoughts
    return RecordSample(
        status=status,
        label=label,
        raw_label=raw_label,
        rationale=rationale,
        text=reply.text,
        reason=reason,
        thoughts=thoughts,
        flag=LABEL_FIRST if labels.allowed and _at_once(label, rationale) else "",
    )


def _at_once(label: str, rationale: str) -> bool:
    """Whether a rationale names the label in its first sentence."""
    label, rationale = label.casefold(), rationale.casefold()
    return bool(label) and label in rationale and word_in(label, _first_sentence(rationale)[0])


def _verdict(answers: list[_Answer], text: str, prompt: Prompt) -> tuple[str, str, str]:
    """(status, label, rationale) of all answers in a reply that was not cut."""
    if not answers:
        kept = prompt.form.keep_unanswered
        return "no_answer", "", _cleaned_rationale(text, prompt) if kept else ""
    named = [answer for answer in answers if answer.label]
    if not named:
        return "invalid_label", "", answers[0].rationale
    # The task's own marker first: "the answer is" may stand in a rationale.
    chosen = max(named, key=lambda answer: (answer.by_task, bool(answer.rationale)))
    for answer in named:
        if answer.doubtful or not same_label(chosen.label, answer.label):
            return "ambiguous", "", answers[0].rationale
    return "ok" if chosen.rationale else "no_rationale", chosen.label, chosen.rationale


def _from_text(text: str, labels: Labels) -> list[_Answer]:
    """The answers of a text: what follows a marker, up to the next one."""
    places = [*_marker(labels.prompt.form.marker).finditer(_small(text))]
    answers: list[_Answer] = []
    start = None
    for place, following in itertools.zip_longest(places, places[1:]):
        start = place.start() if start is None else start
        after = text[place.end() : following.start() if following else None].lstrip(WRAPPING)
        after = _without_tail(after) if following else after
        box = text[slice(*place.span("box"))] if place["box"] is not None else None
        if not any(map(str.isalnum, after if box is None else box)):
            continue  # "**Answer:** The answer is $\boxed{45}$": one announcement of one answer.
        line, _, more = (after if box is None else f"{box}\n{after}").partition("\n")
        label, doubtful = _label(line, more, labels)
        rationale = _cleaned_rationale(text[:start], labels.prompt)
        if label:
            rationale = _without_answer(rationale, label, labels)
        answers.append(_Answer(label, rationale, place["own"] is not None, doubtful))
        start = None
    return answers


def _small(text: str) -> str:
    """The text in small letters, of the same length: to ignore case takes a search five times as
    long."""
    small = text.lower()
    return small if len(small) == len(text) else "".join(c if c > "z" else c.lower() for c in text)


@functools.lru_cache(maxsize=16)
def _marker(own: str) -> re.Pattern[str]:
    own = re.escape(_small(own)).replace(r"\ ", r"\s+")
    return re.compile(f"{own}(?P<own>)|{_MARKER}", re.MULTILINE)


def _label(line: str, more: str, labels: Labels) -> tuple[str, bool]:
    """The label of an answer, "" for none or several, and whether what follows takes it back."""
    label, rest = labels.label_in(line)
    if not label or not (rest or more):
        return label, False
    if _taken_back(f"{rest}\n{more}", label, labels):
        return label, True
    return ("" if labels.names_another(rest, label) else label), False


def _taken_back(text: str, label: str, labels: Labels) -> bool:
    """Whether what follows an answer says that it is another."""
    if _TAKEN_BACK.search(text := text.strip()):
        return True
    # Numbers after an equation check it.
    said = _SENTENCE.split(text[: 10 * LONGEST]) if labels.allowed else ()
    for sentence in filter(None, said):
        if _CONTRAST.search(sentence) and labels.names_another(sentence, label, by_words=True):
            return True
        for part in (sentence, _SAID.sub("", sentence[:LONGEST], count=1)):
            if labels.normalised(part) not in ("", label):
                return True
    return False


def _objects(text: str, numbers: bool) -> list[tuple[str, str, int, int]]:
    """(answer, rationale, start, end) of JSON objects; of `numbers` the answer may be one."""
    found = []
    end = 0
    for _ in range(OBJECTS):
        if (at := text.find("{", end)) < 0:
            break
        try:
            given, end = json.JSONDecoder(strict=False).raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError):
            end = at + 1
            continue
        fields = {name.casefold(): value for name, value in given.items()}
        answer, rationale = fields.get("answer"), fields.get("rationale")
        if numbers and type(answer) in (int, float):
            answer = str(answer)
        if isinstance(answer, str) and answer.strip():
            rationale = rationale.strip() if isinstance(rationale, str) else ""
            found.append((answer.strip(), rationale, at, end))
    return found


def _from_json(text: str, given: tuple[str, str, int, int], labels: Labels) -> _Answer:
    answer, rationale, start, end = given
    line, _, more = answer.partition("\n")
    after = text[end:].partition("{")[0].strip("` \n")
    label, doubtful = _label(line, f"{more}\n{after}", labels)
    rationale = rationale or re.sub(r"```(?:json)?\s*\Z", "", text[:start])
    return _Answer(label, _cleaned_rationale(rationale, labels.prompt), doubtful=doubtful)


def _before_run_on(text: str, run_on: str) -> tuple[str, bool]:
    """Up to a question that the teacher made up, and whether there is one.

    Only at the start of a line, so that a rationale may hold the word. The text may have been cut
    in the middle of it.
    """
    if "\n" not in text:
        return text, False
    # Not "\\s*": of many empty lines each would be looked through to the last.
    if found := re.search(rf"\n[^\S\n]*{re.escape(run_on)}", text):
        return text[: found.start()], True
    head, _, last = text.rpartition("\n")
    begun = bool(head.strip() and last) and run_on.startswith(last.strip())
    return (head, True) if begun else (text, False)


def _cleaned_rationale(text: str, prompt: Prompt) -> str:
    text = text.strip().removeprefix(prompt.opening).lstrip()
    text = _without_tail(_HEADING.sub("", text, count=1).rstrip(_AROUND))
    return text.removesuffix(prompt.opening).rstrip() if prompt.opening else text


def _without_tail(text: str) -> str:
    if text.endswith((".", "!", "?")):
        return text
    tail = _TAIL.search(text, max(0, len(text) - LONGEST))
    return text[: tail.start()].rstrip(_AROUND) if tail else text


def _first_sentence(text: str) -> tuple[str, str]:
    """The first sentence or line, and what is left."""
    first, *rest = _SENTENCE.split(text, maxsplit=1)
    return first, "".join(rest)


def _without_answer(text: str, label: str, labels: Labels) -> str:
    """A rationale without an answer that stands before it."""
    while text:
        start = _small(text[: len(label) + ANNOUNCED])
        marker = _marker(labels.prompt.form.marker).search(start) if "answer" in start else None
        if not (marker or label.casefold() in start or _BARE.match(start)):
            return text
        sentence, rest = _first_sentence(text)
        # An equation that is worked out is reasoning.
        if "=" in sentence or len(sentence) > len(start):
            return text
        said = sentence[marker.end() :] if marker else sentence
        if labels.normalised(said) != label:
            return text
        text = _HEADING.sub("", rest.lstrip(WRAPPING), count=1)
    return text
