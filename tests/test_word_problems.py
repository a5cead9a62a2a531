"""The embedded data set: stable, disjoint, with the promised teacher, and its vocabulary."""

import hashlib
import json
import re
import sys
import time
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from dss_jax.core.arithmetic import evaluate
from dss_jax.core.registry import load_task
from dss_jax.core.types import DistillationTask, Row

FOLDER = Path(__file__).resolve().parents[1] / "tasks"
NOT_NUMBERS_OR_SIGNS = re.compile(r"[^-+*/() 0-9]+")

DIGESTS = {
    "train": "27eee382844f8c2a454fc2c22934370f7d273a17d82446030906957f390d5b9c",
    "validation": "fcfece4bf673996ca3172c76f4616dbe9b5d2c0cca09b2fb5ea2509dfb8bb8a5",
    "test": "024081c8e277c67a2811e94a8e909f5523271b067588f59fec4b79b022eb45dd",
}
"""SHA-256 of all rows of a split. A change here makes another data set: train its vocabulary anew,
and run the demo again."""


@pytest.fixture(scope="module")
def task() -> DistillationTask:
    return load_task("word_problems", [FOLDER])


@pytest.fixture(scope="module")
def module(task: DistillationTask) -> ModuleType:
    return sys.modules[task.to_example.__module__]


@pytest.fixture(scope="module")
def rows(task: DistillationTask) -> dict[str, list[Row]]:
    (source,) = task.sources
    return {split: list(source.rows(split)) for split in source.splits}


def equations(text: str) -> list[str]:
    """The longest runs of numbers and signs that hold an operation."""
    runs = (run.strip() for run in NOT_NUMBERS_OR_SIGNS.split(text))
    return [run for run in runs if re.search(r"\d [-+*/] ", run) or re.search(r"\) [-+*/] ", run)]


@pytest.mark.parametrize("split", DIGESTS)
def test_rows_are_the_same_everywhere(rows: dict[str, list[Row]], split: str) -> None:
    assert hashlib.sha256(json.dumps(rows[split]).encode()).hexdigest() == DIGESTS[split]


def test_sizes(rows: dict[str, list[Row]]) -> None:
    assert {split: len(r) for split, r in rows.items()} == {
        "train": 8000,
        "validation": 400,
        "test": 400,
    }


def test_a_split_takes_no_time(task: DistillationTask) -> None:
    start = time.perf_counter()
    list(task.sources[0].rows("test"))
    # 0.2 s alone on one core; the rest is for a busy machine.
    assert time.perf_counter() - start < 2


def test_no_problem_is_there_twice(rows: dict[str, list[Row]]) -> None:
    texts = Counter(row["input"] for split in rows.values() for row in split)
    assert [text for text, count in texts.items() if count > 1] == []
    ids = [row["id"] for split in rows.values() for row in split]
    assert len(set(ids)) == len(ids)


def test_splits_stay_apart_where_few_problems_exist(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """About 1,000 problems can be drawn here, 50 of them in test."""
    monkeypatch.setattr(module, "TEMPLATES", module.TEMPLATES[15:16])
    monkeypatch.setattr(module, "NAMES", module.NAMES[:3])
    monkeypatch.setattr(module, "OBJECTS", module.OBJECTS[:3])
    monkeypatch.setattr(module, "LARGE", (2, 9))
    monkeypatch.setattr(module, "ADDED_DISTRACTOR", 0.0)
    monkeypatch.setattr(module, "ROWS", {"train": 600, "validation": 25, "test": 25})
    texts = [row["input"] for split in module.ROWS for row in module.generate(split)]
    assert len(texts) == len(set(texts)) == 650


def test_examples_are_whole(task: DistillationTask, rows: dict[str, list[Row]]) -> None:
    for row in rows["test"]:
        example = task.to_example(row, None)
        assert example.input.count("\n") == 1
        assert example.input.endswith("?")
        assert example.rationale.endswith(".")
        assert not re.search(r"[{}]", f"{example.input} {example.rationale}")


@pytest.mark.parametrize("split", DIGESTS)
def test_labels_use_numbers_of_the_problem(rows: dict[str, list[Row]], split: str) -> None:
    for row in rows[split]:
        value = evaluate(row["label"])
        assert value is not None
        assert value > 0
        assert value == int(value)
        in_text = re.findall(r"\d+", row["input"])
        assert all(2 <= int(number) <= 99 for number in in_text)
        assert len(set(in_text)) == len(in_text)
        for label in (row["label"], row["teacher_label"]):
            assert set(re.findall(r"\d+", label)) <= set(in_text)
            assert label[:2] + label[-2:] == "(  )"


@pytest.mark.parametrize("split", DIGESTS)
def test_teacher_is_wrong_in_about_a_quarter(
    task: DistillationTask, rows: dict[str, list[Row]], split: str
) -> None:
    labels, teacher = zip(*((r["label"], r["teacher_label"]) for r in rows[split]), strict=True)
    assert task.scorer(list(labels), list(teacher)) == {"equation_accuracy": 74.0}
    right = [task.scorer.correct(*pair) for pair in zip(labels, teacher, strict=True)]
    for start in range(0, len(right), 50):
        assert right[start : start + 50].count(False) == 13


@pytest.mark.parametrize("split", DIGESTS)
def test_rationale_argues_for_the_teachers_label(rows: dict[str, list[Row]], split: str) -> None:
    for row in rows[split]:
        last = equations(row["rationale"])[-1]
        assert f"( {last} )" == row["teacher_label"], row
        # Each number is explained in words before it is computed with.
        in_words = re.sub(r"[(]*\d* [-+*/] [\d(]*", "", row["rationale"])
        assert set(re.findall(r"\d+", row["teacher_label"])) <= set(re.findall(r"\d+", in_words))


def test_a_mistake_that_changes_nothing_is_not_taken(module: ModuleType) -> None:
    """2 + 2 with the wrong operation is 2 * 2, which is right."""
    steps = (module.Step("+", "a", "b", ""),)
    problem = module._Problem("", {"a": "", "b": ""}, steps, {}, {"a": 2, "b": 2})
    for seed in range(50):
        wrong = module._mistake(problem, "( 2 + 2 )", module._Dice(seed))
        assert evaluate(module._equations(problem, wrong)[-1]) != 4


def test_each_kind_of_mistake_is_made(rows: dict[str, list[Row]]) -> None:
    kinds: Counter[str] = Counter()
    for row in rows["train"]:
        gold, said = row["label"].split(), row["teacher_label"].split()
        if gold == said:
            kinds["none"] += 1
        elif len(said) < len(gold):
            kinds["step dropped"] += 1
        elif [t for t in gold if t not in "+-*/"] == [t for t in said if t not in "+-*/"]:
            kinds["operation"] += 1
        elif sorted(gold) == sorted(said):
            kinds["swapped"] += 1
        else:
            kinds["distractor"] += 1
    assert min(kinds.values()) > 200, kinds
    assert len(kinds) == 5


def test_each_template_appears(module: ModuleType) -> None:
    templates = {id(template.steps): template.name for template in module.TEMPLATES}
    dice = module._Dice(0)
    drawn = Counter(templates[id(module._problem(dice).steps)] for _ in range(4000))
    assert len(drawn) == len(module.TEMPLATES) >= 12
    assert min(drawn.values()) > 50, drawn


def test_steps_and_spare_numbers(rows: dict[str, list[Row]]) -> None:
    steps = Counter(len(re.findall(r"[-+*/]", row["label"])) for row in rows["train"])
    assert set(steps) == {1, 2, 3}
    assert min(steps.values()) > 300, steps
    numbers = [
        (re.findall(r"\d+", r["input"]), re.findall(r"\d+", r["label"])) for r in rows["train"]
    ]
    with_spare = sum(len(told) > len(needed) for told, needed in numbers)
    assert 0.5 < with_spare / len(numbers) < 0.8


@pytest.fixture(scope="module")
def pieces(task: DistillationTask):
    """The shipped SentencePiece model, as `seqio.SentencePieceVocabulary` reads it."""
    import sentencepiece

    file = FOLDER / task.default_vocabulary
    assert file.stat().st_size < 300_000
    return sentencepiece.SentencePieceProcessor(model_file=str(file))


class TestVocabulary:
    def test_ids_are_those_of_t5(self, pieces) -> None:
        ids = (pieces.pad_id(), pieces.eos_id(), pieces.unk_id(), pieces.bos_id())
        assert ids == (0, 1, 2, -1)

    def test_text_survives(self, pieces, rows: dict[str, list[Row]]) -> None:
        for row in rows["train"][:1000] + rows["test"]:
            for text in (row["label"], row["teacher_label"], row["rationale"]):
                assert pieces.decode(pieces.encode(text)) == text

    def test_a_number_is_one_token(self, pieces) -> None:
        for number in range(100):
            for text in (f"{number}", f"( {number} *", f"has {number}."):
                assert f"\u2581{number}" in pieces.encode(text, out_type=str)

    def test_words_and_signs_are_one_token(self, pieces, rows: dict[str, list[Row]]) -> None:
        """Also shows that the vocabulary was trained on this text and not on an older one."""
        text = " ".join(f"{row['input']} {row['rationale']}" for row in rows["train"])
        words = set(re.findall(r"[A-Za-z]+", text)) | set("+-*/()")
        assert [word for word in sorted(words) if len(pieces.encode(word)) > 1] == []

    @pytest.mark.parametrize("prefix", ["[label] ", "[rationale] ", "predict: ", "explain: "])
    def test_prefixes_are_short(self, pieces, prefix: str) -> None:
        assert len(pieces.encode(prefix)) <= 3

    def test_any_plain_english_can_be_read(self, pieces) -> None:
        text = "".join(chr(code) for code in range(33, 127))
        assert pieces.unk_id() not in pieces.encode(text)
        assert pieces.decode(pieces.encode(text)) == text

    def test_lengths_suit_a_tiny_model(self, pieces, rows: dict[str, list[Row]]) -> None:
        inputs = [len(pieces.encode(f"[label] {row['input']}")) + 1 for row in rows["train"]]
        rationales = [len(pieces.encode(row["rationale"])) + 1 for row in rows["train"]]
        assert max(inputs) <= 48
        assert max(rationales) <= 64
