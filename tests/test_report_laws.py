"""Power laws in a report: the table, beside interpolation, and in the figure."""

import re
from pathlib import Path

import pytest
from results_maker import accuracy_of, write_run

from dss_jax.evaluate import power_law
from dss_jax.report import report

STANDARD = {125: 68, 250: 84, 500: 92, 1000: 96}
DSS = {125: 80, 250: 90, 500: 95, 1000: 97.5}
"""Training examples -> accuracy: errors of 4 / share and 2.5 / share."""


def written(folder: Path, sizes: int, seeds: int, spread: float = 0.5) -> report.Report:
    for method, curve in (("standard", STANDARD), ("dss", DSS)):
        for examples, accuracy in [*curve.items()][-sizes:]:
            for seed in range(seeds):
                right = accuracy_of(accuracy + (seed - (seeds - 1) / 2) * spread)
                at = folder / method / str(examples) / str(seed)
                write_run(at, right, method=method, examples=examples, seed=seed)
    return report.write(folder, html=True)


def rows(made: report.Report, title: str) -> list[tuple[str, ...]]:
    return [row for table in made.tables if title in table.title for row in table.rows]


def test_a_law_stands_beside_interpolation(tmp_path: Path) -> None:
    made = written(tmp_path, sizes=4, seeds=3)
    ((method, _, share, between, never, by_law, interval, never_by_law),) = rows(made, "share of")
    # 96 lies between 95 at 50 % and 97.5 at 100 %: 70 %; by the law 2.5 / 4.
    assert (method, share, never, by_law, never_by_law) == ("dss", "70 %", "0 %", "62.5 %", "0 %")
    for text, value in ((between, 70), (interval, 62.5)):
        low, high = map(float, re.fullmatch(r"\[([\d.]+) %, ([\d.]+) %\]", text).groups())
        assert low < value < high
    laws = rows(made, "power laws")
    assert [row[:3] for row in laws] == [("standard", "1.0M", "4"), ("dss", "1.0M", "4")]
    for (*_, a, b, c, rest), value in zip(laws, (4, 2.5), strict=True):
        for text, wanted in ((a, value), (b, 1), (c, 0)):
            number, low, high = map(float, re.fullmatch(r"(\S+) \[(\S+), (\S+)\]", text).groups())
            assert number == pytest.approx(wanted, abs=0.02)
            assert low <= number <= high
        assert rest == "0.00"
    for name in ("by_data.svg", "report.html"):
        assert "power law, 95 %" in (tmp_path / "report" / name).read_text()
    assert "62.5 %" in (tmp_path / "report" / "report.html").read_text()


def test_each_curve_is_fitted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, curves = power_law.learning_curve, []

    def counted(curve: dict[float, list[float]]) -> power_law.Laws | None:
        curves.append(sorted(curve.items()))
        return fit(curve)

    monkeypatch.setattr(power_law, "learning_curve", counted)
    made = written(tmp_path, sizes=4, seeds=3)
    assert len(rows(made, "power laws")) == len(curves) == 2


def test_one_seed_has_a_law_and_no_interval(tmp_path: Path) -> None:
    made = written(tmp_path, sizes=4, seeds=1)
    (row,) = rows(made, "share of")
    assert row[5:] == ("62.5 %", "-", "0 %")
    for (*_, a, b, c, rest), value in zip(rows(made, "power laws"), (4, 2.5), strict=True):
        assert [*map(float, (a, b, c, rest))] == pytest.approx([value, 1, 0, 0], abs=0.02)


@pytest.mark.parametrize("sizes", [2, 3])
def test_too_few_sizes_have_none(tmp_path: Path, sizes: int) -> None:
    made = written(tmp_path, sizes=sizes, seeds=2)
    (row,) = rows(made, "share of")
    assert row[5:] == ("too few points for a law", "-", "-")
    assert not rows(made, "power laws")
    assert "power law, 95 %" not in (tmp_path / "report" / "by_data.svg").read_text()
