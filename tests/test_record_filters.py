"""Filters of records, and the search for duplicates against all pairs."""

import random
from dataclasses import replace

import pytest
from test_record_files import FAILED, HEADER, record, sample

from dss_jax.core.errors import UsageError
from dss_jax.core.scoring import same_value
from dss_jax.records.filters import Filters, apply_filters
from dss_jax.records.near import near_duplicates, shingles
from dss_jax.records.records import Record

OTHER = sample("(9 - 1)", rationale="Nine less one, as a guess.")
CUT = sample("", "truncated", "")
RECORDS = [
    record("right"),
    record("same value", sample("3")),
    record("wrong", OTHER),
    record("no gold", OTHER, gold=""),
    record("mixed", sample(), OTHER, CUT, agreement=1 / 3),
    record("failed", FAILED),
]


def kept(records: list[Record] = RECORDS, **filters) -> dict[str, int]:
    """id -> how many of its samples stay."""
    _, left = apply_filters(HEADER, records, Filters(**filters), same_value)
    return {r.id: len(r.samples) for r in left}


def test_each_filter_keeps_what_it_says() -> None:
    everything = {r.id: len(r.samples) for r in RECORDS}
    assert kept() == everything
    assert kept(only=("error",)) == {"failed": 1}
    assert kept(label_equals_gold=True).keys() == {"right", "same value", "no gold", "mixed"}
    assert kept(label_equals_vote=True) == {
        "right": 1,
        "same value": 1,
        "wrong": 1,
        "no gold": 1,
        "mixed": 1,
    }
    assert kept(min_agreement=0.5).keys() == {"right", "same value", "wrong", "no gold"}
    assert kept(rationale_words=(4, None)) == {"wrong": 1, "no gold": 1}
    assert kept(rationale_words=(None, 3)) == {"right": 1, "same value": 1, "mixed": 2, "failed": 1}


def test_a_row_never_loses_the_rationale_of_its_label() -> None:
    _, left = apply_filters(HEADER, RECORDS, Filters(rationale_words=(1, 3)), same_value)
    assert all(r.rationale for r in left)
    mixed = next(r for r in left if r.id == "mixed")
    assert (mixed.teacher_label, mixed.agreement, mixed.status) == ("(1 + 2)", 1 / 3, "ok")
    refused = sample("", "refused", "")
    unanswered = replace(record("x", refused, sample("", "no_answer", "Well then.")))
    _, [only] = apply_filters(HEADER, [unanswered], Filters(rationale_words=(1, 3)), same_value)
    assert only.status == "no_answer"


def test_the_header_says_what_was_left_out() -> None:
    filters = Filters(only=("ok",), label_equals_vote=True)
    header, left = apply_filters(HEADER, RECORDS, filters, same_value)
    assert header.filters == (
        {
            "filter": "only",
            "value": ["ok"],
            "rows_left_out": 1,
            "samples_left_out": 1,
            "rows_kept": 5,
        },
        {
            "filter": "label_equals_vote",
            "value": True,
            "rows_left_out": 0,
            "samples_left_out": 2,
            "rows_kept": 5,
        },
    )
    assert header.totals == {**HEADER.totals, "rows": 5, "statuses": {"ok": 5}}
    again, _ = apply_filters(header, left, Filters(min_agreement=0.5), same_value)
    assert [e["filter"] for e in again.filters] == ["only", "label_equals_vote", "min_agreement"]


def test_duplicates_of_inputs_drop_rows_and_of_rationales_samples() -> None:
    long = "Tom has five red apples and he buys six more of them today"
    texts = ["first text", long, "FIRST  text", long + " again"]
    rows = [
        replace(record(str(i), sample(rationale=f"r{i}"), sample(rationale=f"q{i % 3}")), input=t)
        for i, t in enumerate(texts)
    ]
    assert kept(rows, exact_duplicates=True, duplicates_of="input").keys() == {"0", "1", "3"}
    assert kept(rows, near_duplicates=0.8, duplicates_of="input").keys() == {"0", "1"}
    only_samples = kept(rows, exact_duplicates=True, duplicates_of="rationale")
    assert only_samples == {"0": 2, "1": 2, "2": 2, "3": 1}
    assert kept(rows, exact_duplicates=True) == {"0": 2, "1": 2, "3": 1}
    unanswered = [record("a", FAILED), record("c"), record("d"), record("b", FAILED)]
    assert kept(unanswered, exact_duplicates=True) == {"a": 1, "b": 1, "c": 1}


def test_texts_that_differ_in_vowel_signs_are_not_alike() -> None:
    # Hindi: a boy plays, a girl plays.
    boy = "\u0932\u095c\u0915\u093e \u0916\u0947\u0932 \u0930\u0939\u093e \u0939\u0948"
    girl = "\u0932\u095c\u0915\u0940 \u0916\u0947\u0932 \u0930\u0939\u0940 \u0939\u0948"
    assert near_duplicates([boy, girl, boy], 0.5) == [None, None, 0]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 1.0])
def test_near_duplicates_are_those_of_all_pairs(threshold: float) -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choices("abc", k=rng.randint(0, 9))) for _ in range(300)]
    sets = [shingles(t) for t in texts]
    wanted: list[int | None] = []
    for i, one in enumerate(sets):
        alike = (
            j
            for j in range(i)
            if wanted[j] is None and len(one & sets[j]) / len(one | sets[j]) >= threshold - 1e-9
        )
        wanted.append(next(alike, None))
    assert near_duplicates(texts, threshold) == wanted
    assert 0 < sum(n is not None for n in wanted) < 300


@pytest.mark.parametrize(
    "wrong",
    [
        {"only": ("okay",)},
        {"min_agreement": 2.0},
        {"near_duplicates": -0.1},
        {"duplicates_of": "text"},
        {"rationale_words": (9, 3)},
    ],
)
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(UsageError):
        Filters(**wrong)
