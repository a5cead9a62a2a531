"""`TableSource`: columns of a table as examples, its splits, and what a student knows of it."""

import json
from pathlib import Path

import pytest

from dss_jax.core.errors import UsageError
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.student_card import StudentCard
from dss_jax.core.table import TableSource, input_columns, input_of
from dss_jax.core.types import SPLITS, DistillationTask, plain_example
from dss_jax.data.rows import Located, examples
from dss_jax.data.sources import available_splits
from dss_jax.student.predict import PredictJob, asked

ROWS = [
    {"n": i, "a": f"text {i}", "b": "" if i % 3 else "more", "y": i % 2 == 0, "why": f"so {i}"}
    for i in range(200)
]


def task_of(folder: Path, rows: list[dict] | None = None, **settings: object) -> DistillationTask:
    lines = ROWS if rows is None else rows
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    source = TableSource(
        **{"file": "t.jsonl", "inputs": ("a", "b"), "label": "y", "id": "n"} | settings
    )
    return DistillationTask(
        name="t",
        description="",
        licence="",
        sources=(source,),
        to_example=source.to_example,
        scorer=TEXT_ACCURACY,
        file=str(folder / "t.py"),
    )


def ids(task: DistillationTask, split: str) -> set[str]:
    return {e.id for e in examples(task, split)}


def test_columns_become_an_example(tmp_path: Path) -> None:
    task = task_of(tmp_path, rationale="why", validation=0.0, test=0.0)
    assert available_splits(task) == ("train",)
    first, second, *_ = examples(task, "train")
    assert (first.id, first.input) == ("0", "a: text 0\nb: more")
    assert (first.label, first.rationale) == ("true", "so 0")
    assert (second.input, second.label) == ("a: text 1", "false")
    assert input_columns(task) == ("a", "b")
    assert input_of({"a": " x "}, ("a",)) == "x"


def test_splits_are_parts_of_the_file(tmp_path: Path) -> None:
    task = task_of(tmp_path, validation=0.2, test=0.3)
    parts = {split: ids(task, split) for split in SPLITS}
    assert sum(map(len, parts.values())) == len(set().union(*parts.values())) == 200
    assert 25 <= len(parts["validation"]) <= 55
    assert 45 <= len(parts["test"]) <= 75


def test_a_split_with_a_file_of_its_own_leaves_its_part_to_train(tmp_path: Path) -> None:
    before = task_of(tmp_path)
    old = {split: ids(before, split) for split in SPLITS}
    (tmp_path / "test.jsonl").write_text('{"n": "x", "a": "new", "b": "", "y": "true"}\n')
    after = task_of(tmp_path, files={"test": "test.jsonl"})
    assert ids(after, "test") == {"x"}
    assert ids(after, "validation") == old["validation"]
    assert ids(after, "train") == old["train"] | old["test"]


def test_rows_without_a_label_are_of_train_where_they_are_wanted(tmp_path: Path) -> None:
    rows = [row | {"y": "N/A" if row["n"] < 100 else "yes"} for row in ROWS]
    kept = task_of(tmp_path, rows, no_label=("N/A",))
    assert all(int(i) >= 100 for split in SPLITS for i in ids(kept, split))
    wanted = task_of(tmp_path, rows, no_label=("N/A",), unlabelled=True)
    assert {e.label for e in examples(wanted, "train")} == {"", "yes"}
    assert ids(wanted, "test") == ids(kept, "test")


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    task = task_of(tmp_path, label="lable", id=None, inputs=("a",), no_label=())
    with pytest.raises(UsageError, match=r"t.jsonl: unknown column 'lable'"):
        examples(task, "train")


def test_a_cell_that_is_no_text_is_an_error_with_its_line(tmp_path: Path) -> None:
    task = task_of(tmp_path, [*ROWS, {"n": 1000, "a": ["x"], "y": "yes"}])
    with pytest.raises(UsageError, match=r"t.jsonl, line 201: a must be text"):
        [examples(task, split) for split in SPLITS]


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.2)])
def test_shares_must_leave_some_for_train(shares: tuple[float, float], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must leave some for train"):
        task_of(tmp_path, validation=shares[0], test=shares[1])


def test_another_to_example_is_not_known_to_a_student(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    other = DistillationTask(
        name="t",
        description="",
        licence="",
        sources=task.sources,
        to_example=plain_example,
        scorer=TEXT_ACCURACY,
    )
    assert input_columns(other) == ()


def test_a_student_knows_its_columns() -> None:
    job, card = PredictJob(input="", out=""), StudentCard(columns=("a", "b"))
    row = {"a": "x", "b": "y", "c": "z"}
    assert asked(Located(where="r", row=row), job, card).text == "a: x\nb: y"
    assert asked(Located(where="r", row=row | {"input": "own"}), job, card).text == "own"
    # One of the columns that it was trained on may be called so.
    card = StudentCard(columns=("input", "b"))
    assert asked(Located(where="r", row=row | {"input": "x"}), job, card).text == "input: x\nb: y"
    job = PredictJob(input="", out="", input_column="input")
    assert asked(Located(where="r", row=row | {"input": "x"}), job, card).text == "x"
    card = StudentCard(columns=("a", "b"))
    with pytest.raises(UsageError, match="The student was trained on 'a', 'b'"):
        asked(Located(where="r", row={"a": "x"}), job, card)
