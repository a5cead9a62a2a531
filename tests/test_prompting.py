"""Bodies of requests: forms, number and order of exemplars, hint, JSON schema."""

import json

import pytest

from dss_jax.core.completions import UP_TO_FINAL_STOP, AnswerForm
from dss_jax.core.errors import UsageError
from dss_jax.core.prompt import Exemplar, Prompt
from dss_jax.core.registry import load_task
from dss_jax.core.types import Example
from dss_jax.teacher.journal import Request
from dss_jax.teacher.prompting import FORMS, PromptOptions, prompt_sha256, request_body, shown

PROMPT = Prompt(
    instruction="Be brief.",
    exemplars=tuple(Exemplar(input=f"x{i}?", rationale=f"r{i}.", output=f"o{i}") for i in range(4)),
    question="Q: {input}\n",
    answer="A: {rationale} So it is {output}.",
    opening="A:",
    stop=("\nQ:",),
    form=AnswerForm(run_on="Q:", marker="So it is", label=UP_TO_FINAL_STOP),
)
ROW = Example(id="7", input="Is {output} {rationale}?", label="yes", allowed_labels=("yes", "no"))


def test_a_completion_is_one_text_that_ends_where_the_teacher_goes_on() -> None:
    body = request_body(PROMPT, ROW, PromptOptions(form="completion", exemplars=2))
    assert body == {
        "prompt": "Be brief.\n\nQ: x0?\nA: r0. So it is o0.\n\nQ: x1?\nA: r1. So it is o1.\n\n"
        "Q: Is {output} {rationale}?\nA:",
        "stop": ["\nQ:"],
    }


def test_a_chat_has_its_exemplars_as_turns() -> None:
    body = request_body(PROMPT, ROW, PromptOptions(exemplars=1))
    assert body == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Q: x0?"},
            {"role": "assistant", "content": "r0. So it is o0."},
            {"role": "user", "content": "Q: Is {output} {rationale}?"},
        ],
        "stop": ["\nQ:"],
    }


def _inputs(**options: int | None) -> list[str]:
    body = request_body(PROMPT, ROW, PromptOptions(**options))
    return [m["content"][3:5] for m in body["messages"] if m["role"] == "user"][:-1]


def test_exemplars_are_counted_off_in_a_seeded_order() -> None:
    assert _inputs() == ["x0", "x1", "x2", "x3"]
    assert _inputs(exemplars=0) == []
    # Held still: a run that goes on later must find its requests in the journal.
    assert _inputs(order_seed=1) == ["x0", "x3", "x2", "x1"]
    assert _inputs(order_seed=1, exemplars=2) == ["x0", "x3"]
    assert len({tuple(_inputs(order_seed=seed)) for seed in range(9)}) > 4


def test_the_hint_shows_the_gold_label_to_row_and_exemplars() -> None:
    messages = request_body(PROMPT, ROW, PromptOptions(hint=True, exemplars=1))["messages"]
    assert messages[1]["content"].startswith("Q: x0?\nKnown answer: o0. Give the reasoning")
    assert "Known answer: yes. Give the reasoning that leads to it" in messages[-1]["content"]
    text = request_body(PROMPT, ROW, PromptOptions(hint=True, form="completion"))["prompt"]
    assert text.endswith("then the answer.\nA:")
    with pytest.raises(UsageError, match=r"row '8' has no gold label.*Leave the hint out"):
        request_body(PROMPT, Example(id="8", input="x"), PromptOptions(hint=True))


def test_structured_output_has_a_strict_schema_and_exemplars_in_it() -> None:
    body = request_body(PROMPT, ROW, PromptOptions(structured=True, exemplars=1))
    wanted = body["response_format"]["json_schema"]
    assert body["response_format"]["type"] == "json_schema"
    assert wanted["strict"] is True
    assert wanted["schema"] == {
        "type": "object",
        "properties": {
            "rationale": {"type": "string"},
            "answer": {"type": "string", "enum": ["yes", "no"]},
        },
        "required": ["rationale", "answer"],
        "additionalProperties": False,
    }
    assert "stop" not in body
    assert json.loads(body["messages"][2]["content"]) == {"rationale": "r0.", "answer": "o0"}
    assert "JSON" in body["messages"][0]["content"]
    free = request_body(PROMPT, Example(id="", input="x"), PromptOptions(structured=True))
    schema = free["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["answer"] == {"type": "string"}


def test_choices_are_offered_as_the_exemplars_write_them() -> None:
    prompt = load_task("cqa").prompt
    assert prompt is not None
    row = Example(id="", input="x", label="b", allowed_labels=("a", "b", "b"))
    body = request_body(prompt, row, PromptOptions(structured=True, hint=True))
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["answer"]["enum"] == ["(a) a", "(b) b"]
    assert "Known answer: (b) b." in body["messages"][-1]["content"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exemplars": -1}, "exemplars must be at least 0"),
        ({"order_seed": True}, "order_seed must be a whole number"),
        ({"form": "chats"}, "Did you mean 'chat'"),
        ({"form": "completion", "structured": True}, "structured output needs the form 'chat'"),
    ],
)
def test_wrong_options_are_explained(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PromptOptions(**options)


def test_more_exemplars_than_there_are() -> None:
    with pytest.raises(UsageError, match="5 exemplars asked for, but the task's prompt has 4"):
        request_body(PROMPT, ROW, PromptOptions(exemplars=5))


def test_the_hash_is_of_what_all_requests_share() -> None:
    every = [
        PromptOptions(),
        PromptOptions(exemplars=3),
        PromptOptions(order_seed=1),
        PromptOptions(form="completion"),
        PromptOptions(hint=True),
        PromptOptions(structured=True),
    ]
    hashes = [prompt_sha256(PROMPT, options) for options in every]
    assert len(set(hashes)) == len(every)
    assert all(len(h) == 64 for h in hashes)
    assert prompt_sha256(PROMPT, PromptOptions(exemplars=4)) == hashes[0]
    bare = [prompt_sha256(PROMPT, PromptOptions(exemplars=0, form=form)) for form in FORMS]
    assert len(set(bare)) == 2


def test_a_body_is_shown_whole_and_makes_a_key() -> None:
    body = request_body(PROMPT, ROW, PromptOptions(exemplars=1))
    text = shown({"model": "m", **body})
    for message in body["messages"]:
        assert f"--- {message['role']}\n{message['content']}\n" in text
    assert '--- model\n"m"\n--- stop\n["\\nQ:"]\n' in text
    plain = request_body(PROMPT, ROW, PromptOptions(form="completion"))
    assert shown(plain).startswith(f"--- prompt\n{plain['prompt']}\n--- stop")
    assert len(Request(id="7", sample=0, body=body).key) == 64
