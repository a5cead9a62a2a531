"""What a report says of the data of its runs, and what its page reads of theirs."""

import dataclasses
import json
from pathlib import Path

import pytest
import toy
from results_maker import accuracy_of, write_run
from test_trained_on import other_store

from dss_jax.core import config
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.data.store import TokenStore
from dss_jax.report import report
from dss_jax.report.found_runs import View, find_runs
from dss_jax.report.page import page_data
from dss_jax.run import run_folder, single, trained_on
from dss_jax.run.score import predictions_name


def _of(folder: Path, store: TokenStore, percent: float, **about: object) -> Path:
    """A run that says that it is of this store's data."""
    write_run(folder, accuracy_of(percent), **about)
    trained_on.write(folder, toy.make_run(), store)
    return folder


def _item(folder: Path, name: str) -> dict:
    (task,) = page_data(find_runs(folder), [], "test", "t")["tasks"]
    return next(item for item in task["items"] if item["id"] == name)


def test_other_data_have_curves_tables_and_a_teacher_of_their_own(
    tmp_path: Path, toy_store: TokenStore
) -> None:
    runs, changed = tmp_path / "runs", other_store(toy_store, tmp_path / "changed", "input")
    for n, (store, teacher) in enumerate(((toy_store, 80), (changed, 30))):
        for examples in (500, 1000):
            _of(runs / f"{n}{examples}", store, 50 + n, examples=examples, teacher=None)
        _of(runs / f"{n}_teacher", store, teacher, method="teacher", examples=0)
    made = report.write(runs)
    tables = {table.title: table for table in made.tables}
    for name, accuracy, teacher in (("toy", "50", "80"), ("toy, data 2", "51", "30")):
        table = tables[f"{name}: text accuracy, test, %"]
        assert table.header[2:] == ("50 % (500)", "100 % (1,000)")
        assert table.rows[0] == ("dss", "1.0M", *[f"{accuracy}.00 (1)*"] * 2)
        assert table.rows[1] == ("teacher's labels", "-", *[f"{teacher}.00"] * 2)
    svg = (runs / "report" / "by_data.svg").read_text()
    assert svg.count(">toy, 1.0M<") == svg.count(">toy, data 2, 1.0M<") == 1
    assert "of different data" in (runs / "report" / "report.md").read_text()


@pytest.mark.usefixtures("linear_programs")
def test_a_run_says_what_rows_it_was_trained_on(tmp_path: Path, toy_store: TokenStore) -> None:
    method = config.Method(name="distill", label="teacher", rationale=False)
    run = toy.make_run(method=method)
    run = dataclasses.replace(
        run, train=dataclasses.replace(run.train, output_dir=str(tmp_path / "a"))
    )
    single.train(run, toy_store, TEXT_ACCURACY)
    labels = toy_store.split("train").text("teacher_label")[:]
    count = sum(map(bool, labels))
    assert count < len(labels)
    note = report.write(tmp_path).tables[0].note
    assert f"where not all of the size: distill 100 % ({len(labels)}): {count}." in note


@pytest.mark.parametrize("teacher", [None, 60.0])
def test_a_task_without_the_split_is_named_beside_others(
    tmp_path: Path, teacher: float | None
) -> None:
    write_run(tmp_path / "a", accuracy_of(50))
    folder = write_run(tmp_path / "b", accuracy_of(50), task="other", teacher=teacher)
    results = json.loads((folder / "results.json").read_text())
    del results["test"]
    (folder / "results.json").write_text(json.dumps(results))
    made = report.write(tmp_path, html=True)
    assert made.left == ["b: no score on test (validation has)"]
    assert [t.title for t in made.tables if "accuracy, " in t.title] == [
        "toy: text accuracy, test, %"
    ]
    titles = [t.title for t in report.write(tmp_path, view=View("validation")).tables]
    assert titles[:2] == [
        "other: text accuracy, validation, %",
        "toy: text accuracy, validation, %",
    ]


def test_the_page_has_the_rationales_of_dss_eval(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", accuracy_of(50))
    best = folder / run_folder.PREDICTIONS / "test-best.jsonl"
    lines = [json.loads(line) for line in best.read_text().splitlines()]
    bare = [{k: v for k, v in line.items() if k != "rationale"} for line in lines]
    best.write_text("".join(json.dumps(line) + "\n" for line in bare))
    assert _item(tmp_path, "item-3")["answers"][0]["rationale"] is None
    # As dss eval --rationales names and writes its file of the best checkpoint.
    later = best.with_name(predictions_name(toy.make_run(), "test", 4, None))
    later.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert _item(tmp_path, "item-3")["answers"][0]["rationale"] == "because 3"


def test_the_page_has_the_teachers_text_of_the_students_own_store(
    tmp_path: Path, toy_store: TokenStore
) -> None:
    folder = _of(tmp_path / "runs" / "a", toy_store, 50)
    given = {"label": "label 1", "rationale": "because 1", "correct": True}
    assert _item(folder.parent, "test-1")["teacher"] == given
    wrong = {"label": "label 0", "rationale": "because 2", "correct": False}
    assert _item(folder.parent, "test-2")["teacher"] == wrong
    assert _item(folder.parent, "item-1")["teacher"] is None, "of a row that it has not"
    _of(folder.parent / "t", toy_store, 90, method="teacher", examples=0)
    run = {"label": "yes", "rationale": "because 1", "correct": True}
    assert _item(folder.parent, "item-1")["teacher"] == run, "its own run comes first"


@pytest.mark.parametrize("change", [{"path": "/none"}, {"key": "another"}, {"path": "near"}])
def test_a_store_that_is_not_there_any_more_has_no_text(
    tmp_path: Path, toy_store: TokenStore, change: dict[str, str]
) -> None:
    folder = _of(tmp_path / "a", toy_store, 50)
    file = folder / trained_on.FILE
    known = json.loads(file.read_text())
    file.write_text(json.dumps(known | {"store": known["store"] | change}))
    (task,) = page_data(find_runs(tmp_path), [], "test", "t")["tasks"]
    assert {item["teacher"] for item in task["items"]} == {None}
