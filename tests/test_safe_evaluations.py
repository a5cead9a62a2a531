"""Scoring a run again: nothing of it is overwritten, nothing is scored without gold labels, what is
generated later is shown, and its task is found from any folder.
"""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy

from dss_jax.cli.main import main
from dss_jax.core import config, registry
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.data.store import TEXT_COLUMNS, TOKEN_COLUMNS, TokenStore
from dss_jax.data.store_writer import SplitBuilder, write_store
from dss_jax.report import report
from dss_jax.report.found_runs import View, find_runs
from dss_jax.run import rescore, run_folder, score, single
from dss_jax.run.session import open_session

pytestmark = pytest.mark.usefixtures("linear_programs")

TASK = """
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.types import DistillationTask, Jsonl, plain_example

TASK = DistillationTask(
    name="toy", description="a toy", licence="none", sources=(Jsonl(files={"test": "t.jsonl"}),),
    to_example=plain_example, scorer=TEXT_ACCURACY,
)
"""


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def other_store(folder: Path, rows: int, without_gold: str = "") -> TokenStore:
    """Other rows, so many of validation and test, a split of which may be without gold labels."""
    made = toy.make_store(folder / "made", np.random.default_rng(1))
    splits: dict[str, SplitBuilder] = {}
    for name in made.splits:
        split, new = made.split(name), SplitBuilder(TOKEN_COLUMNS, TEXT_COLUMNS)
        for row in range(rows if name != "train" else len(split)):
            tokens = {c: split.tokens(c)[row].tolist() for c in TOKEN_COLUMNS}
            texts = {c: split.text(c)[row] for c in TEXT_COLUMNS}
            if name == without_gold:
                tokens["label_targets"], texts["label"] = [], ""
            new.append(tokens, texts)
        splits[name] = new
    key = f"other {without_gold}".strip()
    description = {"name": "toy", "kind": "task", "key": key, "prefixes": "paper"}
    return write_store(folder / "store", splits, toy.VOCABULARY, 0, description)


def trained(folder: Path, store: TokenStore, **sections: Any) -> config.Run:
    run = toy.make_run(vocabulary=config.Vocabulary(extra_ids=0), **sections)
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, output_dir=str(folder)))
    single.train(run, store, TEXT_ACCURACY)
    return run


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, toy_store: TokenStore, linear_programs: None
) -> config.Run:
    return trained(tmp_path_factory.mktemp("finished") / "run", toy_store)


@pytest.fixture
def run(tmp_path: Path, finished: config.Run) -> config.Run:
    """A finished run, in the folder `runs/run`."""
    folder = shutil.copytree(str(finished.train.output_dir), tmp_path / "runs" / "run")
    train = dataclasses.replace(finished.train, output_dir=str(folder))
    return dataclasses.replace(finished, train=train)


def scored(run: config.Run, store: TokenStore, **options: Any) -> tuple[int, dict, Path]:
    """Step, scores of test, and the file of its predictions."""
    session = open_session(run, Path(str(run.train.output_dir)), store, TEXT_ACCURACY)
    step, scores = rescore.score(session, ["test"], **options)
    return step, scores["test"], score.predictions_file(session, "test", step, None)


def test_other_data_and_settings_have_files_of_their_own(
    run: config.Run, toy_store: TokenStore, tmp_path: Path, said: list[str]
) -> None:
    step, own, file = scored(run, toy_store)
    assert file.name == f"test-{step}.jsonl"
    before = file.read_bytes()
    assert len(lines(file)) == own["examples"] == 7
    _, numbers, other = scored(run, other_store(tmp_path, 5))
    assert numbers["examples"] == len(lines(other)) == 5
    assert any("token store: other" in line for line in said)
    settings = {
        "data": config.Data(batch_size=8, layout="padded", input_length=4),
        "evaluate": dataclasses.replace(run.evaluate, max_decode_length=2),
        "model": dataclasses.replace(run.model, dtype="bfloat16"),
    }
    files = {file, other}
    for name, section in settings.items():
        files.add(scored(dataclasses.replace(run, **{name: section}), toy_store)[2])
    assert len(files) == 5
    assert {one.name for one in files} <= {one.name for one in file.parent.iterdir()}
    assert file.read_bytes() == before
    # What changes no prediction, and its own data at another place, are the run itself.
    data = dataclasses.replace(run.data, store="elsewhere", batch_size=4)
    same = dataclasses.replace(run, data=data)
    assert scored(same, toy_store)[2] == file
    assert any("max_decode_length = 2" in line for line in said)


def test_a_part_of_validation_has_not_the_name_of_the_whole(
    tmp_path: Path, toy_store: TokenStore
) -> None:
    evaluate = config.Evaluate(every=6, batch_size=4, max_decode_length=5, validation_examples=3)
    trained(tmp_path / "run", toy_store, evaluate=evaluate)
    names = {f.name for f in (tmp_path / "run" / run_folder.PREDICTIONS).iterdir()}
    assert names == {"validation-6-first3.jsonl", "validation-best.jsonl", "test-best.jsonl"}


def test_what_was_trained_with_extra_tasks_is_scored_as_itself(
    run: config.Run, toy_store: TokenStore
) -> None:
    file = Path(str(run.train.output_dir)) / run_folder.CONFIG
    text = file.read_text()
    file.write_text(text.replace(f"{run_folder.STORE_LINE}toy", f"{run_folder.STORE_LINE}toy+more"))
    assert file.read_text() != text
    assert run_folder.OTHER not in scored(run, toy_store)[2].name


class TestWithoutGoldLabels:
    def test_a_split_is_predicted_and_not_scored(
        self, run: config.Run, tmp_path: Path, said: list[str]
    ) -> None:
        _, numbers, file = scored(run, other_store(tmp_path, 5, "test"), rationales=True)
        assert "text_accuracy" not in numbers
        assert "teacher" not in numbers
        assert numbers["examples"] == 5
        found = lines(file)
        assert [p["id"] for p in found] == [f"test-{i}" for i in range(5)]
        assert all(p["prediction"] and "rationale" in p for p in found)
        assert all("correct" not in p and "target" not in p for p in found)
        assert "no row of test has a gold label: it is predicted, not scored" in said

    def test_a_run_has_no_score_of_such_a_split(self, tmp_path: Path, said: list[str]) -> None:
        trained(tmp_path / "runs" / "run", other_store(tmp_path, 5, "test"))
        folder = tmp_path / "runs" / "run"
        results = run_folder.read_results(folder)
        assert results is not None
        assert "test" not in results
        assert "validation" in results
        assert len(lines(folder / run_folder.PREDICTIONS / "test-best.jsonl")) == 5
        assert not any("there is no test split" in line for line in said)
        written = report.write(tmp_path / "runs", view=View(split="validation"), html=True)
        assert written.left == []

    def test_validation_without_them_chooses_the_last_step(self, tmp_path: Path) -> None:
        trained(tmp_path / "run", other_store(tmp_path, 5, "validation"))
        results = run_folder.read_results(tmp_path / "run")
        assert results is not None
        assert results["best_step"] == 6
        assert "validation" not in results
        assert results["test"]["examples"] == 5

    def test_the_command_says_so(self, run: config.Run, tmp_path: Path, capsys) -> None:
        store = other_store(tmp_path, 5, "test")
        (tmp_path / "tasks").mkdir()
        (tmp_path / "tasks" / "toy.py").write_text(TASK)
        where = ["--store", str(store.path), "--task_dir", str(tmp_path / "tasks")]
        assert main(["eval", "--output_dir", str(run.train.output_dir), *where]) == 0
        out = capsys.readouterr().out
        assert "test: 5 rows predicted; none has a gold label" in out
        assert "0.00" not in out
        named = re.search(r"^predictions: (.*)$", out, re.M)
        assert named is not None
        assert len(lines(Path(named[1]))) == 5


def test_rationales_that_are_generated_later_reach_the_page(
    run: config.Run, tmp_path: Path, toy_store: TokenStore
) -> None:
    (cell,) = find_runs(tmp_path / "runs").cells
    assert not any(p["rationale"] for p in cell.runs[0].predictions("test"))
    _, _, file = scored(run, toy_store, rationales=True)
    expected = [p["rationale"] for p in lines(file)]
    assert any(expected)
    assert [p["rationale"] for p in cell.runs[0].predictions("test")] == expected
    longer = dataclasses.replace(run.evaluate, max_rationale_length=2)
    scored(dataclasses.replace(run, evaluate=longer), toy_store, rationales=True)
    assert [p["rationale"] for p in cell.runs[0].predictions("test")] == expected
    written = report.write(tmp_path / "runs", html=True)
    page = next(f for f in written.files if f.suffix == ".html").read_text()
    longest = max(expected, key=len)
    assert json.dumps(longest, ensure_ascii=False)[1:-1] in page or longest in page


class TestFromAnotherFolder:
    @pytest.fixture
    def project(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A folder with a task file, a store and a run, which was trained there."""
        folder = tmp_path / "project"
        (folder / "tasks").mkdir(parents=True)
        (folder / "tasks" / "toy.py").write_text(TASK)
        store = toy.make_store(folder / "store", np.random.default_rng(0))
        monkeypatch.chdir(folder)
        registry.load_task("toy")
        data = config.Data(batch_size=8, layout="padded", store="store")
        trained(Path("runs/run"), store, data=data)
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        return folder

    def test_a_run_finds_its_task_and_its_data(self, project: Path, capsys) -> None:
        assert main(["eval", "--output_dir", str(project / "runs" / "run")]) == 0
        assert f"{project}/runs/run/predictions/test-" in capsys.readouterr().out
        moved = project.parent / "moved"
        (project / "runs" / "run").rename(moved)
        assert main(["eval", "--output_dir", str(moved)]) == 0
        assert not any(Path.cwd().iterdir()), "its own output folder is not written to"

    def test_a_mesh_that_does_not_fit_here_is_replaced(self, project: Path, capsys) -> None:
        """The run was trained on 32 devices; here are 4."""
        folder = project / "runs" / "run"
        before = (folder / run_folder.CONFIG).read_text()
        text = before.replace("Mesh.data = -1", "Mesh.data = 4")
        text = text.replace("Mesh.fsdp = 1", "Mesh.fsdp = 2")
        text = text.replace("Mesh.model = 1", "Mesh.model = 4")
        (folder / run_folder.CONFIG).write_text(text)
        own = ["--store", str(project / "store"), "--task_dir", str(project / "tasks")]
        assert main(["eval", "--output_dir", str(folder), *own]) == 0
        out = capsys.readouterr().out
        assert "Mesh.model = 4) does not fit 4 devices" in out
        assert "this mesh is taken instead: data 1 x fsdp 1 x model 4" in out
        assert "predictions/test-6.jsonl" in out, "a mesh makes no other run"
        assert main(["eval", "--output_dir", str(folder), *own, "--gin.Mesh.data=3"]) == 2
        assert "does not fit 4 devices" in capsys.readouterr().err

    def test_what_comes_from_anywhere_says_not_what_is_executed(
        self, project: Path, capsys
    ) -> None:
        file, task = project / "runs" / "run" / run_folder.CONFIG, project / "tasks" / "toy.py"
        file.write_text(file.read_text() + f"\n# task file: {task}\n")
        task.write_text(f"{task.read_text()}\nopen({str(project / 'executed')!r}, 'w')\n")
        assert main(["eval", "--output_dir", str(project / "runs" / "run")]) == 0
        assert "the task file of toy is not found" in capsys.readouterr().out
        assert not (project / "executed").exists()
        command = ["eval", "--output_dir", str(file.parent), "--task_dir", str(task.parent)]
        assert main(command) == 0, "the user has named it"
        assert (project / "executed").exists()

    def test_a_module_is_imported_where_the_user_names_it(
        self, project: Path, capsys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(project)
        (project / "theirs.py").write_text("open('imported', 'w')")
        folder = project / "runs" / "run"
        run = config.from_gin((folder / run_folder.CONFIG).read_text())
        task = config.Task(mixture_or_task_name="words", mixture_or_task_module="theirs")
        standard = config.Method(name="standard", label="gold", rationale=False)
        changed = config.to_gin(dataclasses.replace(run, task=task, method=standard))
        (folder / run_folder.CONFIG).write_text(changed)
        command = ["eval", "--output_dir", str(folder), "--store", "store"]
        assert main(command) == 2
        error = capsys.readouterr().err
        assert f"{folder} holds a run that you did not begin here" in error
        assert "the Python module 'theirs'" in error
        assert "--mixture_or_task_module theirs." in error
        assert main([*command, "--mixture_or_task_module", "theirs"]) == 2
        assert "the store store is for 'toy', not for 'words'" in capsys.readouterr().err
        registry.remember(None, changed)  # As the one who begins it does.
        assert main(command) == 2
        assert "the store store is for 'toy', not for 'words'" in capsys.readouterr().err
        assert not (project / "imported").exists()

    def test_stores_are_written_where_the_user_says(self, project: Path, capsys) -> None:
        folder = project / "runs" / "run"
        text = (folder / run_folder.CONFIG).read_text()
        text = re.sub(r"Data.store = .*", "Data.store = None", text)
        text = re.sub(r"Data.store_dir = .*", "Data.store_dir = 'theirs'", text)
        (folder / run_folder.CONFIG).write_text(text)
        command = ["eval", "--output_dir", str(folder), "--task_dir", str(project / "tasks")]
        assert main(command) == 2
        error = capsys.readouterr().err
        assert f"{str(project / 'theirs')!r} as the folder to write token stores to" in error
        assert "--store_dir DIR" in error
        assert not any(Path.cwd().iterdir())
        assert main([*command, "--store", str(project / "store")]) == 0
        assert main([*command, "--store_dir", "mine"]) == 2
        assert "'toy' has no train split" in capsys.readouterr().err
