"""The authors' completions through the project's own parser: METHOD.md's figures."""

import dataclasses
import tarfile
from pathlib import Path

import pytest

from dss_jax.core.errors import UsageError
from dss_jax.core.registry import load_task
from dss_jax.core.types import Example
from dss_jax.data.rows import examples, examples_with_completions
from dss_jax.records.records import Record
from dss_jax.teacher.extraction import from_release

FIXTURES = Path(__file__).parent / "fixtures" / "release"
TESTS = Path(__file__).parent / "fixtures" / "release_tests.tar.xz"
RELEASE = Path(__file__).resolve().parents[2] / "shared" / "data" / "release"
needs_release = pytest.mark.skipif(
    not RELEASE.is_dir(), reason=f"the authors' release is not at {RELEASE}"
)


@pytest.fixture(scope="session")
def shipped_tests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The part of the release that comes with the tests."""
    folder = tmp_path_factory.mktemp("release")
    with tarfile.open(TESTS) as archive:
        archive.extractall(folder, filter="data")
    return folder


def records(name: str, split: str, folder: Path = RELEASE) -> list[Record]:
    """Of the release's own split: train before validation is held out of it."""
    task = load_task(name)
    splits = ("train", "validation") if split == "train" else (split,)
    rows = [r for s in splits for r in examples_with_completions(task, s, folder)]
    return from_release(task, split, rows)[1]


FIGURES = ("name", "split", "rows", "ok", "raw", "tolerant")


@pytest.mark.parametrize(
    FIGURES,
    [("cqa", "test", 1221, 1189, "77.23", "78.13"), ("svamp", "test", 200, 194, "74.00", "77.50")],
)
def test_accuracies_are_methods(
    name: str, split: str, rows: int, ok: int, raw: str, tolerant: str, shipped_tests: Path
) -> None:
    check(records(name, split, shipped_tests), name, rows, ok, raw, tolerant)


@needs_release
@pytest.mark.parametrize(
    FIGURES,
    [
        ("cqa", "train", 9741, 9422, "74.26", "75.29"),
        ("svamp", "train", 800, 771, "73.50", "74.50"),
        ("esnli", "validation", 9842, 9838, "73.17", "73.17"),
        ("anli1", "validation", 1000, 999, "66.80", "67.50"),
    ],
)
def test_accuracies_of_the_other_splits_are_methods(
    name: str, split: str, rows: int, ok: int, raw: str, tolerant: str
) -> None:
    check(records(name, split), name, rows, ok, raw, tolerant)


def check(found: list[Record], name: str, rows: int, ok: int, raw: str, tolerant: str) -> None:
    """Number of rows, of them with status ok, and accuracies by the authors' rule and by ours."""
    scorer = load_task(name).scorer
    gold = [r.gold for r in found]
    by_rule = scorer(gold, [r.samples[0].raw_label for r in found])[scorer.name]
    by_parser = scorer(gold, [r.teacher_label for r in found])[scorer.name]
    assert len(found) == rows
    assert sum(r.status == "ok" for r in found) == ok
    assert (f"{by_rule:.2f}", f"{by_parser:.2f}") == (raw, tolerant)


@needs_release
def test_unusable_labels_are_methods() -> None:
    rows = [e for s in ("train", "validation") for e in examples(load_task("cqa"), s, RELEASE)]
    allowed = {e.id: e.allowed_labels for e in rows}
    cqa = records("cqa", "train")
    assert sum(r.samples[0].raw_label not in allowed[r.id] for r in cqa) == 448
    assert sum(not r.samples[0].raw_label for r in cqa) == 3
    assert sum(not r.samples[0].raw_label for r in records("svamp", "train")) == 13
    for record in cqa:
        assert record.teacher_label in (*allowed[record.id], "")


def test_a_row_without_completion_is_an_error_with_its_reason() -> None:
    rows = [(Example(id="0", input="x"), None), (Example(id="1", input="y"), "")]
    _, (missing, empty) = from_release(load_task("svamp"), "train", rows)
    assert (missing.status, empty.status) == ("error", "no_answer")
    assert missing.samples[0].reason == "there is no completion for this row"


@pytest.mark.parametrize("name", ["cqa", "svamp"])
def test_labels_agree_with_those_the_students_train_on(name: str) -> None:
    task = load_task(name)
    rows = examples_with_completions(task, "train", FIXTURES)
    assert [e for e, _ in rows] == examples(task, "train", FIXTURES)
    _, found = from_release(task, "train", rows)
    assert [r.samples[0].raw_label for r in found] == [e.teacher_label for e, _ in rows]
    assert [r.samples[0].text for r in found] == [text for _, text in rows]


def test_a_task_without_prompt_says_what_to_do() -> None:
    task = dataclasses.replace(load_task("cqa"), prompt=None)
    with pytest.raises(UsageError, match=r"task 'cqa' has no prompt.*docs/add_a_task.md"):
        from_release(task, "train", [(Example(id="0", input="x"), "y")])
