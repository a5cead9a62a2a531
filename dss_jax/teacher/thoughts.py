"""What templates and tokenizers leave in a reply, taken off: thoughts, special tokens, marks.

Reasoning models write their draft into the reply, each between marks of its own, of which a server
may have swallowed the first (vLLM's templates open `<think>` themselves) or the brackets (harmony's
`<|channel|>analysis`). A draft is no rationale: it turns about, and it may name every answer.
"""

import re
from typing import NamedTuple

_NAME = r"(?:[a-z]+:|ant)?(?:think(?:ing)?|thoughts?|reason(?:ing)?)"
_OPENING = (
    rf"<\s*\|?\s*(?:begin_of_|start_)?{_NAME}\s*\|?\s*>|\[think\]|\u25c1think\u25b7|<unused94>\s*thought",
    r"<\|channel\|>\s*(?:analysis|commentary)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>",
    r"<\|channel>\s*thought|\A\s*here is my thought process:",
    r"\A\s*(?-i:(?:assistant)?(?:analysis|commentary)(?=[A-Z\"'(*]))",
)
_CLOSING = (
    rf"<\s*\|?\s*(?:/|end_of_|end_)\s*{_NAME}\s*\|?\s*>|\[/think\]|\u25c1/think\u25b7|<unused95>",
    r"<\|channel\|>\s*final[^<]*<\|message\|>|<channel\|>",
    r"(?-i:assistantfinal)|\bhere is my response:",
)
_MARK = re.compile(f"(?P<opening>{'|'.join(_OPENING)})|{'|'.join(_CLOSING)}", re.IGNORECASE)
_FIRST = re.compile(r"\s*(?:assistant|analysis|commentary|here is my)", re.IGNORECASE)

# With these a turn ends, or the next begins: what follows is made up.
_END = re.compile(
    r"<[|\uff5c](?:im_end|end|eot_id|eom_id|endoftext|end_of_text|end_of_turn|eos|return|user"
    r"|end\u2581of\u2581sentence|END_OF_TURN_TOKEN|END_RESPONSE)[|\uff5c]>|<\|im_start\|>\s*(?:user|system)\b"
    r"|</s>|<eos>|<end_of_turn>|<turn\|>|\[INST\]",
    re.IGNORECASE,
)
_SPECIAL = re.compile(
    r"<\|(?:im_)?start\|>\s*(?:assistant)?|<[|\uff5c][^<>|\uff5c\n]{1,40}[|\uff5c]>|<(?:s|pad|bos|start_of_turn|/answer)>"
    r"|\[/INST\]",
    re.IGNORECASE,
)
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")


class Turn(NamedTuple):
    """A reply without what is none of its text."""

    text: str  # What the model says to the reader.
    thoughts: str  # What it says to itself.
    ended: bool  # Whether a mark of its own says that the text ends here.


def split_thoughts(reply: str) -> Turn:
    """Takes the thoughts out of a reply, wherever they stand, and the marks off."""
    marked = "<" in reply or "[" in reply or "\u25c1" in reply or "assistantfinal" in reply
    if not marked and not _FIRST.match(reply):
        return Turn(visible(reply), "", False)
    said, thought = "", list[str]()
    at, inside = 0, False
    for mark in _MARK.finditer(reply):
        part, at, opens = reply[at : mark.start()], mark.end(), bool(mark["opening"])
        if inside:
            thought.append(part)
        elif opens:
            said += part
        else:  # Opened before the reply began: all so far was thought.
            thought, said = [*thought, said + part], ""
        inside = opens
    said, thought = (said, [*thought, reply[at:]]) if inside else (said + reply[at:], thought)
    text = said.lstrip()
    # At the start it ends nothing.
    while (end := _END.match(text)) is not None:
        text = text[end.end() :].lstrip()
    end = _END.search(text)
    text = visible(text[: end.start()] if end else text)
    return Turn(text, visible("\n".join(filter(None, map(str.strip, thought)))), end is not None)


def visible(text: str) -> str:
    """A text without special tokens and characters that nobody sees."""
    text = _SPECIAL.sub("", text) if "<" in text or "[" in text else text
    return (text if text.isascii() else _INVISIBLE.sub("", text)).strip()
