"""What servers answer, as types: all that comes from them gets its types here, and nowhere else."""

import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from dss_jax.records.records import GIVEN_UP, Reply
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

NO_TEXT = "the reply holds no text"
"""`Reply.note`."""

PARTS_OF_THOUGHT = ("thinking", "reasoning", "redacted_thinking", "summary")
"""Types of a message's parts that are no text for the reader."""


class Retryable(Exception):  # noqa: N818
    """The request may work later.

    Attributes:
      retry_after: seconds that the server asks to wait; None where it does not say.
      overload: whether the server has too much to do (429 or 503), so that all should slow down.
      paid: (prompt, completion) tokens of an answer that came and cannot be used.
      attempts: how often such a request is sent at most; None: as often as any.
    """

    def __init__(
        self,
        reason: str,
        retry_after: float | None = None,
        *,
        overload: bool = False,
        paid: tuple[int, int] = (0, 0),
        attempts: int | None = None,
    ) -> None:
        super().__init__(reason)
        self.retry_after, self.overload = retry_after, overload
        self.paid, self.attempts = paid, attempts


@functools.lru_cache
def how_it_ended(finish_reason: str) -> str:
    """Whether it was "cut" by a limit, "refused" by a filter, "lost" by its server; "": none."""
    words = set(re.findall(r"[a-z_]+", finish_reason.lower().replace("-", "_")))
    return next((end for end, names in _ENDS.items() if words & set(names.split())), "")


def reply_of(
    content: bytes, chat: bool, cleaned: Callable[[str], str], prompt_tokens: int = 0
) -> Reply:
    """The reply in a server's answer.

    Args:
      content: the body of a 200.
      chat: whether it is an answer of the chat form.
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


def said_in(error: object, default: str = "") -> str:
    """The message in a server's error: an object (of Gemini in a list), a text, or nothing."""
    if isinstance(error, str):
        return error or default
    message = error_of(error).get("message")
    return message if isinstance(message, str) and message else default


def error_of(body: object) -> Mapping[str, Any]:
    """The error in an answer, as an object."""
    if isinstance(body, list) and body:
        body = body[0]
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        body = body["error"]
    return body if isinstance(body, dict) else {}


def whole(text: str) -> str:
    """A text that can be UTF-8: halves of a character are joined, a lone one is replaced.

    Replies are cut in the middle of a character, and some servers send its halves one by one.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


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
