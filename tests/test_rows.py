"""Rows from every kind of source, and the errors when they are not there or ill-formed."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dss_jax.core.errors import UsageError
from dss_jax.core.registry import load_task
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.types import (
    Csv,
    DistillationTask,
    Example,
    Generated,
    Jsonl,
    Release,
    Row,
    Source,
    plain_example,
)
from dss_jax.data.rows import examples
from dss_jax.data.sources import available_splits, data_folder, hold_out, source_files

RELEASE = Path(__file__).parent / "fixtures" / "release"


@pytest.fixture(autouse=True)
def no_data_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSS_DATA_DIR", raising=False)


def task_of(*sources: Source, fraction: float = 0.0, file: Path | None = None) -> DistillationTask:
    return DistillationTask(
        name="mine",
        description="d",
        licence="l",
        sources=sources,
        to_example=plain_example,
        scorer=TEXT_ACCURACY,
        validation_fraction=fraction,
        file=str(file) if file else None,
    )


class TestRelease:
    def test_splits_and_rows(self) -> None:
        task = load_task("cqa")
        assert available_splits(task, RELEASE) == ("train", "validation", "test")
        sizes = [len(examples(task, s, RELEASE)) for s in ("train", "validation", "test")]
        assert sizes == [18, 2, 6]
        first = examples(task, "test", RELEASE)[0]
        assert first.input.splitlines()[1:3] == ["Answer Choices:", "(a) harbour"]
        assert first.label == "harbour"
        assert first.teacher_label == "harbour"
        assert first.rationale.startswith("The answer must be a place")

    def test_the_environment_names_the_folder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DSS_DATA_DIR", str(RELEASE))
        assert len(examples(load_task("svamp"), "test")) == 6

    def test_no_folder_at_all(self) -> None:
        with pytest.raises(UsageError, match=r"no train split.*--data_dir, or set DSS_DATA_DIR"):
            examples(load_task("cqa"), "train")

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"does not exist.*--data_dir"):
            data_folder(tmp_path / "x")

    def test_a_split_that_is_not_there(self) -> None:
        task = load_task("esnli")
        only_release = DistillationTask(
            **{**vars(task), "sources": task.sources[:1]}  # Without TFDS.
        )
        assert available_splits(only_release, RELEASE) == ("validation",)
        with pytest.raises(UsageError, match=r"no train split. It has: validation.*esnli_train"):
            examples(only_release, "train", RELEASE)

    def test_an_unknown_split(self) -> None:
        with pytest.raises(UsageError, match=r"Did you mean 'validation'"):
            examples(load_task("cqa"), "validatoin", RELEASE)

    def test_missing_completions(self, tmp_path: Path) -> None:
        copy_release(tmp_path, "svamp", without="llm/test_CoT_0.json")
        with pytest.raises(UsageError, match=r"completions for the test split are missing: .*_0"):
            examples(load_task("svamp"), "test", tmp_path)

    def test_too_few_completions_tells_both_numbers(self, tmp_path: Path) -> None:
        copy_release(tmp_path, "svamp", without="llm/train_CoT_1.json")
        with pytest.raises(UsageError, match=r"has 20 rows, but there are 15 completions"):
            examples(load_task("svamp"), "train", tmp_path)

    def test_source_files(self) -> None:
        assert list(source_files(load_task("cqa"), RELEASE)) == [
            "cqa/cqa_test.json",
            "cqa/cqa_train.json",
            "cqa/llm/test_CoT_0.json",
            "cqa/llm/train_CoT_0.json",
            "cqa/llm/train_CoT_1.json",
        ]


def copy_release(to: Path, name: str, without: str) -> None:
    for file in (RELEASE / name).rglob("*.json"):
        place = file.relative_to(RELEASE)
        if place.relative_to(name).as_posix() != without:
            (to / place).parent.mkdir(parents=True, exist_ok=True)
            (to / place).write_bytes(file.read_bytes())


class TestHoldOut:
    def test_sizes_are_the_papers(self) -> None:
        assert [len(part) for part in hold_out(9741, 0.1, 0)] == [8766, 975]
        assert [len(part) for part in hold_out(800, 0.1, 0)] == [720, 80]

    def test_rows_are_those_of_datasets(self) -> None:
        """Digest of what `train_test_split(test_size=0.1, seed=0)` of `datasets` 5.2.0 gives."""
        train, held = hold_out(9741, 0.1, 0)
        assert held[:5].tolist() == [4032, 2432, 4722, 1506, 47]
        digest = hashlib.sha256(np.concatenate([train, held]).astype("<i8").tobytes()).hexdigest()
        assert digest[:16] == "087929828cec2a9d"

    def test_nothing_is_lost_and_the_parts_are_disjoint(self) -> None:
        for n in range(2, 60):
            train, held = hold_out(n, 0.1, 0)
            assert sorted([*train, *held]) == list(range(n))


class TestFiles:
    def test_jsonl_in_the_data_folder_or_beside_the_task(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "a.jsonl").write_text('{"input": "from data", "label": 3}\n\n')
        for name in "ab":
            (tmp_path / f"{name}.jsonl").write_text('{"input": "beside", "rationale": "r"}\n')
        task = task_of(
            Jsonl(files={"train": "a.jsonl", "test": "b.jsonl"}), file=tmp_path / "mine.py"
        )
        assert examples(task, "train", tmp_path / "data") == [
            Example(id="train-0", input="from data", label="3")
        ]
        assert examples(task, "test", tmp_path / "data")[0].rationale == "r"
        assert examples(task, "train")[0].input == "beside"

    def test_csv(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text('id,input,label\nx,"two\nlines",yes\n')
        task = task_of(Csv(files={"train": "a.csv"}))
        assert examples(task, "train", tmp_path) == [
            Example(id="x", input="two\nlines", label="yes")
        ]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"input": "x"}\n{"input": \n', r"a.jsonl, line 2, column \d+: not valid JSON"),
            ('{"input": "x"}\n[1]\n', "a.jsonl, line 2: must be a JSON object"),
            ('{"text": "x"}\n', "line 1: field 'input' is missing. The row has: text"),
            ('{"input": " "}\n', "line 1: the input is empty"),
            (
                '{"input": "x", "id": 1}\n{"input": "y", "id": 1}\n',
                "line 2: id '1' was seen before, at .*line 1",
            ),
            ("", "has no rows"),
        ],
    )
    def test_ill_formed_jsonl(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "a.jsonl").write_text(text)
        with pytest.raises(UsageError, match=message):
            examples(task_of(Jsonl(files={"train": "a.jsonl"})), "train", tmp_path)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("input,label\nx\n", "a.csv, line 2: has not as many fields as the header line"),
            ("input,label\nx,y,z\n", "a.csv, line 2: has not as many fields"),
            ('input\n"x\n', "a.csv, line 1: unexpected end of data"),
        ],
    )
    def test_ill_formed_csv(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "a.csv").write_text(text)
        with pytest.raises(UsageError, match=message):
            examples(task_of(Csv(files={"train": "a.csv"})), "train", tmp_path)

    def test_not_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(b'{"input": "\xff"}\n')
        with pytest.raises(UsageError, match=r"not UTF-8"):
            examples(task_of(Jsonl(files={"train": "a.jsonl"})), "train", tmp_path)

    def test_a_missing_file_says_where_it_was_looked_for(self, tmp_path: Path) -> None:
        task = task_of(Jsonl(files={"train": "a.jsonl"}), file=tmp_path / "tasks" / "mine.py")
        (tmp_path / "data").mkdir()
        with pytest.raises(UsageError, match=r"Looked for .*data/a.jsonl; .*tasks/a.jsonl"):
            examples(task, "train", tmp_path / "data")


class TestOtherSources:
    def test_the_first_source_that_has_a_split_serves_it(self, tmp_path: Path) -> None:
        def rows(split: str) -> Iterator[Row]:
            yield {"input": f"made for {split}"}

        (tmp_path / "t.jsonl").write_text('{"input": "from file"}\n')
        task = task_of(Jsonl(files={"train": "t.jsonl"}), Generated(rows=rows))
        assert examples(task, "train", tmp_path)[0].input == "from file"
        assert examples(task, "test", tmp_path)[0].input == "made for test"

    def test_a_validation_split_of_the_source_is_not_held_out_again(self) -> None:
        def rows(split: str) -> Iterator[Row]:
            return iter([{"input": f"{split} {i}"} for i in range(10)])

        with_validation = task_of(Generated(rows=rows), fraction=0.5)
        assert len(examples(with_validation, "train")) == 10
        without = task_of(Generated(rows=rows, splits=("train", "test")), fraction=0.25)
        assert [len(examples(without, s)) for s in ("train", "validation", "test")] == [7, 3, 10]

    def test_a_bug_in_to_example_names_row_and_line(self) -> None:
        def broken(row: Row, completion: str | None) -> Example:
            return Example(id="", input=row["input"], label=["no text"][1])

        task = task_of(Generated(rows=lambda _: iter([{"input": "x"}])))
        task = DistillationTask(**{**vars(task), "to_example": broken})
        with pytest.raises(UsageError, match=r"train, row 0: to_example .*test_rows.py:\d+.*Index"):
            examples(task, "train")

    def test_fields_must_be_text(self) -> None:
        task = task_of(Generated(rows=lambda _: iter([{}])))
        task = DistillationTask(
            **{**vars(task), "to_example": lambda r, c: Example(id="", input="x", label=1)}
        )
        with pytest.raises(UsageError, match=r"label must be text.*gave 1"):
            examples(task, "train")


def test_release_rows_that_are_no_json_name_the_line(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "t.json").write_text(json.dumps({"input": "x"}) + "\n{\n")
    task = task_of(Release(folder="d", files={"train": "t.json"}, completions={}))
    with pytest.raises(UsageError, match=r"t.json, line 2"):
        examples(task, "train", tmp_path)
