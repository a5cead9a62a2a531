"""Reading a teacher's raw completion, and METHOD.md's figures on the released ones."""

import re
from pathlib import Path

import pytest

from dss_jax.core.completions import UP_TO_FINAL_STOP, AnswerForm, parse_completion
from dss_jax.core.registry import load_task
from dss_jax.core.types import Answer, Example
from dss_jax.data.rows import examples

RELEASE = Path(__file__).resolve().parents[2] / "shared" / "data" / "release"
needs_release = pytest.mark.skipif(
    not RELEASE.is_dir(), reason=f"the authors' release is not at {RELEASE}"
)

CQA = AnswerForm(run_on="Q:", marker="So the answer is", label=r"(?s)\)(.*?)\.?$")
SVAMP = AnswerForm(run_on="Q:", marker="The answer is", label=r"(\(.*\))")
ESNLI = AnswerForm(run_on="Premise", marker="Answer:", label=UP_TO_FINAL_STOP, keep_unanswered=True)
ANLI = AnswerForm(run_on="Premise", marker="So the answer is", label=UP_TO_FINAL_STOP)


@pytest.mark.parametrize(
    ("form", "completion", "rationale", "label"),
    [
        (CQA, "It is wet. So the answer is (c) the sea.\n\nQ: Why? So", "It is wet.", "the sea"),
        (CQA, "So the answer is (e) washington d.c.", "", "washington d.c"),
        (CQA, "x So the answer is (d) good luck!", "x", "good luck!"),
        (CQA, "x So the answer is either (a) sea or (b) lake.", "x", "sea or (b) lake"),
        (CQA, "x So the answer is one of these.", "x", ""),
        (CQA, "It goes on and on", "", ""),
        (SVAMP, "10 beds. The answer is (10 * 45).\n\nQ: Who", "10 beds.", "(10 * 45)"),
        (SVAMP, "x The answer is (1 + 2) and (3 - 1).", "x", "(1 + 2) and (3 - 1)"),
        (SVAMP, "x The answer is ((491 - 21", "x", ""),
        (SVAMP, "x y z", "", ""),
        (ESNLI, "A man is no dog.\nAnswer: neutral\n\nPremise: A", "A man is no dog.", "neutral"),
        (ESNLI, "A man\nAnswer: neutral\n\nPre", "A man", "neutral\n\nPre"),
        (ESNLI, "A man\nAnswer: entail", "A man", "entail"),
        (ESNLI, "A man who walks", "A man who walks", ""),
        (
            ANLI,
            "It was 1995. So the answer is contradiction.\n\nPremise: B",
            "It was 1995.",
            "contradiction",
        ),
        (ANLI, "born in 1995, so the answer is contradiction.\n\nPremise: B", "", ""),
        (ANLI, None, "", ""),
    ],
)
def test_a_completion_is_taken_apart(
    form: AnswerForm, completion: str | None, rationale: str, label: str
) -> None:
    assert parse_completion(completion, form) == Answer(rationale=rationale, label=label)


def test_a_form_without_a_group_is_refused() -> None:
    with pytest.raises(ValueError, match="group"):
        AnswerForm(run_on="Q:", marker="A", label="x")


def test_text_is_never_executed() -> None:
    for module in ("core/completions.py", "core/arithmetic.py", "data/rows.py"):
        source = (Path(__file__).parents[1] / "dss_jax" / module).read_text()
        assert not re.search(r"\b(eval|exec)\(", source)


def read_all(name: str) -> dict[str, list[Example]]:
    """The release's own splits: train before validation is held out of it."""
    task = load_task(name)
    if not task.validation_fraction:
        return {"validation": examples(task, "validation", RELEASE)}
    held_out = [e for s in ("train", "validation") for e in examples(task, s, RELEASE)]
    return {"train": held_out, "test": examples(task, "test", RELEASE)}


@needs_release
@pytest.mark.parametrize(
    ("name", "split", "rows", "accuracy"),
    [
        ("cqa", "train", 9741, "74.26"),
        ("cqa", "test", 1221, "77.23"),
        ("svamp", "train", 800, "73.50"),
        ("svamp", "test", 200, "74.00"),
        ("esnli", "validation", 9842, "73.17"),
        ("anli1", "validation", 1000, "66.80"),
    ],
)
def test_teacher_accuracy_is_methods(name: str, split: str, rows: int, accuracy: str) -> None:
    found = read_all(name)[split]
    score = load_task(name).scorer([e.label for e in found], [e.teacher_label for e in found])
    assert len(found) == rows
    assert f"{next(iter(score.values())):.2f}" == accuracy


@needs_release
def test_unusable_labels_are_methods() -> None:
    cqa = read_all("cqa")["train"]
    assert sum(e.teacher_label not in e.allowed_labels for e in cqa) == 448
    assert sum(not e.teacher_label for e in cqa) == 3
    assert sum(not e.teacher_label for e in read_all("svamp")["train"]) == 13


@needs_release
@pytest.mark.parametrize(
    ("name", "split", "mean", "p99"),
    [
        ("cqa", "train", "24", 37),
        ("svamp", "train", "28", 66),
        # METHOD.md's 27 and 47 are of the training splits, which are not in ../shared.
        ("esnli", "validation", "10.5", 28),
        ("anli1", "validation", "19", 44),
    ],
)
def test_rationale_lengths_are_methods(name: str, split: str, mean: str, p99: int) -> None:
    words = sorted(len(e.rationale.split()) for e in read_all(name)[split])
    digits = len(mean.partition(".")[2])
    assert f"{sum(words) / len(words):.{digits}f}" == mean
    assert words[int(0.99 * len(words))] == p99


@pytest.mark.slow
@pytest.mark.skipif(
    not (RELEASE.parent / "text").is_dir(), reason=f"no completions at {RELEASE.parent / 'text'}"
)
def test_esnli_train_completions_are_methods() -> None:
    import json
    import lzma

    words, cut = [], set()
    with lzma.open(RELEASE.parent / "text" / "esnli_train_completions.jsonl.xz", "rt") as lines:
        for line in lines:
            answer = parse_completion(json.loads(line), ESNLI)
            words.append(len(answer.rationale.split()))
            cut.add(answer.label)
    words.sort()
    assert len(words) == 549_367
    assert f"{sum(words) / len(words):.1f}" == "10.5"
    assert words[int(0.99 * len(words))] == 27
    assert {"entail", "neutral\n\nPre"} <= cut
