"""Counts over record files, by hand and against METHOD's figures; and the picture."""

from pathlib import Path

import pytest
from test_record_files import FAILED, record, sample

from dss_jax.core import registry
from dss_jax.core.scoring import same_value
from dss_jax.data.rows import examples
from dss_jax.records.records import Record, RecordSample
from dss_jax.records.stats import RecordStats, record_stats

RELEASE = Path(__file__).parents[2] / "shared" / "data" / "release"

LETTER = RecordSample(
    status="ok", label="(1 + 2)", raw_label="sum", rationale="a b c d", text="a b c d. sum"
)
WRONG = sample("(9 - 1)", rationale="")


def test_counts_by_hand() -> None:
    stats = record_stats(
        [
            record("a", LETTER, WRONG, sample(), agreement=2 / 3),
            record("b", WRONG),
            record("c", FAILED),
            record("d", gold=""),
        ],
        same_value,
    )
    assert (stats.rows, stats.samples) == (4, 6)
    assert stats.row_statuses == {"ok": 3, "error": 1}
    assert stats.sample_statuses == {"ok": 5, "error": 1}
    assert (stats.as_written.right, stats.as_written.all) == (1, 5)
    assert (stats.normalised.right, stats.normalised.all) == (2, 5)
    assert (stats.vote.right, stats.vote.all) == (1, 3)
    assert (stats.voted.right, stats.voted.all, stats.voted.per_cent) == (1, 2, 50.0)
    assert stats.agreement == {7: 1, 10: 2}
    assert {n: (s.right, s.all) for n, s in stats.right_by_agreement.items()} == {
        7: (1, 1),
        10: (0, 1),
    }
    assert stats.rationale_words == {4: 1, 3: 2}
    assert stats.rationale_words.mean == pytest.approx(10 / 3)
    assert stats.rationale_words.percentile(0.5) == 3
    assert stats.rationale_words.percentile(0.99) == 4


def test_of_nothing() -> None:
    stats = record_stats([], same_value)
    assert stats.vote.per_cent is None
    assert stats.rationale_words.mean is None
    assert stats.rationale_words.percentile(0.5) is None


@pytest.mark.skipif(not RELEASE.is_dir(), reason="needs the authors' release in ../shared")
@pytest.mark.parametrize(
    ("name", "rows", "accuracy"), [("cqa", 1221, "77.23"), ("svamp", 200, "74.00")]
)
def test_the_release_has_the_figures_of_method(name: str, rows: int, accuracy: str) -> None:
    task = registry.load_task(name)

    def as_record(e) -> Record:
        one = RecordSample(
            status="ok",
            label=e.teacher_label,
            raw_label=e.teacher_label,
            rationale=e.rationale,
            text="",
        )
        return Record(
            id=e.id,
            input=e.input,
            gold=e.label,
            teacher_label=e.teacher_label,
            agreement=1.0,
            status="ok",
            samples=(one,),
        )

    stats = record_stats(map(as_record, examples(task, "test", RELEASE)), task.scorer.correct)
    assert stats.rows == rows
    assert f"{stats.as_written.per_cent:.2f}" == accuracy


def test_the_picture_is_drawn_also_of_next_to_nothing(tmp_path: Path) -> None:
    from dss_jax.report.record_chart import plot_records

    full = record_stats([record("a", LETTER, WRONG, agreement=0.5), record("b")], same_value)
    for name, stats in (("full", full), ("empty", RecordStats())):
        file = tmp_path / "new" / f"{name}.png"
        plot_records(stats, file, title=name)
        assert file.read_bytes().startswith(b"\x89PNG")
