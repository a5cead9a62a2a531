"""Calibration, selective accuracy, seeds and rationales, by hand, by SciPy, and in the report."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from results_maker import write_run
from scipy import stats

from dss_jax.core.errors import UsageError
from dss_jax.evaluate import reliability as statistic
from dss_jax.report import report
from dss_jax.report.found_runs import View, find_runs
from dss_jax.report.page import page_data
from dss_jax.report.reliability import confidences, measure, shares_of, tables

SURE = np.array([0.95, 0.62, 0.95, 0.30, 0.62])
RIGHT = np.array([True, True, False, False, True])
ONCE = np.ones((1, 5))


class TestByHand:
    def test_expected_calibration_error(self) -> None:
        # Bins (14/15, 1], (9/15, 10/15], (4/15, 5/15]: gaps .95 - .5, 1 - .62, .3 - 0.
        expected = 2 / 5 * 0.45 + 2 / 5 * 0.38 + 1 / 5 * 0.30
        assert statistic.calibration_error(SURE, RIGHT, ONCE) == pytest.approx([expected])

    def test_bins_hold_their_upper_edges(self) -> None:
        edges = np.array([0, 1 / 15, np.nextafter(1 / 15, 1), 0.2, 14 / 15, 1])
        assert statistic.bins_of(edges).tolist() == [0, 0, 1, 2, 13, 14]

    def test_risk_by_coverage(self) -> None:
        area, curve = statistic.risk_by_coverage(SURE, RIGHT, ONCE)
        # As sure as .95: 1 of 2 is wrong; .62: 1 of 4; .30: 2 of 5.
        assert area == pytest.approx([(2 * 0.5 + 2 * 0.25 + 0.4) / 5])
        assert curve[:, 0] == pytest.approx([0.5] * 8 + [0.25] * 8 + [0.4] * 4)

    def test_risk_is_the_mean_over_thresholds(self) -> None:
        rng = np.random.default_rng(0)
        sure, right = rng.integers(1, 40, 300) / 40, rng.random(300) < 0.6
        expected = np.mean([np.mean(~right[sure >= one]) for one in sure])
        area, _ = statistic.risk_by_coverage(sure, right, np.ones((1, 300)))
        assert area == pytest.approx([expected])

    def test_a_weight_is_as_many_items(self) -> None:
        rng = np.random.default_rng(1)
        sure, right = rng.random(200).round(2), rng.random(200) < 0.7
        weights = rng.integers(0, 4, (3, 200)).astype(float)
        for row in weights:
            again = np.repeat(np.arange(200), row.astype(int))
            once = np.ones((1, len(again)))
            for of in (statistic.calibration_error, lambda *x: statistic.risk_by_coverage(*x)[0]):
                assert of(sure, right, row[None]) == pytest.approx(
                    of(sure[again], right[again], once)
                )

    def test_a_distribution_of_the_labels(self) -> None:
        logs = {"a": math.log(0.35), "b": math.log(0.1), "c": math.log(0.05)}
        answer = {"prediction": "a", "target": "b", "correct": False, "label_log_probs": logs}
        assert shares_of(answer) == pytest.approx({"a": 0.7, "b": 0.2, "c": 0.1})
        assert shares_of({"label_log_probs": {"a": -2000.0, "b": -2000.0}}) == {"a": 0.5, "b": 0.5}
        assert shares_of({}) == {}

    def test_what_confidence_is(self) -> None:
        text = {"prediction": "a", "log_prob": math.log(0.6)}
        ranked = text | {"label_log_probs": {"a": math.log(0.6), "b": math.log(0.2)}}
        voted = text | {"samples": ["a", "a", "b", "a"]}
        joint = text | {"generated": "why Answer: a"}
        kind, found = confidences([ranked])
        assert (kind, found) == ("among the labels", [pytest.approx(0.75)])
        assert confidences([voted]) == ("share of the samples", [0.75])
        assert confidences([ranked, text]) == ("of the text", [pytest.approx(0.6)] * 2)
        assert confidences([text, joint]) is None, "its probability is that of a rationale, too"
        assert confidences([{"prediction": "a"}]) is None
        assert confidences([]) is None


class TestIntervals:
    def test_of_one_seed_they_are_scipys(self) -> None:
        rng = np.random.default_rng(2)
        squares = rng.random(400) ** 2
        drawn = statistic.bootstrap([lambda w: statistic.mean_of(squares, w)[None]], 400)
        given = {"method": "basic", "n_resamples": 20_000, "rng": np.random.default_rng(3)}
        expected = stats.bootstrap((squares,), np.mean, **given).confidence_interval
        value, low, high = drawn.interval(0, 0, 1)
        assert value == pytest.approx(squares.mean())
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.003)

    def test_seeds_add_to_the_uncertainty(self) -> None:
        seeds = [lambda w, v=v: np.full((1, len(w)), v) for v in (0.0, 1.0, 1.0, 1.0)]
        drawn = statistic.bootstrap(seeds, 50)
        shares = [np.mean(drawn.resampled[0] == k / 4) for k in range(5)]
        expected = [stats.binom.pmf(k, 4, 0.75) for k in range(5)]
        assert shares == pytest.approx(expected, abs=0.03)

    def test_a_difference_is_of_the_same_items(self) -> None:
        rng = np.random.default_rng(4)
        values = rng.random(300)
        one, other = (
            statistic.bootstrap([lambda w, add=add: statistic.mean_of(values + add, w)[None]], 300)
            for add in (0.1, 0.0)
        )
        assert one.minus(other).interval(0, -1, 1) == pytest.approx((0.1, 0.1, 0.1))

    def test_the_error_of_calibration_lies_in_its_interval(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As often as it should, though it is above its true value by chance."""
        monkeypatch.setattr(statistic, "RESAMPLES", 400)
        rng, inside = np.random.default_rng(5), {0.02: 0, 0.1: 0}
        for true in inside:
            for seed in range(40):
                sure = rng.uniform(0.5, 1, 400)
                right = rng.random(400) < sure - true

                def error(w: np.ndarray, sure=sure, right=right) -> np.ndarray:
                    return statistic.calibration_error(sure, right, w)[None]

                _, low, high = statistic.bootstrap([error], 400, seed).interval(0, 0, 1)
                inside[true] += low <= true <= high
        assert min(inside.values()) >= 34, inside

    def test_what_a_calibrated_student_shows_by_chance(self) -> None:
        rng, above = np.random.default_rng(8), []
        for seed in range(40):
            sure = rng.uniform(0.5, 1, (2, 300))
            found = [
                statistic.calibration_error(one, rng.random(300) < one, np.ones((1, 300)))[0]
                for one in sure
            ]
            above.append(np.mean(found) > statistic.error_by_chance(sure, seed))
        assert 0 <= sum(above) <= 4
        # All in one bin: |mean of 300 coins - 1/2|, of variance 1 / 1200.
        half = statistic.error_by_chance([np.full(300, 0.5)])
        assert half == pytest.approx(stats.norm.ppf(0.9875) * (1 / 1200) ** 0.5, abs=0.006)


def _write(folder: Path, answers: list[dict], **about: object) -> Path:
    """A run whose answers to validation and test are these: prediction, target and more."""
    right = [a["prediction"] == a["target"] for a in answers]
    write_run(folder, right, **about)
    for split in ("validation", "test"):
        file = folder / "predictions" / f"{split}-best.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines = [line | answer for line, answer in zip(lines, answers, strict=True)]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def _answers(rng: np.random.Generator, over: float) -> list[dict]:
    """Labels yes and no, as sure as they are right, plus `over`."""
    found = []
    for i in range(300):
        share = rng.uniform(0.5, 0.97)
        target = "yes" if i % 2 else "no"
        other = "no" if i % 2 else "yes"
        said = target if rng.random() < share - over else other
        logs = {said: math.log(share), "no" if said == "yes" else "yes": math.log(1 - share)}
        found.append({"target": target, "prediction": said, "rationale": None})
        found[-1] |= {"log_prob": logs[said], "label_log_probs": logs}
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(6)
    for method, over in (("standard", 0.2), ("dss", 0.0)):
        for seed in range(3):
            _write(folder / method / str(seed), _answers(rng, over), method=method, seed=seed)
    return folder


def _table(folder: Path, title: str) -> list[dict[str, str]]:
    made = tables(measure(find_runs(folder), View()), View())
    (table,) = [t for t in made if title in t.title]
    return [dict(zip(table.header, row, strict=True)) for row in table.rows]


def _numbers(text: str) -> list[float]:
    return [float(word.strip("[],")) for word in text.split()]


class TestReport:
    def test_a_method_that_is_too_sure(self, runs: Path) -> None:
        standard, dss = _table(runs, "toy: confidence, test")
        assert standard["probability"] == "among the labels"
        gap, low, high = _numbers(standard["confidence - accuracy, %"])
        assert low < 20 < high
        assert gap == pytest.approx(20, abs=5)
        assert _numbers(dss["ECE, %"])[2] < _numbers(standard["ECE, %"])[1]
        # Two labels: both squares of a row are the same.
        one, both = _numbers(dss["Brier"]), _numbers(dss["Brier, all labels"])
        assert both == pytest.approx([2 * x for x in one], abs=2e-4)
        assert 2 < float(standard["by chance, %"]) < _numbers(standard["ECE, %"])[1]
        (row,) = _table(runs, "confidence, differences from standard")
        assert row["difference"] == "dss - standard"
        for name in ("confidence - accuracy, %", "ECE, %", "Brier", "AURC, %"):
            value, low, high = _numbers(row[name])
            assert low < value < high < 0, name

    def test_the_numbers_are_means_over_the_seeds(self, runs: Path) -> None:
        found = find_runs(runs)
        (standard, _) = measure(found, View())
        errors = []
        for run in found.cells[0].runs:
            answers = run.predictions("test")
            sure = np.array([math.exp(a["log_prob"]) for a in answers])
            errors.append(np.mean((sure - [a["correct"] for a in answers]) ** 2))
        shown = _table(runs, "toy: confidence, test")[0]["Brier"]
        assert _numbers(shown)[0] == pytest.approx(np.mean(errors), abs=1e-4)
        assert len(standard.ids) == 300

    def test_pictures_of_both(self, runs: Path) -> None:
        made = report.write(runs, html=True)
        titles = [t.title for t in made.tables]
        assert {"toy: confidence, test", "toy: seeds and rationales, test"} <= {*titles}
        assert {"reliability.png", "reliability.svg"} <= {f.name for f in made.files}
        svg = (runs / "report" / "reliability.svg").read_text()
        for text in ("confidence", "risk: errors among these, %", "standard", "dss", "calibrated"):
            assert text in svg
        assert "risk by coverage" in (runs / "report" / "report.html").read_text()

    def test_the_page_has_each_answers_confidence(self, runs: Path) -> None:
        found = find_runs(runs)
        (task,) = page_data(found, [], "test", "t")["tasks"]
        for run in found.cells[0].runs:
            assert len(run.predictions("test")) == 300
        given = [run.predictions("test")[7] for run in found.cells[0].runs]
        answer = next(i for i in task["items"] if i["id"] == "item-7")["answers"][0]
        same = [math.exp(p["log_prob"]) for p in given if p["prediction"] == answer["prediction"]]
        assert answer["confidence"] == pytest.approx(np.mean(same), abs=1e-4)
        yes = [math.exp(p["label_log_probs"]["yes"]) for p in given]
        assert dict(answer["shares"])["yes"] == pytest.approx(np.mean(yes), abs=1e-4)
        assert answer["shares"] == sorted(answer["shares"], key=lambda pair: -pair[1])

    def test_nothing_is_said_of_runs_without_probabilities(self, tmp_path: Path) -> None:
        write_run(tmp_path / "a", [True, False])
        made = report.write(tmp_path, html=True)
        assert not [t for t in made.tables if "confidence" in t.title or "seeds" in t.title]
        assert not [f for f in made.files if "reliability" in f.name]
        (task,) = page_data(find_runs(tmp_path), [], "test", "t")["tasks"]
        assert "confidence" not in task["items"][0]["answers"][0]

    def test_probabilities_that_dss_eval_has_written_since(self, tmp_path: Path) -> None:
        answers = _answers(np.random.default_rng(7), 0.0)
        logs = [answer.pop("label_log_probs") for answer in answers]
        folder = _write(tmp_path / "a", answers)
        title = "toy: confidence, test"
        assert _table(tmp_path, title)[0]["probability"] == "of the text"
        lines = [{"id": f"item-{i}", "label_log_probs": own} for i, own in enumerate(logs)]
        file = folder / "predictions" / "test-4-rank.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
        assert _table(tmp_path, title)[0]["probability"] == "of the text", "not all"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert _table(tmp_path, title)[0]["probability"] == "among the labels"

    def test_seeds_and_rationales_by_hand(self, tmp_path: Path) -> None:
        said = ("yyyynnnn", "yyyynnny", "yyynnnyy")
        words = {"y": "yes", "n": "no"}
        for seed, letters in enumerate(said):
            answers = [
                {
                    "target": "yes" if i < 4 else "no",
                    "prediction": words[letter],
                    # Six name one label; of these the first four say yes.
                    "rationale": ("Yes." if i < 4 else "no!" if i < 6 else "yes or no"),
                }
                for i, letter in enumerate(letters)
            ]
            _write(tmp_path / str(seed), answers, seed=seed)
        (row,) = _table(tmp_path, "toy: seeds and rationales")
        # 8, 7 and 5 of 8 are right.
        assert row["s over seeds"] == f"{np.std([100, 87.5, 62.5], ddof=1):.2f}"
        assert (row["lowest"], row["highest"]) == ("62.50", "100.00")
        # All three agree on items 0-2, 4, 5; one pair of three on the others.
        assert _numbers(row["pairs of seeds agree, %"])[0] == pytest.approx(
            100 * (5 + 3 / 3) / 8, abs=0.01
        )
        assert row["rationales that name one label, %"].startswith("75.00 ")
        # Of six each: 6, 6 and 5 name what is said.
        assert _numbers(row["it is the answer, %"])[0] == pytest.approx(100 * 17 / 18, abs=0.01)

    def test_a_number_that_was_not_finite_is_not_known(self, tmp_path: Path) -> None:
        more = {"log_prob": None, "label_log_probs": {"yes": -0.1, "no": None}}
        answers = [{"target": x, "prediction": x} | more for x in ["yes", "no"] * 5]
        answers[0] |= {"log_prob": -0.2, "label_log_probs": {"yes": -0.1, "no": -3.0}}
        _write(tmp_path / "a", answers)
        assert not [t for t in report.write(tmp_path).tables if "confidence" in t.title]

    def test_answers_without_a_rationale_do_not_count(self, tmp_path: Path) -> None:
        for seed in range(2):
            answers = [
                {"target": x, "prediction": x} | {"rationale": None if seed or i > 3 else x}
                for i, x in enumerate(["yes", "no"] * 5)
            ]
            _write(tmp_path / str(seed), answers, seed=seed)
        (row,) = _table(tmp_path, "toy: seeds and rationales")
        assert row["rationales that name one label, %"].startswith("100.00 ")
        assert row["it is the answer, %"].startswith("100.00 ")

    @pytest.mark.parametrize(
        "more", [{"log_prob": "x"}, {"label_log_probs": {"yes": "x"}}, {"label_log_probs": [1]}]
    )
    def test_what_is_no_probability_is_refused(self, tmp_path: Path, more: dict) -> None:
        _write(tmp_path / "a", [{"target": "yes", "prediction": "yes"} | more])
        with pytest.raises(UsageError, match=r"best\.jsonl:1: no line of predictions"):
            report.write(tmp_path)
