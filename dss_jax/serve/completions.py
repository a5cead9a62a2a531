"""OpenAI's `/v1/completions` from a student: greedy text after a prompt as it stands."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from dss_jax.core.student_card import StudentCard
from dss_jax.serve.errors import ApiError
from dss_jax.serve.forms import Choice, CompletionAnswer, CompletionForm, Usage
from dss_jax.serve.limits import ServeLimits
from dss_jax.student.student import Completion

MOST_STOPS = 16

ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "n": ((None, 1), "a student answers greedily: n must be 1"),
    "best_of": ((None, 1), "a student answers greedily: best_of must be 1"),
    "temperature": ((None, 0), "a student answers greedily: temperature must be 0"),
    "stream": ((None, False), "answers are not streamed: stream must be false"),
    "stream_options": ((None,), "answers are not streamed: leave stream_options out"),
    "suffix": ((None, ""), "a student writes no text into a gap: leave suffix out"),
    "frequency_penalty": ((None, 0), "frequency_penalty must be 0"),
    "presence_penalty": ((None, 0), "presence_penalty must be 0"),
    "logit_bias": ((None, {}), "logit_bias must be empty"),
    "logprobs": (
        (None,),
        "log-probabilities of single tokens are not given: leave logprobs out. For those of "
        "labels ask /v1/predict",
    ),
}
"""Field -> the values that it may have, and what to say to another."""

ECHO = (
    "echo must be false: a student has an encoder and a decoder, so a prompt is no beginning of "
    "its answer, and log-probabilities of a prompt do not exist. lm_eval: tasks of the type "
    "generate_until work, those that rank by loglikelihood do not; /v1/predict ranks labels"
)


def check(form: CompletionForm, limits: ServeLimits) -> None:
    """Raises ApiError, with the field, for what a student cannot do."""
    if form.echo:
        raise ApiError(ECHO, param="echo", code="unsupported")
    for name, (allowed, text) in ONLY.items():
        if getattr(form, name) not in allowed:
            raise ApiError(text, param=name, code="unsupported")
    if form.max_tokens is not None and not 1 <= form.max_tokens <= limits.max_tokens:
        text = f"max_tokens must be from 1 to {limits.max_tokens}, not {form.max_tokens}"
        raise ApiError(text, param="max_tokens", code="invalid_value")
    stops = stops_of(form)
    if len(stops) > MOST_STOPS or not all(stops):
        text = f"stop must be at most {MOST_STOPS} texts, none of them empty"
        raise ApiError(text, param="stop", code="invalid_value")


def stops_of(form: CompletionForm) -> list[str]:
    return [form.stop] if isinstance(form.stop, str) else form.stop or []


def longest_of(form: CompletionForm, card: StudentCard, limits: ServeLimits) -> int:
    """Tokens of an answer at most."""
    trained = max(card.longest_label, card.max_rationale_length)
    return form.max_tokens or min(trained, limits.max_tokens)


def answer(form: CompletionForm, model: str, found: Sequence[Completion]) -> CompletionAnswer:
    """As OpenAI's servers have it; a text ends before the first of the stop texts."""
    choices = []
    for index, one in enumerate(found):
        ends = [at for stop in stops_of(form) if (at := one.text.find(stop)) >= 0]
        text = one.text[: min(ends)] if ends else one.text
        reason = "stop" if ends else one.finish_reason
        choices.append(Choice(index=index, text=text, finish_reason=reason))
    asked = sum(one.prompt_tokens for one in found)
    written = sum(one.completion_tokens for one in found)
    return CompletionAnswer(
        id=f"cmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=model,
        choices=choices,
        usage=Usage(prompt_tokens=asked, completion_tokens=written, total_tokens=asked + written),
    )
