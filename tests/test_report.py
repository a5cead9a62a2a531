"""The report over results whose statistics are known: by hand, and by SciPy."""

import csv
import itertools
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from results_maker import TEACHER, accuracy_of, write_run
from scipy import stats

from dss_jax.cli.main import main
from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.evaluate import statistics
from dss_jax.report import published, report
from dss_jax.report.found_runs import View, find_runs
from dss_jax.report.page import page_data

STANDARD = {250: (40, 44, 42), 500: (50, 52, 54), 1000: (60, 62, 64)}
DSS = {250: (46, 48, 50), 500: (58, 60, 62), 1000: (66, 70, 74)}
"""Training examples -> accuracy of each seed."""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for method, curve in (("standard", STANDARD), ("dss", DSS)):
        for examples, scores in curve.items():
            for seed, score in enumerate(scores):
                folder = tmp_path / "sweep" / method / f"count_{examples}" / f"seed_{seed}"
                write_run(folder, accuracy_of(score), method=method, examples=examples, seed=seed)
    right = accuracy_of(60)
    write_run(tmp_path / "sweep" / "teacher", right, method="teacher", examples=0, parameters=0)
    return tmp_path / "sweep"


def rows(made: report.Report, title: str) -> list[tuple[str, ...]]:
    (table,) = [t for t in made.tables if title in t.title]
    return list(table.rows)


class TestStatistics:
    def test_mean_and_standard_error_are_scipys(self) -> None:
        values = [40.0, 44.0, 45.0, 51.0]
        found = statistics.mean(values)
        assert found == (45.0, pytest.approx(stats.sem(values)), 4)
        # By hand: deviations -5, -1, 0, 6; s^2 = 62 / 3; s / sqrt(4).
        assert found.error == pytest.approx((62 / 3) ** 0.5 / 2)
        assert statistics.mean([40.0]) == (40.0, None, 1)

    @pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 0), (3, 9), (40, 41), (10, 30)])
    def test_mcnemar_is_the_exact_binomial_test(self, b: int, c: int) -> None:
        # By hand: twice the tail of a fair coin, at most 1.
        tail = sum(stats.binom.pmf(k, b + c, 0.5) for k in range(min(b, c) + 1))
        assert statistics.mcnemar(b, c) == pytest.approx(min(1.0, 2 * tail))

    def test_holm_by_hand(self) -> None:
        # Sorted .01 .02 .03 .04 times 4 3 2 1, then never falling.
        assert statistics.holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
        assert statistics.holm([0.5, 0.9]) == [1.0, 1.0]
        assert statistics.holm([]) == []

    def test_the_bootstrap_of_one_seed_is_that_of_scipy(self) -> None:
        rng = np.random.default_rng(1)
        a, b = rng.random((1, 300)) < 0.7, rng.random((1, 300)) < 0.55
        found = statistics.difference(a, b, paired=True)
        d = (a[0].astype(float) - b[0]) * 100
        expected = stats.bootstrap(
            (d,), np.mean, method="percentile", rng=np.random.default_rng(2), n_resamples=20_000
        )
        assert found.value == pytest.approx(d.mean())
        assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.6)
        assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.6)

    def test_seeds_add_to_the_uncertainty(self) -> None:
        # All items alike, so that only the seeds differ.
        a = np.repeat([[True], [False], [True], [True]], 400, axis=1)
        b = np.zeros((4, 400), bool)
        found = statistics.difference(a, b, paired=True)
        assert found.value == 75.0
        # The mean of 4 draws of 1 (3 of 4) or 0: below 0.25 with 0.4 %, 0.25 with 4.7 %.
        assert (found.low, found.high) == (25.0, 100.0)

    def test_paired_seeds_cancel_what_they_share(self) -> None:
        rng = np.random.default_rng(3)
        level = np.array([0.2, 0.4, 0.6, 0.8])[:, None]
        items = rng.random((4, 500))
        a, b = items < level + 0.03, items < level
        paired, free = (statistics.difference(a, b, paired=p) for p in (True, False))
        assert paired.low > 0 > free.low
        assert paired.p < 0.01 < free.p

    def test_no_difference_is_not_significant(self) -> None:
        rng = np.random.default_rng(4)
        found = []
        for seed in range(40):
            a, b = rng.random((3, 200)) < 0.5, rng.random((3, 200)) < 0.5
            found.append(statistics.difference(a, b, paired=False, seed=seed).p)
        assert 0 <= np.mean(np.array(found) < 0.05) <= 0.15

    def test_p_is_never_nought(self) -> None:
        a, b = np.ones((2, 50), bool), np.zeros((2, 50), bool)
        assert 0 < statistics.difference(a, b, paired=True).p < 0.001

    def test_crossing_by_hand(self) -> None:
        shares, values = [0.25, 0.5, 1.0], [40.0, 60.0, 80.0]
        assert statistics.crossing(shares, values, 50.0) == 0.375
        assert statistics.crossing(shares, values, 65.0) == 0.625
        assert statistics.crossing(shares, values, 80.0) == 1.0
        assert statistics.crossing(shares, values, 81.0) is None
        assert statistics.crossing(shares, values, 10.0) == 0.25
        assert statistics.crossing(shares, [40.0, 60.0, 50.0], 55.0) == pytest.approx(0.4375)
        assert statistics.crossing(shares, values, 80.0 + 1e-13) == 1.0, "but for rounding"

    def test_data_to_reach_and_its_uncertainty(self) -> None:
        curve = {0.25: [46.0, 48, 50], 0.5: [58.0, 60, 62], 1.0: [66.0, 70, 74]}
        found = statistics.data_to_reach(curve, [60.0, 62, 64])
        # 62 lies between 60 at 50 % and 70 at 100 %: 0.5 + 0.5 * 2 / 10.
        assert found.share == pytest.approx(0.6)
        assert found.low is not None
        assert found.low < 0.6 < found.high
        assert found.never == 0.0
        exact = statistics.data_to_reach({k: [v[1]] for k, v in curve.items()}, [62.0])
        assert (exact.share, exact.low, exact.high) == pytest.approx((0.6, 0.6, 0.6))

    def test_a_target_that_is_not_reached(self) -> None:
        found = statistics.data_to_reach({0.5: [50.0, 60], 1.0: [60.0, 70]}, [75.0, 77])
        assert found == (None, None, None, 1.0, False)
        at_once = statistics.data_to_reach({0.5: [50.0], 1.0: [60.0]}, [45.0])
        assert at_once.at_least
        assert at_once.share == 0.5

    def test_beats(self) -> None:
        mean = statistics.Mean
        assert statistics.beats(mean(62, 1, 3), mean(60, None, 1)) == (True, True)
        assert statistics.beats(mean(61, 1, 3), mean(60, 1, 3)) == (True, False)
        assert statistics.beats(mean(61, None, 1), mean(60, 1, 3)) == (True, False)
        assert statistics.beats(mean(60, 1, 3), mean(60, 1, 3)) == (False, False)
        assert statistics.beats(mean(60 + 1e-13, 0, 3), mean(60, 0, 3)) == (False, False)


class TestTables:
    def test_accuracies(self, sweep: Path) -> None:
        made = report.write(sweep)
        assert rows(made, "toy: text accuracy, test, %") == [
            ("standard", "1.0M", "42.00 ± 1.15 (3)", "52.00 ± 1.15 (3)", "62.00 ± 1.15 (3)"),
            ("dss", "1.0M", "48.00 ± 1.15 (3)", "60.00 ± 1.15 (3)", "70.00 ± 2.31 (3)"),
            ("teacher's labels", "-", "60.00", "60.00", "60.00"),
        ]
        assert made.tables[0].header[2:] == ("25 % (250)", "50 % (500)", "100 % (1,000)")

    def test_comparisons(self, sweep: Path) -> None:
        found = rows(report.write(sweep), "against standard")
        assert [row[:4] for row in found] == [
            ("dss - standard", "1.0M", "25 % (250)", "+6.00"),
            ("dss - standard", "1.0M", "50 % (500)", "+8.00"),
            ("dss - standard", "1.0M", "100 % (1,000)", "+8.00"),
        ]
        # Of 200 items dss alone has 12, 8 and 16 right, and standard alone none.
        assert found[0][7] == "< 0.001"
        assert statistics.mcnemar(12 + 8 + 16, 0) < 0.001
        assert found[0][8] == "3 of 3"

    def test_what_is_needed(self, sweep: Path) -> None:
        found = rows(report.write(sweep), "least data above")
        dss = ("dss", "1.0M", "100 % (1,000)", "70.00", "yes")
        assert found == [
            ("the teacher", "60.00", "standard", "1.0M", "100 % (1,000)", "62.00", "yes"),
            ("the teacher", "60.00", *dss),
            ("standard with 1.0M on 100 % (1,000)", "62.00", *dss),
        ]

    def test_as_good_as_the_target_is_not_called_short_of_it(self, tmp_path: Path) -> None:
        for examples, score in ((250, 60), (500, 62)):
            write_run(tmp_path / str(examples), accuracy_of(score), examples=examples)
        write_run(tmp_path / "standard", accuracy_of(62), method="standard", examples=500)
        found = rows(report.write(tmp_path), "least data above")
        equal = ("dss", "1.0M", "50 % (500)", "62.00")
        assert found == [
            ("the teacher", "60.00", "standard", "1.0M", "50 % (500)", "62.00", "no"),
            ("the teacher", "60.00", *equal, "no"),
            ("standard with 1.0M on 50 % (500)", "62.00", *equal, "equal"),
        ]

    @pytest.mark.parametrize("fresh", [False, True])
    def test_what_the_errors_hold_of_the_draw_of_the_data(
        self, tmp_path: Path, fresh: bool
    ) -> None:
        task = config.Task(name="toy", train_fraction=0.25, fresh_subsets=fresh)
        for seed in range(3):
            write_run(
                tmp_path / str(seed), accuracy_of(50), examples=250, seed=seed, task_config=task
            )
        note = report.write(tmp_path).tables[0].note
        assert ("a subset of its own: the errors hold the draw" in note) == fresh
        assert ("one subset of the data, so that the errors leave out" in note) == (not fresh)

    def test_rows_that_were_trained_on_are_told_where_they_are_fewer(self, sweep: Path) -> None:
        for seed, count in enumerate((812, 812, 1000)):
            file = sweep / "dss" / "count_1000" / f"seed_{seed}" / "results.json"
            results = json.loads(file.read_text())
            file.write_text(json.dumps(results | {"trained_rows": count}))
        note = report.write(sweep).tables[0].note
        assert "where not all of the size: dss 100 % (1,000): 812 or 1,000." in note

    def test_the_share_that_reaches_full_fine_tuning(self, sweep: Path) -> None:
        ((method, model, share, interval, never, *law),) = rows(
            report.write(sweep), "share of the data"
        )
        assert law == ["too few points for a law", "-", "-"]
        assert (method, model, share, never) == ("dss", "1.0M", "60 %", "0 %")
        found = re.fullmatch(r"\[([\d.]+) %, ([\d.]+) %\]", interval)
        assert found
        low, high = map(float, found.groups())
        assert 40 < low < 60 < high < 80

    def test_few_seeds_are_marked(self, sweep: Path) -> None:
        made = report.write(sweep, view=View(min_seeds=4))
        assert all(cell.endswith("*") for row in made.tables[0].rows[:2] for cell in row[2:])
        assert "fewer than 4 seeds" in made.tables[0].note

    def test_validation_instead(self, sweep: Path) -> None:
        assert (
            report.write(sweep, view=View("validation")).tables[0].title.endswith("validation, %")
        )

    def test_models_are_named_by_the_sweep(self, sweep: Path) -> None:
        cells = [
            {
                "folder": f.relative_to(sweep).as_posix(),
                "task": "toy",
                "model": "t5_1_1_base",
                "method": "dss",
                "train_fraction": None,
                "train_count": 250,
                "seed": 0,
            }
            for f in [sweep / "dss" / "count_250" / "seed_0", sweep / "dss" / "none" / "seed_9"]
        ]
        grid = {"format": 1, "cells": cells, "gin_files": [], "bindings": []}
        (sweep / "sweep.json").write_text(json.dumps(grid))
        found = find_runs(sweep)
        assert {c.model for c in found.cells} == {"t5_1_1_base", "1.0M"}
        assert found.left == ["dss/none/seed_9: not begun"]

    def test_published_numbers_are_marked_as_such(self, tmp_path: Path) -> None:
        write_run(tmp_path / "r", accuracy_of(70), task="cqa", method="dss")
        made = report.write(tmp_path, view=View(published=True))
        found = rows(made, "cqa: text accuracy")
        assert ("(dss, published)", "(220M)", "(63.29)") in found
        assert ("(teacher (PaLM 540B), published)", "(220M)", "(77.23)") in found
        assert published.LABEL in (tmp_path / "report" / "report.md").read_text()
        for task, methods in published.ACCURACY.items():
            assert set(methods) == {"standard", "single_task", "dss"}
            assert task in published.TEACHER


class TestFiles:
    def test_csv_has_a_line_a_cell_and_a_line_a_run(self, sweep: Path) -> None:
        report.write(sweep)
        with (sweep / "report" / "results.csv").open() as file:
            cells = list(csv.DictReader(file))
        (one,) = [
            c
            for c in cells
            if (c["method"], c["train_examples"], c["split"]) == ("dss", "500", "test")
        ]
        assert (float(one["mean"]), int(one["seeds"])) == (60.0, 3)
        assert float(one["standard_error"]) == pytest.approx(stats.sem([58, 60, 62]), rel=1e-5)
        assert [c["mean"] for c in cells if c["method"] == "teacher"] == ["60", "60"]
        with (sweep / "report" / "runs.csv").open() as file:
            runs = list(csv.DictReader(file))
        assert len(runs) == 18
        assert {(r["seed"], r["test"]) for r in runs if r["train_examples"] == "250"} == {
            ("0", "40"),
            ("1", "44"),
            ("2", "42"),
            ("0", "46"),
            ("1", "48"),
            ("2", "50"),
        }
        assert runs[0]["folder"] == "standard/count_250/seed_0"

    def test_figures_show_each_point(self, sweep: Path) -> None:
        made = report.write(sweep, view=View(min_seeds=4))
        names = {f.name for f in made.files}
        assert {"by_data.png", "by_data.svg", "report.md"} <= names
        assert "by_size.png" not in names, "there is one model only"
        svg = (sweep / "report" / "by_data.svg").read_text()
        for text in ("standard", "dss", "teacher's labels", "training data, % of 1,000 examples"):
            assert text in svg
        assert not re.search(r"<script|\son\w+=", svg)

    def test_two_models_give_the_figure_by_size(self, sweep: Path) -> None:
        for seed, score in enumerate((72, 74, 76)):
            write_run(
                sweep / "large" / f"seed_{seed}",
                accuracy_of(score),
                seed=seed,
                parameters=10_000_000,
            )
        made = report.write(sweep)
        assert "by_size.svg" in {f.name for f in made.files}
        found = rows(made, "least data above")
        assert ("the teacher", "60.00", "dss", "1.0M", "100 % (1,000)", "70.00", "yes") in found

    def test_the_same_results_give_the_same_report(self, sweep: Path, tmp_path: Path) -> None:
        first, second = (report.write(sweep, tmp_path / name) for name in ("a", "b"))
        for a, b in zip(first.files, second.files, strict=True):
            assert a.read_bytes() == b.read_bytes(), a.name

    def test_the_command(self, sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["report", str(sweep), "--min_seeds", "2"]) == 0
        said = capsys.readouterr().out
        assert "70.00 ± 2.31 (3)" in said
        assert str(sweep / "report" / "report.md") in said

    def test_the_pages_data(self, sweep: Path) -> None:
        found = find_runs(sweep)
        (task,) = page_data(found, [], "test", "sweep")["tasks"]
        assert [m["name"] for m in task["methods"]][:2] == [
            "standard, 1.0M, 25 % (250)",
            "standard, 1.0M, 50 % (500)",
        ]
        item = next(i for i in task["items"] if i["id"] == "item-81")
        # The seeds of standard on 250 have the first 80, 88 and 84 right.
        assert item["answers"][0] == {
            "prediction": "yes",
            "correct": True,
            "right": pytest.approx(2 / 3),
            "rationale": "because 81",
        }
        assert item["teacher"] == {"label": "yes", "rationale": "because 81", "correct": True}
        assert len(task["items"]) == 200


class TestLittle:
    def test_one_run(self, tmp_path: Path) -> None:
        write_run(tmp_path / "run", accuracy_of(50), teacher=None)
        made = report.write(tmp_path)
        assert made.tables[0].rows == (("dss", "1.0M", "50.00 (1)*"),)
        assert not [f for f in made.files if f.suffix == ".png"]

    def test_only_the_teacher(self, tmp_path: Path) -> None:
        write_run(tmp_path / "t", accuracy_of(74), method="teacher", examples=0)
        assert report.write(tmp_path).tables[0].rows == (("teacher's labels", "-", "74.00"),)

    def test_a_missing_prediction_file_costs_the_tests_only(self, sweep: Path) -> None:
        for file in sweep.glob("dss/count_500/*/predictions/*"):
            file.unlink()
        made = report.write(sweep)
        assert [row[2] for row in rows(made, "against standard")] == ["25 % (250)", "100 % (1,000)"]
        missing = "dss/count_500/seed_0: answers to test (its test-best.jsonl is missing)"
        assert missing in made.left
        assert missing in (sweep / "report" / "report.md").read_text()

    def test_unfinished_runs_are_named(self, sweep: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "dss_jax")
        (sweep / "dss" / "count_250" / "seed_2" / "results.json").unlink()
        made = report.write(sweep)
        assert made.left == ["dss/count_250/seed_2: not finished"]
        assert caplog.messages == ["left out: dss/count_250/seed_2: not finished"]
        assert rows(made, "toy: text accuracy")[1][2] == "47.00 ± 1.00 (2)*"
        # Not the same seeds on both sides any more.
        assert "not paired" in next(t for t in made.tables if "against" in t.title).note

    def test_runs_without_the_split_are_named(self, sweep: Path) -> None:
        file = sweep / "dss" / "count_250" / "seed_2" / "results.json"
        results = json.loads(file.read_text())
        del results["test"]
        file.write_text(json.dumps(results))
        made = report.write(sweep)
        assert made.left == ["dss/count_250/seed_2: no score on test (validation has)"]
        assert made.left[0] in (sweep / "report" / "report.md").read_text()

    def test_several_tasks(self, sweep: Path) -> None:
        for seed in range(3):
            write_run(sweep / "other" / f"s{seed}", accuracy_of(30), seed=seed, task="other")
        titles = [t.title for t in report.write(sweep).tables]
        assert titles[0].startswith("other: text accuracy")
        assert titles[1].startswith("toy: text accuracy")


def test_no_cell_of_a_table_for_people_is_a_formula(tmp_path: Path) -> None:
    for i, name in enumerate(("=1+1", "+x", "-x", "@x", "\tx", "\rx", "x=1", "-0.5")):
        write_run(tmp_path / f"={i}", accuracy_of(50), method=name)
    report.write(tmp_path)
    for file in ("results.csv", "runs.csv"):
        with (tmp_path / "report" / file).open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        names = {row["method"] for row in rows}
        assert names == {"'=1+1", "'+x", "'-x", "'@x", "'\tx", "\ufffdx", "x=1", "-0.5"}
    assert {row["folder"][:2] for row in rows} == {"'="}


def test_names_are_no_markup_in_the_markdown_report(tmp_path: Path) -> None:
    write_run(tmp_path / "a", accuracy_of(50), method="<img src=x>|b\x1b\nc", task="<b>t</b>")
    report.write(tmp_path)
    text = (tmp_path / "report" / "report.md").read_text()
    assert r"\<img src=x>\|b\x1b".replace(r"\x1b", "\ufffd c") in text
    assert not re.search(r"(?<!\\)<[a-z/]", text)


def test_a_step_that_is_no_number_leads_to_no_other_folder(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs" / "a", accuracy_of(50))
    (tmp_path / "harmless.jsonl").write_text('{"id": "item-0", "rationale": "from outside"}\n')
    results = json.loads((folder / "results.json").read_text())
    results["best_step"] = "x/../../../../harmless"
    (folder / "predictions" / "test-x").mkdir()
    (folder / "results.json").write_text(json.dumps(results))
    lines = (folder / "predictions/test-best.jsonl").read_text().splitlines()
    bare = [{k: v for k, v in json.loads(line).items() if k != "rationale"} for line in lines]
    text = "".join(json.dumps(line) + "\n" for line in bare)
    (folder / "predictions/test-best.jsonl").write_text(text)
    (run,) = find_runs(tmp_path / "runs").cells[0].runs
    assert run.predictions("test")[0]["rationale"] is None


class TestMistakes:
    def test_an_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="holds no finished run"):
            report.write(tmp_path)

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="is no folder"):
            report.write(tmp_path / "none")

    def test_two_settings_in_one_cell(self, tmp_path: Path) -> None:
        write_run(tmp_path / "a", accuracy_of(50))
        write_run(tmp_path / "b", accuracy_of(50), seed=1, loss=config.Loss(alpha=0.25))
        with pytest.raises(UsageError, match=r"Loss.alpha: 0.5 and 0.25\nReport them apart"):
            report.write(tmp_path)

    def test_a_run_of_a_version_without_a_setting(self, tmp_path: Path) -> None:
        """Which is at its default since."""
        for seed in range(2):
            write_run(tmp_path / str(seed), accuracy_of(50), seed=seed)
        file = tmp_path / "0" / "config.gin"
        text = file.read_text()
        assert "\nMethod.control = 'none'\n" in text
        file.write_text(text.replace("Method.control = 'none'\n", ""))
        assert len(find_runs(tmp_path).cells[0].runs) == 2

    def test_a_seed_twice(self, tmp_path: Path) -> None:
        write_run(tmp_path / "a", accuracy_of(50))
        write_run(tmp_path / "b", accuracy_of(50))
        with pytest.raises(UsageError, match="both have seed 0"):
            report.write(tmp_path)

    @pytest.mark.parametrize("name", ["results.json", "predictions/test-best.jsonl"])
    def test_damaged_json_names_its_place(self, sweep: Path, name: str) -> None:
        (sweep / "dss" / "count_250" / "seed_0" / name).write_text("{\n")
        with pytest.raises(UsageError, match=rf"seed_0/{name}(:1)?: not JSON"):
            report.write(sweep)

    @pytest.mark.parametrize(
        ("name", "old", "new", "says"),
        [
            ("predictions/test-best.jsonl", '"correct"', '"corrdct"', "best.jsonl:1: no line of"),
            ("predictions/test-best.jsonl", '{"id"', '[{"id"', "not JSON"),
            ("results.json", '"metric": "text_ac', '"metric": "text_bc', "no score of validation"),
            ("results.json", '"train_total": 1000', '"train_total": null', "no number of"),
            ("results.json", '"validation": {', '"validation": 3, "x": {', "no score of"),
            ("results.json", '"examples": ', '"examples": null, "x": ', "no score of validation"),
            ("results.json", '"method": "', '"method": [], "x": "', "no text of task, metric, me"),
            ("predictions/test-best.jsonl", '"id": "', '"id": [], "x": "', "best.jsonl:1: no line"),
        ],
    )
    def test_what_is_json_and_damaged(
        self, sweep: Path, name: str, old: str, new: str, says: str
    ) -> None:
        file = sweep / "dss" / "count_250" / "seed_0" / name
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))
        with pytest.raises(UsageError, match=says):
            report.write(sweep)

    def test_predictions_that_are_not_all_there(self, sweep: Path) -> None:
        file = sweep / "dss" / "count_250" / "seed_0" / "predictions/test-best.jsonl"
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(lines[:-1]))
        says = rf"test-best.jsonl has {len(lines) - 1} lines, but results.json counts {len(lines)}"
        with pytest.raises(UsageError, match=says):
            report.write(sweep)

    def test_a_split_that_was_not_scored(self, tmp_path: Path) -> None:
        folder = write_run(tmp_path / "a", accuracy_of(50))
        results = json.loads((folder / "results.json").read_text())
        del results["test"]
        (folder / "results.json").write_text(json.dumps(results))
        with pytest.raises(UsageError, match=r"scored on test\. Give --split validation"):
            report.write(tmp_path)

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--split", "train"], "must be test or validation, not 'train'"),
            (["--min_seeds", "0"], "must be at least 1"),
            (["--htlm"], "Did you mean --html"),
        ],
    )
    def test_flags(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list, message: str
    ) -> None:
        assert main(["report", str(tmp_path), *flags]) == 2
        assert message in capsys.readouterr().err


def test_teacher_has_a_gin_file() -> None:
    from dss_jax.cli.gin_config import named_file, read

    run = read([named_file("method", "teacher")], ["Task.name = 'toy'"]).run()
    assert run.method == TEACHER


def test_runs_inside_a_runs_own_folders_are_not_looked_for(tmp_path: Path) -> None:
    write_run(tmp_path / "a", accuracy_of(50))
    for name, seed in zip(("checkpoints", "tensorboard"), itertools.count(1)):
        write_run(tmp_path / "a" / name / "x", accuracy_of(50), seed=seed)
    assert len(find_runs(tmp_path).cells[0].runs) == 1
