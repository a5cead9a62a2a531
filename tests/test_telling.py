"""`dss records cut`: the words that a student needs for the label stay."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import student_maker
from test_record_files import HEADER, record, sample

import dss_jax
from dss_jax.cli.main import main
from dss_jax.core.config import Method
from dss_jax.core.errors import UsageError
from dss_jax.core.student_card import StudentCard
from dss_jax.records.files import read_records, write_records
from dss_jax.student import load
from dss_jax.student.student import Prediction, Predictions
from dss_jax.student.telling import cut_records, telling

WEIGHTS = {"because": 4.0, "seven": 2.0, "is": 0.5}


class Reader:
    """A student for which a label is as probable as the words beside the input say."""

    origin, patience = "runs/reader/checkpoints/4", 10**9

    def __init__(self, form: str = "rationale_input") -> None:
        self.card, self.folder = StudentCard(task="t", method="m", form=form), Path("runs/reader")
        self.asked: list[tuple[str, Sequence[str]]] = []

    def predict(self, inputs: Sequence[str], labels: Sequence[Sequence[str]]) -> Predictions:
        if len(self.asked) >= self.patience:
            raise KeyboardInterrupt
        self.asked += zip(inputs, labels, strict=True)
        return Predictions(
            Prediction(
                input=text,
                label=own[0],
                probability=1.0,
                log_prob=sum(WEIGHTS.get(w, 0.0) for w in text.partition("</s>")[2].split()) - 9,
            )
            for text, own in zip(inputs, labels, strict=True)
        )


def test_words_stay_by_what_their_absence_costs() -> None:
    student = Reader()
    words = ["this", "is", "so", "because", "of", "seven"]
    assert telling(student, [("q", "y", words)], 2) == ["because seven"]
    assert telling(student, [("q", "y", words)], 3) == ["is because seven"]
    # "this" and "so" cost nothing: the first of equals.
    assert telling(student, [("q", "y", words)], 4) == ["this is because seven"]
    assert student.asked[0] == ("q</s>is so because of seven", ("y",))
    assert len(student.asked) == 3 * len(words)
    assert telling(student, [("q", "y", words)] * 100, 2) == ["because seven"] * 100


def test_a_student_that_reads_no_rationale_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\(method m\) reads no rationale.*--method pinto"):
        telling(Reader("tasks"), [], 2)


LONG = "So it is because of seven."
RECORDS = [
    record("voted", sample(rationale=LONG), sample("(9 - 1)", rationale=LONG), gold="3"),
    record("short", sample(rationale="One and two.")),
    record("no gold", sample(rationale=LONG), gold=""),
    record("failed", sample("", "no_answer", LONG)),
]


def test_records_keep_all_else(tmp_path: Path, monkeypatch, capsys) -> None:
    student = Reader()
    monkeypatch.setattr(load, "load", lambda folder: student)
    file, out = tmp_path / "r.jsonl", tmp_path / "cut.jsonl"
    write_records(file, HEADER, RECORDS)
    command = ["records", "cut", str(file), "--student", "runs/reader", "--out", str(out)]
    assert main([*command, "--words", "3"]) == 0
    header, found = read_records(out)
    records = {r.id: r for r in found}
    assert [s.rationale for s in records["voted"].samples] == ["So is because", LONG]
    assert records["no gold"].rationale == "So is because"
    labels = {text.partition("</s>")[0]: label for text, (label,) in student.asked}
    assert labels == {"Question voted?": "3", "Question no gold?": "(1 + 2)"}
    assert records["short"] == RECORDS[1]
    assert records["failed"] == RECORDS[3]
    bare = dataclasses.replace(records["voted"], samples=RECORDS[0].samples)
    assert bare == RECORDS[0]
    assert header.filters[-1]["value"] == "3 words, by reader"
    assert main(command) == 2
    assert "--student DIR --words N" in capsys.readouterr().err


def test_what_was_stopped_goes_on(tmp_path: Path, monkeypatch, capsys) -> None:
    rows = [record(str(n), sample(rationale=f"{LONG} {n}")) for n in range(7)]
    file, whole, out = (tmp_path / name for name in ("r.jsonl", "whole.jsonl", "cut"))
    write_records(file, HEADER, rows)
    command = ["records", "cut", str(file), "--student", "runs/reader", "--words", "3", "--out"]
    student = Reader()
    monkeypatch.setattr(load, "load", lambda folder: student)
    monkeypatch.setattr("dss_jax.student.telling.AT_ONCE", 2)
    assert main([*command, str(whole)]) == 0
    write_records(tmp_path / "again", *read_records(whole))
    assert whole.read_bytes() == (tmp_path / "again").read_bytes(), "as record files are written"
    asked = student.asked
    stopped = student = Reader()
    student.patience = 3 * 7
    assert main([*command, str(out)]) == 130
    assert not out.exists()
    other = ["--words", "2"]
    student = Reader()
    assert main([*command, str(out), *other]) == 2
    assert "rows of another job (words 3, now 2)" in capsys.readouterr().err
    assert main([*command, str(out)]) == 0
    assert out.read_bytes() == whole.read_bytes()
    assert len(stopped.asked) == 4 * 7
    assert stopped.asked + student.asked == asked, "nothing is asked twice"
    assert not [f for f in tmp_path.iterdir() if "partial" in f.name]
    assert main([*command, str(out)]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_student_reads_rationales(tmp_path: Path) -> None:
    store = student_maker.make_store(tmp_path / "store", count=6)
    method = Method(name="pinto", form="rationale_input", rationale=False)
    student_maker.make_student(tmp_path / "run", store, method=method)
    student = dss_jax.load(tmp_path / "run")
    long = dataclasses.replace(RECORDS[0], input="How many are left ?", gold="5")
    (cut,) = cut_records(student, [long], 2)
    words = LONG.split()
    texts = [f"{long.input}</s>{' '.join(words[:n] + words[n + 1 :])}" for n in range(len(words))]
    losses = [-p.log_prob for p in student.predict(texts, labels=["5"])]
    best = sorted(sorted(range(len(words)), key=losses.__getitem__)[-2:])
    assert cut.rationale == " ".join(words[n] for n in best)
