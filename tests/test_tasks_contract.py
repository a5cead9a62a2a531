"""What every task file has to hold to; runs over all tasks that come with the package."""

import re
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest

from dss_jax.core.errors import UsageError
from dss_jax.core.paths import shipped
from dss_jax.core.prompt import Exemplar, Prompt
from dss_jax.core.registry import load_task, load_task_file, task_names
from dss_jax.core.types import DistillationTask, Example, SeqioSource, Tfds
from dss_jax.data.rows import examples
from dss_jax.data.sources import available_splits, source_of
from dss_jax.records.records import Reply
from dss_jax.teacher.parsing import read_reply
from dss_jax.teacher.prompting import FORMS, PromptOptions, outputs, request_body

RELEASE = Path(__file__).parent / "fixtures" / "release"
WHOLE_RELEASE = Path(__file__).resolve().parents[2] / "shared" / "data" / "release"
DATA = WHOLE_RELEASE if WHOLE_RELEASE.is_dir() else RELEASE
NAMES = sorted(f.stem for f in shipped("tasks").glob("*.py") if not f.name.startswith("_"))


@cache
def some_rows(name: str) -> list[Example]:
    task = load_task(name)
    return [e for s in local_splits(task) for e in examples(task, s, RELEASE)[:50]]


def local_splits(task: DistillationTask) -> list[str]:
    """Without those that would be downloaded; the tests that import TensorFlow have them."""
    found = available_splits(task, RELEASE)
    return [s for s in found if not isinstance(source_of(task, s, RELEASE), Tfds | SeqioSource)]


def prompt_of(task: DistillationTask) -> Prompt:
    assert task.prompt is not None
    return task.prompt


def as_row(exemplar: Exemplar, task: DistillationTask) -> Example:
    """An exemplar as a row: with the choices that it shows, or those that all rows have."""
    row = some_rows(task.name)[0]
    shown = re.findall(r"^\(\w\) (.*)$", exemplar.input, re.M)
    return Example(id="", input=exemplar.input, allowed_labels=tuple(shown) or row.allowed_labels)


def test_the_four_benchmarks_are_there() -> None:
    assert {"cqa", "svamp", "esnli", "anli1"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    def test_fields_are_filled(self, name: str) -> None:
        task = load_task(name)
        assert task.name == name
        assert task.description
        assert task.licence
        assert task.sources
        assert task.file == str(shipped("tasks") / f"{name}.py")

    def test_rows_become_examples(self, name: str) -> None:
        found = some_rows(name)
        assert len(found) > 5
        for example in found:
            assert example.input.strip() == example.input
            assert example.id
            if example.allowed_labels:
                assert example.label in example.allowed_labels
        assert any(e.rationale for e in found)
        assert any(e.teacher_label for e in found)

    def test_scorer_is_right_on_its_own_label(self, name: str) -> None:
        task = load_task(name)
        labels = [e.label for e in some_rows(task.name) if e.label]
        assert task.scorer(labels, labels) == {task.scorer.name: 100.0}
        assert task.scorer(labels, ["no such answer"] * len(labels)) == {task.scorer.name: 0.0}

    def test_exemplars_are_answered_as_a_completion_is_read(self, name: str) -> None:
        task = load_task(name)
        prompt = prompt_of(task)
        for form in FORMS:
            for exemplar in prompt.exemplars:
                answer = prompt.answer.replace("{rationale}", exemplar.rationale)
                text = answer.replace("{output}", exemplar.output).removeprefix(prompt.opening)
                row = as_row(exemplar, task)
                sample = read_reply(
                    Reply(text=text + prompt.stop[0]), row, prompt, PromptOptions(form=form)
                )
                assert (sample.status, sample.rationale) == ("ok", exemplar.rationale)
                # The strict rule drops the full stop at the end of "washington d.c." too.
                assert sample.raw_label == sample.label
                assert sample.label in exemplar.output
                assert sample.label in (row.allowed_labels or (exemplar.output,))
                assert task.scorer([sample.label], [sample.raw_label]) == {task.scorer.name: 100.0}

    def test_exemplars_are_about_ten_and_of_all_labels(self, name: str) -> None:
        task = load_task(name)
        exemplars = prompt_of(task).exemplars
        assert len(exemplars) >= (10 if name != "word_problems" else 6)
        assert len({e.input for e in exemplars}) == len(exemplars)
        if task.scorer.name == "equation_accuracy":
            assert {c for e in exemplars for c in e.output} >= set("+-*/")
        elif any(re.match(r"\(\w\)", e.output) for e in exemplars):
            assert {e.output[:3] for e in exemplars} == {f"({letter})" for letter in "abcde"}
        else:
            assert {e.output for e in exemplars} == set(some_rows(task.name)[0].allowed_labels)

    def test_exemplars_are_no_rows(self, name: str) -> None:
        task = load_task(name)
        prompt = prompt_of(task)
        shown = {e.input.casefold() for e in prompt.exemplars}
        # Not every task's rows are in the material that people of this project share.
        data = DATA if available_splits(task, DATA) else RELEASE
        for split in local_splits(task):
            asked = {prompt.input_of(e).casefold() for e in examples(task, split, data)}
            assert not shown & asked

    def test_rows_are_asked(self, name: str) -> None:
        task = load_task(name)
        prompt = prompt_of(task)
        for row in some_rows(task.name):
            for form in FORMS:
                for hint in {False, bool(row.label)}:
                    request_body(prompt, row, PromptOptions(form=form, hint=hint))
            for label, output in outputs(prompt, row).items():
                text = prompt.answer.replace("{rationale}", "So it is.").replace("{output}", output)
                assert read_reply(Reply(text=text), row, prompt, PromptOptions()).label == label

    def test_no_test_input_is_in_train(self, name: str) -> None:
        task = load_task(name)
        if not {"train", "test"} <= set(local_splits(task)):
            pytest.skip("the fixtures have no train or no test split of it")
        train = {e.input for e in examples(task, "train", RELEASE)}
        assert not train & {e.input for e in examples(task, "test", RELEASE)}


def test_loading_tasks_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, time; t = time.perf_counter()\n"
        "from dss_jax.core.registry import load_task\n"
        f"[load_task(n) for n in {NAMES!r}]\n"
        "print(time.perf_counter() - t)\n"
        "heavy = {'tensorflow', 'seqio', 'jax', 'flax', 'numpy', 'sentencepiece', 'gin'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    command, root = [sys.executable, "-c", code], Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    seconds, heavy = done.stdout.splitlines()
    assert heavy == "[]"
    assert float(seconds) < 2.0


GOOD = """
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.types import DistillationTask, Jsonl, plain_example
TASK = DistillationTask(
    name="mine", description="d", licence="l", sources=(Jsonl(files={"train": "t.jsonl"}),),
    to_example=plain_example, scorer=TEXT_ACCURACY)
"""


class TestRegistry:
    def test_a_folder_of_the_callers_comes_first(self, tmp_path: Path) -> None:
        (tmp_path / "cqa.py").write_text(GOOD.replace('"mine"', '"cqa"'))
        (tmp_path / "_shared.py").write_text("raise RuntimeError")
        assert task_names([tmp_path])["cqa"] == tmp_path / "cqa.py"
        assert "_shared" not in task_names([tmp_path])
        assert load_task("cqa", [tmp_path]).description == "d"

    def test_the_environment_and_the_working_folder_are_searched(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for folder, name in (("env", "mine"), ("work/tasks", "yours")):
            (tmp_path / folder).mkdir(parents=True)
            (tmp_path / folder / f"{name}.py").write_text(GOOD.replace("mine", name))
        monkeypatch.setenv("DSS_TASK_PATH", str(tmp_path / "env"))
        monkeypatch.chdir(tmp_path / "work")
        assert {"mine", "yours", "cqa"} <= set(task_names())

    def test_a_wrong_name_lists_the_nearest(self) -> None:
        started = time.perf_counter()
        with pytest.raises(UsageError, match=r"unknown task 'cqaa'. Did you mean 'cqa'\?"):
            load_task("cqaa")
        assert time.perf_counter() - started < 0.5

    def test_a_missing_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"task folder .*nowhere.* does not exist"):
            task_names([tmp_path / "nowhere"])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("x = 1\nimport no_such_module_x\n", r"mine.py:2: .*no_such_module_x"),
            ("x = 1\n\ndef f(:\n", r"mine.py:3: .*SyntaxError"),
            ("x = 1\n", "must define TASK.*found none"),
            ("TASK = 1\n", "found a int"),
            (GOOD.replace('"mine"', '"other"'), "TASK.name is 'other'"),
            ("\n" + GOOD.replace("licence", "license"), r"mine.py:5: .*license"),
        ],
    )
    def test_a_broken_file_is_explained(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "mine.py").write_text(text)
        with pytest.raises(UsageError, match=message):
            load_task_file(tmp_path / "mine.py")
