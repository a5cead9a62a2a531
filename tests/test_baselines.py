"""What a method is held against: the checkpoint as it is, and the compute for the label alone."""

import argparse
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import toy
from results_maker import accuracy_of, write_run

from dss_jax.cli import gin_config, options, sweep, sweep_options
from dss_jax.cli.main import main
from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.flops import Work, training_flops, work_of_rows
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.sweep_config import Cell, Sweep, undistilled_cells
from dss_jax.core.types import SPLITS
from dss_jax.data.few_shot import FewShotStore
from dss_jax.data.store import TEXT_COLUMNS, TOKEN_COLUMNS, TokenStore
from dss_jax.data.store_writer import SplitBuilder, write_store
from dss_jax.interop.hf import write_hf
from dss_jax.interop.weights import expected_shapes, from_tree, nested
from dss_jax.report import report
from dss_jax.report.found_runs import View
from dss_jax.run import run_folder, seeds, single, undistilled_run
from dss_jax.run.changes import changes
from dss_jax.run.compute import drawn_out
from dss_jax.run.session import open_session, with_vocab_size
from dss_jax.sweep.plan import Planned

MODEL = dataclasses.replace(toy.MODEL, vocab_size=500, dropout_rate=0.0)


def _method(name: str) -> config.Method:
    return (
        gin_config.read([gin_config.named_file("method", name)], ["Task.name = 'x'"]).run().method
    )


def _run(folder: Path, method: str, **train: object) -> config.Run:
    run = toy.make_run(method=_method(method), model=MODEL)
    own = dataclasses.replace(run.train, output_dir=str(folder), **train)
    return dataclasses.replace(run, train=own)


def _moved(run: config.Run, folder: Path) -> config.Run:
    return dataclasses.replace(run, train=dataclasses.replace(run.train, output_dir=str(folder)))


def _lines(folder: Path) -> list[dict]:
    text = (folder / run_folder.PREDICTIONS / "test-best.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    rng = np.random.default_rng(0)
    tree = {
        path: 0.3 * rng.standard_normal(shape).astype(np.float32)
        for path, shape in expected_shapes(MODEL).items()
    }
    about = {"origin": "a test", "vocabulary": toy.VOCABULARY, "extra_ids": 0}
    folder = tmp_path_factory.mktemp("checkpoint")
    write_hf(from_tree(MODEL, nested(tree), **about), folder)
    return str(folder)


class TestUndistilled:
    def test_it_answers_as_a_run_that_learns_nothing(
        self, tmp_path: Path, toy_store: TokenStore, checkpoint: str
    ) -> None:
        run = _run(tmp_path / "a", "undistilled", init_from=checkpoint)
        results = undistilled_run.score(run, toy_store, TEXT_ACCURACY)
        still = _run(tmp_path / "b", "standard", init_from=checkpoint, steps=1)
        rate = config.Optimizer(learning_rate=0.0, schedule="constant")
        ranked = dataclasses.replace(still.evaluate, decode="rank")
        still = dataclasses.replace(still, optimizer=rate, evaluate=ranked)
        trained = single.train(still, toy_store, TEXT_ACCURACY)
        for split in ("validation", "test"):
            assert results[split] == pytest.approx(trained[split])
        pairs = zip(_lines(tmp_path / "a"), _lines(tmp_path / "b"), strict=True)
        for one, other in pairs:
            assert one["prediction"] == other["prediction"]
            assert one["label_log_probs"] == pytest.approx(other["label_log_probs"])
        about = {name: results[name] for name in ("method", "steps", "best_step", "train_examples")}
        assert about == {"method": "undistilled", "steps": 0, "best_step": 0, "train_examples": 0}
        assert results["parameters"] == trained["parameters"]
        assert run_folder.read_results(tmp_path / "a") == results
        assert undistilled_run.score(run, toy_store, TEXT_ACCURACY) == results, "again is no error"
        assert not (tmp_path / "a" / run_folder.CHECKPOINTS).exists()

    def test_without_a_checkpoint_there_is_none(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        flags = ["--task", "word_problems", "--method", "undistilled", "--model", "t5_1_1_tiny"]
        assert main(["train", *flags, "--output_dir", str(tmp_path / "a")]) == 2
        assert "scores a checkpoint: give --init_from" in capsys.readouterr().err
        assert not (tmp_path / "a").exists()

    def test_a_sweep_has_one_of_each_task_and_model(self, tmp_path: Path, checkpoint: str) -> None:
        grid = Sweep(tasks=("cqa",), models=("a", "b"), fractions=(0.5, 1.0), seeds=(3, 4))
        cells = undistilled_cells(grid)
        ways = "undistilled", "undistilled_few_shot"
        assert [c.folder for c in cells] == [f"cqa/{model}/{w}" for model in "ab" for w in ways]
        assert undistilled_cells(dataclasses.replace(grid, undistilled=False)) == []
        assert Cell.from_json(cells[0].as_json()) == cells[0]
        for way in ways:
            with pytest.raises(UsageError, match=f"leave the method '{way}' out.*undistilled = F"):
                Sweep(methods=(way,))
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / "any.gin").write_text("T5Config.dropout_rate = 0.2\n")
        parser = argparse.ArgumentParser()
        sweep.add_flags(parser)
        words = ["--tasks", "word_problems", "--models", "any", "--output_dir", str(tmp_path / "s")]
        words += ["--gin_search_paths", str(tmp_path)]
        started = options.parse(parser, [*words, "--init_from", checkpoint])
        planned = sweep_options.undistilled(sweep_options.read_grid(started))
        assert [one.run.method for one in planned] == [*map(_method, ways)]
        assert {one.run.train.init_from for one in planned} == {checkpoint}
        nothing = options.parse(parser, words)
        assert sweep_options.undistilled(sweep_options.read_grid(nothing)) == []

    def test_in_the_report(self, tmp_path: Path) -> None:
        for examples, scores in ((500, (50, 52)), (1000, (60, 62))):
            for seed, score in enumerate(scores):
                place = tmp_path / str(examples) / str(seed)
                write_run(place, accuracy_of(score), examples=examples, seed=seed)
        write_run(tmp_path / "u", accuracy_of(55), method="undistilled", examples=0)
        made = report.write(tmp_path)
        first = made.tables[0]
        assert first.header[2:] == ("50 % (500)", "100 % (1,000)")
        assert ("undistilled", "1.0M", "55.00", "55.00") in first.rows
        (table,) = [t for t in made.tables if "against undistilled" in t.title]
        assert [row[:4] for row in table.rows] == [
            ("dss - undistilled", "1.0M", "50 % (500)", "-4.00"),
            ("dss - undistilled", "1.0M", "100 % (1,000)", "+6.00"),
        ]
        svg = (tmp_path / "report" / "by_data.svg").read_text()
        assert svg.count(">undistilled<") == 1, "a line across, and no point at no data"
        assert "training data, % of 1,000 examples" in svg


class TestFewShot:
    """Exemplars of the training split in front of what the checkpoint is asked."""

    def _asked(self, store: TokenStore, split: str, **data: int) -> list[list[int]]:
        run = _run(Path("a"), "undistilled_few_shot")
        run = dataclasses.replace(run, data=dataclasses.replace(run.data, **data))
        inputs = FewShotStore(store, run).split(split).tokens("label_inputs")
        return [inputs[row].tolist() for row in range(len(inputs))]

    def test_as_many_of_the_rows_drawn_as_there_is_room_for(self, toy_store: TokenStore) -> None:
        columns = [toy_store.split("train").tokens(f"label_{x}") for x in ("inputs", "targets")]
        pairs = [[int(i) for c in columns for i in c[row]] for row in range(toy.SIZES["train"])]
        own = toy_store.split("test").tokens("label_inputs")
        whole, short = (self._asked(toy_store, "test", input_length=n) for n in (1024, 40))
        counts = []
        for row, (asked, cut) in enumerate(zip(whole, short, strict=True)):
            last = own[row].tolist()
            assert asked[-len(last) :] == last
            assert cut[-len(last) :] == last
            # Which exemplars these are: all inputs of the toy differ.
            text, drawn = asked[: -len(last)], []
            while text:
                (found,) = [n for n, pair in enumerate(pairs) if text[: len(pair)] == pair]
                drawn.append(found)
                text = text[len(pairs[found]) :]
            assert len({*drawn}) == 8, "each once"
            sizes = np.cumsum([len(pairs[n]) for n in drawn]) + len(last)
            counts.append(int((sizes <= 40).sum()))
            assert cut == [i for n in drawn[: counts[-1]] for i in pairs[n]] + last
        assert 0 < min(counts) < max(counts) < 8
        assert len({str(asked[:9]) for asked in whole}) > 1

    def test_they_are_a_function_of_the_seed_and_the_row(self, toy_store: TokenStore) -> None:
        first, again, other = (self._asked(toy_store, "test", seed=seed) for seed in (0, 0, 1))
        assert first == again != other
        longer = self._asked(toy_store, "validation")
        for row, (one, two) in enumerate(zip(first, longer, strict=False)):
            tails = [len(toy_store.split(s).tokens("label_inputs")[row]) for s in SPLITS[1:]]
            assert two[: -tails[0]] == one[: -tails[1]], "whatever the other rows are"

    def test_it_is_asked_with_them(
        self, tmp_path: Path, toy_store: TokenStore, checkpoint: str, said: list[str]
    ) -> None:
        run = _run(tmp_path / "a", "undistilled_few_shot", init_from=checkpoint)
        run = dataclasses.replace(run, data=dataclasses.replace(run.data, input_length=40))
        results = undistilled_run.score(run, toy_store, TEXT_ACCURACY)
        assert 1 < results["exemplars"] < 8
        assert f"{results['exemplars']:.1f} exemplars in front of an input, of 8" in said
        # The same texts, written into a store.
        splits = {name: toy.copied(toy_store.split(name)) for name in ("train", "validation")}
        splits["test"] = SplitBuilder(TOKEN_COLUMNS, TEXT_COLUMNS)
        test, asked = toy_store.split("test"), self._asked(toy_store, "test", input_length=40)
        for row, ids in enumerate(asked):
            tokens = {c: test.tokens(c)[row].tolist() for c in TOKEN_COLUMNS}
            texts = {c: test.text(c)[row] for c in TEXT_COLUMNS}
            splits["test"].append(tokens | {"label_inputs": ids}, texts)
        about = {k: toy_store.manifest[k] for k in ("name", "kind", "prefixes")} | {"key": "few"}
        store = write_store(tmp_path / "few", splits, toy.VOCABULARY, 0, about)
        plain = dataclasses.replace(run, method=_method("undistilled"))
        plain = _moved(plain, tmp_path / "b")
        expected = undistilled_run.score(plain, store, TEXT_ACCURACY)["test"]
        assert results["test"] == pytest.approx(expected)
        for one, other in zip(_lines(tmp_path / "a"), _lines(tmp_path / "b"), strict=True):
            assert one["label_log_probs"] == pytest.approx(other["label_log_probs"], abs=1e-5)

    def test_where_none_fits_it_is_refused_and_a_sweep_goes_without(
        self, tmp_path: Path, toy_store: TokenStore, checkpoint: str
    ) -> None:
        run = _run(tmp_path / "a", "undistilled_few_shot", init_from=checkpoint)
        tight = dataclasses.replace(run, data=dataclasses.replace(run.data, input_length=8))
        with pytest.raises(UsageError, match=r"no training row .*Data.input_length \(8\)"):
            undistilled_run.score(tight, toy_store, TEXT_ACCURACY)
        assert not (tmp_path / "a" / run_folder.CONFIG).exists()
        cells = undistilled_cells(Sweep(tasks=("toy",), models=("m",)))
        planned = [Planned(cell, one) for one in (run, tight) for cell in cells]
        stays = sweep_options.without_teachers(planned, {"toy": toy_store})
        assert stays == planned[:3]

    @pytest.mark.parametrize(
        ("splits", "said"),
        [
            ({"train": True}, "the data have training rows only"),
            ({"train": False, "test": True}, "no training row has a gold label to show"),
        ],
    )
    def test_what_there_is_nothing_to_ask_with(
        self, splits: dict[str, bool], said: str, tmp_path: Path, toy_store: TokenStore
    ) -> None:
        made = {name: SplitBuilder(TOKEN_COLUMNS, TEXT_COLUMNS) for name in splits}
        for name, labelled in splits.items():
            tokens = {c: [5, 1] if labelled else [] for c in TOKEN_COLUMNS}
            texts = {c: "[]" if c == "allowed_labels" else "" for c in TEXT_COLUMNS}
            made[name].append(tokens | {"label_inputs": [5, 1]}, texts | {"id": name})
        about = {k: toy_store.manifest[k] for k in ("name", "kind", "prefixes")} | {"key": "few"}
        store = write_store(tmp_path / "few", made, toy.VOCABULARY, 0, about)
        run = _run(tmp_path / "a", "undistilled_few_shot", init_from="none")
        with pytest.raises(UsageError, match=said):
            undistilled_run.score(run, store, TEXT_ACCURACY)
        assert not (tmp_path / "a" / run_folder.CONFIG).exists()

    def test_several_draws(
        self, tmp_path: Path, checkpoint: str, monkeypatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def score(run: config.Run, *_: object) -> dict:
            scored = {TEXT_ACCURACY.name: 50.0 + 4 * run.data.seed}
            about = {"metric": TEXT_ACCURACY.name, "method": run.method.name, "steps": 0}
            return about | {"best_step": 0, "test": scored}

        monkeypatch.setattr(undistilled_run, "score", score)
        monkeypatch.setattr("dss_jax.cli.train._open_store", lambda *_: None)
        flags = ["--task", "word_problems", "--init_from", checkpoint]
        flags += ["--seeds", "0,1", "--output_dir", str(tmp_path / "a"), "--method"]
        assert main(["train", *flags, "undistilled_few_shot"]) == 0
        out = capsys.readouterr().out
        assert "word_problems, undistilled_few_shot: " in out
        for row in (r"0 +0 +50\.00", r"1 +0 +54\.00", r"mean +52\.00", r"standard error +2\.00"):
            assert re.search(row, out)
        assert main(["train", *flags, "undistilled"]) == 2
        assert "--method undistilled draws nothing: leave --seeds out" in capsys.readouterr().err

    def test_it_is_for_what_is_not_trained(self) -> None:
        with pytest.raises(UsageError, match="exemplars is for"):
            config.Method(exemplars=3)

    def test_draws_are_seeds_in_the_report(self, tmp_path: Path) -> None:
        write_run(tmp_path / "d", accuracy_of(60))
        for seed, score in enumerate((50, 54)):
            about = {"method": "undistilled_few_shot", "examples": 0, "seed": seed}
            write_run(tmp_path / str(seed), accuracy_of(score), **about)
        row = ("undistilled_few_shot", "1.0M", "52.00 ± 2.00 (2)")
        assert row in report.write(tmp_path).tables[0].rows


class TestEqualCompute:
    def _factor(self, store: TokenStore) -> float:
        """What dss takes over what the label takes, from the lengths of the toy's rows."""
        split = store.split("train")
        names = ("label_inputs", "label_targets", "rationale_inputs", "rationale_targets")
        lengths = {name: split.tokens(name).lengths().tolist() for name in names}
        label = [*zip(lengths[names[0]], lengths[names[1]], strict=True)]
        why = [pair for pair in zip(lengths[names[2]], lengths[names[3]], strict=True) if pair[1]]
        model = with_vocab_size(toy.make_run(), store).model
        both, own = (training_flops(model, work_of_rows(rows)) for rows in (label + why, label))
        return both / own

    @pytest.mark.usefixtures("linear_programs")
    def test_it_runs_as_many_steps_more(
        self, tmp_path: Path, toy_store: TokenStore, said: list[str]
    ) -> None:
        def run(folder: Path, method: str) -> config.Run:
            made = dataclasses.replace(_run(folder, method, steps=20), model=toy.MODEL)
            evaluate = dataclasses.replace(made.evaluate, every=10)
            return dataclasses.replace(made, evaluate=evaluate)

        factor, results = self._factor(toy_store), {}
        assert factor > 1.5
        for name in ("dss", "standard", "standard_equal_compute"):
            runs = seeds.seed_runs(run(tmp_path / name, name), [0, 1])
            results[name] = seeds.train(runs, toy_store, TEXT_ACCURACY)["seeds"]
        longer = results["standard_equal_compute"]
        assert {one["steps"] for one in longer.values()} == {round(20 * factor)}
        assert any(f"{factor:.2f} times as many" in line for line in said)
        step = results["standard"]["0"]["training_flops"] / 20
        for seed in ("0", "1"):
            took = longer[seed]["training_flops"]
            # A step's rows are not of the mean length, and half a step is rounded off.
            assert took == pytest.approx(results["dss"][seed]["training_flops"], abs=2 * step)
            steps = round(20 * factor)
            assert longer[seed]["best_step"] in {-(-steps // 2), steps}
        again = seeds.seed_runs(
            run(tmp_path / "standard_equal_compute", "standard_equal_compute"), [0, 1]
        )
        assert seeds.train(again, toy_store, TEXT_ACCURACY)["seeds"] == longer, (
            "it goes on as it was"
        )

    def test_what_has_rationales_has_the_compute_of_both(
        self, tmp_path: Path, toy_store: TokenStore
    ) -> None:
        run = _run(tmp_path, "dss")
        run = dataclasses.replace(run, method=dataclasses.replace(run.method, equal_compute=True))
        with pytest.raises(UsageError, match="gives the label task alone what dss takes"):
            drawn_out(run, toy_store)

    def test_subsets_of_other_seeds_have_as_many_steps(
        self, tmp_path: Path, toy_store: TokenStore
    ) -> None:
        run = dataclasses.replace(
            _run(tmp_path, "standard_equal_compute", steps=999), model=toy.MODEL
        )
        run = dataclasses.replace(run, evaluate=dataclasses.replace(run.evaluate, every=100))
        tasks = [dataclasses.replace(run.task, train_count=3, subset_seed=n) for n in range(4)]
        made = [drawn_out(dataclasses.replace(run, task=task), toy_store) for task in tasks]
        assert {one.train.steps for one in made} == {round(999 * self._factor(toy_store))}
        assert all(10 * one.evaluate.every >= one.train.steps / 0.999 for one in made)

    def test_it_is_drawn_out_for_training_alone(
        self, tmp_path: Path, toy_store: TokenStore
    ) -> None:
        run = _run(tmp_path / "a", "standard_equal_compute")
        run_folder.open_run_folder(run, toy_store.key)
        session = open_session(run, tmp_path / "a", toy_store, TEXT_ACCURACY)
        assert session.run.train.steps == run.train.steps
        longer = dataclasses.replace(run.train, steps=2 * run.train.steps)
        longer_run = dataclasses.replace(session.run, train=longer)
        assert not changes(longer_run, tmp_path / "a", toy_store.key)

    @pytest.mark.parametrize(
        ("column", "says"), [("label_targets", "gold labels"), ("rationale_targets", "rationales")]
    )
    def test_what_is_missing_is_named(
        self, tmp_path: Path, toy_store: TokenStore, column: str, says: str, monkeypatch
    ) -> None:
        def work(examples: object, rows: np.ndarray) -> Work:
            return work_of_rows([] if column == "label_targets" else [(4, 2)])

        monkeypatch.setattr("dss_jax.data.columns.Examples.work", work)
        run = _run(tmp_path, "standard_equal_compute")
        with pytest.raises(UsageError, match=f"needs {says} to count"):
            drawn_out(run, toy_store)

    def test_in_the_report(self, tmp_path: Path) -> None:
        for method, flops, steps in (
            ("standard", 2 * 10**15, 6),
            ("dss", 5 * 10**15, 6),
            ("standard_equal_compute", 5 * 10**15, 15),
        ):
            folder = write_run(tmp_path / method, accuracy_of(50), method=method)
            file = folder / "results.json"
            found = json.loads(file.read_text()) | {"training_flops": flops, "steps": steps}
            file.write_text(json.dumps(found))
        made = report.write(tmp_path)
        (table,) = [t for t in made.tables if "compute of the training" in t.title]
        assert [(row[0], *row[3:6]) for row in table.rows] == [
            ("standard", "6", "2.00e+15", "1.00"),
            ("dss", "6", "5.00e+15", "2.50"),
            ("standard_equal_compute", "15", "5.00e+15", "2.50"),
        ]
        assert "by_compute.png" in {f.name for f in made.files}

    def test_the_papers_numbers_have_no_compute(self, tmp_path: Path) -> None:
        for method, flops in (("standard", 2 * 10**15), ("dss", 5 * 10**15)):
            folder = write_run(tmp_path / method, accuracy_of(50), method=method, task="cqa")
            file = folder / "results.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"training_flops": flops}))
        report.write(tmp_path, view=View(published=True))
        assert "published" not in (tmp_path / "report" / "by_compute.svg").read_text()

    def test_what_was_not_trained_has_no_panel(self, tmp_path: Path) -> None:
        for n in (1, 2):
            about = {"method": "undistilled", "examples": 0, "parameters": n * 10**6}
            write_run(tmp_path / str(n), accuracy_of(50), **about)
        made = report.write(tmp_path)
        assert not [f for f in made.files if f.name.startswith("by_")]
