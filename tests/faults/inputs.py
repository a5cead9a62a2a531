"""Bad rows, records and configurations. What is right is one of two: it is refused, with file and
line, or read as what it says.
"""

import json
import re
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import test_config
import things
from children import FINE, REFUSED, SILENT, TRACEBACK
from test_odd_rows import task_of
from test_record_files import HEADER, record

from dss_jax.core.errors import UsageError
from dss_jax.core.student_card import StudentCard
from dss_jax.core.types import Csv
from dss_jax.data.rows import examples
from dss_jax.records.files import read_records, write_records
from dss_jax.student.predict import PredictJob, predict_table
from dss_jax.student.student import Prediction

COUNT, BAD = 6, 3
"""Rows of a file, and the place of the bad one."""

OBJECTS: dict[str, bytes] = {
    "no JSON": b"not json",
    "cut off": b'{"input": "x", "label": "y',
    "a list": b'["x", "y"]',
    "a text": b'"x"',
    "null": b"null",
    "a number": b"3",
    "two objects": b'{"input": "x"} {"input": "y"}',
    "a comma too much": b'{"input": "x",}',
    "single quotes": b"{'input': 'x'}",
    "a comment": b"// input",
    "no input": b'{"label": "y"}',
    "an empty input": b'{"input": "", "label": "y"}',
    "an input of spaces": b'{"input": "  ", "label": "y"}',
    "an input of null": b'{"input": null}',
    "an input in a list": b'{"input": ["x"]}',
    "an input in an object": b'{"input": {"text": "x"}}',
    "an input of NaN": b'{"input": NaN}',
    "an infinite input": b'{"input": 1e999}',
    "a field twice": b'{"input": "x", "input": "z"}',
    "bytes that are no UTF-8": b'{"input": "caf\xe9"}',
    "half a character": b'{"input": "x \\ud83d"}',
    "a NUL byte": b'{"input": "x\0"}',
    "a line break in a text": b'{"input": "x\ny"}',
    "a bad escape": b'{"input": "\\x41"}',
    "deep brackets": b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "an open bracket": b'{"input": "x", "allowed_labels": ["a", "b"}',
    "a byte order mark inside": b'\xef\xbb\xbf{"input": "x"}',
    "an html page": b"<html><body>502 Bad Gateway</body></html>",
    "a merge conflict": b"<<<<<<< HEAD",
}
ANSWERED = ("half a character", "an empty input", "an input of spaces")
ONLY_OF_TASKS = {
    "a label in a list": b'{"input": "x", "label": ["y"]}',
    "a label that is true": b'{"input": "x", "label": true}',
    "a misspelt field": b'{"input": "x", "teacher_lable": "y"}',
    "an id twice": b'{"id": "row-1", "input": "x"}',
    "a rationale of NaN": b'{"input": "x", "rationale": NaN}',
}
TABLES: dict[str, bytes] = {
    "too few fields": b"x",
    "too many fields": b"x,y,z,w",
    "an open quote": b'"x,y,row-9',
    "text after a quote": b'"x"y,z,row-9',
    "bytes that are no UTF-8": b"caf\xe9,y,row-9",
    "an empty input": b",y,row-9",
    "a NUL byte": b"x\0,y,row-9",
    "semicolons": b"x;y;row-9",
    "the header again and more": b"input,label,id,input",
}
WHOLE: dict[str, Callable[[bytes], bytes]] = {
    "UTF-16": lambda text: text.decode().encode("utf-16"),
    "Latin-1": lambda text: text.replace(b"row", b"r\xf6w"),
    "gzip": lambda text: __import__("gzip").compress(text),
    "empty": lambda text: b"",
    "zeros": lambda text: bytes(len(text)),
    "random bytes": lambda text: bytes(i * 37 % 256 for i in range(len(text))),
}
HARMLESS: dict[str, Callable[[bytes], bytes]] = {
    "a byte order mark": lambda text: b"\xef\xbb\xbf" + text,
    "line ends of Windows": lambda text: text.replace(b"\n", b"\r\n"),
    "no line end at the end": lambda text: text.rstrip(b"\n"),
    "empty lines at the end": lambda text: text + b"\n\n",
    "a column without a name": lambda text: text.replace(b"input,label,id", b"input,,id"),
}
HEADERS: dict[str, bytes] = {
    "a header with a column twice": b"input,label,input",
    "a header without input": b"text,label,id",
    "a header with semicolons": b"input;label;id",
    "a header with a space": b" input,label,id",
}
RECORDS: dict[str, Callable[[dict], object]] = {
    "no id": lambda r: r.pop("id"),
    "a number for an id": lambda r: r.update(id=3),
    "the id of another": lambda r: r.update(id="row-0"),
    "an unknown status": lambda r: r.update(status="good"),
    "no samples": lambda r: r.pop("samples"),
    "samples in an object": lambda r: r.update(samples={}),
    "a sample of text": lambda r: r.update(samples=["x"]),
    "agreement in a text": lambda r: r.update(agreement="1"),
    "a label of null": lambda r: r.update(teacher_label=None),
    "a rationale in a list": lambda r: r.update(rationale=["x"]),
    "an input of NaN": lambda r: r.update(input=float("nan")),
    "agreement of NaN": lambda r: r.update(agreement=float("nan")),
    "agreement of 7": lambda r: r.update(agreement=7.0),
    "an unknown field": lambda r: r.update(surprise=1),
}

Try = Callable[[], dict]


def rows(folder: Path) -> Iterator[tuple[str, Try]]:
    """(name, what says what becomes of it) of each bad file."""
    lines = [
        json.dumps({"id": f"row-{n}", "input": f"row {n}", "label": "y"}).encode()
        for n in range(COUNT)
    ]
    table = [b"input,label,id", *(f"row {n},y,row-{n}".encode() for n in range(COUNT))]
    for form, read in (("of a task", _of_task), ("for a student", _for_student)):
        bad = OBJECTS | ONLY_OF_TASKS
        tables = TABLES
        if form == "for a student":  # It answers these, too, and they are written as they came.
            bad = {k: v for k, v in OBJECTS.items() if k not in ANSWERED}
            tables = {k: v for k, v in TABLES.items() if k not in ANSWERED}
        yield from _files(folder, f"JSONL {form}", read, lines, bad, ".jsonl", 0)
        yield from _files(folder, f"CSV {form}", read, table, tables, ".csv", 1)
        for name, header in HEADERS.items():
            content = b"\n".join([header, *table[1:]]) + b"\n"
            yield f"CSV {form}: {name}", _try(read, folder / "t.csv", content, None)
    yield from _record_files(folder)


def _files(
    folder: Path,
    title: str,
    read: Callable[[Path], list],
    lines: list[bytes],
    bad: dict,
    ending: str,
    header: int,
) -> Iterator[tuple[str, Try]]:
    file = folder / f"t{ending}"
    for name, line in bad.items():
        content = b"\n".join([*lines[: BAD + header], line, *lines[BAD + header :]]) + b"\n"
        yield f"{title}: {name}", _try(read, file, content, BAD + header + 1)
    whole = b"\n".join(lines) + b"\n"
    for name, change in WHOLE.items():
        yield f"{title}: {name}", _try(read, file, change(whole), None)
    for name, change in HARMLESS.items():
        yield f"{title}: {name}", _try(read, file, change(whole), None, fine=True)


def _record_files(folder: Path) -> Iterator[tuple[str, Try]]:
    file = folder / "r.jsonl"
    write_records(file, HEADER, [record(f"row-{i}") for i in range(COUNT)])
    header, *lines = file.read_bytes().splitlines()

    def read(file: Path) -> list:
        found = list(read_records(file)[1])
        assert not re.search("nan|inf", repr(found))
        return found

    for name, change in RECORDS.items():
        content = json.loads(lines[BAD])
        change(content)
        bad = [header, *lines[:BAD], json.dumps(content).encode(), *lines[BAD + 1 :]]
        yield f"records: {name}", _try(read, file, b"\n".join(bad) + b"\n", BAD + 2)
    own = {k: v for k, v in OBJECTS.items() if "input" not in k}
    for name, line in own.items():
        bad = [header, *lines[:BAD], line, *lines[BAD + 1 :]]
        yield f"records: {name}", _try(read, file, b"\n".join(bad) + b"\n", BAD + 2)
    yield "records: a line missing", _try(read, file, b"\n".join([header, *lines[1:]]), None)
    yield "records: no header", _try(read, file, b"\n".join(lines), 1)


def _of_task(file: Path) -> list:
    source = (Csv(files={"train": file.name}),) if file.suffix == ".csv" else ()
    return [one.input for one in examples(task_of(file.parent, *source), "train")]


class _Student:
    """Answers with the text."""

    origin, card = "student", StudentCard(form="tasks")

    def predict(self, texts: list[str], **_: object) -> list[Prediction]:
        return [Prediction(input=t, label=t, probability=1.0, log_prob=0.0) for t in texts]


def _for_student(file: Path) -> list:
    out = file.with_name("out.jsonl")
    out.unlink(missing_ok=True)
    for left in file.parent.glob("out.jsonl.*"):
        left.unlink()
    predict_table(_Student(), PredictJob(input=str(file), out=str(out), prefix="own_"))
    return [json.loads(line)["own_label"] for line in out.read_text().splitlines()]


def _try(
    read: Callable[[Path], list], file: Path, content: bytes, line: int | None, fine: bool = False
) -> Try:
    """`line`: the one that must be named."""

    def try_it() -> dict:
        file.write_bytes(content)
        try:
            found = read(file)
        except UsageError as error:
            said = str(error)
            at = line is None or re.search(rf"(line |row |:){line}\b", said)
            # Where a quote does not close, the row before is the last that is known.
            at = at or re.search(rf"line {(line or 0) - 1}: .* begins after this line", said)
            named = file.name in said and at and not fine
            return {"outcome": REFUSED if named else SILENT, "said": said[:300]}
        except Exception:
            return {"outcome": TRACEBACK, "said": traceback.format_exc()[-1000:]}
        return {
            "outcome": FINE if fine and len(found) == COUNT else SILENT,
            "said": repr(found)[:300],
        }

    return try_it


def configurations() -> Iterator[tuple[str, list[str]]]:
    """(name, bindings) of configurations that cannot be run."""
    for binding, _ in test_config.BAD:
        yield binding.replace("\n", "; "), binding.split("\n")
    for binding in MORE:
        yield binding.replace("\n", "; "), binding.split("\n")


MORE = (
    "Data.batch_size = 7\nMesh.data = 2",
    "Mesh.data = 3",
    "Mesh.model = 16",
    "T5Config.num_heads = 3\nMesh.model = 2",
    "T5Config.vocab_size = 5",
    "Task.train_count = 0",
    "Task.train_count = 100000",
    "Data.input_length = 1",
    "Optimizer.learning_rate = 1e999",
    "Optimizer.warmup_steps = -1",
    "Evaluate.max_decode_length = 0",
    "Train.init_from = '/nowhere'",
    "Train.output_dir = 's3://bucket/run'",
    "Method.form = 'spans'",
    "Train.engine = 't5y'",
)


def configured(place: things.Place, bindings: list[str]) -> dict:
    """What `dss train` does with such settings; that it is refused is right."""
    at = place.folder / "configured"
    shutil.rmtree(at, ignore_errors=True)
    words = [*place.train(at, Train__steps=2), *(f"--gin.{b}" for b in bindings)]
    file = place.folder / "bad.gin"
    file.write_text("\n".join(bindings) + "\n")
    if not all(re.match(r"[\w/]+\.?\w* = ", b) for b in bindings):
        words = [*place.train(at, Train__steps=2), "--gin_file", str(file)]
    ended = place.dss(*words, linear=True)
    outcome = SILENT if ended.outcome == FINE else ended.outcome
    return {"outcome": outcome, "said": ended.said[-600:]}
