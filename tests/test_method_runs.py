"""Whole runs of the methods that are not two tasks: trained, scored, and what they write."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import toy

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.data.store import TokenStore
from dss_jax.data.store_writer import SplitBuilder, write_store
from dss_jax.run import rescore, run_folder, single, teacher_run
from dss_jax.run.session import open_session
from dss_jax.run.single import data_key


def _run(folder: Path, method: config.Method, **sections: object) -> config.Run:
    train = config.Train(steps=4, log_every=1, output_dir=str(folder))
    data = config.Data(batch_size=8, layout="flat", input_length=48, target_length=48)
    evaluate = config.Evaluate(every=2, batch_size=4, max_decode_length=5, max_rationale_length=6)
    model = dataclasses.replace(toy.MODEL, dropout_rate=0.0)
    return toy.make_run(
        method=method, train=train, data=data, evaluate=evaluate, model=model, **sections
    )


def _lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _method(form: str) -> config.Method:
    return config.Method(name=form, form=form, rationale=False)


@pytest.mark.parametrize("form", ["rationale_label", "rationale_input"])
def test_a_run_is_trained_and_scored(tmp_path: Path, toy_store: TokenStore, form: str) -> None:
    results = single.train(_run(tmp_path, _method(form)), toy_store, TEXT_ACCURACY)
    assert results["test"]["examples"] == 7
    assert np.isfinite(results["test"]["label/loss"])
    assert "rationale/loss" not in results["test"]
    about = {k: results[k] for k in ("method", "task", "seed", "train_examples", "train_total")}
    assert about == {
        "method": form,
        "task": "toy",
        "seed": 0,
        "train_examples": 37,
        "train_total": 37,
    }
    assert results["parameters"] > 1000
    for line in _lines(tmp_path / run_folder.PREDICTIONS / "test-best.jsonl"):
        assert ("generated" in line) == (form == "rationale_label")
        assert line["correct"] == (line["prediction"] == line["target"])
        if form == "rationale_label":
            assert line["generated"].endswith(line["prediction"])
            assert "rationale" in line


@pytest.fixture(scope="module")
def with_sentinels(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    folder = tmp_path_factory.mktemp("sentinels")
    made = toy.make_store(folder / "toy", np.random.default_rng(0))
    splits: dict[str, SplitBuilder] = {s: toy.copied(made.split(s)) for s in made.splits}
    description = {"name": "toy", "kind": "task", "key": "sentinels", "prefixes": "paper"}
    return write_store(folder / "store", splits, toy.VOCABULARY, 10, description)


def test_pretraining_goes_on_where_it_stopped_and_starts_other_runs(
    tmp_path: Path, with_sentinels: TokenStore, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    from dss_jax.train.loop import Interrupted

    spans = _method("spans")
    whole = single.train(_run(tmp_path / "whole", spans), with_sentinels, TEXT_ACCURACY)
    assert whole["metric"] == "spans/token_accuracy"
    assert whole["validation"].keys() == {"spans/loss", "spans/token_accuracy", "examples"}
    assert not (tmp_path / "whole" / run_folder.PREDICTIONS).exists()

    stopped = _run(tmp_path / "stopped", spans)
    with monkeypatch.context() as patched:
        toy.interrupt_before(patched, 1)
        with pytest.raises(Interrupted):
            single.train(stopped, with_sentinels, TEXT_ACCURACY)
    assert single.train(stopped, with_sentinels, TEXT_ACCURACY) == whole

    session = open_session(
        _run(tmp_path / "whole", spans), tmp_path / "whole", with_sentinels, TEXT_ACCURACY
    )
    step, scores = rescore.score(session, ["test"])
    assert scores["test"] == pytest.approx(whole["test"])
    assert step == whole["best_step"]

    student = _run(tmp_path / "student", config.Method())
    from_it = dataclasses.replace(student.train, init_from=str(tmp_path / "whole"))
    student = dataclasses.replace(student, train=from_it)
    single.train(student, with_sentinels, TEXT_ACCURACY)
    assert any("starts from the Orbax checkpoint" in line for line in said)


class TestTeacher:
    RUN = config.Method(name="teacher", label="teacher", rationale=False, form="teacher")

    def test_its_own_labels_are_scored(self, tmp_path: Path, toy_store: TokenStore) -> None:
        run = _run(tmp_path, self.RUN)
        results = teacher_run.score(run, toy_store, TEXT_ACCURACY)
        found = _lines(tmp_path / run_folder.PREDICTIONS / "test-best.jsonl")
        split = toy_store.split("test")
        pairs = zip(split.text("label")[:], split.text("teacher_label")[:], strict=True)
        right = [gold == teacher for gold, teacher in pairs]
        assert [line["correct"] for line in found] == right
        assert results["test"]["text_accuracy"] == pytest.approx(100 * np.mean(right))
        assert [line["rationale"] for line in found] == split.text("rationale")[:]
        assert run_folder.read_results(tmp_path) == results
        assert teacher_run.score(run, toy_store, TEXT_ACCURACY) == results, "again is no error"

    def test_without_teacher_text_there_is_nothing_to_score(self, tmp_path: Path) -> None:
        builder = SplitBuilder(("label_inputs", "label_targets"), ("id", "input", "label"))
        builder.append(
            {"label_inputs": [5, 1], "label_targets": [6, 1]},
            {"id": "0", "input": "a", "label": "b"},
        )
        description = {"name": "own", "kind": "seqio", "key": "own", "prefixes": None}
        store = write_store(tmp_path / "s", {"test": builder}, toy.VOCABULARY, 0, description)
        with pytest.raises(UsageError, match="toy has no teacher text"):
            teacher_run.score(_run(tmp_path / "run", self.RUN), store, TEXT_ACCURACY)


def test_other_text_is_another_run(tmp_path: Path, with_sentinels: TokenStore) -> None:
    text = tmp_path / "more.txt"
    text.write_text("Faye had 12 marbles. " * 50)
    pretrain = config.Pretrain(text_files=str(text))
    run = _run(tmp_path / "run", _method("spans"), pretrain=pretrain)
    run_folder.open_run_folder(run, data_key(run, with_sentinels))
    (tmp_path / "run" / run_folder.CHECKPOINTS).mkdir()
    run_folder.open_run_folder(run, data_key(run, with_sentinels))
    text.write_text("Faye lost 12 marbles. " * 50)
    with pytest.raises(UsageError, match="token store"):
        run_folder.open_run_folder(run, data_key(run, with_sentinels))


def test_the_teacher_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dss_jax.cli.main import main

    folder = tmp_path / "teacher"
    flags = ["--store_dir", str(tmp_path / "stores"), "--output_dir", str(folder)]
    assert main(["train", "--task", "word_problems", "--method", "teacher", *flags]) == 0
    results = json.loads((folder / run_folder.RESULTS).read_text())
    # The simulated teacher errs in exactly 13 of each 50 rows.
    assert results["test"]["equation_accuracy"] == 74.0
    assert "the teacher's own labels" in capsys.readouterr().out
    assert main(["eval", *flags]) == 2
    assert "nothing was trained" in capsys.readouterr().err
