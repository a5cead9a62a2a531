"""dss ask: its statistics against SciPy, statsmodels and known answers; its plan; its road."""

import json
import os
import re
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import toy
from record_docs import ROOT
from results_maker import TOTAL, write_answers
from scipy import stats
from test_cli import _dss
from test_sweep import PROGRAM, behave

from dss_jax.cli import ask, sweep, sweep_options
from dss_jax.cli.main import main
from dss_jax.core import locks
from dss_jax.core.sweep_config import Cell
from dss_jax.evaluate.crossed import Crossed, crossed
from dss_jax.report import report
from dss_jax.report.answer import Conclusion, answer
from dss_jax.run import run_folder
from dss_jax.sweep import ask as plans
from dss_jax.sweep import plan as sweep_plan
from dss_jax.sweep import runner as sweep_run
from dss_jax.sweep.ask import BASELINE, METHOD, OTHER, SHUFFLED, Part
from dss_jax.sweep.runner import Outcome

RNG = np.random.default_rng


class TestCrossed:
    """The mean of seeds by items."""

    def test_where_items_are_equal_it_is_the_t_test_over_seeds(self) -> None:
        seeds = np.array([3.0, 5.0, 4.0, 9.0])
        found = crossed(np.tile(seeds[:, None], (1, 50)))
        other = crossed(np.tile(seeds, (50, 1)))
        for alpha in (0.1, 0.05, 0.001):
            expected = stats.ttest_1samp(seeds, 0).confidence_interval(1 - alpha)
            for one in (found, other):
                low, high = one.interval(alpha)
                assert (low + high) / 2 == pytest.approx(5.25)
                assert high - low == pytest.approx(expected.high - expected.low, rel=2e-3)

    def test_components_are_those_of_reml(self) -> None:
        """Of statsmodels 0.14.5: MixedLM("y ~ 1", groups=1, vc_formula={"s": "0 + C(s)",
        "i": "0 + C(i)"}).fit(reml=True), of these values.
        """
        rng = RNG(5)
        y = 2 + rng.normal(0, 1.5, (6, 1)) + rng.normal(0, 2, (1, 30)) + rng.normal(0, 3, (6, 30))
        found = crossed(y)
        assert found.value == pytest.approx(y.mean())
        components = found.of_seeds, found.of_items, found.of_rest
        assert components == pytest.approx((3.09586, 1.59826, 8.40909), rel=1e-3)
        assert found.error() == pytest.approx(0.784837, rel=1e-3)

    def test_a_small_table_by_hand(self) -> None:
        # Rows 1, 3; columns 0, 2, 4 from the mean of 2: no rest.
        found = crossed(np.array([[-1.0, 1, 3], [1, 3, 5]]))
        assert (found.value, found.of_seeds, found.of_items, found.of_rest) == (2, 2, 4, 0)
        assert found.error() ** 2 == pytest.approx(2 / 2 + 4 / 3)
        assert replace(found, seeds=4, items=8).error() ** 2 == pytest.approx(2 / 4 + 4 / 8)

    @pytest.mark.parametrize("values", [np.ones((1, 9)), np.eye(9)[:, :1], np.zeros((4, 9))])
    def test_nothing_is_known_of_one_seed_one_item_or_equal_values(self, values) -> None:
        assert crossed(values).interval(0.05) == (-100, 100)

    def test_what_it_takes_is_enough_and_not_too_much(self) -> None:
        found = Crossed(3.0, of_seeds=4.0, of_items=900.0, of_rest=1600.0, seeds=4, items=400)
        for side, n in zip(("seeds", "items"), found.needed(5.0, 0.05), strict=True):
            assert n is not None
            assert replace(found, **{side: n}).reach(0.05) <= 5.0
            assert replace(found, **{side: n - 1}).reach(0.05) > 5.0
        # Seeds alone leave what the items have: sqrt(900 / 400) = 1.5 points.
        assert found.needed(1.97 * 1.5, 0.05)[0] is not None
        assert found.needed(1.95 * 1.5, 0.05)[0] is None
        # Items alone leave what the seeds have: Student's, of sqrt(4 / 4) = 1 point.
        assert found.needed(stats.t.isf(0.025, 3) * 1.02, 0.05)[1] is not None
        assert found.needed(stats.t.isf(0.025, 3) * 0.98, 0.05)[1] is None

    @pytest.mark.parametrize(("of_seeds", "of_items"), [(0.0, 45.0), (6.0, 30.0), (15.0, 0.0)])
    def test_intervals_miss_as_often_as_they_say(self, of_seeds: float, of_items: float) -> None:
        """Differences of right answers, of new seeds and new items each time."""
        missed = {0.05: 0, 0.01: 0}
        rng, repeats = RNG(1), 300
        for _ in range(repeats):
            chance = (
                0.5
                + rng.normal(0, of_seeds / 100, (8, 1))
                + rng.normal(0, of_items / 100, (1, 100))
            )
            values = 100.0 * (rng.random((8, 100)) < chance) - 100.0 * (rng.random((8, 100)) < 0.5)
            found = crossed(values)
            for alpha in missed:
                low, high = found.interval(alpha)
                missed[alpha] += not low <= 0 <= high
        for alpha, count in missed.items():
            assert stats.binomtest(count, repeats, alpha, alternative="greater").pvalue > 0.001


METHODS = BASELINE, METHOD, OTHER, SHUFFLED
WORLDS = {
    # Chances of a right answer: standard, dss, another row's, shuffled.
    "content": (0.40, 0.65, 0.40, 0.43),
    "words": (0.40, 0.65, 0.41, 0.65),
    "any rationale": (0.40, 0.65, 0.63, 0.65),
    "noise": (0.50, 0.50, 0.50, 0.50),
    "worse": (0.60, 0.45, 0.50, 0.47),
}


@dataclass
class World:
    """Students whose answers are drawn: items differ in how hard they are, seeds in their luck."""

    chances: tuple[float, float, float, float]
    rng: np.random.Generator
    items: int = 300

    def rounds(self, count: int) -> dict[Part, np.ndarray]:
        hard = self.rng.normal(0, 0.15, (1, self.items))
        liked = {m: self.rng.normal(0, 0.08, (1, self.items)) for m in METHODS}
        found = {}
        for method, chance in zip(METHODS, self.chances, strict=True):
            luck = self.rng.normal(0, 0.02, (count, 1))
            p = chance + hard + liked[method] + luck
            found[Part(method, 1.0)] = self.rng.random((count, self.items)) < p
        return found


def experiment(world: World, rounds: int = 8, level: float = 0.05) -> tuple[Conclusion, int]:
    """The looks of a budget with so many rounds, until the answer is clear."""
    right, spent, made = world.rounds(rounds), 0.0, None
    for n in range(plans.MIN_ROUNDS, rounds + 1):
        total = plans.spent(level, 0, n / rounds)
        made = answer({part: one[:n] for part, one in right.items()}, 1.0, total - spent)
        spent = total
        if made.unclear is None:
            break
    assert made is not None
    return made, n


def verdict(made: Conclusion) -> str:
    helps = made.contrasts["helps"].answer
    return made.cause if helps == "yes" else helps


@pytest.mark.parametrize("name", WORLDS)
def test_experiments_are_seldom_wrong(name: str) -> None:
    """All looks together; "no" is right where nothing helps, and "cannot tell" everywhere."""
    right = {"noise": {"no"}, "worse": {"worse", "no"}}.get(name, {name}) | {"cannot tell"}
    repeats = 120
    found = [experiment(World(WORLDS[name], RNG([7, i]))) for i in range(repeats)]
    wrong = sum(verdict(made) not in right for made, _ in found)
    assert stats.binomtest(wrong, repeats, 0.05, alternative="greater").pvalue > 0.001
    told = sum(verdict(made) != "cannot tell" for made, _ in found)
    if name != "noise":
        assert told > repeats / 2
        assert np.mean([rounds for _, rounds in found]) < 8, "some stop early"


def test_what_more_data_does_and_how_much_is_saved() -> None:
    def accuracy(percent: float) -> np.ndarray:
        return np.tile(np.arange(200) < 2 * percent, (4, 1))

    shares = {0.25: (30, 40), 0.5: (40, 60), 1.0: (50, 62)}
    right = {
        Part(method, share): accuracy(percent)
        for share, both in shares.items()
        for method, percent in zip((BASELINE, METHOD), both, strict=True)
    }
    made = answer(right, margin=1.0, alpha=0.05)
    assert made.saved is not None
    assert made.saved.share == pytest.approx(0.375), "half way from 40 to 60"
    more = made.contrasts["more"].estimate
    assert more.value == pytest.approx(2.0)
    # By hand: 4 of 200 items are 100 points better, with each seed.
    assert more.error() ** 2 == pytest.approx(100**2 * np.var(np.arange(200) < 4, ddof=1) / 200)
    assert made.cause == "not asked"
    assert made.accuracies[-1] == {"method": METHOD, "fraction": 1.0, "seeds": [62.0] * 4}
    assert "from 37.5 % of the data what standard gets from all" in made.said(95, "test")
    json.dumps(made.as_json(), allow_nan=False)


def test_equal_differences_are_not_equal_answers() -> None:
    right = {Part(BASELINE, 1.0): np.zeros((4, 9), bool), Part(METHOD, 1.0): np.ones((4, 9), bool)}
    found = answer(right, margin=1.0, alpha=0.05)
    assert found.needs(0.05, 1.0).startswith("No variance was seen")
    right[Part(METHOD, 1.0)] = right[Part(BASELINE, 1.0)]
    found = answer(right, margin=1.0, alpha=0.05)
    assert found.needs(0.05, 1.0).startswith("All answers are equally right")
    one = answer({part: both[:1] for part, both in right.items()}, margin=1.0, alpha=0.05)
    assert "each takes 1,235 minutes" in one.needs(0.05, 1235.2)


def test_no_more_is_spent_than_the_level() -> None:
    spent = [plans.spent(0.05, plan, share) for plan in range(4) for share in np.linspace(0, 1, 9)]
    assert spent == sorted(spent)
    assert spent[-1] < 0.05
    assert plans.spent(0.05, 0, 1) == pytest.approx(0.04)
    assert plans.spent(0.05, 1, 0) == pytest.approx(0.04)
    assert plans.spent(0.05, 0, 0.5) == pytest.approx(0.01)


def test_the_design_that_fits() -> None:
    designs = plans.designs([1, 0.25, 0.5])
    assert [len(design) for design in designs] == [8, 6, 4, 2]
    assert all(set(designs[-1]) < set(design) for design in designs[:-1])
    assert {part.fraction for part in designs[1]} == {0.5, 1}

    def minutes(design: plans.Design, rounds: int) -> float:
        return rounds * len(design)

    assert plans.choose(designs, minutes, 1, left=32) == designs[0]
    assert plans.choose(designs, minutes, 1, left=31) == designs[1]
    assert plans.choose(designs, minutes, 6, left=32) == designs[2]
    assert plans.choose(designs, minutes, 1, left=0) == designs[-1]


WORDS = shlex.split(
    "ask --task word_problems --model t5_1_1_tiny --gin.Train.steps=4 --gin.Sweep.teacher=False"
)
MINUTES = {BASELINE: 1.0, METHOD: 2.0}


@dataclass
class Machine:
    """Runs that take their time on a clock of its own, and students of a world."""

    world: str = "content"
    now: float = 0.0
    stops: int = 10**6
    """After so many runs somebody presses Ctrl-C."""

    def __post_init__(self) -> None:
        self.started: list[str] = []

    def train(self, grid, planned, places, until=float("inf")) -> None:
        cells = [*sweep_plan.cells_in(grid.folder), *(one.cell for one in planned)]
        sweep_plan.write_grid(grid.folder, dict.fromkeys(cells), [], grid.bindings)
        for one in planned:
            if not sweep_plan.state_of(grid.folder / one.cell.folder).done:
                if len(self.started) >= self.stops:
                    raise sweep.Stopped(Outcome(stopped=2))
                self.one(grid.folder, one)

    def one(self, folder: Path, planned: sweep_plan.Planned) -> None:
        cell, minutes = planned.cell, MINUTES.get(planned.cell.method, 2.0)
        self.started.append(cell.folder)
        self.now += 60 * minutes
        line = {"folder": cell.folder, "seconds": 60 * minutes, "work": 1e15, "state": "done"}
        with (folder / sweep_plan.TIMES).open("a") as file:
            file.write(json.dumps(line) + "\n")
        run_folder.open_run_folder(planned.run, "key")
        assert planned.run.task.subset_seed == cell.seed
        size = round(TOTAL * cell.train_fraction)
        named = {"method": cell.method, "task": cell.task, "seed": cell.seed, "parameters": 1}
        right = self.answers(cell)
        write_answers(folder / cell.folder, right.tolist(), **named, train_examples=size)

    def answers(self, cell: Cell) -> np.ndarray:
        number = METHODS.index(cell.method)
        chance = WORLDS[self.world][number] - 0.1 * (1 - cell.train_fraction)
        rng = RNG([cell.seed, number, int(100 * cell.train_fraction)])
        hard, liked = RNG(9).normal(0, 0.1, (2, 200))
        return rng.random(200) < chance + hard + number * liked / 4


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(sweep, "train_more", made.train)
    monkeypatch.setattr(sweep_options, "make_stores", lambda *_: {})
    monkeypatch.setattr(sweep_options, "without_teachers", lambda planned, _: [])
    monkeypatch.setattr(ask, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "write", lambda *_, **__: report.Report([]))


def dss_ask(folder: Path, budget: float, *flags: str) -> dict[str, Any]:
    words = ["--budget", str(budget), "--output_dir", str(folder), "--jobs", "1", *flags]
    assert main([*WORDS, *words]) == 0
    return json.loads((folder / "answer.json").read_text())


def test_an_experiment_from_its_first_run_to_its_page(
    tmp_path: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = dss_ask(tmp_path / "a", 400)
    place = "word_problems/t5_1_1_tiny"
    first = [f"{place}/{m}/frac_1/seed_0" for m in METHODS]
    assert machine.started[:4] == [first[0], first[1], *first[:1:-1]]
    assert len(machine.started) % 8 == 0
    answered = saved["answer"]
    assert answered["contrasts"]["helps"]["answer"] == "yes"
    assert answered["cause"] == "content"
    assert answered["unclear"] is None
    seeds = answered["contrasts"]["helps"]["estimate"]["seeds"]
    assert seeds == len(machine.started) / 8 == saved["looks"][-1]["seeds"]
    assert 13 * seeds < 400 - 13, "it has stopped early"
    assert saved["minutes"] == pytest.approx(13 * seeds)
    said = saved["said"]
    assert said.startswith("Rationales help here: dss - standard is +")
    assert f"{seeds} seeds and 200 test items; by their content" in said
    out = capsys.readouterr().out
    assert said in out
    page = (tmp_path / "a" / "report" / "report.html").read_text()
    assert f"<p id=headline>{said}" in page
    assert "Do rationales help here?" in page
    assert f"**{said}" in (tmp_path / "a" / "report" / "report.md").read_text()
    assert (tmp_path / "a" / "report" / "by_data.png").exists()
    # It is answered: the same command trains nothing, and spends nothing.
    again = dss_ask(tmp_path / "a", 400)
    assert (again["answer"], again["looks"]) == (answered, saved["looks"])
    assert len(machine.started) == 8 * seeds


@pytest.mark.usefixtures("no_report")
class TestBudget:
    def test_a_stop_changes_nothing(self, tmp_path: Path, machine: Machine) -> None:
        machine.world = "noise"
        whole = dss_ask(tmp_path / "a", 80)
        assert len(whole["looks"]) > 1
        machine.started.clear()
        for machine.stops in (1, 9, 28):
            words = ["--budget", "80", "--output_dir", str(tmp_path / "b")]
            assert main([*WORDS, *words]) == 130
        machine.stops = 10**6
        stopped = dss_ask(tmp_path / "b", 80)
        assert stopped["answer"] == whole["answer"]
        assert [x["alpha"] for x in stopped["looks"]] == pytest.approx(
            [x["alpha"] for x in whole["looks"]]
        )
        assert len(set(machine.started)) == len(machine.started)

    def test_it_is_kept_and_a_larger_one_goes_on(self, tmp_path: Path, machine: Machine) -> None:
        saved = dss_ask(tmp_path / "a", 13)
        assert machine.now <= 13 * 60
        assert {f.split("/", 2)[2][:-7] for f in machine.started} == {
            "standard/frac_1",
            "dss/frac_1",
        }
        assert saved["answer"]["cause"] == "not asked"
        assert sum(x["alpha"] for x in saved["looks"]) == pytest.approx(0.04)
        before = saved["looks"]
        saved = dss_ask(tmp_path / "a", 150)
        assert saved["looks"][: len(before)] == before
        assert sum(x["alpha"] for x in saved["looks"]) < 0.05
        assert saved["answer"]["cause"] == "content"
        assert len(set(machine.started)) == len(machine.started)
        assert len(machine.started) % 8 == 0, "what the first rounds lacked was trained"
        assert machine.now <= 150 * 60
        # A smaller one has no time for anything, and says what is known.
        again = dss_ask(tmp_path / "a", 5)
        assert again["answer"] == saved["answer"]

    def test_what_cannot_be_told_says_what_it_takes(
        self, tmp_path: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
    ) -> None:
        machine.world = "noise"
        saved = dss_ask(tmp_path / "a", 60, "--fractions", "1", "--margin", "2.5")
        assert machine.now <= 60 * 60
        assert saved["said"].startswith("It cannot be told yet whether rationales help here: dss -")
        assert re.match(r"To tell would take about \d+ more seeds? \(\d+ minutes\)", saved["needs"])
        assert saved["needs"] in capsys.readouterr().out

    def test_one_round(self, tmp_path: Path, machine: Machine) -> None:
        saved = dss_ask(tmp_path / "a", 4)
        assert "(95 %: -100.0 to +100.0), 1 seed and 200 test items" in saved["said"]
        assert saved["needs"] == "One seed says nothing of chance; each takes 3 minutes here."

    def test_after_the_last_seed_it_says_so(
        self, tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine.world = "noise"
        monkeypatch.setattr(ask, "MOST_ROUNDS", 4)
        saved = dss_ask(tmp_path / "a", 600, "--fractions", "1")
        assert saved["needs"].endswith("The command can run no more seeds: 4 are its most.")

    def test_two_do_not_ask_in_one_folder(
        self, tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(locks, "PATIENCE", 0.1)
        with locks.held(tmp_path / "a" / "answer.json.lock", "mine"):
            words = ["--budget", "4", "--output_dir", str(tmp_path / "a")]
            assert main([*WORDS, *words]) == locks.Taken.status
        assert not machine.started

    def test_settings_of_looks_stay(
        self, tmp_path: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
    ) -> None:
        dss_ask(tmp_path / "a", 4)
        for flag in ("--margin=2", "--level=90", "--split=validation", "--first_seed=3"):
            assert main([*WORDS, "--budget", "4", "--output_dir", str(tmp_path / "a"), flag]) == 2
            assert f"{flag[2:].partition('=')[0]} is " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--budget", "-1"], "--budget must be"),
        (["--budget", "inf"], "--budget must be between 0 and 1000000, not inf"),
        (["--budget", "1", "--margin", "101"], "--margin must be between 0 and 100"),
        (["--budget", "1", "--level", "5"], "--level must be between 50 and"),
        (["--budget", "1", "--split", "train"], "unknown --split"),
        (["--budget", "1", "--fractions", "2"], "between 0 and 1"),
        (["--budget", "1", "--model", "t5_1_1_tinny"], "Did you mean 't5_1_1_tiny'"),
        (["--budget", "1", "--model", "t5_1_1_tiny,t5_1_1_base"], "--model NAME takes one"),
        (["--budget", "1", "--task", "cqa,esnli"], "--task NAME takes one, not 2: cqa, esnli"),
        (["--budget", "1", "--gin.Sweep.seeds=(0,)"], "leave out --gin.Sweep.seeds"),
        (["--budget", "1", "--output_dir", "gs://a/b"], "give a local folder"),
        (["--budget", "1", "--first_seed", "-1"], "--first_seed must be"),
        ([], "no budget: give --budget MINUTES"),
        (["--budget", "1", "--model", ""], "give --model NAME or Sweep.models"),
        (["--budget", "1", "--task", ""], "give --task NAME or Sweep.tasks"),
    ],
)
def test_a_mistake_starts_nothing(
    flags: list[str], says: str, tmp_path: Path, machine: Machine, capsys
) -> None:
    assert main([*WORDS, "--output_dir", str(tmp_path / "a"), *flags]) == 2
    assert says in capsys.readouterr().err
    assert not machine.started


def test_a_budget_that_ends_within_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With real processes, which save and stop; `dss train` is a stand-in."""
    monkeypatch.setenv("STAND_IN", str(tmp_path))
    monkeypatch.setattr(sweep_run, "PROGRAM", PROGRAM)
    monkeypatch.setattr(sweep_options, "make_stores", lambda *_: {})
    monkeypatch.setattr(sweep_options, "without_teachers", lambda planned, _: [])
    behave(tmp_path, seconds=1.0)
    saved = dss_ask(tmp_path / "a", 0.02)
    assert "It cannot be told: " in saved["said"]
    assert saved["said"] in capsys.readouterr().out
    (metrics,) = (tmp_path / "a").rglob("metrics.jsonl")
    assert 1 <= len(metrics.read_text().splitlines()) < 4
    assert saved["minutes"] < 0.1
    assert saved["looks"] == []


@pytest.mark.parametrize(
    ("flags", "at_once"), [((), 3), (("--jobs", "2"), 2), (("--gin.T5Config.emb_dim=512",), 1)]
)
def test_small_models_have_a_core_each(
    flags: tuple[str, ...], at_once: int, tmp_path: Path, machine: Machine, monkeypatch
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    given = []
    monkeypatch.setattr(sweep, "train_more", lambda _, __, places, ___: given.append(len(places)))
    monkeypatch.setattr(ask, "MOST_ROUNDS", 1)
    monkeypatch.setattr(ask._Asking, "rounds", lambda _: None)
    words = ["--budget", "1", "--output_dir", str(tmp_path / "a"), *flags]
    assert main([*WORDS, *words]) == 0
    assert given == [at_once]


def test_what_fails_after_the_budget_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(3)); time.sleep(60)"
    monkeypatch.setattr(sweep_run, "PROGRAM", [sys.executable, "-c", program])
    monkeypatch.setattr(sweep_options, "make_stores", lambda *_: {})
    monkeypatch.setattr(sweep_options, "without_teachers", lambda planned, _: [])
    words = ["--budget", "0.02", "--output_dir", str(tmp_path / "a"), "--jobs", "1"]
    assert main([*WORDS, *words]) == 1
    assert "(status 3, " in capsys.readouterr().err


def test_a_budget_that_ends_with_the_last_run_is_not_late(tmp_path: Path) -> None:
    class Ending(sweep_run.Runner):
        def _start(self) -> None:
            self._jobs = []

    made = Ending(tmp_path, [{}], lambda _: None)
    made._until, made._jobs, made._begun = -1.0, [], {}
    made._children = [SimpleNamespace(process=SimpleNamespace(poll=lambda: 0))]
    made._ended = made._status = lambda *_: ""
    made._loop()
    assert not made._outcome.late


def test_a_split_without_gold_labels_is_refused(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    tokens = SimpleNamespace(lengths=lambda: np.zeros(3, int))
    store = SimpleNamespace(
        splits=["test"], split=lambda _: SimpleNamespace(tokens=lambda _: tokens)
    )
    monkeypatch.setattr(sweep_options, "make_stores", lambda *_: {"word_problems": store})
    assert main([*WORDS, "--budget", "1", "--output_dir", str(tmp_path / "a")]) == 2
    assert "test split has no gold labels" in capsys.readouterr().err
    assert not machine.started


@pytest.mark.slow
def test_a_known_answer_by_real_runs(tmp_path: Path) -> None:
    """Rationales of which only the order tells: standard fine-tuning guesses, and so do controls.
    The other two tasks of benchmarks/ask, and ten experiments of each, are its script's.
    """
    here = ROOT / "benchmarks" / "ask"
    words = f"ask --task pairs_content --task_dir {here}/tasks --gin_file {here}/pairs.gin"
    words += f" --vocabulary {toy.VOCABULARY} --fractions 1 --budget 30 --output_dir a"
    path = f"{ROOT}:{here}/tasks"
    done = _dss(*words.split(), cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / "a" / "answer.json").read_text())
    assert saved["answer"]["cause"] == "content"
    assert saved["looks"][-1]["seeds"] == plans.MIN_ROUNDS, "it was clear at once"
    assert saved["said"] in done.stdout
    assert (tmp_path / "a" / "report" / "report.html").exists()
