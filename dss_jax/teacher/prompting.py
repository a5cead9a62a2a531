"""From a task's prompt and a row to the request body: few-shot chain-of-thought.

The published form (Wei et al., 2022; Hsieh et al., 2023): worked examples of (input, rationale,
output), then the row's input, and the model goes on.
"""

import hashlib
import json
import random
from dataclasses import dataclass
from typing import Any

from dss_jax.core.errors import UsageError
from dss_jax.core.prompt import Exemplar, Prompt
from dss_jax.core.types import Example

FORMS = ("chat", "completion")

HINT = (
    "The correct answer is: {output}. Give the reasoning that leads to it, without saying that "
    "the answer was given."
)
STRUCTURED = "Answer with a JSON object: the reasoning in `rationale`, the answer in `answer`."


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """How a prompt is laid out.

    Attributes:
      exemplars: how many of the task's; None: all.
      order_seed: they are shuffled with this seed, and cut after it; None: the task's order.
      form: "chat" (turns) or "completion" (one text).
      hint: whether the row's gold label is shown.
      structured: whether the answer is asked for as JSON, with a schema; needs the chat form.
    """

    exemplars: int | None = None
    order_seed: int | None = None
    form: str = "chat"
    hint: bool = False
    structured: bool = False

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise UsageError(f"the form must be one of {', '.join(FORMS)}, not {self.form!r}.")
        if self.structured and self.form != "chat":
            raise UsageError("--structured needs --form chat: completions have no schema.")


def chosen(prompt: Prompt, options: PromptOptions) -> list[Exemplar]:
    """The exemplars that are shown, in order.

    Raises:
      UsageError: the task has fewer.
    """
    exemplars = list(prompt.exemplars)
    if options.order_seed is not None:
        random.Random(options.order_seed).shuffle(exemplars)
    if options.exemplars is None:
        return exemplars
    if options.exemplars > len(exemplars):
        raise UsageError(
            f"--exemplars {options.exemplars}: the task has {len(exemplars)}. Ask for fewer, or "
            "add some to the task file."
        )
    return exemplars[: options.exemplars]


def request_body(prompt: Prompt, example: Example, options: PromptOptions) -> dict[str, Any]:
    """What is sent for a row, but for model and sampling.

    Returns:
      `messages` or `prompt`, `stop` (not with a schema), `response_format` (with one).

    Raises:
      UsageError: a hint is wanted, but the row has no gold label.
    """
    question = prompt.question.replace("{input}", prompt.input_of(example))
    if options.hint:
        if not example.label:
            raise UsageError(
                f"row {example.id!r} has no gold label, so --hint cannot show it. Leave --hint "
                "out, or the row."
            )
        question += "\n" + HINT.replace("{output}", prompt.output_of(example))
    if options.form == "completion":
        return {"prompt": _completion(prompt, question, options), "stop": list(prompt.stop)}
    body: dict[str, Any] = {"messages": _messages(prompt, question, options)}
    if options.structured:
        body["response_format"] = schema(example)
    else:
        body["stop"] = list(prompt.stop)
    return body


def schema(example: Example) -> dict[str, Any]:
    """The `response_format` of a row: `rationale`, then `answer` among its allowed labels."""
    answer: dict[str, Any] = {"type": "string"}
    if example.allowed_labels:
        answer["enum"] = list(dict.fromkeys(example.allowed_labels))
    return {
        "type": "json_schema",
        "json_schema": {
            "name": "rationale_and_answer",
            "strict": True,
            "schema": {
                "type": "object",
                # Servers write the properties in this order: the reasoning has to come first.
                "properties": {"rationale": {"type": "string"}, "answer": answer},
                "required": ["rationale", "answer"],
                "additionalProperties": False,
            },
        },
    }


def prompt_sha256(prompt: Prompt, options: PromptOptions) -> str:
    """SHA-256, in hex, of what the requests of all rows share."""
    nobody = Example(id="", input="", label="-")
    body = request_body(prompt, nobody, options)
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def shown(body: dict[str, Any]) -> str:
    """A body for people: its texts as they are sent, the other fields as JSON."""
    other = {k: v for k, v in body.items() if k not in ("messages", "prompt")}
    head = json.dumps(other, ensure_ascii=False, indent=2)
    if "prompt" in body:
        return f"{head}\n\n{body['prompt']}"
    turns = [f"[{turn['role']}]\n{turn['content']}" for turn in body["messages"]]
    return "\n\n".join([head, *turns])


def _messages(prompt: Prompt, question: str, options: PromptOptions) -> list[dict[str, str]]:
    instruction = prompt.instruction
    if options.structured:
        instruction = f"{instruction} {STRUCTURED}".strip()
    turns = [{"role": "system", "content": instruction}] if instruction else []
    for exemplar in chosen(prompt, options):
        if options.structured:
            answer = json.dumps(
                {"rationale": exemplar.rationale, "answer": exemplar.output}, ensure_ascii=False
            )
        else:
            answer = _answer(prompt, exemplar).removeprefix(prompt.opening).strip()
        turns += [
            {"role": "user", "content": prompt.question.replace("{input}", exemplar.input)},
            {"role": "assistant", "content": answer},
        ]
    return [*turns, {"role": "user", "content": question}]


def _completion(prompt: Prompt, question: str, options: PromptOptions) -> str:
    parts = [prompt.instruction] if prompt.instruction else []
    parts += [
        prompt.question.replace("{input}", exemplar.input) + "\n" + _answer(prompt, exemplar)
        for exemplar in chosen(prompt, options)
    ]
    return "\n\n".join([*parts, f"{question}\n{prompt.opening}"])


def _answer(prompt: Prompt, exemplar: Exemplar) -> str:
    # Not str.format: a text with braces would break it.
    before, _, after = prompt.answer.partition("{rationale}")
    return (before + exemplar.rationale + after).replace("{output}", exemplar.output)
