"""From a task's prompt and a row to the body of a request. Standard library only.

In the chat form the exemplars are earlier turns of the conversation; in the completion form they
and the question are one text, which ends with the prompt's opening ("A:").
"""

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dss_jax.core.checks import Section, setting
from dss_jax.core.errors import UsageError
from dss_jax.core.prompt import Exemplar, Prompt
from dss_jax.core.types import Example

FORMS = ("chat", "completion")

HINT = (
    "Known answer: {output}. Give the reasoning that leads to it, as if it were not known, and "
    "then the answer.\n"
)
"""Follows the question, of the exemplars too. Zelikman et al. 2022 (STaR) call it rationalising."""

JSON_INSTRUCTION = "Reply with a JSON object that has the fields rationale and answer."


@dataclass(frozen=True, kw_only=True)
class PromptOptions(Section):
    """How a task's prompt is used."""

    exemplars: int | None = setting(None, low=0)  # The number that is shown; None: all.
    # Shuffles them before they are counted off; None: the task's order.
    order_seed: int | None = setting(None, low=0)
    form: str = setting("chat", among=FORMS)  # Messages; "completion": one text.
    hint: bool = False  # Show the gold label and ask for the rationale that leads to it.
    structured: bool = False  # Ask for JSON under a schema; chat only, and the server must have it.
    thoughts_as_rationale: bool = False  # When replies are read, take a model's thoughts for it.

    def check(self) -> None:
        if self.structured and self.form != "chat":
            raise UsageError(
                f"structured output needs the form 'chat', not {self.form!r}: the protocol has no "
                "response_format for plain completions."
            )


def request_body(prompt: Prompt, example: Example, options: PromptOptions) -> dict[str, Any]:
    """What is asked for one row.

    Returns:
      `messages` or `prompt`; `stop` where the prompt has stop sequences and the reply is no JSON;
      `response_format` where it is. Neither model nor sampling parameters.

    Raises:
      UsageError: more exemplars asked for than there are; a hint, but the row has no gold label.
    """
    if options.hint and not example.label:
        raise UsageError(
            f"row {example.id!r} has no gold label, so it cannot be shown as a hint. Leave the "
            "hint out, or extract only rows with a label."
        )
    output = prompt.output_of(example) if options.hint else ""
    question = _question(prompt, prompt.input_of(example), output, options)
    turns = _turns(prompt, options)
    if options.form == "completion":
        shots = [f"{asked}{answered}" for asked, answered in turns]
        head = [prompt.instruction] if prompt.instruction else []
        body: dict[str, Any] = {"prompt": "\n\n".join([*head, *shots, question + prompt.opening])}
    else:
        messages = [{"role": "system", "content": text} for text in _instructions(prompt, options)]
        for asked, answered in [*turns, (question, "")]:
            messages.append({"role": "user", "content": asked.strip()})
            messages.append({"role": "assistant", "content": answered.strip()})
        body = {"messages": messages[:-1]}
    if options.structured:
        body["response_format"] = _response_format(prompt, example)
    elif prompt.stop:
        body["stop"] = list(prompt.stop)
    return body


def prompt_sha256(prompt: Prompt, options: PromptOptions) -> str:
    """SHA-256, in hex, of all that the requests of a run share: wording, exemplars, form."""
    shared = [
        _instructions(prompt, options),
        _turns(prompt, options),
        _question(prompt, "{input}", "{output}", options),
        prompt.opening,
        prompt.stop,
        options.form,
    ]
    return hashlib.sha256(json.dumps(shared, ensure_ascii=False).encode()).hexdigest()


def shown(body: Mapping[str, Any]) -> str:
    """A body for people: each text as it stands, under a line that says whose it is."""
    parts = [f"--- {m['role']}\n{m['content']}" for m in body.get("messages", ())]
    if "prompt" in body:
        parts.append(f"--- prompt\n{body['prompt']}")
    for name in sorted(set(body) - {"messages", "prompt"}):
        parts.append(f"--- {name}\n{json.dumps(body[name], ensure_ascii=False)}")
    return "\n".join(parts) + "\n"


def outputs(prompt: Prompt, example: Example) -> dict[str, str]:
    """Allowed label -> how a teacher writes it, as in "sea" -> "(c) sea"."""
    return {label: written(prompt, example, label) for label in example.allowed_labels}


def written(prompt: Prompt, example: Example, label: str) -> str:
    """How a teacher writes a label of a row."""
    return prompt.output_of(replace(example, label=label))


def _turns(prompt: Prompt, options: PromptOptions) -> list[tuple[str, str]]:
    """(question, answer) of each exemplar that is shown."""
    chosen = list(prompt.exemplars)
    if (options.exemplars or 0) > len(chosen):
        raise UsageError(
            f"{options.exemplars} exemplars asked for, but the task's prompt has {len(chosen)}. "
            "Ask for fewer, or add some to the task file."
        )
    if options.order_seed is not None:
        # Only `random()` is the same on each Python version.
        draw = random.Random(options.order_seed).random
        chosen.sort(key=lambda _: draw())
    return [
        (_question(prompt, e.input, e.output, options), _answer(prompt, e, options))
        for e in chosen[: options.exemplars]
    ]


def _question(prompt: Prompt, text: str, output: str, options: PromptOptions) -> str:
    question = prompt.question.replace("{input}", text)
    return question + HINT.replace("{output}", output) if options.hint else question


def _answer(prompt: Prompt, exemplar: Exemplar, options: PromptOptions) -> str:
    if options.structured:
        answer = {"rationale": exemplar.rationale, "answer": exemplar.output}
        return json.dumps(answer, ensure_ascii=False)
    answered = prompt.answer.replace("{output}", exemplar.output)
    answered = answered.replace("{rationale}", exemplar.rationale)
    # A chat's turn says already who speaks.
    return answered.removeprefix(prompt.opening) if options.form == "chat" else answered


def _instructions(prompt: Prompt, options: PromptOptions) -> list[str]:
    """The system message, if any."""
    parts = filter(None, (prompt.instruction, JSON_INSTRUCTION if options.structured else ""))
    return [text] if (text := " ".join(parts)) else []


def _response_format(prompt: Prompt, example: Example) -> dict[str, Any]:
    choices = list(dict.fromkeys(outputs(prompt, example).values()))
    answer = {"type": "string"} | ({"enum": choices} if choices else {})
    schema = {
        "type": "object",
        "properties": {"rationale": {"type": "string"}, "answer": answer},
        "required": ["rationale", "answer"],
        "additionalProperties": False,
    }
    wanted = {"name": "answer", "strict": True, "schema": schema}
    return {"type": "json_schema", "json_schema": wanted}
