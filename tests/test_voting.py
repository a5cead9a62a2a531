"""The vote of a row's samples."""

import pytest

from dss_jax.core.scoring import EQUATION_ACCURACY
from dss_jax.core.types import Example
from dss_jax.records.records import Record, RecordSample, record_of

ROW = Example(id="7", input="x", label="gold")


def sample(label: str, status: str = "ok", rationale: str = "r") -> RecordSample:
    return RecordSample(status=status, label=label, raw_label=label, rationale=rationale, text="t")


def vote(*samples: RecordSample) -> tuple[str, float, str]:
    record = record_of(ROW, samples)
    return record.teacher_label, record.agreement, record.status


def test_the_most_frequent_label_wins_and_the_first_of_equals() -> None:
    assert vote(sample("a"), sample("b"), sample("b")) == ("b", 2 / 3, "ok")
    assert vote(sample("b"), sample("a"), sample("a"), sample("b")) == ("b", 0.5, "ok")


def test_only_ok_samples_vote_but_all_count_in_the_agreement() -> None:
    rest = [sample("", "truncated"), sample("a", "no_rationale"), sample("a", "no_rationale")]
    assert vote(*rest, sample("b")) == ("b", 0.25, "ok")
    assert vote(*rest) == ("", 0.0, "truncated")


def test_the_record_holds_the_row_and_all_samples() -> None:
    samples = (sample("a", rationale="1"), sample("b", rationale="2"), sample("b", rationale="3"))
    record = record_of(ROW, samples)
    assert isinstance(record, Record)
    assert (record.id, record.input, record.gold) == ("7", "x", "gold")
    assert record.samples == samples
    assert record.rationale == "2"


def test_equations_vote_by_value_and_the_first_form_stands_for_all() -> None:
    samples = [sample("(2 * 6)"), sample("(3 + 4)"), sample("( 2 * 6.0 )")]
    assert record_of(ROW, samples).agreement == 1 / 3
    record = record_of(ROW, samples, EQUATION_ACCURACY.correct)
    assert (record.teacher_label, record.agreement) == ("(2 * 6)", 2 / 3)
    assert [record.votes(s) for s in record.samples] == [True, False, True]
    assert record.samples[2].raw_label == "( 2 * 6.0 )"


def test_a_row_without_samples_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="'7'"):
        record_of(ROW, [])
