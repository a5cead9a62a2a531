"""`data.json`: a run is scored from any folder, and what of its data has changed is noticed."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
import results_maker
import student_maker
import toy
from toy import heard

from dss_jax.cli import saved_run
from dss_jax.cli.main import main
from dss_jax.core import config, registry
from dss_jax.core.errors import UsageError
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.data import prepare, prepare_child
from dss_jax.data.store import TokenStore
from dss_jax.data.store_writer import write_store
from dss_jax.records.files import write_records
from dss_jax.records.records import Header
from dss_jax.report.found_runs import find_runs
from dss_jax.run import run_folder, single, trained_on
from dss_jax.run.session import Session
from dss_jax.teacher.prompting import PromptOptions, prompt_sha256

TASK = '''"""Executed only where the user has named it."""
from dss_jax.core.scoring import {scorer}
from dss_jax.core.types import DistillationTask, Jsonl, plain_example
TASK = DistillationTask(
    name="choices", description="", licence="", sources=(Jsonl(files={{"train": "none.jsonl"}}),),
    to_example=plain_example, scorer={made},
)
'''
OURS = {"scorer": "TEXT_ACCURACY", "made": "TEXT_ACCURACY"}
OWN = {"scorer": "Scorer", "made": 'Scorer(name="text_accuracy", correct=str.startswith)'}


WHOLE = {"format": 1, "folder": "/", "store": {}, "splits": {}, "extra": {}}
BROKEN = [
    json.dumps(WHOLE | change)
    for change in [
        {"format": 9},
        {"folder": 3},
        {"store": []},
        {"splits": {"test": {"rows": "1", "data": "a", "teacher": "b"}}},
        {"extra": {"other": []}},
    ]
]


def other_store(store: TokenStore, path: Path, column: str) -> TokenStore:
    """The store with other text in a column of one row of each split."""
    splits = {}
    for name in store.splits:
        split = toy.copied(store.split(name))
        split._values[column][0] = ord("X")
        splits[name] = split
    about = {k: store.manifest[k] for k in ("name", "kind", "prefixes")} | {"key": path.name}
    return write_store(path, splits, store.vocabulary_path, store.extra_ids, about)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return student_maker.make_store(tmp_path_factory.mktemp("stores") / "choices")


def student(folder: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch, **task: str) -> Path:
    """A run whose task file was below `folder`, begun there by somebody else."""
    file = folder / "home" / "choices.py"
    file.parent.mkdir()
    file.write_text(TASK.format(**task))
    registry.load_task_file(file)
    monkeypatch.chdir(file.parent)
    student_maker.make_student(folder / "run", store)
    # Somebody else's note of where it began is not ours.
    monkeypatch.setenv("DSS_CACHE_DIR", str(folder / "cache"))
    monkeypatch.chdir(folder)
    registry._loaded.clear()
    return folder / "run"


def reopen(run: Path, *bindings: str, dirs: Sequence[str] = ()) -> Session:
    found = saved_run.resolve(run, None, bindings)
    return saved_run.reopen(found, run, dirs, ["test"])


class TestFromAnotherFolder:
    def test_the_runs_own_store_serves_where_its_task_file_is_not_found(
        self, tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = student(tmp_path, store, monkeypatch, **OURS)
        known = json.loads((run / trained_on.FILE).read_text())
        assert known["folder"] == str(tmp_path / "home")
        assert known["task_file"] == str(tmp_path / "home" / "choices.py")
        with heard() as said:
            session = reopen(run, "Data.store = None")
        assert session.store.path == store.path
        assert session.evaluator.metric == "text_accuracy"
        assert f"(it was {known['task_file']})" in said[0]
        assert not registry._loaded, "a task file was executed because a run names it"

    def test_its_records_may_be_others_now(
        self, tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Extracted again; nobody has named them to the command."""
        run = student(tmp_path, store, monkeypatch, **OURS)
        file = tmp_path / "r.jsonl"
        write_records(file, Header(task="choices", split="train", teacher="m"), [])
        records = f"Task.record_files = ({str(file)!r},)"
        assert reopen(run, "Data.store = None", records).store.path == store.path

    def test_a_scorer_of_the_task_files_own_needs_the_file_to_be_named(
        self, tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = student(tmp_path, store, monkeypatch, **OWN)
        with pytest.raises(UsageError, match=r"home/choices.py\).*file's own.*--task_dir"):
            reopen(run)
        assert not registry._loaded
        assert reopen(run, dirs=[str(tmp_path / "home")]).evaluator.scorer.correct("ab", "a")

    @pytest.mark.parametrize("damage", ["", "[]", "{", "\udcff", *BROKEN])
    def test_without_a_sound_file(
        self, tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch, damage: str
    ) -> None:
        run = student(tmp_path, store, monkeypatch, **OURS)
        file = run / trained_on.FILE
        content = damage.encode(errors="surrogateescape")
        file.write_bytes(content) if damage else file.unlink()
        says = "data.json is damaged" if damage else r"its place is not known\).*no data.json"
        with pytest.raises(UsageError, match=says):
            reopen(run)

    def test_a_store_that_is_another_now_is_not_taken(
        self, tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = student(tmp_path, store, monkeypatch, **OURS)
        file = run / trained_on.FILE
        known = json.loads(file.read_text())
        file.write_text(json.dumps(known | {"store": {"path": str(store.path), "key": "other"}}))
        with pytest.raises(UsageError, match=r"token store is not here either \(--store\)"):
            reopen(run, "Data.store = None")

    def test_whoever_scores_it_on_other_rows_is_told(
        self, tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = student(tmp_path, store, monkeypatch, **OURS)
        changed = other_store(store, tmp_path / "changed", "input")
        with heard() as said:
            reopen(run, f"Data.store = {str(changed.path)!r}")
        assert "test: other rows (30 and 30)" in said[-1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, False),
        ({"prompt_sha256": "other"}, True),
        ({"prompt": {"exemplars": 99}}, True),  # The task had more.
        ({"prompt": {"of_a_newer_version": 1}}, False),
        ({"prompt": {}, "prompt_sha256": "of an earlier version"}, False),
        ({"task": "svamp", "prompt_sha256": "other"}, False),
    ],
)
def test_records_of_another_prompt_are_told(tmp_path: Path, change: dict, told: bool) -> None:
    prompt, options = registry.load_task("cqa").prompt, PromptOptions(exemplars=2, hint=True)
    assert prompt is not None
    asked = {"prompt": asdict(options), "prompt_sha256": prompt_sha256(prompt, options)}
    file = tmp_path / "cqa.jsonl"
    write_records(
        file, Header(**{"task": "cqa", "split": "test", "teacher": "m"} | asked | change), []
    )
    with heard() as said:
        trained_on.warn_of_prompts(config.Task(name="cqa", record_files=str(file)), ())
    assert bool(said) is told
    if told:
        assert f"dss extract --task cqa --split test --model m --out {file}" in said[0]


@pytest.mark.parametrize(
    ("column", "says"),
    [
        ("label", "test: other rows (30 and 30)"),
        ("rationale", "train: the same rows, other teacher text"),
    ],
)
def test_a_run_scored_on_changed_data_says_so(
    tmp_path: Path, store: TokenStore, column: str, says: str
) -> None:
    folder = tmp_path / "run"
    student_maker.make_student(folder, store)
    with heard() as said:
        trained_on.warn(folder, store)
        assert not said
        trained_on.warn(folder, other_store(store, tmp_path / "changed", column))
    assert says in said[0]
    assert "dss train with another --output_dir" in said[0]


class TestReports:
    def runs(self, folder: Path, *stores: TokenStore, **others: str) -> Path:
        for seed, store in enumerate(stores):
            own = results_maker.write_run(
                folder / f"run_{seed}", [True, False], seed=seed * (not others), **others
            )
            trained_on.write(own, toy.make_run(), store)
            others = {"method": "standard"} if others else {}
        return folder

    def test_runs_of_one_cell_have_the_same_data(self, tmp_path: Path, store: TokenStore) -> None:
        changed = other_store(store, tmp_path / "changed", "rationale")
        assert len(find_runs(self.runs(tmp_path / "same", store, store)).cells[0].runs) == 2
        with pytest.raises(UsageError, match="but of different data: train: the same rows, other"):
            find_runs(self.runs(tmp_path / "mixed", store, changed))

    @pytest.mark.parametrize("column", ["input", "rationale"])
    def test_cells_of_different_rows_are_told(
        self, tmp_path: Path, store: TokenStore, column: str
    ) -> None:
        changed = other_store(store, tmp_path / "changed", column)
        found = find_runs(self.runs(tmp_path / "runs", store, changed, method="dss"))
        assert len(found.cells) == 2
        # Another teacher is what a comparison may be about.
        assert ["are of different data (" in line for line in found.mixed] == [True] * (
            column == "input"
        )
        assert found.tasks == (["toy", "toy, data 2"] if column == "input" else ["toy"])

    def test_runs_of_other_rows_are_no_points_of_one_curve(
        self, tmp_path: Path, store: TokenStore
    ) -> None:
        """Nor seeds of one cell, nor under one teacher."""
        changed = other_store(store, tmp_path / "changed", "input")
        for name, data, right, others in (
            ("a_student", store, 1, {}),
            ("b_student", changed, 0, {}),
            ("c_student", changed, 1, {"seed": 1}),
            ("d_teacher", store, 1, {"method": "teacher"}),
            ("e_teacher", changed, 0, {"method": "teacher"}),
        ):
            own = results_maker.write_run(tmp_path / "runs" / name, [True, bool(right)], **others)
            trained_on.write(own, toy.make_run(), data)
        found = find_runs(tmp_path / "runs")
        assert [(c.task, c.scores("test")) for c in found.cells] == [
            ("toy", [100.0]),
            ("toy, data 2", [50.0, 100.0]),
        ]
        assert found.teacher_score("toy", "test") == 100
        assert found.teacher_score("toy, data 2", "test") == 50
        assert len(found.mixed) == 1


def test_a_run_that_goes_on_with_changed_data_is_told_what_has_changed(
    tmp_path: Path, store: TokenStore
) -> None:
    folder = tmp_path / "run"
    run = student_maker.make_student(folder, store)
    changed = other_store(store, tmp_path / "changed", "input")
    with heard() as said, pytest.raises(UsageError, match="token store: changed"):
        single.train(run, changed, TEXT_ACCURACY)
    assert "train: other rows (30 and 30)" in said[0]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "was trained on other data than there are now (the rows, the task file or what"),
        (["--gin.Train.steps=3"], "another configuration:"),
    ],
)
def test_a_run_is_refused_before_anything_is_prepared(
    more: list[str], says: str, tmp_path: Path, store: TokenStore, monkeypatch, capsys
) -> None:
    def prepared(request: object) -> None:
        raise AssertionError("a store was made")

    monkeypatch.setattr(prepare_child, "run", prepared)
    monkeypatch.setenv("DSS_STORE_DIR", str(tmp_path / "stores"))
    folder = tmp_path / "run"
    flags = ["--task", "word_problems", "--model", "t5_1_1_tiny", "--output_dir", str(folder)]
    assert main(["config", *flags]) == 0
    run = config.from_gin(capsys.readouterr().out)
    about = {"name": "words", "kind": "task", "key": "then", "prefixes": "paper"}
    now = prepare.make_request(run.task, run.vocabulary)["made_from"]
    about["made_from"] = now | {"files": {"rows.csv": "then"}, "executed": []}
    splits = {"train": toy.copied(store.split("train"))}
    then = write_store(tmp_path / "then", splits, store.vocabulary_path, 0, about)
    run_folder.open_run_folder(run, then.key)
    trained_on.write(folder, run, then)
    with pytest.raises(AssertionError, match="a store was made"):
        main(["train", *flags, *more])  # It has not trained yet.
    (folder / run_folder.CHECKPOINTS).mkdir()
    assert main(["train", *flags, *more]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("name", ["bad_rows", "extra_ids", "tokenizers"])
def test_what_has_changed_is_named(
    name: str, tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = student(tmp_path, store, monkeypatch, **OURS)
    made_from = store.manifest.get("made_from", {}) | {name: "then"}
    manifest = store.manifest | {"made_from": made_from}
    monkeypatch.setattr(store, "manifest", manifest)
    monkeypatch.setattr(trained_on, "open_store", lambda path: store)
    monkeypatch.setattr(trained_on, "store_keys", lambda folder: ["then"])
    request = {"key": "now", "made_from": made_from | {name: "now"}}
    own = config.Run(train=config.Train(output_dir=str(run)))
    with pytest.raises(UsageError, match=r"there are now \([a-z-]+.*--store"):
        trained_on.refuse_other([own], request)


def test_a_damaged_note_does_not_hide_why_a_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UsageError("another configuration")

    monkeypatch.setattr(run_folder, "open_run_folder", refuse)
    monkeypatch.setattr(single, "data_key", lambda run, store: "0")
    (tmp_path / trained_on.FILE).write_text("{")
    run = config.Run(train=config.Train(output_dir=str(tmp_path)))
    with pytest.raises(UsageError, match="another configuration"):
        single._open_folder(run, None)  # type: ignore[arg-type]
