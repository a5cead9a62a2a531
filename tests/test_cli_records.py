"""`dss records`: each action on a small file, and its refusals."""

import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import toy
from test_record_files import FAILED, HEADER, record, sample

from dss_jax.cli.main import main
from dss_jax.core.texts import visible
from dss_jax.records.files import read_records, write_records

OTHER = sample("(9 - 1)", rationale="Nine [bold]less[/bold] \x1b[31mone.")
RECORDS = [
    record("right"),
    record("bad", OTHER),
    record("mixed", sample(), OTHER, agreement=0.5),
    record("failed", FAILED),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_records(tmp_path / "r.jsonl", HEADER, RECORDS)
    return tmp_path / "r.jsonl"


def test_stats(file: Path, capsys) -> None:
    chart = file.with_name("c.png")
    assert main(["records", "stats", "--chart", str(chart), str(file)]) == 0
    out = capsys.readouterr().out
    for text in ("4 rows, 5 samples", "amount 0.5, currency USD", "equation_accuracy", "error"):
        assert text in out
    assert [line.split() for line in out.splitlines() if line.strip().startswith("rows, vote  ")]
    assert "50.00" in out
    assert chart.exists()


def test_stats_count_characters_that_a_student_lacks(tmp_path: Path, capsys) -> None:
    reply = sample("(9 - 1)", rationale="答案必须是湿的。 5² [bold]")
    write_records(tmp_path / "r.jsonl", HEADER, [record("one", reply), record("two", reply)])
    flags = ["--vocabulary", str(toy.VOCABULARY), str(tmp_path / "r.jsonl")]
    assert main(["records", "stats", *flags]) == 0
    out = capsys.readouterr().out
    assert "  rationale   2      答 (2), 案 (2), " in out
    assert "samples with a rationale                              2" in out
    assert "² (2, becomes '2')" in out


def test_show(file: Path, capsys) -> None:
    assert main(["records", "show", str(file)]) == 0
    out = capsys.readouterr().out
    for text in ("Question right?", "wrong", "agreement 0.50", "[error: HTTP 500]", "[bold]less"):
        assert text in out
    assert "\x1b" not in out
    for flags, ids in (
        (["--wrong"], {"bad", "failed"}),
        (["--status", "error"], {"failed"}),
        (["--id", "mixed"], {"mixed"}),
        (["--limit", "1"], {"right"}),
        (["--limit", "0"], {"right", "bad", "mixed", "failed"}),
    ):
        assert main(["records", "show", str(file), *flags]) == 0
        out = capsys.readouterr().out
        assert {r.id for r in RECORDS if f"Question {r.id}?" in out} == ids
        assert ("There are more" in out) == ("1" in flags)


def test_plain_text_holds_nothing_that_a_terminal_obeys() -> None:
    assert (
        visible("a\n\tb\x1b]0;x\x07\r\x9b\ud83d é") == "a\n\tb\ufffd]0;x\ufffd\ufffd\ufffd\ufffd é"
    )


def test_show_goes_through_the_pager(file: Path) -> None:
    ours, theirs = pty.openpty()
    paged = file.with_name("paged")
    environment = os.environ | {"PAGER": f"cat > {paged}", "TERM": "xterm", "COLUMNS": "120"}
    environment.pop("MANPAGER", None)
    subprocess.run(
        [sys.executable, "-m", "dss_jax.cli.main", "records", "show", str(file), "--page"],
        stdout=theirs,
        stdin=theirs,
        check=True,
        env=environment,
        timeout=60,
    )
    os.close(theirs)
    os.close(ours)
    assert "Question mixed?" in paged.read_text()


def test_filter(file: Path, capsys) -> None:
    out = file.with_name("f.jsonl")
    flags = "--only ok --label_equals_gold --label_equals_vote --min_agreement 0.5"
    more = "--rationale_words 1:9 --near_duplicates 0.9 --duplicates_of input"
    command = ["records", "filter", str(file), *flags.split(), *more.split(), "--out", str(out)]
    assert main(command) == 0
    header, records = read_records(out)
    assert [(r.id, len(r.samples)) for r in records] == [("right", 1), ("mixed", 1)]
    assert [e["filter"] for e in header.filters] == [
        "only",
        "label_equals_gold",
        "label_equals_vote",
        "min_agreement",
        "rationale_words",
        "near_duplicates: input",
    ]
    assert "2 rows" in capsys.readouterr().out


def test_merge(file: Path, capsys) -> None:
    other, out = file.with_name("o.jsonl"), file.with_name("m.jsonl")
    write_records(other, HEADER, [record("failed"), replace(RECORDS[0], gold="7"), record("new")])
    command = ["records", "merge", str(file), str(other), "--out", str(out)]
    assert main(command) == 2
    assert "'right' in" in capsys.readouterr().err
    assert not out.exists()
    assert main([*command, "--on_conflict", "last"]) == 0
    said = capsys.readouterr().out
    assert "5 rows of 2 files" in said
    assert "1 rows were an error in one file" in said
    assert f"right: {file}, {other}" in said


WRONG = [
    (["records", "stat", "FILE"], "Did you mean 'stats'?"),
    (["records", "stats"], "takes one file, not 0"),
    (["records", "stats", "FILE", "--chrat", "x"], "Did you mean --chart?"),
    (["records", "stats", "FILE", "--gin.Train.steps=3"], "takes no gin settings"),
    (["records", "show", "FILE", "--status", "okay"], "Did you mean 'ok'?"),
    (["records", "show", "FILE", "--id", "none"], "has no such row"),
    (["records", "filter", "FILE"], "Give dss records filter ... --out FILE"),
    (["records", "filter", "FILE", "--out", "x"], "no filter given"),
    (["records", "filter", "FILE", "--out", "x", "--rationale_words", "5"], "MIN:MAX"),
    (["records", "filter", "FILE", "--out", "x", "--only", "refused"], "no row is left"),
    (["records", "merge", "FILE", "--out", "x"], "two files or more"),
    (["records", "merge", "FILE", "b", "--out", "x", "--on_conflict", "newest"], "first, last"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG, ids=[says for _, says in WRONG])
def test_a_mistake_is_named_with_the_fix(
    arguments: list[str], says: str, file: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(file.parent)
    assert main([str(file) if a == "FILE" else a for a in arguments]) == 2
    assert says in capsys.readouterr().err
    assert not Path("x").exists()
