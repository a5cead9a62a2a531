"""Replies as many models and servers write them: the label is the answer, or there is none."""

import json
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dss_jax.core.completions import UP_TO_FINAL_STOP, AnswerForm
from dss_jax.core.prompt import Exemplar, Prompt
from dss_jax.core.registry import load_task
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.types import DistillationTask, Example, Jsonl, plain_example
from dss_jax.data.rows import examples_with_completions
from dss_jax.records.files import read_records, write_records
from dss_jax.records.records import STATUSES, Header, RecordSample, Reply
from dss_jax.records.stats import record_stats
from dss_jax.teacher import replies
from dss_jax.teacher.extraction import Extraction, from_release, learned_labels, write
from dss_jax.teacher.journal import Journal
from dss_jax.teacher.parsing import read_reply
from dss_jax.teacher.prices import Prices
from dss_jax.teacher.prompting import PromptOptions

CHOICES = ("tree", "GOLD", "driver's seat", "sea lion", "sleeping bag")
CQA = Example(id="", input="Where?", allowed_labels=CHOICES)
NLI = Example(id="", input="p</s>h", allowed_labels=("entailment", "neutral", "contradiction"))
FREE = Example(id="", input="How many?")
ROWS = {"cqa": CQA, "esnli": NLI, "anli1": NLI, "svamp": FREE}

WET = "The answer must be wet. Of the above choices only this fits."


def prompt_of(name: str) -> Prompt:
    prompt = load_task(name).prompt
    assert prompt is not None
    return prompt


def read(name: str, text: str, *, finish: str = "stop", **options: bool) -> RecordSample:
    reply = Reply(text=text, finish_reason=finish)
    return read_reply(reply, ROWS[name], prompt_of(name), PromptOptions(**options))


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        # The whole answer, not the part that a pattern finds, and no later line.
        ("(102 - 22) / 8.", "(102 - 22) / 8"),
        ("(12 - 2) - 7", "(12 - 2) - 7"),
        ("45.\n\nVerification: (45 + 18) = 63, which is right.", "45"),
        ("45. Check: (45 + 18) = 63.", "45"),
        ("(63 - 18) / x", ""),
        ("((415 - 309) - (41", ""),
        # As people write values.
        (r"\boxed{45}", "45"),
        (r"$\boxed{45}$.", "45"),
        (r"\(45\)", "45"),
        (r"\[ \frac{90}{2} \]", "((90)/(2))"),
        (r"$\boxed{\text{45 shells}}$", "45"),
        (r"$10 \times 45$", "10 * 45"),
        ("$45.00.", "45.00"),
        ("€45", "45"),
        ("45 €", "45"),
        ("1,200.", "1200"),
        ("$1,234,567.50", "1234567.50"),
        ("45 shells", "45"),
        ("45 more shells than Doug.", ""),  # "more than" compares.
        ("45 sq. feet", "45"),
        ("45%", "45"),
        ("45kg", "45"),
        ("(63 - 18) seashells.", "(63 - 18)"),
        ("10 \u00d7 45", "10 * 45"),
        ("10 x 45", "10 * 45"),
        ("90 \u00f7 2", "90 / 2"),
        ("63 \u2212 18", "63 - 18"),
        ("**45**", "45"),
        ("**45** shells", "45"),
        ("63 - 18 = 45", "63 - 18"),
        ("63 - 18 = **45** shells.", "63 - 18"),
        ("x = 45", "45"),
        ("45 because 63 - 18 = 45.", "45"),
        ("45 (that is 63 - 18).", "45"),
        ("45</s>", "45"),
        ("45<|im_end|>\n<|im_start|>user\nQ: more", "45"),
        ("\u200b45", "45"),
        ("45!", "45"),
        # Units of one sign, and of rates, areas and temperatures; currencies before the value.
        ("45 km/h.", "45"),
        ("45 m/s", "45"),
        ("45 dollars/hour", "45"),
        ("45 m\u00b2", "45"),
        ("45 cm^2", "45"),
        ("45\u00b0", "45"),
        ("45 \u00b0C.", "45"),
        ("USD 45", "45"),
        ("US$1,200.50", "1200.50"),
        ("Rs. 45", "45"),
        ("$45 - $20", "45 - 20"),
        # The last side may be rounded to the decimals that it shows; the value is the whole one.
        ("50 / 3 = 16.67", "50 / 3"),
        ("50 / 3 \u2248 16.7 dollars", "50 / 3"),
        # No value, or another than what it looks like.
        ("50 / 3 = 16.66", ""),
        ("50 / 3 = 17", ""),
        ("16.67 = 50 / 3", ""),
        ("45 m", ""),  # Metres, minutes or millions.
        ("$45m", ""),
        ("45bn", ""),
        ("45thousand", ""),
        ("45 lakh", ""),
        ("USD 45k", ""),
        ("45 x\u00b2", ""),
        ("45 x/y", ""),
        ("45\u00b030'", ""),
        ("2 squared", ""),
        ("NOT 45", ""),
        ("45, 46", ""),
        ("45 or 46", ""),
        ("45 (or 46)", ""),
        ("(5 * 9) + 3 * ...", ""),
        ("either 45", ""),
        ("45 thousand", ""),
        ("2 dozen eggs", ""),
        ("3 and a half", ""),
        ("5²", ""),
        ("2½", ""),
        ("1,20", ""),
        ("45k", ""),
        ("63 - 18 = 44", ""),
        ("7:30", ""),
        ("not 45", ""),
        ("forty-five", ""),
    ],
)
def test_values(answer: str, label: str) -> None:
    sample = read("svamp", f"Ten. The answer is {answer}")
    assert (sample.status, sample.label) == ("ok" if label else "invalid_label", label)


@pytest.mark.parametrize(
    "text",
    [
        "So 45 are left. The answer is (63 - 18). That makes\n\nThe answer is 45.",
        "63 are there.\n\n**Final Answer:** $45$\n\nThe answer is $\\boxed{45}$.",
        "He has $63 - 18 = 45$. So he has $\\boxed{45}$ left.",
    ],
)
def test_answers_of_one_value_agree(text: str) -> None:
    sample = read("svamp", text)
    assert sample.status == "ok"
    assert sample.label in ("45", "(63 - 18)")


ANSWERS = [
    "(b) GOLD because it is wet.",
    "(b) GOLD, because it is wet.",
    "(b) GOLD since it is wet",
    "(b) GOLD: it is wet.",
    "(b) GOLD \u2013 it is wet",
    "(b) GOLD (it is wet).",
    "(b), which is wet.",
    "b because it is wet",
    "option (b).",
    "Option B: GOLD",
    "B - GOLD",
    "GOLD, as it is wet.",
    "\u200b(b) GOLD.",
    "(b)\u2060 GOLD",
    "(b) GOLD.<|im_end|>",
    "(b) GOLD</s>",
    "(b) GOLD<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nQ: What?",
    "(b) GOLD<\uff5cend\u2581of\u2581sentence\uff5c>",
    "(b) GOLD<end_of_turn>",
    "\\boxed{b}",
    "$\\boxed{\\text{(b) GOLD}}$",
    "**(b) GOLD**",
    "\n(b) GOLD",
    "(b) GOLD.\n\nLet me know if you have other questions!",
    "(b) GOLD.\n\nExplanation: a tree is dry, and so is a sleeping bag.",
]
ANNOUNCEMENTS = [
    "**Answer**: (b) GOLD",
    "**Answer:** (b)",
    "### Answer\n(b) GOLD",
    "## Final Answer\n\n**(b) GOLD**",
    "**Final Answer**\n(b)",
    "**Answer:**\nThe answer is (b) GOLD.",
    "Therefore, the correct answer is (b) GOLD.",
    "Thus, the best choice is (b).",
    "So, the correct option is: (b) GOLD",
    "Based on this, I believe that the answer is (b).",
    "The answer would be (b).",
    "The answer is therefore (b) GOLD.",
    "---\n\n**Answer:** (b)",
    "A: So the answer is (b).",
    "Answer - (b)",
    "<answer>(b) GOLD</answer>",
    "My final answer: (b)",
    "\\boxed{b}",
]
GIVEN_AWAY = [
    f"**Reasoning:** {WET} So the answer is (b) GOLD.",
    f"### Reasoning\n{WET}\n\n### Answer\n(b) GOLD",
    f"Explanation: {WET} So the answer is (b).",
    f"Let's think step by step. {WET} So the answer is (b).",
    f"(b) GOLD. {WET} So the answer is (b) GOLD.",
    f"**Answer: (b) GOLD**\n\n**Reasoning:** {WET} So the answer is (b) GOLD.",
    f"The answer is (b).\n\n{WET} Therefore, the answer is (b) GOLD.",
]


@pytest.mark.parametrize(
    "text",
    [f"{WET} So the answer is {answer}" for answer in ANSWERS]
    + [f"{WET}\n\n{announced}" for announced in ANNOUNCEMENTS]
    + GIVEN_AWAY,
)
def test_a_choice_and_nothing_but_the_rationale(text: str) -> None:
    sample = read("cqa", text)
    assert (sample.status, sample.label, sample.rationale) == ("ok", "GOLD", WET)


def test_quotes_and_dashes_in_a_choice() -> None:
    assert read("cqa", "x So the answer is (c) driver\u2019s seat.").label == "driver's seat"
    row = Example(id="", input="x", allowed_labels=("well-known", "\u201cred\u201d fox"))
    prompt = prompt_of("anli1")
    for said, label in (("well\u2011known", "well-known"), ('"red" fox', "\u201cred\u201d fox")):
        reply = Reply(text=f"x So the answer is {said}.")
        assert read_reply(reply, row, prompt, PromptOptions()).label == label


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cqa", f"{WET} So the answer is (a) tree.\n\nWait, that is not right. It should be (e)."),
        ("cqa", f"{WET} So the answer is (a). Wait, that is not right. It should be (e)."),
        ("cqa", f"{WET} So the answer is (a) tree.\n\nActually, it is (e) sleeping bag."),
        ("cqa", f"{WET} So the answer is (a) tree.\nThe answer is (e) sleeping bag."),
        ("cqa", f"{WET} So the answer is (a) tree.\n\nHmm, wait."),
        ("cqa", f"{WET} So the answer is (a) tree.\n\nI made a mistake there."),
        ("cqa", f"{WET} So the answer is (a) tree.\n\n(e) sleeping bag"),
        ("cqa", f"{WET} The answer is (e). So the answer is (a) tree."),
        ("esnli", "A man is a person.\nAnswer: neutral\n\nCorrection: entailment"),
        ("cqa", f"{WET} So the answer is tree. However, GOLD fits better."),
        ("cqa", f"{WET} So the answer is (a) tree.\n\nHowever, (b) GOLD fits better."),
        ("cqa", f"{WET} So the answer is (a) tree.\n\nI think (b) GOLD is the right one."),
        ("esnli", "A man is a person.\nAnswer: neutral\n\nFinal: entailment"),
        ("esnli", "A man is a person.\nAnswer: neutral\nAnswer: entailment"),
        ("svamp", "x The answer is 45. Wait, 63 - 19 is 44."),
        ("svamp", "x The answer is 45.\n\nThe answer is 44."),
        ("svamp", "x The answer is (63 - 18).\n\n\\boxed{44}"),
    ],
)
def test_two_answers_are_ambiguous(name: str, text: str) -> None:
    sample = read(name, text)
    assert (sample.status, sample.label) == ("ambiguous", "")


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize(
    ("text", "status"),
    [
        ('```json\n{"rationale": "Wet.", "answer": "(b) GOLD"}\n```', "ok"),
        ('Here it is:\n{"rationale": "Wet.", "answer": "(b) GOLD"}', "ok"),
        ('{"Rationale": "Wet.", "Answer": "(b) GOLD because it is wet"}', "ok"),
        ('<think>a</think>{"rationale": "Wet.", "answer": "b"}<|im_end|>', "ok"),
        (
            '```json\n{"rationale": "Wet.", "answer": "(a)"}\n```\nWait.\n'
            '```json\n{"rationale": "Wet.", "answer": "(b)"}\n```',
            "ambiguous",
        ),
        (
            '```json\n{"rationale": "Wet.", "answer": "(a)"}\n```\nNo, it should be (b).',
            "ambiguous",
        ),
        ('{"rationale": "Wet.", "answer": "(a). Wait, it is (b)."}', "ambiguous"),
    ],
)
def test_json(text: str, status: str, structured: bool) -> None:
    sample = read("cqa", text, structured=structured)
    assert sample.status == status
    if status == "ok":
        assert (sample.label, sample.rationale) == ("GOLD", "Wet.")


def test_a_whole_object_is_not_cut() -> None:
    text = '{"rationale": "Wet.", "answer": "(b)"}' + " \n" * 50
    assert read("cqa", text, structured=True, finish="length").status == "ok"
    assert read("cqa", text[:30], structured=True, finish="length").status == "truncated"


@pytest.mark.parametrize(
    "finish",
    ["length", "max_tokens", "model_length", "MAX_TOKENS", "FinishReason.MAX_TOKENS", "abort"],
)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("svamp", "So 45 are left. The answer is 4"),
        ("cqa", "Okay, the answer is (a).\nHmm, wait. No, let me check the others"),
        ("cqa", f"{WET} So the answer is (b) GOLD. A tree"),
        ("anli1", "x So the answer is neutral"),
        ("cqa", "It is"),
    ],
)
def test_what_was_cut_is_truncated(name: str, text: str, finish: str) -> None:
    sample = read(name, text, finish=finish)
    assert (sample.status, sample.label) == ("truncated", "")


@pytest.mark.parametrize("after", ["\n\nQ: And", "\n\nQ", "<|im_end|>\n<|im_start|>assistant\nAnd"])
def test_what_had_ended_before_the_cut_is_not(after: str) -> None:
    text = f"{WET} So the answer is (b) GOLD.{after}"
    assert read("cqa", text, finish="length").status == "ok"


@pytest.mark.parametrize(
    "finish",
    ["content_filter", "SAFETY", "content_filter: SAFETY", "PROHIBITED_CONTENT", "refusal"],
)
def test_what_a_filter_took_is_refused(finish: str) -> None:
    sample = read("cqa", f"{WET} So the answer is (b) GOLD.", finish=finish)
    assert (sample.status, sample.label, sample.reason) == ("refused", "", finish)


@pytest.mark.parametrize(
    "written",
    [
        "<think>\n{}\n</think>\n\n",
        "{}\n</think>\n\n",
        "<thinking>\n{}\n</thinking>\n",
        "<thought>{}</thought>",
        "<THINK>{}</THINK>",
        "<think>x</think>\n<think>{}</think>",
        "<think>a <think>b</think> {} </think>",
        "[THINK]{}[/THINK]",
        "<seed:think>{}</seed:think>",
        "\u25c1think\u25b7{}\u25c1/think\u25b7",
        "<|begin_of_thought|>{}<|end_of_thought|>",
        "<|START_THINKING|>{}<|END_THINKING|><|START_RESPONSE|>",
        "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|start|>assistant<|channel|>analysis<|message|>{}<|channel|>final<|message|>",
        "analysis{}assistantfinal",
        "analysisWell.assistantanalysis{}assistantfinal",
    ],
)
def test_thoughts_are_no_rationale(written: str) -> None:
    thought = "We need it. So the answer is (a). Hmm, wait."
    text = written.replace("{}", thought) + f"{WET} So the answer is (b) GOLD."
    sample = read("cqa", text)
    assert (sample.status, sample.label, sample.rationale) == ("ok", "GOLD", WET)
    assert thought in sample.thoughts
    assert sample.text == text
    chosen = read("cqa", text, thoughts_as_rationale=True)
    assert (chosen.status, chosen.label) == ("ok", "GOLD")
    assert thought in chosen.rationale


def test_thoughts_after_text_and_thoughts_alone() -> None:
    sample = read("cqa", f"Sure.\n<think>x?</think>\n{WET} So the answer is (b) GOLD.")
    assert (sample.label, sample.thoughts) == ("GOLD", "x?")
    assert "x?" not in sample.rationale
    for text in ("<think>So the answer is (b).", "So the answer is (b).\n</think>", "[THINK](b)"):
        sample = read("cqa", text)
        assert (sample.status, sample.label, bool(sample.reason)) == ("no_answer", "", True)
        assert read("cqa", text, finish="length").status == "truncated"
    assert read("cqa", "analysis of it: wet. So the answer is (b).").status == "ok"


def test_an_answer_alone_is_no_rationale() -> None:
    assert read("cqa", "Answer: (b). Answer: (b).").status == "no_rationale"
    assert read("cqa", "**(b) GOLD**\n\nSo the answer is (b).").status == "no_rationale"
    assert read("cqa", "Therefore, the correct answer is (b).").status == "no_rationale"


def test_a_label_in_the_first_sentence_is_flagged() -> None:
    first = read("cqa", "It is GOLD that is wet. No other. So the answer is (b).")
    later = read("cqa", "It must be wet. That is GOLD. So the answer is (b).")
    assert (first.status, first.flag, later.status, later.flag) == ("ok", "label_first", "ok", "")


def free_prompt(*outputs: str) -> Prompt:
    return Prompt(
        instruction="",
        exemplars=tuple(Exemplar(input="x", rationale="y", output=o) for o in outputs),
        question="Q: {input}\n",
        answer="A: {rationale} So the answer is {output}.",
        opening="A:",
        stop=("\nQ:",),
        form=AnswerForm(run_on="Q:", marker="So the answer is", label=UP_TO_FINAL_STOP),
    )


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("sink because it is dense.", "sink"),
        ("sin", "sin"),
        ("float</s>", "float"),
        ("sink.\n\nLet me know if you have other questions!", "sink"),
        ("sink. Let me know if you have other questions!", "sink"),
        ("Washington D.C.", "Washington D.C"),
        ("a thing that one would rather not call by any name at all", ""),
    ],
)
def test_any_text_has_its_bounds(text: str, label: str) -> None:
    reply = Reply(text=f"Dense. So the answer is {text}")
    sample = read_reply(reply, FREE, free_prompt("sink"), PromptOptions())
    assert (sample.status, sample.label) == ("ok" if label else "invalid_label", label)
    cut = replace(reply, finish_reason="length")
    sample = read_reply(cut, FREE, free_prompt("sink"), PromptOptions())
    ended = "</s>" in text
    assert (sample.status, sample.label) == (("ok", label) if ended else ("truncated", ""))


def own_task(**more: Any) -> DistillationTask:
    """As docs/add_a_task.md has one, with a prompt."""
    return DistillationTask(
        name="own",
        description="",
        licence="",
        sources=(Jsonl(files={"train": "x.jsonl"}),),
        to_example=plain_example,
        scorer=TEXT_ACCURACY,
        prompt=free_prompt("sink", "float"),
        **more,
    )


def labelled(*labels: str) -> list[Example]:
    return [Example(id=str(i), input=f"row {i}", label=one) for i, one in enumerate(labels)]


@pytest.mark.parametrize("learned", [False, True])
def test_labels_of_the_task_or_of_its_rows(learned: bool) -> None:
    rows = labelled("sink", "float", "sink", "float")
    task = own_task() if learned else own_task(labels=("float", "sink"))
    labels = learned_labels(task, rows)
    assert labels == (("float", "sink") if learned else ())
    what = Extraction(task=task, split="train", model="m", labels=labels)
    for answer, label in (
        ("sink because it is dense.", "sink"),
        ("not float.", ""),
        ("Float</s>", "float"),
        ("sin", ""),
        ("sink.\n\nLet me know if you have other questions!", "sink"),
    ):
        record = what.record(rows[0], [Reply(text=f"Dense. So the answer is {answer}")])
        assert record.teacher_label == label
        assert record.status == ("ok" if label else "invalid_label")
    plain = Extraction(task=own_task(), split="train", model="m")
    keys = [[request.key for request in e.requests(rows)] for e in (plain, what)]
    assert keys[0] == keys[1], "learned or not, the requests are the same"


def test_labels_that_are_not_few_are_not_learned() -> None:
    assert learned_labels(own_task(), labelled("a", "b", "c", "d", "e")) == ()
    assert learned_labels(own_task(), labelled(*[f"{i}" for i in range(30)] * 3)) == ()
    assert learned_labels(load_task("svamp"), labelled("1", "2", "1", "2")) == ()


def test_estimates_are_marked_in_the_totals(tmp_path: Path) -> None:
    rows = labelled("sink", "float")
    what = Extraction(task=own_task(), split="train", model="m")
    with Journal(tmp_path / "journal") as journal:
        for i, request in enumerate(what.requests(rows)):
            reply = Reply(text="x", prompt_tokens=100, completion_tokens=1, estimated=i == 0)
            journal.put(request, reply)
        header = write(
            what, rows, journal, tmp_path / "out.jsonl", price=Prices(prompt=1, completion=1)
        )
    assert header.totals["requests_estimated"] == 1
    assert header.totals["cost_usd"] == pytest.approx(202e-6)


def test_thoughts_and_flags_are_in_the_file_and_counted(tmp_path: Path) -> None:
    rows = labelled("sink", "float", "sink")
    what = Extraction(task=own_task(labels=("sink", "float")), split="train", model="m")
    texts = ("<think>Hm.</think>It will sink. So it is.", "It is light.", "It is dense.")
    labels = ("sink", "float", "sink")
    replies = [Reply(text=f"{t} So the answer is {a}.") for t, a in zip(texts, labels, strict=True)]
    records = [what.record(row, [reply]) for row, reply in zip(rows, replies, strict=True)]
    file = tmp_path / "r.jsonl"
    write_records(file, Header(task="own", split="train", teacher="m"), records)
    lines = file.read_text().splitlines()
    assert '"thoughts": "Hm."' in lines[1]
    assert "thoughts" not in lines[2], "as before where there are none"
    assert list(read_records(file)[1]) == records
    stats = record_stats(records, lambda gold, label: gold == label)
    assert (stats.with_thoughts, stats.label_first, stats.labels_once) == (1, 1, 1)


def chat(content: Any, usage: Any = None, **more: Any) -> bytes:
    message = {"role": "assistant", "content": content, **more}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return json.dumps({"model": "m", "choices": [choice], "usage": usage}).encode()


USAGE = {"prompt_tokens": 1500, "completion_tokens": 3000, "total_tokens": 4500}


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_a_reply_of_thoughts_alone_is_paid_for_and_no_answer(name: str) -> None:
    reply = replies.reply_of(chat(None, USAGE, **{name: "So the answer is (b)."}), True, str)
    assert (reply.prompt_tokens, reply.completion_tokens) == (1500, 3000)
    sample = read_reply(reply, CQA, prompt_of("cqa"), PromptOptions())
    assert (sample.status, sample.thoughts) == ("no_answer", "So the answer is (b).")
    assert sample.reason


@pytest.mark.parametrize("kind", ["thinking", "reasoning", "summary"])
def test_parts_of_thought_are_no_text(kind: str) -> None:
    thought = {"type": kind, "text": "x?"}
    nested = {"type": kind, kind: [{"type": "text", "text": "x?"}]}
    for part in (thought, nested):
        reply = replies.reply_of(chat([part, {"type": "text", "text": "yes"}]), True, str)
        assert (reply.text, reply.thoughts) == ("yes", "x?")


def test_halves_of_characters() -> None:
    content = (
        b'{"choices": [{"message": {"content": "\\ud83d x \\ude00"}, "finish_reason": "stop"}]}'
    )
    assert replies.reply_of(content, True, str).text == "\ufffd x \ufffd"
    parts = [{"type": "text", "text": "\ud83d"}, {"type": "text", "text": "\ude00"}]
    assert replies.reply_of(chat(parts), True, str).text == "\U0001f600"


def test_an_object_that_was_asked_for_is_read() -> None:
    reply = replies.reply_of(chat({"rationale": WET, "answer": "(b) GOLD"}), True, str)
    sample = read_reply(reply, CQA, prompt_of("cqa"), PromptOptions())
    assert (sample.status, sample.label, sample.rationale) == ("ok", "GOLD", WET)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (USAGE, (1500, 3000)),
        # Thoughts outside the completion.
        ({"prompt_tokens": 1500, "completion_tokens": 20, "total_tokens": 4520}, (1500, 3020)),
        ({"prompt_tokens": 1500, "completion_tokens": 20}, (1500, 20)),
        ({"prompt_tokens": 1500, "completion_tokens": None, "total_tokens": 1520}, (1500, 20)),
        ({"prompt_tokens": 1500.0, "completion_tokens": 20}, (1500, 20)),
    ],
)
def test_usage(usage: dict, tokens: tuple[int, int]) -> None:
    reply = replies.reply_of(chat("yes", usage), True, str)
    assert (reply.prompt_tokens, reply.completion_tokens) == tokens
    assert not reply.estimated


@pytest.mark.parametrize("usage", [None, {}, [], "x", 3, {"prompt_tokens": "many"}])
def test_usage_that_is_missing_is_estimated(usage: Any) -> None:
    reply = replies.reply_of(chat("x" * 350, usage), True, str, 1000)
    assert (reply.prompt_tokens, reply.completion_tokens, reply.estimated) == (1000, 100, True)


TEXT = st.text(st.characters()) | st.text(string.printable)
PIECES = st.lists(
    st.sampled_from(
        [
            *("<think>", "</think>", "[THINK]", "<|channel|>final<|message|>", "assistantfinal"),
            *(
                "So the answer is",
                "The answer is",
                "Answer:",
                "**",
                "\\boxed{",
                "}",
                "{",
                '"answer"',
            ),
            *("(a)", "(b)", " GOLD", "tree", "neutral", "45", "(63 - 18)", " = ", "\n", ". ", "Q:"),
            *("Wait, ", "because", "\ud83d", "\u200b", "</s>", "x", ":", '{"answer": "(b)"}', "$"),
        ]
    )
).map("".join)


@settings(max_examples=300, deadline=None)
@given(
    PIECES | TEXT, st.sampled_from(sorted(ROWS)), st.booleans(), st.sampled_from(["stop", "length"])
)
def test_any_text_becomes_a_sample(text: str, name: str, structured: bool, finish: str) -> None:
    sample = read(name, text, structured=structured, finish=finish)
    assert sample.status in STATUSES
    assert bool(sample.label) == (sample.status in ("ok", "no_rationale"))
    assert sample.text == text
    if sample.label:
        allowed = ROWS[name].allowed_labels
        assert sample.label in allowed if allowed else prompt_of(name).valid(sample.label)
        for tag in ("<think>", "</think>", "[THINK]", "</s>"):
            assert tag not in sample.rationale


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    "content",
    "refusal",
    "reasoning_content",
    "reasoning",
    "text",
    "answer",
    "type",
    "thinking",
)
MESSAGE = st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4)
CHOICE = st.fixed_dictionaries(
    {}, optional={"message": MESSAGE | JSON, "finish_reason": JSON, "text": JSON}
)
BODY = st.fixed_dictionaries(
    {},
    optional={"choices": st.lists(CHOICE | JSON, max_size=2) | JSON, "usage": JSON, "model": JSON},
)


@settings(max_examples=300, deadline=None)
@given(BODY | JSON, st.booleans())
def test_any_answer_becomes_a_reply_or_is_asked_again(body: Any, is_chat: bool) -> None:
    try:
        reply = replies.reply_of(json.dumps(body).encode(), is_chat, str, 10)
    except replies.Retryable:
        return
    for part in (reply.text, reply.thoughts, reply.finish_reason, reply.refusal, reply.model):
        part.encode()
    assert reply.prompt_tokens >= 0
    assert read_reply(reply, CQA, prompt_of("cqa"), PromptOptions()).status in STATUSES


RELEASE = Path(__file__).resolve().parents[2] / "shared" / "data" / "release"


@pytest.mark.skipif(not RELEASE.is_dir(), reason=f"the authors' release is not at {RELEASE}")
@pytest.mark.parametrize(
    ("name", "split", "as_written", "read"),
    [
        ("cqa", "test", 943, 954),
        ("svamp", "test", 148, 155),
        ("esnli", "validation", 7201, 7201),
        ("anli1", "validation", 668, 675),
    ],
)
def test_palms_text_is_read_as_well_or_better(
    name: str, split: str, as_written: int, read: int
) -> None:
    task = load_task(name)
    completions = examples_with_completions(task, split, RELEASE)
    stats = record_stats(from_release(task, split, completions)[1], task.scorer.correct)
    assert (stats.as_written.right, stats.normalised.right) == (as_written, read)
