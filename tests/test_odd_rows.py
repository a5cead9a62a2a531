"""Rows as people have them: misspelt fields, NaN, half characters, semicolons, ², 正面."""

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.scoring import EQUATION_ACCURACY, TEXT_ACCURACY, folded_text, normal_text
from dss_jax.core.texts import utf8, well_formed
from dss_jax.core.types import (
    Csv,
    DistillationTask,
    Example,
    Generated,
    Jsonl,
    Release,
    Row,
    plain_example,
)
from dss_jax.data.characters import Characters, check_labels, lines
from dss_jax.data.rows import examples
from dss_jax.data.store import TEXT_COLUMNS, TOKEN_COLUMNS, TextColumn, TokenStore
from dss_jax.data.store_writer import SplitBuilder, write_store
from dss_jax.data.survey import not_allowed
from dss_jax.data.text_rows import text_column
from dss_jax.data.vocabulary import SentencePiece
from dss_jax.evaluate import evaluator
from dss_jax.layouts import health
from dss_jax.model.decoding import Decoded
from dss_jax.records.files import read_records, write_records
from dss_jax.records.records import Header, Record, RecordSample
from dss_jax.run import single, teacher_run
from dss_jax.run.session import open_session

ANY_TEXT = st.text(st.characters(), max_size=40)
"""Every code point, lone surrogates too."""

SOUND_RECORD = {
    "id": "r",
    "input": "x",
    "gold": "yes",
    "teacher_label": "yes",
    "rationale": "Sun.",
    "agreement": 1.0,
    "status": "ok",
    "samples": [
        {"status": "ok", "label": "yes", "raw_label": "yes", "rationale": "Sun.", "text": "t"}
        | {"reason": ""}
    ],
}

WHOLE_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def task_of(folder: Path, *sources: Any, **fields: Any) -> DistillationTask:
    own = sources or (Jsonl(files={"train": "t.jsonl"}),)
    task = DistillationTask(
        name="mine",
        description="d",
        licence="l",
        sources=own,
        to_example=plain_example,
        scorer=TEXT_ACCURACY,
        file=str(folder / "mine.py"),
    )
    return replace(task, **fields)


def read_jsonl(folder: Path, text: str | bytes, left_out: list[str] | None = None) -> list[Example]:
    (folder / "t.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    return examples(task_of(folder), "train", left_out=left_out)


def read_csv(folder: Path, text: str, left_out: list[str] | None = None) -> list[Example]:
    (folder / "t.csv").write_text(text, newline="")
    return examples(task_of(folder, Csv(files={"train": "t.csv"})), "train", left_out=left_out)


class TestFields:
    @pytest.mark.parametrize(
        ("fields", "says"),
        [
            (
                '"teacher_labels": "yes", "rational": "Sun."',
                "unknown field 'teacher_labels', did you mean 'teacher_label'?.*"
                "'rational', did you mean 'rationale'",
            ),
            ('" rationale": "Sun."', "unknown field ' rationale', did you mean 'rationale'"),
            ('"rationales": ["Sun."]', "unknown field 'rationales', did you mean 'rationale'"),
            (
                '"Teacher Label": "yes"',
                "unknown field 'Teacher Label', did you mean 'teacher_label'",
            ),
            ('"rationale": NaN', "rationale must be text, not nan"),
            ('"teacher_label": Infinity', "teacher_label must be text, not inf"),
            ('"rationale": ["a", "b"]', r"rationale must be text, not \['a', 'b'\]"),
            ('"rationale": {"text": "a"}', "rationale must be text, not {'text': 'a'}"),
            ('"teacher_label": true', "teacher_label must be text, not True"),
            (r'"rationale": "Sun \ud83d"', "rationale holds .*half of a character.*Sun"),
            (r'"id": "\udc00"', "id holds .*half of a character"),
        ],
    )
    def test_what_is_no_text_is_an_error_with_its_line(
        self, fields: str, says: str, tmp_path: Path
    ) -> None:
        row = f'{{"input": "Is it hot?", "label": "yes", {fields}}}\n'
        with pytest.raises(UsageError, match=rf"(?s)t.jsonl, line 2: {says}.*--bad_rows skip"):
            read_jsonl(tmp_path, f'{{"input": "Is it wet?"}}\n{row}')

    @pytest.mark.parametrize(
        "fields", ['"idx": 3', '"label2": "b"', '"gold": "yes"', '"text_id": "x"', '"note": [NaN]']
    )
    def test_other_fields_are_nobodys_slip(self, fields: str, tmp_path: Path) -> None:
        (row,) = read_jsonl(tmp_path, f'{{"input": "x", "label": "yes", {fields}}}')
        assert row == Example(id="train-0", input="x", label="yes")

    def test_numbers_are_their_digits_and_null_is_none(self, tmp_path: Path) -> None:
        (row,) = read_jsonl(
            tmp_path, '{"input": 5, "label": 2.5, "teacher_label": null, "rationale": " "}'
        )
        assert row == Example(id="train-0", input="5", label="2.5")

    def test_the_benchmarks_own_rows_are_held_to_it_too(self) -> None:
        from dss_jax.core.registry import load_task

        row = {"premise": float("nan"), "hypothesis": "h", "label": 0}
        task = replace(load_task("esnli"), sources=(Generated(rows=lambda _: iter([row])),))
        with pytest.raises(UsageError, match="train, row 0: premise must be text, not nan"):
            examples(task, "train")

    def test_labels_to_choose_from_must_be_text(self, tmp_path: Path) -> None:
        def made(row: Row, completion: str | None) -> Example:
            return Example(id="", input="x", allowed_labels=(1, 2))  # type: ignore[arg-type]

        rows = Generated(rows=lambda _: iter([{}]))
        with pytest.raises(UsageError, match=r"a label in allowed_labels must be text.*gave 1"):
            examples(task_of(tmp_path, rows, to_example=made), "train")


class TestAllAtOnce:
    TEXT = (
        '{"input": "a", "id": "1"}\n{"input": \n[1]\n\n{"text": "c"}\n{"input": "d", "id": "1"}\n'
        '{"input": "e", "label": NaN}\n' + "[" * 100_000 + '\n{"input": "f"}\n'
    )

    def test_every_mistake_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError) as caught:
            read_jsonl(tmp_path, self.TEXT)
        *named, last = str(caught.value).splitlines()
        assert [line.split(", line ")[1][0] for line in named] == list("235678")
        assert last.startswith("6 of 8 rows cannot be used")

    def test_up_to_a_limit(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError) as caught:
            read_jsonl(tmp_path, "[1]\n" * 25)
        assert len(str(caught.value).splitlines()) == 12
        assert "and 15 more\n25 of 25 rows" in str(caught.value)

    def test_skip_leaves_them_out_and_numbers_the_others_by_their_place(
        self, tmp_path: Path
    ) -> None:
        left_out: list[str] = []
        found = read_jsonl(tmp_path, self.TEXT, left_out)
        assert [(e.id, e.input) for e in found] == [("1", "a"), ("train-7", "f")]
        assert len(left_out) == 6

    def test_where_none_is_left_that_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(
            UsageError, match=r"has no rows. It had 1 that cannot be used: .*line 1"
        ):
            read_jsonl(tmp_path, "[1]\n", [])

    def test_bytes_that_are_no_utf8_are_of_their_line_alone(self, tmp_path: Path) -> None:
        left_out: list[str] = []
        content = b'{"input": "caf\xe9"}\n{"input": "caf\xc3\xa9"}\n{"input: \xe9\n'
        found = read_jsonl(tmp_path, content, left_out)
        assert [e.input for e in found] == ["café"]
        assert "line 1: not UTF-8 text" in left_out[0]
        assert "line 3: not UTF-8 text" in left_out[1]

    def test_a_wrong_row_keeps_its_completion(self, tmp_path: Path) -> None:
        """Completions are joined by position, so that a row less would move all others'."""
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "t.json").write_text('{"input": "a"}\n[1]\n{"input": "c"}\n')
        (tmp_path / "d" / "c0.json").write_text(json.dumps(["A", "B", "C"]))
        source = Release(folder="d", files={"train": "t.json"}, completions={"train": "c{k}.json"})

        def made(row: Row, completion: str | None) -> Example:
            return Example(id="", input=row["input"], rationale=completion or "")

        task = task_of(tmp_path, source, to_example=made)
        found = examples(task, "train", tmp_path, [])
        assert [(e.input, e.rationale) for e in found] == [("a", "A"), ("c", "C")]


class TestCsv:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ('input;label\n"a; b";yes\n', "semicolons"),
            ("input\tlabel\na; b\tyes\n", "tabs"),
            ("'input','label'\n'a; b','yes'\n", "commas between fields, ' around"),
        ],
    )
    def test_delimiters_and_quotes_are_found_and_said(
        self, text: str, says: str, tmp_path: Path, said: list[str]
    ) -> None:
        (row,) = read_csv(tmp_path, text)
        assert (row.input, row.label) == ("a; b", "yes")
        assert says in said[0]

    def test_plain_ones_are_not_talked_about(self, tmp_path: Path, said: list[str]) -> None:
        (row,) = read_csv(tmp_path, 'input,label\n"5"" nail; | \t",sink\n')
        assert row.input == '5" nail; | \t'
        assert not said

    def test_a_field_may_have_any_length(self, tmp_path: Path) -> None:
        (row,) = read_csv(tmp_path, f"input,label\n{'x' * 200_000},yes\n")
        assert len(row.input) == 200_000

    def test_bytes_that_are_no_utf8_are_of_their_row_alone(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_bytes(b"input,label\ncaf\xe9,yes\ncaf\xc3\xa9,no\n")
        left_out: list[str] = []
        task = task_of(tmp_path, Csv(files={"train": "t.csv"}))
        assert [e.input for e in examples(task, "train", left_out=left_out)] == ["café"]
        assert "t.csv, line 2: not UTF-8 text" in left_out[0]

    def test_a_field_that_is_there_twice(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="line 1: two columns are called 'label'"):
            read_csv(tmp_path, "input,label,label\na,yes,no\n")
        with pytest.raises(UsageError, match=r"t.jsonl, line 2: two fields are called 'label'"):
            read_jsonl(tmp_path, '{"input": "a"}\n{"input": "b", "label": "x", "label": "y"}\n')

    def test_a_row_of_several_lines_is_named_by_its_first(self, tmp_path: Path) -> None:
        left_out: list[str] = []
        text = 'input,label\n\n"a\nb\nc",yes\n\n"d\ne"\nf\n'
        (row,) = read_csv(tmp_path, text, left_out)
        assert (row.input, row.id) == ("a\nb\nc", "train-0")
        assert [line.split(": ")[0].rsplit("/")[-1] for line in left_out] == [
            "t.csv, line 7",
            "t.csv, line 9",
        ]

    @pytest.mark.parametrize("before", [0, 5000])
    def test_a_wrong_byte_anywhere_is_of_its_line(self, tmp_path: Path, before: int) -> None:
        left_out: list[str] = []
        rows = [b'{"input": "good"}\n'] * before + [b'{"input": "\xff"}\n', b'{"input": "x"}\n']
        assert len(read_jsonl(tmp_path, b"".join(rows), left_out)) == before + 1
        assert f"t.jsonl, line {before + 1}: not UTF-8 text" in left_out[0]

    def test_a_wrong_row_is_counted_out_and_an_open_quote_never(self, tmp_path: Path) -> None:
        left_out: list[str] = []
        assert len(read_csv(tmp_path, "input,label\na\nb,yes\n", left_out)) == 1
        assert "line 2: has not as many fields" in left_out[0]
        text = 'input,label\na,yes\n"b,no\nc,no\n'
        with pytest.raises(UsageError, match=r"t.csv, line 2: unexpected end.*after this line"):
            read_csv(tmp_path, text, [])

    @settings(max_examples=60, deadline=None)
    @given(texts=st.lists(WHOLE_TEXT, min_size=1, max_size=3), delimiter=st.sampled_from(",;\t|"))
    def test_what_csv_writes_is_read(
        self, texts: Sequence[str], delimiter: str, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        # Python's writer leaves a carriage return and NUL to the reader's mercy.
        own = ["x" + text.replace("\r", "").replace("\0", "") for text in texts]
        folder = tmp_path_factory.mktemp("csv")
        with (folder / "t.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerows([("input", "label"), *((text, "yes") for text in own)])
        found = examples(task_of(folder, Csv(files={"train": "t.csv"})), "train")
        assert [e.input for e in found] == own


class TestAnyText:
    @settings(max_examples=200, deadline=None)
    @given(text=ANY_TEXT)
    def test_text_becomes_bytes_and_only_half_characters_change(self, text: str) -> None:
        whole = well_formed(text)
        assert utf8(text).decode() == whole
        assert well_formed(whole) == whole
        if not any("\ud800" <= c <= "\udfff" for c in text):
            assert whole == text

    def test_two_halves_are_a_character(self) -> None:
        assert well_formed("a\ud83d\ude00b") == "a\U0001f600b"
        assert well_formed("a\ud83db\ude00") == "a\ufffdb\ufffd"

    @settings(max_examples=100, deadline=None)
    @given(row=st.dictionaries(st.sampled_from(["input", "label", "rationale"]), ANY_TEXT))
    def test_a_row_is_read_as_it_is_or_named(
        self, row: dict[str, str], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        folder = tmp_path_factory.mktemp("rows")
        left_out: list[str] = []
        sound = {"id": "sound", "input": "x"}
        (folder / "t.jsonl").write_text("\n".join(map(json.dumps, [row, sound])))
        found = examples(task_of(folder), "train", left_out=left_out)
        assert len(found) + len(left_out) == 2
        half = any("\ud800" <= c <= "\udfff" for text in row.values() for c in text)
        assert bool(left_out) == (half or not row.get("input", "").strip())
        if not left_out:
            given_text = {n: t for n, t in row.items() if t.strip()}
            assert found[0] == Example(**{"id": "train-0", **given_text})  # type: ignore[arg-type]

    @settings(max_examples=100, deadline=None)
    @given(texts=st.lists(ANY_TEXT, max_size=5))
    def test_a_store_takes_it(self, texts: list[str]) -> None:
        assert TextColumn(text_column(texts))[:] == [*map(well_formed, texts)]
        split = SplitBuilder((), ("id",))
        for text in texts:
            split.append({}, {"id": text})
        assert TextColumn(split["id"])[:] == [*map(well_formed, texts)]

    @settings(max_examples=50, deadline=None)
    @given(text=ANY_TEXT)
    def test_records_give_it_back(
        self, text: str, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        sample = RecordSample(
            status="ok", label=text, raw_label=text, rationale=text, text=text, thoughts=text
        )
        record = Record(
            id=text,
            input=text,
            gold=text,
            teacher_label=text,
            agreement=1.0,
            status="ok",
            samples=(sample,),
        )
        file = tmp_path_factory.mktemp("records") / "r.jsonl"
        write_records(file, Header(task=text, split="train", teacher=text), [record])
        header, found = read_records(file)
        assert (header.teacher, [*found]) == (text, [record])

    @pytest.mark.parametrize(
        ("line", "says"),
        [
            (b'{"agreement": NaN}', "r.jsonl:2: not JSON in UTF-8: NaN is no JSON"),
            (b"[" * 100_000, "r.jsonl:2: not JSON in UTF-8: too many brackets"),
            (b'{"id": 1' + b"0" * 5000 + b"}", "r.jsonl:2: not JSON in UTF-8"),
            (b"\xff", "r.jsonl:2: not JSON in UTF-8"),
        ],
    )
    def test_a_record_line_that_is_none_is_named(
        self, line: bytes, says: str, tmp_path: Path
    ) -> None:
        header = b'{"dss_records": 1, "task": "t", "split": "train", "teacher": "m"}\n'
        (tmp_path / "r.jsonl").write_bytes(header + line + b"\n")
        with pytest.raises(UsageError, match=says):
            list(read_records(tmp_path / "r.jsonl")[1])
        (tmp_path / "r.jsonl").write_bytes(line + b"\n")
        with pytest.raises(UsageError, match=r"r.jsonl:1: not a record file"):
            read_records(tmp_path / "r.jsonl")

    @settings(max_examples=200, deadline=None)
    @given(
        value=st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3)
            ),
            max_leaves=5,
        ),
        place=st.sampled_from([*SOUND_RECORD, "samples.0.label", "samples.0.status", "other"]),
    )
    def test_any_value_in_a_record_is_taken_or_named(
        self, value: Any, place: str, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        content = json.loads(json.dumps(SOUND_RECORD))
        *path, name = place.split(".")
        (content["samples"][0] if path else content)[name] = value
        file = tmp_path_factory.mktemp("records") / "r.jsonl"
        head = {"dss_records": 1, "task": "t", "split": "train", "teacher": "m"}
        file.write_text(f"{json.dumps(head)}\n{json.dumps(content)}\n")
        said = "r.jsonl:2"
        header, found = read_records(file)
        try:
            write_records(file, header, [*found])
        except UsageError as error:
            said = str(error)
        assert "r.jsonl:2" in said

    def test_a_manifest_with_half_a_character_opens_again(self, tmp_path: Path) -> None:
        split = SplitBuilder(("label_inputs",), ("id",))
        split.append({"label_inputs": [3, 1]}, {"id": "r"})
        about = {"key": "k", "rationales": ["1 record is for no row: \ud83d"]}
        store = write_store(tmp_path / "s", {"train": split}, toy.VOCABULARY, 0, about)
        assert store.manifest["rationales"] == about["rationales"]

    def test_predictions_are_written(self, tmp_path: Path) -> None:
        evaluator.write_predictions(tmp_path / "p.jsonl", [{"prediction": "a\ud83d"}])
        assert json.loads((tmp_path / "p.jsonl").read_text()) == {"prediction": "a\ufffd"}


class TestFolding:
    @pytest.mark.parametrize(
        ("text", "other"),
        [("5²", "52"), ("x₂", "x2"), ("3½", "31/2"), ("3½", "31\u20442"), ("5①", "51")],
    )
    def test_what_says_something_else_is_not_the_same(self, text: str, other: str) -> None:
        assert not TEXT_ACCURACY.correct(text, other)
        assert not TEXT_ACCURACY.correct(other, text)
        assert folded_text(f"What is {text}?") != folded_text(f"What is {other}?")
        assert TEXT_ACCURACY.correct(text, text)

    def test_a_student_may_write_what_its_vocabulary_makes_of_it(self) -> None:
        student = TEXT_ACCURACY.as_spelt({"5²": "52", "sí": "s ⁇ "}.__getitem__)
        assert student.correct("5²", "52")
        assert student(["5²", "sí"], ["5²", "s ⁇"]) == {"text_accuracy": 100.0}
        assert not student.correct("sí", "si")
        # Never the teacher, who can write anything.
        assert not TEXT_ACCURACY.correct("5²", "52")

    @given(text=WHOLE_TEXT)
    def test_a_normal_text_stays(self, text: str) -> None:
        assert normal_text(normal_text(text)) == normal_text(text)


VOCABULARY = SentencePiece(toy.VOCABULARY, 0)


def counted(*texts: str) -> dict[str, Any]:
    characters = Characters(VOCABULARY)
    characters.add("train label", text_column(texts))
    return characters.found()


class TestCharacters:
    def test_what_is_lacking_and_what_changes(self) -> None:
        found = counted("plain", "í í 你", "aéb", "í5²", "three\n lines", "o\u0301")
        assert found == {
            "train label": {
                "lacking_rows": 3,
                "changed_rows": 1,
                "lacking": {"í": 3, "你": 1, "é": 1},
                "changed": {"²": [1, "2"]},
            }
        }
        assert [line for _, line in lines(found)] == [
            "train label: 3 rows with characters that the vocabulary lacks: í (3), 你 (1), é (1)",
            "train label: 1 rows with characters that it changes: ² (1, becomes '2')",
        ]

    def test_nothing_odd_is_nothing(self) -> None:
        assert counted() == counted("", "plain", "") == {}

    def test_parts_add_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        texts = [f"{'é' * (i % 3)}í ² {i}" for i in range(10)]
        whole = counted(*texts)
        monkeypatch.setattr("dss_jax.data.characters.CHUNK", 3)
        assert counted(*texts) == whole
        assert whole["train label"]["lacking"]["í"] == 10

    @settings(max_examples=100, deadline=None)
    @given(texts=st.lists(ANY_TEXT, max_size=6))
    def test_counts_are_those_of_each_text_alone(self, texts: list[str]) -> None:
        alone = [counted(text).get("train label", {}) for text in texts]
        whole = counted(*texts).get("train label", {})
        for name in ("lacking_rows", "changed_rows"):
            assert whole.get(name, 0) == sum(one.get(name, 0) for one in alone)


def labelled(*labels: str, allowed: tuple[str, ...] = ()) -> list[Example]:
    return [Example(id=x, input="x", label=x, allowed_labels=allowed) for x in labels]


class TestLabelsWrittenAlike:
    @pytest.mark.parametrize(
        ("fields", "rows"),
        [
            ({}, labelled("<", allowed=("<", ">", "=", "{", "正面", "负面"))),
            ({"labels": ("正面", "负面")}, labelled("x")),
            ({}, labelled("正面", "负面")),
            ({}, labelled("5²", "52")),
        ],
    )
    def test_they_are_an_error(self, fields: dict, rows: list[Example], tmp_path: Path) -> None:
        with pytest.raises(
            UsageError, match=r"that this vocabulary writes alike.*both.*--vocabulary"
        ):
            check_labels(task_of(tmp_path, **fields), rows, VOCABULARY)

    @pytest.mark.parametrize(
        "rows",
        [
            labelled("sí", "no"),
            labelled("x", allowed=("sea  lion", "sea lion", "\uff33ea")),  # The scorer's one label.
            labelled(*"正面负", *(f"free {i}" for i in range(30))),  # No set to choose from.
        ],
    )
    def test_others_are_not(self, rows: list[Example], tmp_path: Path) -> None:
        check_labels(task_of(tmp_path), rows, VOCABULARY)

    def test_equations_without_a_value_are_compared_as_texts(self, tmp_path: Path) -> None:
        task = task_of(tmp_path, scorer=EQUATION_ACCURACY)
        check_labels(task, labelled("5", "\u00a05", "\uff15"), VOCABULARY)
        with pytest.raises(UsageError, match="writes alike"):
            check_labels(task, labelled("5²", "52"), VOCABULARY)


def store_of(folder: Path, **splits: list[Example]) -> TokenStore:
    built = {}
    for name, rows in splits.items():
        built[name] = split = SplitBuilder(TOKEN_COLUMNS, TEXT_COLUMNS)
        for e in rows:
            texts = [e.label, e.teacher_label, e.rationale]
            targets = [[*VOCABULARY.encode(text), 1] if text else [] for text in texts]
            inputs = [*VOCABULARY.encode(e.input), 1]
            tokens = [inputs, *targets[:2], inputs, targets[2]]
            shown_texts = {c: getattr(e, c) for c in TEXT_COLUMNS if c != "allowed_labels"}
            split.append(
                dict(zip(TOKEN_COLUMNS, tokens, strict=True)),
                {**shown_texts, "allowed_labels": json.dumps(e.allowed_labels)},
            )
    labels = [*{label for e in chain(*splits.values()) for label in e.allowed_labels}]
    about = {"name": "toy", "kind": "task", "key": folder.name, "prefixes": "paper"}
    about["labels"] = labels
    about["health"] = {
        name: {
            "not_allowed": not_allowed(rows),
            "teacher_right": sum(e.label == e.teacher_label for e in rows),
        }
        for name, rows in splits.items()
    }
    gold = {e.label for e in chain(*splits.values())}
    about["unused_labels"] = [label for label in labels if label not in gold]
    return write_store(folder / "store", built, toy.VOCABULARY, 0, about)


def some(count: int, label: str = "yes", rationale: str = "") -> list[Example]:
    return [
        Example(id=f"{rationale}{i}", input="Is it?", label=label, rationale=rationale)
        for i in range(count)
    ]


class TestBeforeTraining:
    def test_no_rationale_at_all(self, tmp_path: Path) -> None:
        store = store_of(tmp_path, train=some(3))
        with pytest.raises(UsageError, match=r"--method dss learns .*none of the 3 training rows"):
            health.check(toy.make_run(), store)
        health.check(toy.make_run(method=config.Method(name="standard", rationale=False)), store)

    def test_none_in_the_subset(self, tmp_path: Path) -> None:
        rows = [*some(60), *some(1, rationale="Sun")]
        store = store_of(tmp_path, train=rows)
        with pytest.raises(UsageError, match="none of the 2 training rows"):
            health.check(toy.make_run(task=config.Task(name="toy", train_count=2)), store)

    @pytest.mark.parametrize("form", ["rationale_label", "rationale_input"])
    def test_methods_that_need_them_otherwise(self, form: str, tmp_path: Path) -> None:
        run = toy.make_run(method=config.Method(name=form, form=form, rationale=False))
        with pytest.raises(UsageError, match=f"--method {form} learns"):
            health.check(run, store_of(tmp_path, train=some(3)))

    def test_half_of_them_is_said(self, tmp_path: Path, said: list[str]) -> None:
        store = store_of(tmp_path, train=[*some(5), *some(5, rationale="Sun")])
        health.check(toy.make_run(), store)
        assert "5 of 10 training rows have no rationale" in said[0]

    def test_few_are_not(self, toy_store: TokenStore, tmp_path: Path, said: list[str]) -> None:
        health.check(toy.make_run(), store_of(tmp_path, train=[*some(1), *some(20, rationale="s")]))
        assert not said

    def test_gold_labels_that_are_not_allowed(self, tmp_path: Path, said: list[str]) -> None:
        rows = [replace(e, allowed_labels=("yes", "no")) for e in some(6, rationale="So.")]
        health.check(toy.make_run(), store_of(tmp_path, train=rows))
        # In stores of earlier versions only rows with labels of their own have any.
        bare = [*rows[:3], *(replace(e, allowed_labels=()) for e in rows[3:])]
        health.check(toy.make_run(), store_of(tmp_path / "bare", train=bare))
        assert not said
        rows[2] = replace(rows[2], label="yse")
        health.check(toy.make_run(), store_of(tmp_path / "slip", train=rows))
        assert "gold labels that are not allowed: 'yse' (1)." in said[0]
        assert "dss tasks check toy" in said[0]

    def test_a_label_that_was_renamed_in_the_table_alone(self, tmp_path: Path) -> None:
        rows = [replace(e, allowed_labels=("yes", "no")) for e in some(6, "nope", "So.")]
        yes = [replace(e, allowed_labels=("yes", "no")) for e in some(6, rationale="Because.")]
        store = store_of(tmp_path, train=[*rows, *yes])
        with pytest.raises(UsageError, match=r"'nope' \(6\), and none has its 'no': was a label"):
            health.check(toy.make_run(), store)

    def test_rows_that_no_teacher_was_asked_about_are_not_counted_as_wrong(
        self, tmp_path: Path
    ) -> None:
        asked = [replace(e, teacher_label="yes") for e in some(4, rationale="So.")]
        wrong = [replace(e, id="w", teacher_label="no") for e in some(1)]
        store = store_of(tmp_path, train=[*asked, *wrong, *some(5)], test=[*asked, *wrong])
        line = health.health_line(store, "train", config.Data())
        assert "teacher right 80.00 % of 5 answers, " in line
        assert "teacher right 80.00 %, " in health.health_line(store, "test", config.Data())

    def test_the_plan_says_what_a_run_does(self, tmp_path: Path) -> None:
        rows = [*some(5), *some(5, rationale="Sun")]
        store = store_of(tmp_path, train=rows, validation=some(3), test=some(4))
        task = config.Task(name="toy", record_files=("r.jsonl",))
        train = config.Train(steps=40, init_from="google/flan-t5-base", output_dir="runs/t")
        first, *lines = health.plan(toy.make_run(task=task, train=train), store).splitlines()
        assert first == (
            "plan: --method dss on toy: 10 rows with a gold label, 5 of them with a rationale of "
            "r.jsonl"
        )
        assert lines[0] == "  student: from google/flan-t5-base, into runs/t"
        assert lines[1] == (
            "  40 steps of 8 rows, 32.0 times through them; validation every 2 steps. Scored: "
            "validation (3 rows), test (4 rows)"
        )

    def test_labels_that_cannot_be_decoded(self, tmp_path: Path, said: list[str]) -> None:
        long = "the answer to this question is the colour red"
        rows = some(2, long, "ok")
        store = store_of(tmp_path, train=rows, validation=rows, test=rows)
        longest = len(VOCABULARY.encode(long)) + 1
        says = f"2 of 2 labels of validation.*longest has {longest}: .*length={longest}"
        with pytest.raises(UsageError, match=says):
            health.check(toy.make_run(), store)
        mixed = store_of(tmp_path / "mixed", train=rows, test=[*rows, *some(1)])
        health.check(toy.make_run(), mixed)
        assert "2 of 3 labels of test are longer than the 5 tokens" in said[0]
        for enough in (longest, longest - 1):  # The end need not be written.
            evaluate = config.Evaluate(max_decode_length=enough)
            health.check(toy.make_run(evaluate=evaluate), store)
        ranked = config.Evaluate(max_decode_length=5, decode="rank")
        health.check(toy.make_run(evaluate=ranked), store)
        assert len(said) == 1

    def test_numbers_of_a_split(self, tmp_path: Path) -> None:
        rows = [
            *some(2, "sí", "é ok"),
            Example(id="u", input="Is it é?"),
            *some(1, rationale="w" * 30),
        ]
        store = store_of(tmp_path, train=rows)
        data = config.Data(target_length=12)
        assert health.health_line(store, "train", data) == (
            "train: 4 rows, 3 with a label, 3 with a rationale, 1 cut, 3 with unknown characters"
        )
        assert health.unknown_rows(store.split("train").tokens("label_targets")).tolist() == [0, 1]
        counted = {c.column: c.unknown for c in health.token_lengths(store, data)}
        assert counted == {
            "label_inputs": 1,
            "label_targets": 2,
            "rationale_inputs": 1,
            "rationale_targets": 2,
        }


def perfect(monkeypatch: pytest.MonkeyPatch, store: TokenStore, name: str) -> None:
    """Decodes what the labels are in tokens."""
    targets = store.split(name).tokens("label_targets")

    class Knows(toy.Guess):
        def __call__(self, params: dict, inputs: Any, rows: Any, *, lengths: Any) -> Decoded:
            tokens = np.zeros((len(rows), 1, 9), np.int32)
            for n, row in enumerate(rows):
                tokens[n, 0, : len(targets[int(row)])] = targets[int(row)]
            none = np.zeros((len(rows), 1), np.float32)
            return Decoded(tokens, none, none)

    monkeypatch.setattr(evaluator, "make_engine", Knows)


@pytest.mark.usefixtures("linear_programs")
class TestScores:
    def test_a_perfect_student_has_100_per_cent(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = [*some(31, "sí"), *some(29, "no"), *some(4, "5²")]
        rows = [replace(e, id=str(i)) for i, e in enumerate(rows)]
        store = store_of(tmp_path, train=rows, test=rows)
        perfect(monkeypatch, store, "test")
        session = open_session(toy.make_run(), tmp_path, store, TEXT_ACCURACY)
        result = session.evaluator(session.program.init().params, "test")
        assert result.numbers["text_accuracy"] == 100.0
        assert all(p["correct"] for p in result.predictions)
        assert result.predictions[0]["target"] == "sí"
        assert result.predictions[0]["prediction"] == "s ⁇ "

    def test_without_gold_labels_there_is_no_score(self, tmp_path: Path, said: list[str]) -> None:
        rows = some(8, "yes", "ok")
        store = store_of(tmp_path, train=rows, validation=some(3, ""), test=some(2, ""))
        run = toy.make_run(train=config.Train(steps=1, output_dir=str(tmp_path / "run")))
        health.check(run, store)
        assert [line.split(":")[0] for line in said] == [
            "no row of validation has a gold label",
            "no row of test has a gold label",
        ]
        results = single.train(run, store, TEXT_ACCURACY)
        assert not {"validation", "test"} & results.keys()
        assert results["best_step"] == 1
        session = open_session(run, tmp_path, store, TEXT_ACCURACY)
        found = session.evaluator(session.program.init().params, "test")
        assert "text_accuracy" not in found.numbers
        assert [sorted(p.keys() & {"id", "target", "correct"}) for p in found.predictions] == [
            ["id"],
            ["id"],
        ]

    def test_nor_of_a_teacher(self, tmp_path: Path, said: list[str]) -> None:
        told = [Example(id=str(i), input="x", teacher_label="yes") for i in range(2)]
        store = store_of(tmp_path, test=told)
        method = config.Method(name="teacher", form="teacher", rationale=False)
        run = toy.make_run(
            method=method, train=config.Train(steps=1, output_dir=str(tmp_path / "run"))
        )
        with pytest.raises(UsageError, match="has rows with a gold label and teacher text"):
            teacher_run.score(run, store, TEXT_ACCURACY)
        assert "no row of test has both a gold label and teacher text" in said[0]
