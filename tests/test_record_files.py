"""Record files: exact round trip, refusals that name file and line, merging."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from dss_jax.core.errors import UsageError
from dss_jax.records.files import merge, read_records, row_totals, write_records
from dss_jax.records.records import Header, Record, RecordSample
from dss_jax.teacher.journal import Journal

HEADER = Header(
    task="word_problems",
    split="train",
    teacher="t",
    endpoint="a:1",
    prompt_sha256="ab",
    sampling={"temperature": 0.7},
    date="2026-11-24",
    terms="own",
    totals={"rows": 2, "requests": 2, "cost": {"amount": 0.5, "currency": "USD"}},
)


def sample(
    label: str = "(1 + 2)", status: str = "ok", rationale: str = "One and two."
) -> RecordSample:
    return RecordSample(
        status=status,
        label=label if status == "ok" else "",
        raw_label=label,
        rationale=rationale,
        text=f"{rationale} The answer is {label}.",
    )


def record(
    id: str, *samples: RecordSample, gold: str = "(1 + 2)", agreement: float = 1.0
) -> Record:
    taken = samples or (sample(),)
    vote = next((s.label for s in taken if s.status == "ok"), "")
    return Record(
        id=id,
        input=f"Question {id}?",
        gold=gold,
        teacher_label=vote,
        agreement=agreement if vote else 0.0,
        status="ok" if vote else taken[0].status,
        samples=taken,
    )


FAILED = replace(sample("", "error", ""), text="", reason="HTTP 500")


def test_what_is_written_is_read_and_the_bytes_repeat(tmp_path: Path) -> None:
    odd = 'a "b"\n\r\n\u2028\x00\x1b é 数 😀 lone \ud83d'
    records = [record("a"), record(odd, sample(odd, rationale=odd), FAILED, agreement=1 / 3)]
    header = replace(HEADER, filters=({"filter": "only", "value": ["ok"]},))
    for name in ("one", "two"):
        write_records(tmp_path / "deep" / name, header, iter(records))
    read, lines = read_records(tmp_path / "deep/one")
    assert (read, list(lines)) == (header, records)
    assert (tmp_path / "deep/one").read_bytes() == (tmp_path / "deep/two").read_bytes()
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["one", "two"]


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    def broken():
        yield record("b")
        raise OSError(28, "No space left on device")

    file = tmp_path / "r.jsonl"
    write_records(file, HEADER, [record("a")])
    with pytest.raises(UsageError, match="could not be written: No space"):
        write_records(file, HEADER, broken())
    assert [r.id for r in read_records(file)[1]] == ["a"]
    assert list(tmp_path.iterdir()) == [file]


def test_reading_takes_one_line_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    write_records(file, HEADER, [record("a")])
    file.write_bytes(file.read_bytes() + b"no record\n")
    records = read_records(file)[1]
    assert next(records).id == "a"
    with pytest.raises(UsageError, match=r"r\.jsonl:3: not JSON"):
        next(records)


def changed(**fields) -> str:
    return "record", lambda c: {k: v for k, v in (c | fields).items() if v is not ...}


def header_with(**fields) -> str:
    return "header", changed(**fields)[1]


WRONG = [
    (changed(gold=...), "r.jsonl:2: field 'gold' is missing"),
    (changed(gold=3), "r.jsonl:2: gold must be text, not 3"),
    (changed(agreement=True), "r.jsonl:2: agreement must be a number"),
    (changed(agreement=1.5), "from 0 to 1"),
    (changed(status="fine"), "unknown status 'fine'. Known: ok"),
    (changed(note="x"), "unknown field 'note'"),
    (changed(samples=[]), "samples is empty"),
    (changed(samples=[{"status": "ok"}]), "r.jsonl:2: samples[0]: field 'label' is missing"),
    (changed(rationale="edited"), "rationale is a copy"),
    (header_with(dss_records=2), "format 2 of record files; this dss-jax reads up to 1"),
    (header_with(dss_records="1"), "must be a whole number"),
    (header_with(dss_records=...), "r.jsonl:1: not a record file"),
    (header_with(task=...), "r.jsonl:1: field 'task' is missing"),
    (header_with(totals=[]), "totals must be an object"),
    (header_with(totals={"rows": 2}), "r.jsonl: 1 records, but 2 by the totals"),
    (header_with(totals={"rows": 0}), "r.jsonl: 1 records, but 0 by the totals"),
]


@pytest.mark.parametrize(("change", "says"), WRONG, ids=[says for _, says in WRONG])
def test_a_wrong_line_is_named(change, says: str, tmp_path: Path) -> None:
    which, edit = change
    file = tmp_path / "r.jsonl"
    write_records(file, HEADER, [record("a")])
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    place = 0 if which == "header" else 1
    lines[place] = edit(lines[place])
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UsageError) as raised:
        list(read_records(file)[1])
    assert says in str(raised.value)


def test_records_cut_at_a_lines_end_are_noticed_by_all_who_read_them(tmp_path: Path) -> None:
    file, out = tmp_path / "r.jsonl", tmp_path / "out.jsonl"
    write_records(file, Header(task="t", split="train", teacher="t"), [record("a"), record("b")])
    assert read_records(file)[0].totals == {"rows": 2, "statuses": {"ok": 2}}
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:2]))
    for read in (lambda: [*read_records(file)[1]], lambda: merge([file, file.parent / "b"], out)):
        with pytest.raises(UsageError, match=r"r\.jsonl: 1 records, but 2 .*cut short"):
            read()
    assert not out.exists(), "the total is not made to fit"
    first = json.loads(lines[0])
    del first["totals"]
    file.write_text(json.dumps(first) + "\n" + lines[1].decode())
    assert [r.id for r in read_records(file)[1]] == ["a"], "an older file"


def test_an_iterator_of_other_length_than_the_totals_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 records, but the header's totals say 2"):
        write_records(tmp_path / "r.jsonl", HEADER, iter([record("a")]))
    assert not list(tmp_path.iterdir())


def test_a_field_that_is_there_twice_is_named(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    write_records(file, HEADER, [record("a")])
    head, line = file.read_text().splitlines()
    file.write_text(f'{head}\n{line[:-1]}, "gold": "other"}}\n')
    with pytest.raises(UsageError, match=r"r\.jsonl:2: two fields are called 'gold'"):
        list(read_records(file)[1])
    file.write_text(f'{head[:-1]}, "task": "other"}}\n{line}\n')
    with pytest.raises(UsageError, match=r"r\.jsonl:1: two fields are called 'task'"):
        read_records(file)


def test_other_files_and_second_ids_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    with pytest.raises(UsageError, match="cannot read"):
        read_records(file)
    for content in (b"", b"[1]\n", b"\xff\xfe\n", b'{"id": "a"}\n'):
        file.write_bytes(content)
        with pytest.raises(UsageError, match="not a record file"):
            read_records(file)
    write_records(file, HEADER, [record("a"), record("b"), record("a")])
    with pytest.raises(UsageError, match=r"r\.jsonl:4: id 'a' is on line 2 already"):
        list(read_records(file)[1])
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UsageError, match="cut short"):
        list(read_records(file)[1])


def test_who_reads_while_a_file_is_replaced_reads_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    write_records(file, HEADER, [record("a"), record("b")])
    with file.open("rb") as old:
        before = file.read_bytes()
        write_records(file, HEADER, [record("c")])
        assert old.read() == before
    assert [r.id for r in read_records(file)[1]] == ["c"]


def two_files(tmp_path: Path, first: list[Record], second: list[Record], **changes) -> list[Path]:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    write_records(paths[0], HEADER, first)
    write_records(paths[1], replace(HEADER, endpoint="b:1", **changes), second)
    return paths


def test_shards_become_one_file(tmp_path: Path) -> None:
    first = [record("a"), record("b", FAILED), record("c")]
    second = [record("b"), record("c"), record("d", FAILED)]
    out = tmp_path / "m.jsonl"
    # The first file is of a version that did not note how the prompt was used.
    later = {"date": "2026-11-25", "prompt": {"hint": True}}
    done = merge(two_files(tmp_path, first, second, **later), out)
    assert (done.rows, done.equal, done.answered, done.conflicts) == (4, 1, 1, [])
    header, lines = read_records(out)
    merged = list(lines)
    assert merged == [record("a"), record("b"), record("c"), record("d", FAILED)]
    assert header == replace(
        HEADER,
        endpoint="a:1, b:1",
        **later,
        totals={"requests": 4, "cost": {"amount": 1.0, "currency": "USD"}, **row_totals(merged)},
    )
    assert header.totals["statuses"] == {"ok": 3, "error": 1}
    back = merge(list(reversed([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])), out)
    assert back.answered == 1
    assert {r.id: r.status for r in read_records(out)[1]}["b"] == "ok"


def test_two_failures_of_a_row_are_no_answer(tmp_path: Path) -> None:
    first, other = record("a", FAILED), record("a", replace(FAILED, reason="timeout"))
    out = tmp_path / "m.jsonl"
    done = merge(two_files(tmp_path, [first], [other]), out)
    assert (done.rows, done.equal, done.answered, done.conflicts) == (1, 0, 0, [])
    assert list(read_records(out)[1]) == [first]


def test_of_a_row_that_was_asked_again_the_fuller_version_is_taken(tmp_path: Path) -> None:
    full = record("a", sample("(3 - 1)"), sample("(2 + 2)"))
    part = record("a", sample("(3 - 1)"), FAILED)
    other = record("a", FAILED, sample("(2 - 1)"))
    out = tmp_path / "m.jsonl"
    for first, second in ((full, part), (part, full)):
        done = merge(two_files(tmp_path, [first], [second]), out)
        assert (done.rows, done.answered, done.conflicts) == (1, 1, [])
        assert list(read_records(out)[1]) == [full]
    with pytest.raises(UsageError, match="different versions"):  # The answers differ, too.
        merge(two_files(tmp_path, [full], [other]), out)


@pytest.mark.parametrize(
    "other", [record("a", sample("(2 - 1)")), replace(record("a", FAILED), input="Another?")]
)
def test_a_conflict_is_reported_and_resolved_as_told(other: Record, tmp_path: Path) -> None:
    paths, out = two_files(tmp_path, [record("a")], [other]), tmp_path / "m.jsonl"
    with pytest.raises(UsageError) as raised:
        merge(paths, out)
    assert all(text in str(raised.value) for text in ("'a'", *map(str, paths), "--on_conflict"))
    assert not out.exists()
    for choice, kept in (("first", record("a")), ("last", other)):
        assert merge(paths, out, choice).conflicts == [("a", *paths)]
        assert list(read_records(out)[1]) == [kept]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task": "cqa"}, "task: 'word_problems' and 'cqa'"),
        ({"prompt_sha256": "cd"}, "prompt_sha256"),
        ({"sampling": {"temperature": 1.0}}, "sampling"),
        ({"totals": {"cost": {"amount": 1, "currency": "EUR"}}}, "currency is 'USD' and 'EUR'"),
    ],
)
def test_files_that_do_not_belong_together(changes: dict, says: str, tmp_path: Path) -> None:
    paths = two_files(tmp_path, [record("a")], [record("b")], **changes)
    with pytest.raises(UsageError, match=says):
        merge(paths, tmp_path / "m.jsonl")
    with pytest.raises(UsageError, match="each once"):
        merge([paths[0], paths[0]], tmp_path / "m.jsonl")


def test_texts_of_users_have_the_umasks_mode(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_records(tmp_path / "new" / "r.jsonl", HEADER, [record("a")])
        with Journal(tmp_path / "journal"):
            made = [tmp_path / "new", tmp_path / "new" / "r.jsonl", *tmp_path.glob("journal*")]
            modes = [file.stat().st_mode & 0o777 for file in made]
    finally:
        os.umask(before)
    assert len(modes) >= 3
    assert not [mode for mode in modes if mode & 0o077]
