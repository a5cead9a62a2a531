"""`dss predict` over tables: what is kept, what is added, and what a stop leaves."""

import csv
import io
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import student_maker
from pyarrow import parquet

from dss_jax.cli.main import main
from dss_jax.core import locks
from dss_jax.core.errors import UsageError
from dss_jax.core.student_card import StudentCard
from dss_jax.student import load, predict
from dss_jax.student.predict import PredictJob, predict_table
from dss_jax.student.student import Prediction, Predictions
from dss_jax.student.tables import ParquetWriter, RowWriter, TextWriter, open_table, open_writer


class Echo:
    """A student that answers with the length of the input, and says what it was asked."""

    origin = "weights"

    def __init__(self, **card: Any) -> None:
        self.card, self.asked = StudentCard(task="echo", rationale_prefix="why ", **card), []

    def predict(
        self, inputs: Sequence[str], *, explain: bool = False, labels: Sequence[Sequence[str]]
    ) -> Predictions:
        self.asked.append([*zip(inputs, labels, strict=True)])
        return Predictions(
            Prediction(
                input=text,
                label=own[0] if own else str(len(text)),
                probability=1 / len(own) if own else None,
                log_prob=-1.0,
                rationale=f"{len(text)} letters" if explain else None,
            )
            for text, own in zip(inputs, labels, strict=True)
        )


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Echo:
    """Is the student in every folder."""
    student = Echo()
    monkeypatch.setattr(load, "load", lambda folder, **options: student)
    return student


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(source: str, out: str, *flags: str) -> int:
    return main(["predict", "--student", "s", "--input", source, "--out", out, *flags])


def write_rows(name: str, rows: Sequence[dict]) -> None:
    Path(name).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def read_rows(name: str) -> list[dict]:
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


ROWS = [
    {"id": n, "input": "x" * (1 + n * 7 % 10), "more": {"a": [n, None, 0.5]}} for n in range(25)
]


def test_jsonl_keeps_every_value_and_the_order(echo: Echo, here: Path) -> None:
    write_rows("in.jsonl", ROWS)
    assert command("in.jsonl", "out.jsonl", "--explain") == 0
    for row, found in zip(ROWS, read_rows("out.jsonl"), strict=True):
        length = len(row["input"])
        own = {"label": str(length), "probability": None, "rationale": f"{length} letters"}
        assert [*found.items()] == [*(row | own).items()]
    assert sorted(f.name for f in here.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_csv_keeps_every_text(echo: Echo, here: Path) -> None:
    odd = ['a "b", c\nd', "", "é ½ \u2028 end", " 007 ", "=1+1", "a\rb", "\r\n", "x" * 200_000]
    with Path("in.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["id", "input", "allowed_labels"]])
        writer.writerows([text, text, json.dumps(["y", text or "z"])] for text in odd)
    assert command("in.csv", "out.csv") == 0
    with Path("out.csv").open(encoding="utf-8", newline="") as file:
        found = [*csv.DictReader(file)]
    assert [row["id"] for row in found] == [row["input"] for row in found] == odd
    assert [*found[0]] == ["id", "input", "allowed_labels", "label", "probability"]
    assert {(row["label"], row["probability"]) for row in found} == {("y", "0.5")}
    assert echo.asked[0][0] == (odd[0], ("y", odd[0]))


def test_parquet_keeps_types(echo: Echo, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "CHUNK", 10)
    table = pyarrow.table(
        {
            "input": [row["input"] for row in ROWS],
            "when": pyarrow.array([None, *range(24)], pyarrow.timestamp("us")),
            "small": pyarrow.array(range(25), pyarrow.int8()),
            "allowed_labels": [["yes", "no"]] * 20 + [None] * 5,
        }
    )
    parquet.write_table(table, "in.parquet")
    assert command("in.parquet", "out.parquet", "--explain") == 0
    found = parquet.read_table("out.parquet")
    assert found.select(table.column_names).equals(table)
    assert [*map(str, found.schema.types[4:])] == ["string", "double", "string"]
    assert found["label"].to_pylist()[19:21] == ["yes", str(len(ROWS[20]["input"]))]
    assert command("in.parquet", "out.csv") == 0
    assert Path("out.csv").read_text().splitlines()[2].split(",")[2] == "1"
    write_rows("in.jsonl", ROWS)
    assert command("in.jsonl", "of_jsonl.parquet") == 0
    assert parquet.read_table("of_jsonl.parquet")["more"].to_pylist()[24] == ROWS[24]["more"]


@pytest.mark.parametrize("odd", ["half \ud800", {}, 2**70, [1, "a"]])
def test_a_value_that_a_form_has_not(odd: Any, echo: Echo, here: Path, capsys: Any) -> None:
    write_rows("in.jsonl", [{"input": "a", "odd": odd}])
    assert command("in.jsonl", "-") == 0
    assert json.loads(capsys.readouterr().out)["odd"] == odd
    assert command("in.jsonl", "out.jsonl") == 0
    assert read_rows("out.jsonl")[0]["odd"] == odd
    assert command("in.jsonl", "out.parquet") == 2
    error = capsys.readouterr().err
    assert "the rows from 1 on do not fit the columns of out.parquet" in error
    assert "Take a name that ends in .jsonl." in error


def test_parquet_that_is_damaged_is_named(echo: Echo, here: Path, capsys: Any) -> None:
    parts = [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")]
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 1, parts)
    far = pyarrow.array([86_400_000 * 10**10], pyarrow.date64())
    for table, said in (
        (pyarrow.table({"input": texts}), "after row 0: 'utf-8' codec can't decode"),
        (pyarrow.table({"input": ["a"], "day": far}), "after row 0: days="),
        (pyarrow.table([["a"], ["b"]], names=["input", "input"]), "two columns are called 'input'"),
    ):
        parquet.write_table(table, "in.parquet")
        assert command("in.parquet", "out.jsonl") == 2
        assert said in capsys.readouterr().err
    # Of numbers of rows there are several, and one may have a bit that is wrong.
    parquet.write_table(pyarrow.table({"input": ["a"] * 100}), "in.parquet", compression="none")
    content = bytearray(Path("in.parquet").read_bytes())
    for at in range(len(content)):
        damaged = content.copy()
        damaged[at] ^= 1
        Path("in.parquet").write_bytes(damaged)
        with suppress(UsageError):
            assert len([*open_table("in.parquet").rows]) == 100, at


@pytest.mark.parametrize("name", ["rows", "bytes", "crc"])
def test_what_is_noted_of_a_table_is_checked(here: Path, name: str) -> None:
    writer = TextWriter("out.jsonl", {}, "jsonl")
    writer.write([{"a": 1}], sha256="")
    for wrong in (None, "1", -1, 1.5, []):
        text = json.dumps(writer.state | {name: wrong})
        Path("out.jsonl.partial.json").write_text(text)
        with pytest.raises(UsageError, match=r"out.jsonl.partial.json is damaged\. Remove it"):
            TextWriter("out.jsonl", {}, "jsonl")


@pytest.mark.parametrize("out", ["out.jsonl", "out.csv", "out.parquet"])
def test_a_bit_that_flipped_in_what_was_written_is_seen(here: Path, out: str) -> None:
    def opened() -> RowWriter:
        return open_writer(out, {}, None, {"label": str})

    opened().write([{"x": f"text {i}", "label": "a"} for i in range(20)])
    (file,) = [f for f in Path().rglob("*") if f.is_file() and f.suffix != ".json"]
    content = file.read_bytes()
    for at in range(0, len(content), 17):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(UsageError, match=r"partial is damaged: it is not what was written"):
            opened()
    file.write_bytes(content)
    opened().finish()
    assert Path(out).is_file()


@pytest.mark.parametrize("out", ["out.jsonl", "out.csv", "out.parquet"])
def test_what_is_counted_is_on_the_disk(
    here: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    on_disk, plain = set[int](), os.fsync
    monkeypatch.setattr(os, "fsync", lambda f: on_disk.add(os.fstat(f).st_ino) or plain(f))
    writer = open_writer(out, {}, None, {"label": str})
    for _ in range(2):
        writer.write([{"x": "text", "label": "a"}])
        files = [file for file in here.rglob("*") if file.is_file() and file.suffix != ".json"]
        assert {file.stat().st_ino for file in files} <= on_disk
    writer.finish()
    assert Path(out).stat().st_ino in on_disk
    assert [*here.iterdir()] == [here / out]


def test_parquet_is_read_back_once_and_a_part_that_is_lost_is_seen(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_writer("out.parquet", {}, None, {"label": str})
    read: list[str] = []
    monkeypatch.setattr(ParquetWriter, "_check", lambda _, *files: read.extend(files))
    monkeypatch.setattr(Path, "read_bytes", lambda file: read.append(file))
    for n in range(3):
        writer.write([{"x": f"{n}", "label": "a"}] * 2)
    part = here / "out.parquet.partial" / f"{2:012}.parquet"
    part.rename(here / "lost")
    with pytest.raises(UsageError, match=r"partial is damaged: it is not what was written"):
        writer.finish()
    assert not Path("out.parquet").exists()
    (here / "lost").rename(part)
    writer.finish()
    assert parquet.read_table("out.parquet")["x"].to_pylist() == ["0", "0", "1", "1", "2", "2"]
    assert not read


def test_columns_of_the_input_are_never_overwritten(
    echo: Echo, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gold = [row | {"label": "gold"} for row in ROWS]
    write_rows("in.jsonl", gold)
    assert command("in.jsonl", "out.jsonl") == 0
    assert [*read_rows("out.jsonl")[0]][-3:] == [
        "label",
        "predicted_label",
        "predicted_probability",
    ]
    assert all(row["label"] == "gold" for row in read_rows("out.jsonl"))
    assert command("out.jsonl", "again.jsonl") == 2
    assert "has a column 'predicted_label', which the answers would" in capsys.readouterr().err
    assert command("out.jsonl", "again.jsonl", "--prefix", "second_") == 0
    assert [*read_rows("again.jsonl")[0]][-2:] == ["second_label", "second_probability"]
    write_rows("late.jsonl", [*ROWS[:3], ROWS[3] | {"probability": 1}])
    assert command("late.jsonl", "no.jsonl") == 2
    assert "a later row has a column 'probability'" in capsys.readouterr().err


def test_raw_rows_go_through_the_task(echo: Echo, here: Path, capsys: Any) -> None:
    Path("choices.py").write_text(student_maker.TASK)
    rows = student_maker.raw_rows(5)
    write_rows("in.jsonl", rows)
    assert command("in.jsonl", "out.jsonl", "--task", "choices", "--task_dir", ".") == 0
    expected = [(e.input, e.allowed_labels) for e in student_maker.examples(5)]
    assert echo.asked == [expected]
    assert [row["question"] for row in read_rows("out.jsonl")] == [r["question"] for r in rows]
    write_rows("in.jsonl", [rows[0], {"number": 1, "question": "?"}])
    assert command("in.jsonl", "two.jsonl", "--task", "choices", "--task_dir", ".") == 2
    assert "in.jsonl, line 2: field 'choices' is missing" in capsys.readouterr().err


def test_allowed_labels_come_from_flags_rows_or_the_card(here: Path) -> None:
    student = Echo(labels=("p", "q"))
    write_rows("in.jsonl", [{"input": "a"}, {"input": "b", "allowed_labels": ["r"]}])
    predict_table(student, PredictJob(input="in.jsonl", out="out.jsonl"))  # type: ignore[arg-type]
    assert [labels for _, labels in student.asked.pop()] == [("p", "q"), ("r",)]
    job = PredictJob(input="in.jsonl", out="out2.jsonl", labels=("s",))
    predict_table(student, job)  # type: ignore[arg-type]
    assert [labels for _, labels in student.asked.pop()] == [("s",), ("s",)]


def test_a_row_without_allowed_labels_is_one_in_every_form(here: Path) -> None:
    student = Echo(labels=("p", "q"))
    rows = [{"input": "a", "allowed_labels": own} for own in (None, ["r"])]
    write_rows("in.jsonl", rows)
    texts = ["input,allowed_labels", "a,", 'a,"[""r""]"']
    Path("in.csv").write_text("\n".join(texts) + "\n")
    parquet.write_table(pyarrow.Table.from_pylist(rows), "in.parquet")
    for form in ("jsonl", "csv", "parquet"):
        job = PredictJob(input=f"in.{form}", out=f"out.{form}")
        predict_table(student, job)  # type: ignore[arg-type]
        assert [labels for _, labels in student.asked.pop()] == [("p", "q"), ("r",)], form


def test_labels_of_a_flag_are_not_passed_over(here: Path) -> None:
    """By a student that writes label and rationale in one text; those of rows are."""
    student = Echo(form="rationale_label")
    write_rows("in.jsonl", [{"input": "a", "allowed_labels": ["r"]}])
    job = PredictJob(input="in.jsonl", out="out.jsonl", labels=("yes", "no"))
    with pytest.raises(UsageError, match=r"--label: .* cannot be ranked\. Leave --label out"):
        predict_table(student, job)  # type: ignore[arg-type]
    assert not student.asked


def test_a_rationale_goes_beside_the_input_where_the_form_wants_it(here: Path) -> None:
    student = Echo(form="rationale_input")
    rows = [{"input": "a", "rationale": "for"}, {"input": "b</s>c"}]
    # A premise and its hypothesis; an input that has it already.
    rows += [{"input": text, "rationale": "for"} for text in ("p</s>h", "p</s>h</s>for")]
    write_rows("in.jsonl", rows)
    predict_table(student, PredictJob(input="in.jsonl", out="out.jsonl"))  # type: ignore[arg-type]
    nli = ["p</s>h</s>for"] * 2
    assert [text for text, _ in student.asked[0]] == ["a</s>for", "b</s>c", *nli]


def stopped(here: Path, out: str, after: int, monkeypatch: pytest.MonkeyPatch) -> Echo:
    """The command, interrupted while it is at a later chunk."""
    student, real = Echo(), Echo.predict

    def predict_some(self: Echo, *args: Any, **options: Any) -> Predictions:
        if len(self.asked) == after:
            raise KeyboardInterrupt
        return real(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Echo, "predict", predict_some)
        patch.setattr(load, "load", lambda folder, **options: student)
        assert command("in.jsonl", out) == 130
    return student


@pytest.mark.parametrize("out", ["out.jsonl", "out.csv", "out.parquet"])
def test_what_was_stopped_goes_on(
    echo: Echo, here: Path, monkeypatch: pytest.MonkeyPatch, said: list[str], out: str
) -> None:
    monkeypatch.setattr(predict, "CHUNK", 4)
    write_rows("in.jsonl", ROWS)
    whole = f"whole-{out}"
    assert command("in.jsonl", whole) == 0
    echo.asked.clear()
    stopped(here, out, 3, monkeypatch)
    partial = here / f"{out}.partial"
    assert not (here / out).exists()
    if partial.is_file():
        assert len(partial.read_text().splitlines()) == 12 + out.endswith("csv"), "whole lines"
        # A write that the disk has half of.
        with partial.open("a") as file:
            file.write('{"id": 99')
    assert command("in.jsonl", out) == 0
    assert [text for chunk in echo.asked for text, _ in chunk] == [r["input"] for r in ROWS[12:]]
    assert (here / out).read_bytes() == (here / whole).read_bytes()
    assert any("going on after 12 rows" in line for line in said)
    assert {f.name for f in here.iterdir()} == {"in.jsonl", out, whole}


def test_it_goes_on_with_the_same_job_only(
    echo: Echo, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predict, "CHUNK", 4)
    write_rows("in.jsonl", ROWS)
    stopped(here, "out.jsonl", 2, monkeypatch)
    assert command("in.jsonl", "out.jsonl", "--explain") == 2
    assert "holds rows of another job (explain False, now True)" in capsys.readouterr().err
    echo.origin = "other weights"
    assert command("in.jsonl", "out.jsonl") == 2
    assert "(student 'weights', now 'other weights')" in capsys.readouterr().err
    echo.origin = "weights"
    write_rows("in.jsonl", [ROWS[1], *ROWS[1:]])
    assert command("in.jsonl", "out.jsonl") == 2
    assert "has changed: its first 8 rows are not those that" in capsys.readouterr().err
    write_rows("in.jsonl", [*ROWS[:8], {"input": "new"}])
    assert command("in.jsonl", "out.jsonl") == 0
    assert [row["label"] for row in read_rows("out.jsonl")][-1] == "3"
    assert command("in.jsonl", "out.jsonl") == 2
    assert "out.jsonl is there already" in capsys.readouterr().err


def test_two_do_not_write_one_file(echo: Echo, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows("in.jsonl", ROWS)
    with locks.held(Path("out.jsonl.lock"), "mine"):
        assert command("in.jsonl", "out.jsonl") == locks.Taken.status
        monkeypatch.setenv("HOME", str(here))  # As a shell leaves it in --out=~/out.jsonl.
        assert command("in.jsonl", "~/out.jsonl") == locks.Taken.status


def test_shards_are_every_nth_row(echo: Echo, here: Path, capsys: Any) -> None:
    write_rows("in.jsonl", ROWS)
    for n in range(3):
        assert command("in.jsonl", f"{n}.jsonl", "--shard", f"{n}/3") == 0
    parts = [read_rows(f"{n}.jsonl") for n in range(3)]
    assert [parts[n % 3][n // 3]["id"] for n in range(25)] == [*range(25)]
    assert command("in.jsonl", "x.jsonl", "--shard", "3/3") == 2
    assert "--shard must be i/n" in capsys.readouterr().err
    write_rows("one.jsonl", ROWS[:1])
    assert command("one.jsonl", "x.jsonl", "--shard", "1/2") == 2
    assert "--input one.jsonl has no rows for --shard 1/2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["first one\nsecond\n\n", '{"input": "first one"}\n{"input": "s"}\n']
)
def test_rows_may_come_and_go_by_pipes(
    echo: Echo, here: Path, monkeypatch: Any, capsys: Any, text: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert command("-", "-", "--label", "no", "--label", "yes") == 0
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert rows[0] == {"input": "first one", "label": "no", "probability": 0.5}
    assert [len(row["input"]) for row in rows] == ([9, 6, 0] if text[0] == "f" else [9, 1])
    assert "rows in" in captured.err, "messages leave the output alone"
    assert command("-", "-", "--label", "no,yes") == 2
    assert "--label 'no,yes' alone would be the answer" in capsys.readouterr().err


@pytest.mark.parametrize("before", ["\ufeff", "\n", "\ufeff \r\n"])
def test_objects_are_known_after_a_mark_or_an_empty_line(
    echo: Echo, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, before: str
) -> None:
    text = before + '{"input": "one"}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert command("-", "-") == 0
    assert [row["input"] for row in map(json.loads, capsys.readouterr().out.splitlines())] == [
        "one"
    ]


def test_few_rows_are_in_memory_at_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "CHUNK", 4)
    write_rows("in.jsonl", ROWS)
    read, most, student = [0], [0], Echo()
    real_rows, real = predict.open_table("in.jsonl"), student.predict

    def counted() -> Any:
        for row in real_rows.rows:
            read[0] += 1
            yield row

    def watched(*args: Any, **options: Any) -> Predictions:
        most[0] = max(most[0], read[0] - sum(map(len, student.asked)))
        return real(*args, **options)

    monkeypatch.setattr(predict, "open_table", lambda name: real_rows._replace(rows=counted()))
    student.predict = watched  # type: ignore[method-assign]
    assert predict_table(student, PredictJob(input="in.jsonl", out="out.jsonl")) == 25  # type: ignore[arg-type]
    assert most == [4]


NONE = "no text in column 'input'"

WRONG = {
    "no such file": ("none.csv", None, "--input none.csv: there is no such file"),
    "no known name": ("in.xls", "", "--input in.xls: the name must end in one of .csv"),
    "no rows": ("in.jsonl", "", "--input in.jsonl has no rows"),
    "no column": ("in.csv", "text,b\nx,y\n", f"in.csv, line 2: {NONE}. Columns: 'text', 'b'. Give"),
    "null": ("in.jsonl", '{"input": null}\n', f"in.jsonl, line 1: {NONE}, but None"),
    "number": ("in.jsonl", '{"input": "a"}\n{"input": 5}\n', f"in.jsonl, line 2: {NONE}, but 5"),
    "cut": ("in.jsonl", '{"input": "a"}\n{"inp', "in.jsonl, line 2, column 2: not valid JSON"),
    "no object": ("in.jsonl", "[1]\n", "in.jsonl, line 1: must be a JSON object"),
    "too few": ("in.csv", "a,input\nx\n", "in.csv, line 2: has not as many fields"),
    "twice": ("in.csv", "input,a,a\nx,y,z\n", "in.csv, line 1: two columns are called 'a'"),
    "no list": (
        "in.jsonl",
        '{"input": "a", "allowed_labels": "yes"}\n',
        "in.jsonl, line 1, allowed_labels, column 1: not valid JSON",
    ),
    "empty label": (
        "in.jsonl",
        '{"input": "a", "allowed_labels": [""]}\n',
        "in.jsonl, line 1: allowed_labels must be a list of texts, none of them empty",
    ),
    "not UTF-8": ("in.csv", b"input\n\xff\n", "in.csv, line 2: not UTF-8 text"),
    "not UTF-8, after 8 KB": (
        "in.txt",
        b"good\n" * 5000 + b"\xff\n",
        "in.txt, line 5001: not UTF-8 text",
    ),
    "no Parquet": ("in.parquet", "PAR1", "in.parquet cannot be read as Parquet"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_name_file_line_and_fix(
    echo: Echo, here: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    name, content, message = WRONG[case]
    if content is not None:
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert command(name, "out.jsonl") == 2
    assert message in capsys.readouterr().err
    assert not Path("out.jsonl").exists()


def test_a_header_cannot_take_a_new_column(echo: Echo, here: Path, capsys: Any) -> None:
    write_rows("in.jsonl", [{"input": "a"}, {"input": "b", "extra": 1}])
    assert command("in.jsonl", "out.csv") == 2
    assert "row 2 has a column 'extra', which the first row has not" in capsys.readouterr().err
    assert command("in.jsonl", "out.txt") == 2
    assert "--out out.txt: answers are rows" in capsys.readouterr().err
    assert command("in.jsonl", "gs://bucket/out.csv") == 2
    assert "rows are written to a local file" in capsys.readouterr().err
