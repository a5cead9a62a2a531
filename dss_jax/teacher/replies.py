"""What servers answer, as types: all that comes from them gets its types here, and nowhere else.

A 200 holds a completion (`reply_of`); what another status means, `failure_of` says.
"""

import contextlib
import datetime
import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dss_jax.records.records import GIVEN_UP, Reply
from dss_jax.teacher.limits import LONGEST_RETRY_AFTER, retry_after
from dss_jax.teacher.prices import CHARACTERS_PER_TOKEN

_ENDS = {
    "cut": "length max_tokens model_length max_output_tokens model_context_window_exceeded"
    " error_limit token_limit",
    "refused": "content_filter content_filtered safety recitation blocklist prohibited_content spii"
    " image_safety refusal sensitive guardrail_intervened error_toxic",
    "lost": f"{GIVEN_UP} abort aborted cancelled canceled insufficient_system_resource"
    " network_error server_error timeout engine_overloaded",
}
"""What became of a reply -> what servers call it, without case."""

NO_TEXT = "the reply holds no text"  # `Reply.note`.
# Types of a message's parts that are no text for the reader.
PARTS_OF_THOUGHT = ("thinking", "reasoning", "redacted_thinking", "summary")
# Field of a request that a server may not have -> what to do.
INSTEAD = {
    "stop": "Add --omit stop; answers that run on are cut all the same.",
    "temperature": "Add --omit temperature for the model's own.",
    "max_tokens": "Add --max_tokens_field max_completion_tokens, or --omit max_tokens.",
    "max_completion_tokens": "Leave out --max_tokens_field.",
    "top_p": "Leave out --top_p.",
    "top_k": "Leave out --top_k.",
    "seed": "Leave out --seed.",
    "response_format": "Leave out --structured.",
}
_NOT_SUPPORTED = re.compile(
    r"support|unrecogni[sz]ed|unknown|unexpected|not (allowed|permitted)|no longer|deprecated", re.I
)
_TOO_LARGE = re.compile(r"too (large|long|many)|at most|maximum", re.I)

_DAILY = re.compile(r"per[ _-]?day|\bdaily\b|\b[RT]PD\b", re.I)
# Of a row whose text a server's filter has taken exception to.
_MODERATED = re.compile(
    r"content[ _]?(filter|policy|management|exists risk)|moderation|\bflagged (for|as|by)\b"
    r"|safety (system|filter|reason|check|polic)"
    r"|data_inspection_failed|inappropriate content|usage (policy|policies|guidelines)"
    r"|responsible ?ai|prohibited[ _]content",
    re.I,
)
_OF_THE_ACCOUNT = re.compile(r"\b(account|organi[sz]ation|api key|project)\b", re.I)


class Exhausted(Exception):  # noqa: N818
    """A quota is used up for hours: nothing can be asked before it is filled again."""


class Rejected(Exception):  # noqa: N818
    """The server will not answer this request, whenever it is sent."""


class Fatal(Exception):  # noqa: N818
    """No request can work: a wrong key, no such model, no money left, a field it does not have."""


@dataclass(eq=False)
class Retryable(Exception):  # noqa: N818
    """The request may work later."""

    reason: str
    retry_after: float | None = None  # Seconds that the server asks to wait; None: it says nothing.
    overload: bool = False  # Too much to do (429 or 503), so that all should slow down.
    paid: tuple[int, int] = (0, 0)  # Prompt, completion tokens of an answer that is of no use.
    attempts: int | None = None  # How often such a request is sent at most; None: as any.
    unreachable: bool = False  # No connection was made, so that nothing was sent.

    def __str__(self) -> str:
        return self.reason


@functools.lru_cache
def how_it_ended(finish_reason: str) -> str:
    """Whether it was "cut" by a limit, "refused" by a filter, "lost" by its server; "": none."""
    words = set(re.findall(r"[a-z_]+", finish_reason.lower().replace("-", "_")))
    return next((end for end, names in _ENDS.items() if words & set(names.split())), "")


def reply_of(
    content: bytes, chat: bool, cleaned: Callable[[str], str], prompt_tokens: int = 0
) -> Reply:
    """The reply in the body of a 200.

    Args:
      content: the body.
      chat: whether it is of the chat form.
      cleaned: takes the key out of a text.
      prompt_tokens: of the request, as we estimate them; counted where the server does not say.

    Raises:
      Retryable: it is not JSON, holds no completion, or one that the server did not finish.
    """
    paid, attempts = (0, 0), None
    try:
        answer = json.loads(content)
        paid, known = _usage(answer.get("usage"))
        choice = answer["choices"][0]
        message = (choice.get("message") or {}) if chat else choice
        reason = choice.get("finish_reason") or ""
        refusal = message.get("refusal") or ""
        # From here on it is a completion, which was paid for, and its like will come again.
        attempts, paid = 2, paid if known else (prompt_tokens, 0)
        text, thoughts = _content(message.get("content") if chat else message.get("text"))
        others = (message.get(name) for name in ("reasoning_content", "reasoning", "thinking"))
        thoughts = thoughts or next((t for t in map(_thought, others) if t), "")
        note = NO_TEXT if text is None else ""
        text = "" if text is None else text
        if not all(isinstance(part, str) for part in (text, refusal, reason)):
            raise TypeError("text")
        text, thoughts = whole(text), whole(thoughts)
        if not known:
            tokens = round((len(text) + len(thoughts)) / CHARACTERS_PER_TOKEN)
            paid = (prompt_tokens, tokens)
        if how_it_ended(reason) == "lost":
            attempts = None  # Of some routers, where the model behind them broke down.
            raise ValueError(reason)
        return Reply(
            text=text,
            finish_reason=reason,
            refusal=cleaned(refusal),
            prompt_tokens=paid[0],
            completion_tokens=paid[1],
            model=str(answer.get("model") or ""),
            thoughts=thoughts,
            note=note,
            estimated=not known and paid != (0, 0),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        start = cleaned(content.decode(errors="replace"))[:80]
        kind = type(error).__name__
        raise Retryable(
            f"the answer is no completion ({kind}): {start!r}", paid=paid, attempts=attempts
        ) from None


def failure_of(
    status: int | None,
    text: str,
    cleaned: Callable[[str], str],
    headers: Mapping[str, str] | None = None,
    body: Mapping[str, Any] | None = None,
) -> Reply | Exception:
    """What an answer means that holds no completion.

    Args:
      status: of HTTP; None for an error without one.
      text: of the answer; JSON or not.
      cleaned: takes the key out of a text.
      headers, body: those of the answer; that of the request.

    Returns:
      A reply, where a filter took exception to the text of this row. Else `Retryable` for 408, 409,
      429, 5xx; `Exhausted` for a 429 of a day's quota; `Fatal` for 401, 402, 403, 404, no money
      left, or a 400 for what is the same in all requests; else `Rejected`.
    """
    said: Mapping[str, Any] = {}
    message = words = text
    with contextlib.suppress(ValueError, RecursionError):
        answer = json.loads(text)
        said = error_of(answer)
        given = answer if isinstance(answer, str) else said.get("message")
        message = given if isinstance(given, str) and given else text
        kinds = (said.get(name) for name in ("code", "type", "status", "innererror", "metadata"))
        words = f"{message} {' '.join(str(kind) for kind in kinds if kind)}"
    reason = cleaned(f"{status or 'error'}: {message}")
    of_the_account = status == 403 and _OF_THE_ACCOUNT.search(message)
    if status in (None, 400, 403, 422, 451) and _MODERATED.search(words) and not of_the_account:
        return Reply(text="", finish_reason="content_filter", refusal=reason)
    # Gemini's answer to a wrong key is a 400.
    wrong_key = status in (400, 422) and "api key" in message.lower()
    no_money = (said.get("code") or said.get("type")) == "insufficient_quota"
    if status in (401, 402, 403, 404) or wrong_key or no_money:
        return Fatal(reason)
    if status in (400, 422) and (field := refused_field(message, said.get("param"), body or {})):
        instead = INSTEAD.get(field, f"Take {field!r} out of --extra_body.")
        return Fatal(f"{reason.rstrip('.')}. {instead}")
    if status is not None and (status in (408, 409, 429) or status >= 500):
        wait = retry_after(headers or {}, body=text)
        if status == 429 and (_DAILY.search(text) or (wait or 0) > LONGEST_RETRY_AFTER):
            return Exhausted(f"{reason.rstrip('.')}. {when_to_go_on(wait or 0)}")
        return Retryable(reason, wait, overload=status in (429, 503))
    return Rejected(reason)


def when_to_go_on(wait: float) -> str:
    """When a quota is filled again, for people. A wait of minutes is that of a shorter limit."""
    now = datetime.datetime.now(datetime.UTC)
    if wait > LONGEST_RETRY_AFTER:
        return f"Go on after {now + datetime.timedelta(seconds=wait):%Y-%m-%d %H:%M} UTC"
    tomorrow = now + datetime.timedelta(days=1)
    return f"Go on after {tomorrow:%Y-%m-%d} 00:00 UTC, or when the day ends where the server is"


def refused_field(message: str, param: Any, body: Mapping[str, Any]) -> str | None:
    """The field of a request that its server or model does not have; None where it is not that.

    `param` is the field that the server names beside its message, as OpenAI's does.
    """
    fields = set(body) - {"model", "messages", "prompt"}
    if not _NOT_SUPPORTED.search(message) or _TOO_LARGE.search(message):
        return None
    if param in fields:
        return str(param)
    # In quotes or after a colon: a message about one row may have "stop" among its words.
    return next((f for f in fields if re.search(rf"['\"`]{f}['\"`]|: {f}\b", message)), None)


def error_of(body: object) -> Mapping[str, Any]:
    """The error in an answer (of Gemini in a list), as an object."""
    if isinstance(body, list) and body:
        body = body[0]
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        body = body["error"]
    return body if isinstance(body, dict) else {}


def whole(text: str) -> str:
    """A text that can be UTF-8: halves of a character are joined, a lone one is replaced.

    Replies are cut in the middle of a character, and some servers send its halves one by one.
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _content(content: Any) -> tuple[str | None, str]:
    """(text, thoughts) of a message: text, parts of it, or the JSON object that was asked for."""
    if isinstance(content, dict) and "answer" in content:
        return json.dumps(content, ensure_ascii=False), ""
    if not isinstance(content, list):
        return content, ""
    thoughts = [part for part in content if part.get("type") in PARTS_OF_THOUGHT]
    text = "".join(part.get("text") or "" for part in content if part not in thoughts)
    return text, "\n".join(filter(None, map(_thought, thoughts)))


def _thought(part: Any) -> str:
    """The text of a thought: itself, or in a list or object of parts."""
    if isinstance(part, dict):
        names = ("thinking", "reasoning", "text", "content", "summary")
        return next(filter(None, (_thought(part.get(name)) for name in names)), "")
    if isinstance(part, list):
        return "\n".join(filter(None, map(_thought, part)))
    return part if isinstance(part, str) else ""


def _usage(usage: Any) -> tuple[tuple[int, int], bool]:
    """((prompt, completion) tokens, whether the server said).

    Some servers leave thoughts out of `completion_tokens`, and have them in the total alone.
    """
    usage = usage if isinstance(usage, dict) else {}
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    prompt, completion, total = (_count(usage.get(name)) for name in names)
    return (prompt, max(completion, total - prompt)), prompt > 0


def _count(value: Any) -> int:
    good = isinstance(value, int | float) and math.isfinite(value) and value > 0
    return int(value) if good else 0
