"""Records in place of the data's own teacher text: joining, messages, and the store's key."""

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.registry import load_task
from dss_jax.core.types import DistillationTask, Example
from dss_jax.data import prepare
from dss_jax.data.prepare import ensure_store
from dss_jax.data.rationales import join_records
from dss_jax.data.rows import examples
from dss_jax.layouts import summary
from dss_jax.records.files import write_records
from dss_jax.records.records import Header, Record, RecordSample

ROOT = Path(__file__).parents[1]
RELEASE = ROOT / "tests" / "fixtures" / "release"
MODEL = ROOT / "tasks" / "vocabularies" / "word_problems.model"
SPLITS = ("train", "validation", "test")


def record(example: Example, status: str = "ok", **other: Any) -> Record:
    """A record whose label is the gold one, and whose rationale names the row."""
    ok = status == "ok"
    label, rationale = (example.label, f"Because of {example.id}.") if ok else ("", "")
    sample = RecordSample(
        status=status, label=label, raw_label=label, rationale=rationale, text="as it came"
    )
    fields = {
        **{"id": example.id, "input": example.input, "gold": example.label},
        **{"teacher_label": label, "agreement": float(ok), "status": status, "samples": (sample,)},
    }
    return Record(**(fields | other))


@dataclasses.dataclass
class Cqa:
    """The fixtures' cqa: 20 rows, 2 of them held out for validation, 6 for the test."""

    folder: Path
    task: DistillationTask = dataclasses.field(default_factory=lambda: load_task("cqa"))

    @property
    def splits(self) -> dict[str, list[Example]]:
        return {s: examples(self.task, s, RELEASE) for s in SPLITS}

    def write(
        self,
        records: Iterable[Record],
        split: str = "train",
        name: str = "",
        task: str = "cqa",
        **about: Any,
    ) -> Path:
        file = self.folder / f"{name or split}.jsonl"
        write_records(file, Header(task=task, split=split, teacher="t", **about), records)
        return file

    def join(
        self, *files: Path, splits: Sequence[str] = SPLITS
    ) -> tuple[dict[str, list[Example]], list[str]]:
        found, said = join_records(self.task, {s: self.splits[s] for s in splits}, files, RELEASE)
        return dict(found), said


@pytest.fixture
def cqa(tmp_path: Path) -> Cqa:
    return Cqa(tmp_path)


def text(example: Example) -> tuple[str, str]:
    return example.teacher_label, example.rationale


def test_labels_and_rationales_of_the_records_take_the_place_of_the_rows_own(cqa: Cqa) -> None:
    train, test = cqa.splits["train"], cqa.splits["test"]
    files = [cqa.write(map(record, reversed(train))), cqa.write(map(record, test), "test")]
    joined, said = cqa.join(*files)
    for split in ("train", "test"):
        for before, after in zip(cqa.splits[split], joined[split], strict=True):
            expected = {"teacher_label": before.label, "rationale": f"Because of {before.id}."}
            assert after == dataclasses.replace(before, **expected)
    # A teacher of the data's own would be mixed with that of the records.
    assert any(e.rationale for e in cqa.splits["validation"])
    assert [text(e) for e in joined["validation"]] == [("", "")] * 2
    assert said == [
        "train: 18 of 18 rows have text of the records",
        "validation: 0 of 2 rows have text of the records (no record: 2)",
        "test: 6 of 6 rows have text of the records",
    ]


def test_no_files_leave_everything_as_it_is(cqa: Cqa) -> None:
    assert cqa.join() == (cqa.splits, [])


def test_only_ok_records_give_text_and_missing_and_surplus_ids_are_told(cqa: Cqa) -> None:
    train = cqa.splits["train"]
    statuses = ["truncated", *["ok"] * 8]
    others = [dataclasses.replace(train[0], id=f"other-{i}") for i in range(7)]
    records = [record(e, s) for e, s in zip(train, statuses, strict=False)]
    # A record that a vote left without a label, but that still has a text.
    records[0] = dataclasses.replace(records[0], teacher_label="dog")
    file = cqa.write([*records, *map(record, others)])
    joined, said = cqa.join(file)
    assert [bool(e.rationale) for e in joined["train"]] == [False, *[True] * 8, *[False] * 9]
    assert not any(e.teacher_label for e in joined["train"][:1] + joined["train"][9:])
    missing = ", ".join(e.id for e in train[9:14])
    assert said[0] == (
        f"train: 8 of 18 rows have text of the records (not ok: 1; no record: 9: {missing}, ...)"
    )
    assert said[-1] == (
        f"{file}: 7 records are for no row: other-0, other-1, other-2, other-3, other-4, ..."
    )


def test_a_file_of_train_serves_the_rows_that_are_held_out_of_it(cqa: Cqa) -> None:
    both = cqa.splits["train"] + cqa.splits["validation"]
    file = cqa.write(map(record, both))
    joined, said = cqa.join(file)
    assert all(e.rationale == f"Because of {e.id}." for e in joined["train"])
    assert all(e.rationale == f"Because of {e.id}." for e in joined["validation"])
    assert not any("for no row" in line for line in said)
    # SeqIO asks for one split at a time.
    alone, _ = cqa.join(file, splits=["validation"])
    assert alone["validation"] == joined["validation"]
    nothing, _ = cqa.join(cqa.write(map(record, cqa.splits["train"])), splits=["validation"])
    assert [text(e) for e in nothing["validation"]] == [("", "")] * 2


def test_without_a_hold_out_the_same_id_in_two_splits_is_two_rows(cqa: Cqa) -> None:
    task = dataclasses.replace(cqa.task, validation_fraction=0.0)
    rows = {s: [Example(id="1", input=s, label=s)] for s in ("train", "validation")}
    file = cqa.write([record(rows["validation"][0])], "validation")
    joined, _ = join_records(task, rows, [file], RELEASE)
    assert text(joined["train"][0]) == ("", "")
    assert text(joined["validation"][0]) == ("validation", "Because of 1.")


def test_a_split_that_is_not_there_is_told(cqa: Cqa) -> None:
    files = [cqa.write(map(record, cqa.splits[s]), s) for s in ("train", "test")]
    _, said = cqa.join(*files, splits=["train"])
    assert said[-1] == f"{files[1]} is not used: cqa has no test split here"


class TestOlderThanTheRows:
    """Rows were changed after the teacher was asked about them."""

    def join(self, cqa: Cqa, rows: list[Example], file: Path) -> tuple[list[Example], str, str]:
        old: list[str] = []
        joined, said = join_records(cqa.task, {"train": rows}, [file], RELEASE, old)
        return joined["train"], said[0], "\n".join(old)

    def test_another_text(self, cqa: Cqa) -> None:
        first, *rest = rows = cqa.splits["train"]
        file = cqa.write(map(record, rows))
        assert self.join(cqa, rows, file)[2] == ""
        changed = dataclasses.replace(first, input=f"{first.input} Now?")
        found, count, old = self.join(cqa, [changed, *rest], file)
        assert [text(e) for e in found] == [("", ""), *(text(e) for e in found[1:])]
        assert all(e.rationale for e in found[1:])
        assert count == "train: 17 of 18 rows have text of the records (older than their rows: 1)"
        assert f"1 of its rows (another text: 1: {first.id})" in old
        assert f"dss extract --task cqa --split train --model t --out {file}, with" in old

    def test_a_label_that_is_not_allowed_any_more(self, cqa: Cqa) -> None:
        first, *rest = rows = cqa.splits["train"]
        file = cqa.write(map(record, rows))
        renamed = [label if label != first.label else "new" for label in first.allowed_labels]
        changed = dataclasses.replace(first, label="new", allowed_labels=tuple(renamed))
        found, _, old = self.join(cqa, [changed, *rest], file)
        assert [bool(e.rationale) for e in found] == [False, *[True] * 17]
        assert f"(no such label now: 1: {first.id})" in old

    def open_rows(self, cqa: Cqa) -> list[Example]:
        """Any text may be a label; there are two."""
        return [
            dataclasses.replace(e, label=("acount", "billing")[n % 2], allowed_labels=())
            for n, e in enumerate(cqa.splits["train"])
        ]

    def test_a_label_that_no_row_has_any_more(self, cqa: Cqa) -> None:
        rows = self.open_rows(cqa)
        # Of the last row the teacher says what another's label was.
        wrong = dataclasses.replace(record(rows[-1]), teacher_label="acount")
        file = cqa.write([*map(record, rows[:-1]), wrong], filters=({"filter": "only"},))
        assert self.join(cqa, rows, file)[2] == ""
        found, _, old = self.join(
            cqa, [dataclasses.replace(e, label=e.label.replace("ac", "acc")) for e in rows], file
        )
        assert {e.label for e in found if e.rationale} == {"billing"}
        assert [text(e) for e in found[::2]] == [("", "")] * 9
        assert text(found[-1]) == ("", "")
        assert "no such label now: 10: " in old
        assert old.endswith("Then filter as before.")

    def test_a_label_that_was_renamed_in_the_table_alone(self, cqa: Cqa) -> None:
        """The task file still names it as it was."""
        labels = ("acount", "billing")
        cqa.task = dataclasses.replace(cqa.task, labels=labels)
        rows = [dataclasses.replace(e, allowed_labels=labels) for e in self.open_rows(cqa)]
        file = cqa.write(map(record, rows))
        assert self.join(cqa, rows, file)[2] == ""
        now = [dataclasses.replace(e, label=e.label.replace("ac", "acc")) for e in rows]
        found, _, old = self.join(cqa, now, file)
        assert {e.label for e in found if e.rationale} == {"billing"}
        assert "no such label now: 9: " in old

    @pytest.mark.parametrize("hint", [False, True])
    def test_a_corrected_gold_label(self, cqa: Cqa, hint: bool) -> None:
        rows = self.open_rows(cqa)
        file = cqa.write(map(record, rows), prompt={"hint": hint})
        changed = dataclasses.replace(rows[0], label="billing")
        found, _, old = self.join(cqa, [changed, *rows[1:]], file)
        assert bool(found[0].rationale) is not hint
        what = "no such label now" if hint else "rows have another gold label"
        assert f"{what}: 1: {changed.id}" in old

    def test_it_is_said_whenever_the_store_is_opened(
        self, cqa: Cqa, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        first, *rest = map(record, cqa.splits["train"])
        other = dataclasses.replace(first, input="Where does a fish live?")
        file = str(cqa.write([other, *rest]))
        task = config.Task(name="cqa", data_dir=str(RELEASE), record_files=file)
        data, vocabulary = config.Data(store_dir=str(tmp_path)), config.Vocabulary(path=str(MODEL))
        for _ in range(2):
            caplog.clear()
            ensure_store(task, vocabulary, data)
            (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
            assert f"{file} is older than 1 of its rows (another text: 1: {first.id})" in said


class TestMistakes:
    def test_records_of_another_task(self, cqa: Cqa) -> None:
        file = cqa.write(map(record, cqa.splits["train"]), task="svamp")
        with pytest.raises(UsageError, match=r"records of task 'svamp', not of 'cqa'"):
            cqa.join(file)

    @pytest.mark.parametrize(
        ("split", "message"),
        [("test", r"its ids: train\d+, .*; the rows': test00, "), ("none", "it is empty")],
    )
    def test_no_record_for_any_row(self, cqa: Cqa, split: str, message: str) -> None:
        records = map(record, cqa.splits["train"]) if split == "test" else []
        with pytest.raises(UsageError, match=f"no record is for a row of cqa .*{message}"):
            cqa.join(cqa.write(records, "test"))

    def test_ids_of_other_data(self, cqa: Cqa) -> None:
        records = [record(e, input="Where does a fish live?") for e in cqa.splits["train"]]
        with pytest.raises(UsageError, match=r"input of id 'train\d+' .*'Where does a fish"):
            cqa.join(cqa.write(records))

    def test_an_id_twice(self, cqa: Cqa) -> None:
        files = [cqa.write(map(record, cqa.splits["train"]), name=n) for n in ("a", "b")]
        with pytest.raises(UsageError, match=r"is in .*a.jsonl and again in .*b.jsonl.*merge"):
            cqa.join(*files)

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        task = config.Task(name="word_problems", record_files=str(tmp_path / "none.jsonl"))
        with pytest.raises(UsageError, match=r"none.jsonl' does not exist.*--rationales FILE"):
            prepare.make_request(task, config.Vocabulary())

    def test_a_seqio_task(self) -> None:
        with pytest.raises(UsageError, match=r"Task.record_files is for task files"):
            config.Task(mixture_or_task_name="a", mixture_or_task_module="b", record_files="c")


class TestStore:
    def cfg(self, *files: Path) -> config.Task:
        named = ",".join(map(str, files)) or None
        return config.Task(name="cqa", data_dir=str(RELEASE), record_files=named)

    def key(self, *files: Path) -> str:
        request = prepare.make_request(self.cfg(*files), config.Vocabulary(path=str(MODEL)))
        return str(request["key"])

    def test_the_records_decide_the_key_and_their_names_do_not(self, cqa: Cqa) -> None:
        train, test = (cqa.write(map(record, cqa.splits[s]), s) for s in ("train", "test"))
        keys = {self.key(), self.key(train), self.key(train, test)}
        assert len(keys) == 3
        assert self.key(test, train) in keys
        moved = train.rename(train.with_name("moved.jsonl"))
        assert self.key(moved) in keys
        for change in (("Because", "For"), ('"train"', '"test"'), ('"cqa"', '"svamp"')):
            moved.write_text(moved.read_text().replace(*change))
            key = self.key(moved)
            assert key not in keys
            keys.add(key)

    def test_the_same_records_on_another_day_are_the_same_data(self, cqa: Cqa) -> None:
        keys = set()
        for day in ("2026-11-24", "2026-11-25"):
            file = cqa.folder / "train.jsonl"
            header = Header(task="cqa", split="train", teacher="t", date=day, totals={"x": day})
            write_records(file, header, map(record, cqa.splits["train"]))
            keys.add(self.key(file))
        assert len(keys) == 1

    def test_the_store_holds_what_the_rows_have(
        self, cqa: Cqa, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Starts TensorFlow."""
        train = cqa.splits["train"]
        records = [record(e, "ok" if i else "no_answer") for i, e in enumerate(train)]
        file = cqa.write(records)
        caplog.set_level(logging.INFO, "dss_jax")

        def ensure(**data: Any) -> Any:
            caplog.clear()
            settings = config.Data(store_dir=str(tmp_path / "stores"), **data)
            own = config.Vocabulary(path=str(MODEL), extra_ids=0)
            return ensure_store(self.cfg(file), own, settings)

        store = ensure()
        joined, lines = cqa.join(file)
        assert caplog.messages[-3:] == lines
        ensure()
        assert caplog.messages == lines
        for split, found in joined.items():
            for column in ("id", "teacher_label", "rationale"):
                expected = [getattr(e, column) for e in found]
                assert store.split(split).text(column)[:] == expected
            lengths = store.split(split).tokens("rationale_targets").lengths()
            assert [n > 0 for n in lengths] == [bool(e.rationale) for e in found]
        counts = summary.label_counts(cqa.task, str(RELEASE), ("train",), [str(file)])
        assert (counts[0].teacher_accuracy, counts[0].empty_rationales) == (100 * 17 / 18, 1)
        assert ensure(store=str(store.path)).path == store.path
        file.write_text(file.read_text() + "\n")
        with pytest.raises(UsageError, match=r"was not made with the records .*train.jsonl"):
            ensure(store=str(store.path))
        file.unlink()
        assert ensure(store=str(store.path)).path == store.path


@pytest.mark.parametrize("command", ["train", "prepare"])
def test_the_flag_is_short_for_the_setting(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from dss_jax.cli.main import main

    seen: list[config.Task] = []

    def stop(task_cfg: config.Task, *_: Any, **__: Any) -> None:
        seen.append(task_cfg)
        raise UsageError("seen")

    monkeypatch.setattr(prepare, "ensure_store", stop)
    flags = ["--task", "cqa", "--model", "t5_1_1_tiny", "--output_dir", str(tmp_path)]
    assert main([command, *flags, "--rationales", "a.jsonl,b.jsonl"]) == 2
    assert seen[0].record_files == ("a.jsonl", "b.jsonl")
