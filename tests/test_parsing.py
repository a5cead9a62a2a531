"""From replies to samples: what counts as an answer, and each status."""

import pytest

from dss_jax.core.completions import AnswerForm
from dss_jax.core.prompt import Prompt
from dss_jax.core.registry import load_task
from dss_jax.core.types import Example
from dss_jax.records.records import STATUSES, RecordSample, Reply
from dss_jax.teacher.labels import Labels
from dss_jax.teacher.parsing import read_reply
from dss_jax.teacher.prompting import PromptOptions

CHOICES = ("forest", "sea", "washington d.c.", "sea lion", "USA")
CQA = Example(id="", input="Where?", label="sea", allowed_labels=CHOICES)
NLI = Example(id="", input="p</s>h", allowed_labels=("entailment", "neutral", "contradiction"))
FREE = Example(id="", input="How many?")


def prompt_of(name: str) -> Prompt:
    prompt = load_task(name).prompt
    assert prompt is not None
    return prompt


def read(
    name: str, row: Example, text: str, structured: bool = False, **reply: str
) -> RecordSample:
    options = PromptOptions(structured=structured)
    return read_reply(Reply(text=text, **reply), row, prompt_of(name), options)


def normalised(text: str, row: Example, prompt: Prompt) -> str:
    return Labels(row, prompt).normalised(text)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("(b) sea", "sea"),
        ("(b) sea.", "sea"),
        ("(B) Sea.", "sea"),
        ("(b)", "sea"),
        ("B", "sea"),
        ("b.", "sea"),
        ("b) sea", "sea"),
        ("b. sea", "sea"),
        ("b: sea", "sea"),
        ("sea", "sea"),
        ('"Sea".', "sea"),
        ("**(b) sea**.", "sea"),
        ("**(b)** sea", "sea"),
        ("`sea`", "sea"),
        ("\u201csea\u201d", "sea"),
        ("\uff53ea", "sea"),
        ("(c) Washington D.C.", "washington d.c."),
        ("washington d.c", "washington d.c."),
        ("(d) sea  lion", "sea lion"),
        ("usa", "USA"),
        # Not one choice and no other.
        ("forest or (b) sea", ""),
        ("(a) forest or (b) sea", ""),
        ("(a) and (b)", ""),
        ("either (a) forest or (b) sea", ""),
        ("not (b) sea", ""),
        ("(a) sea", ""),
        ("(b) ocean", ""),
        ("(b) sea lion", ""),
        ("ocean", ""),
        ("(z)", ""),
        ("a forest", ""),
        ("", ""),
    ],
)
def test_choices(text: str, label: str) -> None:
    assert normalised(text, CQA, prompt_of("cqa")) == label


def test_a_choice_that_a_row_has_twice_may_have_either_letter() -> None:
    row = Example(id="", input="x", allowed_labels=("bed", "hotel", "hotel"))
    for text in ("(b) hotel", "(c) hotel", "hotel", "(b)"):
        assert normalised(text, row, prompt_of("cqa")) == "hotel"
    assert normalised("(a) hotel", row, prompt_of("cqa")) == ""


def test_labels_that_differ_in_case_are_told_apart_only_as_they_stand() -> None:
    row = Example(id="", input="x", allowed_labels=("us", "US", "it"))
    prompt = prompt_of("esnli")
    assert [normalised(t, row, prompt) for t in ("us", "US", "Us", "IT")] == ["us", "US", "", "it"]


@pytest.mark.parametrize("text", ["(c)", "c", "(a) entailment", "entail", "neutral or entailment"])
def test_letters_are_no_answers_where_no_choices_are_shown(text: str) -> None:
    assert normalised(text, NLI, prompt_of("anli1")) == ""


@pytest.mark.parametrize(
    ("name", "row", "text", "rationale", "label"),
    [
        ("cqa", CQA, "It is wet. So the answer is (b) sea.", "It is wet.", "sea"),
        ("cqa", CQA, "A: It is wet. So the answer is (b) sea.", "It is wet.", "sea"),
        (
            "cqa",
            CQA,
            "It is wet. So the answer is (b) sea.\n\nQ: Why?\nA: No. So the answer is (a)",
            "It is wet.",
            "sea",
        ),
        (
            "cqa",
            CQA,
            "See its FAQ: it is wet. So the answer is (b) sea.",
            "See its FAQ: it is wet.",
            "sea",
        ),
        ("cqa", CQA, "It is wet.\n\n**So the answer is:**\n(B) Sea", "It is wet.", "sea"),
        ("cqa", CQA, "It is wet. Therefore, the answer is (b).", "It is wet.", "sea"),
        ("cqa", CQA, "It is wet.\n\n**Final answer:** (b) sea", "It is wet.", "sea"),
        ("cqa", CQA, "It is wet. So the answer is (b) sea. A forest is dry.", "It is wet.", "sea"),
        ("cqa", CQA, "Wet. So the answer is (b) sea. So the answer is (b).", "Wet.", "sea"),
        (
            "cqa",
            CQA,
            "<think>So the answer is (a).</think>It is wet. So the answer is (b) sea.",
            "It is wet.",
            "sea",
        ),
        (
            "anli1",
            NLI,
            "In 1995, so the answer is Contradiction.\n\nPremise: x",
            "In 1995,",
            "contradiction",
        ),
        ("esnli", NLI, "Not so.\nAnswer: neutral\n\nPre", "Not so.", "neutral"),
        ("esnli", NLI, "Reasoning: Not so.\n**Answer: Neutral**", "Not so.", "neutral"),
        ("svamp", FREE, "Ten beds. The answer is (10 * 45).", "Ten beds.", "(10 * 45)"),
        ("svamp", FREE, "Ten beds. The answer is 450.", "Ten beds.", "450"),
        (
            "svamp",
            FREE,
            "The answer is 8 * 2 = 16. The answer is (8 * 2).",
            "The answer is 8 * 2 = 16.",
            "(8 * 2)",
        ),
        ("svamp", FREE, "Half. The answer is .5 * 3", "Half.", ".5 * 3"),
    ],
)
def test_ok(name: str, row: Example, text: str, rationale: str, label: str) -> None:
    sample = read(name, row, text)
    assert (sample.status, sample.label, sample.rationale) == ("ok", label, rationale)
    assert sample.text == text


@pytest.mark.parametrize(
    ("name", "row", "text", "finish", "status"),
    [
        ("cqa", CQA, "It is wet.", "stop", "no_answer"),
        ("cqa", CQA, "", "stop", "no_answer"),
        ("cqa", CQA, "It is wet. So the answer is", "stop", "no_answer"),
        ("cqa", CQA, "<think>So the answer is (a).", "length", "truncated"),
        ("cqa", CQA, "It is wet. So the", "length", "truncated"),
        ("cqa", CQA, "It is wet. So the answer is (d) sea", "length", "truncated"),
        ("esnli", NLI, "x\nAnswer: entail", "length", "truncated"),
        ("esnli", NLI, "x\nAnswer: entail", "stop", "invalid_label"),
        ("svamp", FREE, "x The answer is ((491 - 21", "length", "truncated"),
        ("svamp", FREE, "x The answer is (2 * x).", "stop", "invalid_label"),
        ("cqa", CQA, "x So the answer is (b) sea.\n\nQ: And", "length", "ok"),
        ("cqa", CQA, "x So the answer is (b) ocean.\n\nQ: And", "length", "invalid_label"),
        ("cqa", CQA, "x So the answer is forest or (b) sea.", "stop", "invalid_label"),
        ("cqa", CQA, "x So the answer is (a) sea.", "stop", "invalid_label"),
        ("cqa", CQA, "x So the answer is (b) sea. Or (a) forest.", "stop", "invalid_label"),
        ("cqa", CQA, "x So the answer is (a). No: so the answer is (b).", "stop", "ambiguous"),
        ("esnli", NLI, "x\nAnswer: neutral. Or contradiction.", "stop", "invalid_label"),
        ("cqa", CQA, "So the answer is (b) sea.", "stop", "no_rationale"),
        ("cqa", CQA, "x So the answer is (b) sea.", "content_filter", "refused"),
        ("cqa", CQA, "", "error", "error"),
    ],
)
def test_statuses(name: str, row: Example, text: str, finish: str, status: str) -> None:
    sample = read(name, row, text, finish_reason=finish)
    assert sample.status == status
    assert status in STATUSES
    assert bool(sample.label) == (status in ("ok", "no_rationale"))
    assert sample.text == text
    assert bool(sample.reason) == (status == "refused")


def test_reasons_are_kept() -> None:
    refused = read("cqa", CQA, "", refusal="I cannot help with that.")
    assert (refused.status, refused.reason) == ("refused", "I cannot help with that.")
    failed = read("cqa", CQA, "", finish_reason="error", refusal="503 after 8 attempts")
    assert (failed.status, failed.reason) == ("error", "503 after 8 attempts")


def test_the_raw_label_is_the_strict_rules() -> None:
    assert read("cqa", CQA, "x So the answer is (b) Sea.").raw_label == "Sea"
    assert read("cqa", CQA, "x So the answer is (a) b or (b) sea.").raw_label == "b or (b) sea"
    assert read("anli1", NLI, "x, so the answer is neutral.").raw_label == ""


def test_a_rationale_without_an_answer_is_kept_where_the_form_says_so() -> None:
    assert read("esnli", NLI, "A man walks").rationale == "A man walks"
    assert read("anli1", NLI, "A man walks").rationale == ""


@pytest.mark.parametrize(
    ("text", "finish", "status", "label"),
    [
        ('{"rationale": "Wet.", "answer": "(b) sea"}', "stop", "ok", "sea"),
        ('```json\n{"rationale": "Wet.", "answer": "b"}\n```', "stop", "ok", "sea"),
        ('{"rationale": " ", "answer": "sea"}', "stop", "no_rationale", "sea"),
        ('{"rationale": "Wet.", "answer": "ocean"}', "stop", "invalid_label", ""),
        ('{"rationale": "Wet.", "answer": ""}', "stop", "no_answer", ""),
        ('{"rationale": "Wet.", "answer": 3}', "stop", "no_answer", ""),
        ('{"rationale": "Wet.", "ans', "length", "truncated", ""),
        ("Wet. So the answer is (b).", "stop", "no_answer", ""),
        ("[" * 100_000, "stop", "no_answer", ""),
        ("[1]", "stop", "no_answer", ""),
    ],
)
def test_structured(text: str, finish: str, status: str, label: str) -> None:
    sample = read("cqa", CQA, text, structured=True, finish_reason=finish)
    assert (sample.status, sample.label) == (status, label)
    if status == "invalid_label":
        assert sample.raw_label == "ocean"


def test_a_task_of_its_own_pattern_without_allowed_labels() -> None:
    form = AnswerForm(run_on="###", marker="=>", label=r"<(\w+)>")
    prompt = Prompt(
        instruction="",
        exemplars=(),
        question="{input}",
        answer="{rationale} => <{output}>",
        opening="",
        stop=(),
        form=form,
    )
    for row in (FREE, Example(id="", input="x", allowed_labels=("yes", "no"))):
        sample = read_reply(Reply(text="Since it is. => <yes>!"), row, prompt, PromptOptions())
        assert (sample.status, sample.label, sample.rationale) == ("ok", "yes", "Since it is.")


@pytest.mark.parametrize(
    "text", ["\x00" * 9, "(" * 5000, "So the answer is " * 3000, "<think>" * 9]
)
def test_strange_text_is_read_quickly(text: str) -> None:
    assert read("cqa", CQA, text).status in ("no_answer", "invalid_label")


def test_another_label_is_seen_where_words_have_no_space_between_them() -> None:
    yes, no = "\u80af\u5b9a", "\u5426\u5b9a"
    row = Example(id="", input="p</s>h", allowed_labels=(yes, no))
    because = "\u7406\u7531\u306f\u660e\u3089\u304b\u3067\u3059."
    for more in ("", f" {because}"):
        assert read("esnli", row, f"{because} So the answer is {yes}.{more}").label == yes
    for more in (f"{no}\u3067\u3082\u3042\u308b", f"\u307e\u305f\u306f{no}\u3067\u3059"):
        assert read("esnli", row, f"{because} So the answer is {yes}. {more}").label == ""
