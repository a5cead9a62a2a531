"""Simulatability: a reader's answers beside a student's, by hand, by SciPy, and by the command."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import student_maker
from results_maker import write_run
from scipy import stats

import dss_jax
from dss_jax.cli.main import main
from dss_jax.core.config import Method
from dss_jax.core.errors import UsageError
from dss_jax.core.scoring import same_value
from dss_jax.core.student_card import StudentCard
from dss_jax.report import report
from dss_jax.report.found_runs import View, find_runs
from dss_jax.report.reliability import measure
from dss_jax.student.reading import read, warn_of_task
from dss_jax.student.student import Prediction, Predictions

PINTO = Method(name="pinto", form="rationale_input", rationale=False)


class Reader:
    """Says the last word of what it reads."""

    card, folder = StudentCard(form="rationale_input", labels=("a", "b")), Path("runs/reader")

    def __init__(self) -> None:
        self.asked: list[tuple[str, Sequence[str]]] = []

    def predict(self, inputs: Sequence[str], labels: Sequence[Sequence[str]]) -> Predictions:
        self.asked += zip(inputs, labels, strict=True)
        return Predictions(
            Prediction(
                input=x, label=x.replace("</s>", " ").split()[-1], probability=None, log_prob=0.0
            )
            for x in inputs
        )


def test_what_is_read_and_what_comes_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dss_jax.student.reading.CHUNK", 2)
    given = [
        {"id": "1", "input": "is it 3", "prediction": "4", "rationale": "so it is 8/2"},
        {"id": "2", "input": "is it 4", "prediction": "4", "rationale": None},
        {"id": "3", "input": "is it 4", "prediction": "so", "rationale": "so"},
        {"id": "4", "input": "is it 1+3", "prediction": "4", "rationale": "not 5"},
    ]
    reader, before = Reader(), [dict(one) for one in given]
    found = read(reader, given, {"1": ["3", "4"], "3": []}, same_value)
    agrees = [[True, False, True], [True, False, True], [False, True, False]]
    assert found == agrees
    assert given[1] == before[1], "there is nothing to read"
    assert [one["reader_agrees"] for one in given if "reader" in one] == agrees
    assert given[0]["reader_labels"] == ["8/2", "3", "8/2"]
    assert given[0]["reader"] == "runs/reader"
    texts = dict(reader.asked)
    assert texts["is it 3</s>so it is 8/2"] == texts["is it 3"] == ["3", "4"]
    assert texts["</s>so it is 8/2"] == ["3", "4"]
    assert texts["is it 4</s>so"] == texts["</s>not 5"] == ("a", "b"), "the reader's own"
    assert len(reader.asked) == 9


READ = [
    # From input and rationale, from the input, from the rationale: the answer is given away in 4.
    *[(True, False, True)] * 2,
    (True, True, True),
    (False, True, True),
    *[(True, False, False)] * 3,
    *[(True, True, False)] * 2,
    (False, False, False),
]


def _read_run(folder: Path, agrees: Sequence[tuple[bool, ...]], seed: int = 0) -> Path:
    """A run whose rationales `dss eval --reader` has had read since."""
    write_run(folder, [True] * len(agrees), seed=seed)
    lines = [
        {"id": f"item-{i}", "reader": "runs/pinto", "reader_agrees": [*own]}
        for i, own in enumerate(agrees)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "predictions" / "test-4.jsonl").write_text(text)
    return folder


def _row(folder: Path) -> dict[str, str]:
    (table,) = [t for t in report.write(folder).tables if "a reader says" in t.title]
    (row,) = table.rows
    return dict(zip(table.header, row, strict=True))


def test_the_report_by_hand(tmp_path: Path) -> None:
    _read_run(tmp_path / "0", READ)
    _read_run(tmp_path / "1", [(True, True, i < 5) for i in range(10)], seed=1)
    row = _row(tmp_path)
    assert row["reader"] == "runs/pinto"
    # Of the first seed 8 and 4 of 10; where given away (2 - 1) / 4, else 3 / 6. The second: all.
    for name, value in (
        ("input and rationale, %", (80 + 100) / 2),
        ("input alone, %", (40 + 100) / 2),
        ("difference", (40 + 0) / 2),
        ("LAS", 100 * ((1 / 4 + 3 / 6) / 2 + 0) / 2),
    ):
        number, low, high = (float(word.strip("[],")) for word in row[name].split())
        assert number == pytest.approx(value, abs=0.01), name
        assert low <= number <= high


def test_intervals_of_one_seed_are_scipys(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    agrees = rng.random((400, 3)) < (0.8, 0.6, 0.5)
    _read_run(tmp_path / "0", [tuple(map(bool, one)) for one in agrees])
    (made,) = measure(find_runs(tmp_path), View())
    assert made.read

    def las(both: np.ndarray, alone: np.ndarray, leaks: np.ndarray, axis: int = -1) -> np.ndarray:
        gain, leaks = both.astype(float) - alone, leaks.astype(bool)
        means = [np.mean(gain, axis=axis, where=where) for where in (leaks, ~leaks)]
        return np.mean(means, axis=0)

    options = {"method": "basic", "paired": True, "n_resamples": 9_000}
    for k, statistic in (
        (2, lambda both, alone, _, axis=-1: np.mean(both.astype(float) - alone, axis=axis)),
        (3, las),
    ):
        drawn = stats.bootstrap(tuple(agrees.T), statistic, rng=np.random.default_rng(2), **options)
        value, low, high = made.read.interval(k, -1, 1)
        assert value == pytest.approx(statistic(*agrees.T))
        expected = drawn.confidence_interval
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.012)


def test_what_was_not_read_does_not_count(tmp_path: Path) -> None:
    _read_run(tmp_path / "0", READ)
    write_run(tmp_path / "1", [True] * len(READ), seed=1)
    file = tmp_path / "0" / "predictions" / "test-4.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:4]))
    row = _row(tmp_path)
    assert row["input and rationale, %"].startswith("75.00 ")
    assert row["LAS"] == "-", "all of these are given away"


def test_nothing_is_said_where_nobody_reads(tmp_path: Path) -> None:
    write_run(tmp_path / "0", [True, False])
    assert not [t for t in report.write(tmp_path).tables if "reader" in t.title]


@pytest.mark.parametrize("bad", ["yes", [True], [1, 0, 1], [True, False, None]])
def test_what_is_no_reading_is_refused(tmp_path: Path, bad: object) -> None:
    _read_run(tmp_path / "0", [bad])
    file = tmp_path / "0" / "predictions" / "test-4.jsonl"
    file.write_text(json.dumps({"id": "item-0", "reader_agrees": bad}) + "\n")
    with pytest.raises(UsageError, match=r"test-4\.jsonl:1: no line of predictions"):
        report.write(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a student that explains and of a reader, with their task file."""
    base = tmp_path_factory.mktemp("reading")
    (base / "tasks").mkdir()
    (base / "tasks" / "choices.py").write_text(student_maker.TASK)
    store = student_maker.make_store(base / "store", count=6)
    student_maker.make_student(base / "dss", store)
    student_maker.make_student(base / "pinto", store, method=PINTO)
    return base


def _eval(folder: Path, *flags: str) -> int:
    own = ["--output_dir", str(folder / "dss"), "--task_dir", str(folder / "tasks")]
    return main(["eval", *own, *flags])


def test_the_command(folder: Path, said: list[str]) -> None:
    assert _eval(folder, "--rationales", "--reader", str(folder / "pinto")) == 0
    text = (folder / "dss" / "predictions" / "test-1.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) == 6
    reader = dss_jax.load(folder / "pinto")
    for one, example in zip(lines, student_maker.examples(6), strict=True):
        asked = [f"{one['input']}</s>{one['rationale']}", one["input"], f"</s>{one['rationale']}"]
        answers = reader.predict(asked, labels=example.allowed_labels)
        assert one["reader_labels"] == [answer.label for answer in answers]
        assert one["reader_agrees"] == [x == one["prediction"] for x in one["reader_labels"]]
    count = sum(one["reader_agrees"][0] for one in lines)
    assert any(f"student's label in {100 * count / 6:.1f} % of 6," in line for line in said)


def test_a_reader_of_another_task_is_named(said: list[str]) -> None:
    reader = Reader()
    for task in ("", "choices", "other"):
        reader.card = StudentCard(form="rationale_input", task=task)
        warn_of_task(reader, "choices")
    (line,) = [line for line in said if "this reader was trained on" in line]
    assert line.startswith("runs/reader: this reader was trained on other, and reads rationales of")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--reader", "pinto"], "give --rationales, too"),
        (["--rationales", "--reader", "dss"], "reads no rationale"),
        (["--rationales", "--reader", "none"], "there is no folder none"),
    ],
)
def test_mistakes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys, flags: list[str], says: str
) -> None:
    monkeypatch.chdir(folder)
    assert _eval(folder, *flags) == 2
    assert says in capsys.readouterr().err
