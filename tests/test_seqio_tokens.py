"""The tokens of a store are those of SeqIO's pipelines, whatever the text. Imports TensorFlow."""

import itertools
import json
import lzma
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from test_seqio_tasks import EXTRA_IDS, MODEL, RELEASE, SHARED, T5_MODEL, make_store

from dss_jax.core import config
from dss_jax.core.prefixes import PREFIXES
from dss_jax.core.registry import load_task
from dss_jax.core.types import Example
from dss_jax.data.ragged import Ragged
from dss_jax.data.rows import examples
from dss_jax.data.store import SAMPLES, TARGETS
from dss_jax.data.vocabulary import SentencePiece

pytest.importorskip("seqio")

PALM = SHARED / "text" / "esnli_train_completions.jsonl.xz"
PALM_TEXTS = 4000

TRICKY = (
    "",
    " ",
    "  two  spaces ",
    "line\nbreak\ttab",
    "½ ﬁ ü 中 🙂",
    "a</s>b",
    "</s>",
    "</s></s> x</s>",
    "sooooooo yummy aaaaaaaaa hmmmmmmm zzzzzzz 0000000",
    "<extra_id_0> and <extra_id_9>",
    "nul\x00byte",
    "▁ \u2581 word",
    "e\u0301 \u00e9 \u200b",
)
"""Texts on which two tokenisers are likely to differ."""


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary in which "ooo" is "o" and "oo" or "oo" and "o", with the same score, as in T5's:
    SentencePiece's library and SeqIO's operation then choose differently.
    """
    file = tmp_path_factory.mktemp("vocabulary") / "tied.model"
    file.write_bytes(MODEL.read_bytes() + _piece("oo", -4.21) + _piece("kk", -10.63))
    return file


def _piece(text: str, score: float) -> bytes:
    """One more entry of a SentencePiece model, in protocol-buffer wire format."""
    entry = b"\x0a" + bytes([len(text)]) + text.encode() + b"\x15" + struct.pack("<f", score)
    return b"\x0a" + bytes([len(entry) + 2]) + entry + b"\x18\x01"


def test_the_two_tokenisers_differ_here(tied: Path) -> None:
    """Else the tests below would show nothing."""
    (ids,) = (store_columns([Example(id="0", input="sooooooo")], model=tied)["label_inputs"],)
    assert ids[0].tolist() != toy.input_ids(SentencePiece(tied, EXTRA_IDS), "[label] sooooooo")


def rows_of(texts: Sequence[str]) -> list[Example]:
    """A row for each text, which stands in all of its places."""
    return [
        Example(id=f"{i}", input=text, label=text, teacher_label=text[:3], rationale=text * 2)
        for i, text in enumerate(texts)
    ]


def store_columns(
    found: list[Example], model: Path = MODEL, extra_ids: int = EXTRA_IDS, style: str = "paper"
) -> dict[str, Ragged]:
    """What is written into a store."""
    from dss_jax.data.seqio_prepare import TaskRows, content_of

    return dict(TaskRows(content_of(model), extra_ids, style)(found))


def check_against_pipelines(
    name: str, found: list[Example], model: Path, extra_ids: int = EXTRA_IDS, style: str = "paper"
) -> None:
    """Compares each row's tokens with what the registered SeqIO tasks give for it."""
    from dss_jax.data import seqio_tasks

    columns = store_columns(found, model, extra_ids, style)
    settings = {"vocabulary_path": model, "extra_ids": extra_ids, "prefixes": style}
    read = mock.Mock(return_value=(lambda split: found, ("train",)))
    with mock.patch.object(seqio_tasks, "_reader", read):
        tasks = seqio_tasks.register(load_task(name), **settings)
    for targets, field in TARGETS.items():
        inputs = "rationale_inputs" if field == "rationale" else "label_inputs"
        dataset = tasks[field].get_dataset(sequence_length=None, split="train", shuffle=False)
        seen = set()
        for row in dataset.as_numpy_iterator():
            number = int(row["row"])
            seen.add(number)
            assert columns[inputs][number].tolist() == row["inputs"].tolist(), found[number]
            assert columns[targets][number].tolist() == row["targets"].tolist(), found[number]
        assert seen == {i for i, e in enumerate(found) if getattr(e, field)}
        assert {i for i, n in enumerate(columns[targets].lengths()) if n} == seen


@pytest.mark.parametrize("style", ["paper", "released_code"])
@pytest.mark.parametrize("name", ["cqa", "svamp", "esnli", "anli1", "word_problems"])
def test_they_are_seqios(tied: Path, name: str, style: str) -> None:
    found = examples(load_task(name), "validation", RELEASE)[:60]
    check_against_pipelines(name, found + rows_of(TRICKY), tied, style=style)


@settings(max_examples=6, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=100, max_size=200))
def test_they_are_seqios_for_any_text(tied: Path, texts: list[str]) -> None:
    check_against_pipelines("svamp", rows_of(texts), tied)


@settings(max_examples=20, deadline=None)
@given(st.text(st.characters(), max_size=30))
def test_half_a_character_is_unknown_and_no_error(tied: Path, text: str) -> None:
    """Records may hold what no UTF-8 has."""
    from dss_jax.core.texts import well_formed

    got, wanted = (store_columns(rows_of([one])) for one in (text, well_formed(text)))
    for column, ragged in wanted.items():
        assert got[column].values.tolist() == ragged.values.tolist()


class TestWhatAStoreSays:
    """Of the rows that it was made from. The child's work is done in this process."""

    TASK = """
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.types import DistillationTask, Jsonl, plain_example
TASK = DistillationTask(
    name="mine", description="d", licence="l", sources=(Jsonl(files={"train": "t.jsonl"}),),
    to_example=plain_example, scorer=TEXT_ACCURACY, validation_fraction=0.25)
"""
    ROWS = (
        {"input": "Hot?", "label": "sí", "teacher_label": "sí", "rationale": "你好 [bold]x"},
        {"input": "Cold?", "label": "no", "teacher_label": "not so", "rationale": "5² is 25."},
        {"input": "Wet?", "label": "no", "teacher_label": "no", "rationale": float("nan")},
        {"input": "Dry?", "label": "no", "rational": "Sun"},
        {"input": "Old?", "label": "no", "teacher_label": "no"},
        {"input": "New?", "label": "no", "teacher_label": "no"},
    )

    @pytest.fixture
    def flags(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        from dss_jax.data import prepare_child, seqio_prepare

        monkeypatch.setattr(prepare_child, "run", lambda request: seqio_prepare.answer(request))
        (tmp_path / "mine.py").write_text(self.TASK)
        (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, self.ROWS)))
        where = ["--task_dir", str(tmp_path), "--store_dir", str(tmp_path / "stores")]
        return [*where, "--vocabulary", str(MODEL)]

    def test_bad_rows_are_an_error_or_left_out(self, flags: list[str], capsys: Any) -> None:
        from dss_jax.cli.main import main

        assert main(["prepare", "--task", "mine", *flags]) == 2
        said = capsys.readouterr().err
        assert "line 3: rationale must be text, not nan" in said
        assert "line 4: unknown field 'rational', did you mean 'rationale'?" in said
        assert "2 of 6 rows cannot be used" in said
        assert main(["prepare", "--task", "mine", "--bad_rows", "skip", *flags]) == 0
        out = capsys.readouterr()
        text = out.out + out.err
        assert "train: 2 rows are left out\n" in text
        for words in (
            "train: 3 rows, 3 with a label, 2 with a rationale, teacher right 66.67 %, 0 cut, "
            "1 with unknown characters, 2 left out that cannot be used",
            "validation: 1 rows, 1 with a label, 0 with a rationale, teacher right 100.00 %, ",
            "train rationale: 1 rows with characters that it changes: ² (1, becomes '2')",
            "train label: 1 rows with characters that the vocabulary lacks: í (1). Give a model",
        ):
            assert words in text

    def test_statistics(self, flags: list[str], capsys: Any) -> None:
        from dss_jax.cli.main import main

        assert main(["tasks", "stats", "mine", "--gin.Task.bad_rows='skip'", *flags]) == 0
        out = capsys.readouterr().out
        (train,) = (line.split() for line in out.splitlines() if line.startswith("  train   "))
        # Rows, teacher accuracy, invalid, empty, no rationale, with a label, labels, seen once.
        assert train[1:10] == ["3", "66.67", "0", "0", "1", "3", "2", "1", "3"]
        assert "  train label           1      í (1) " in out
        assert "² (1, becomes '2')" in out

    def test_labels_that_are_written_alike(
        self, flags: list[str], tmp_path: Path, capsys: Any
    ) -> None:
        from dss_jax.cli.main import main

        rows = [{"input": "x", "label": label} for label in ("正面", "负面", "正面", "负面")]
        (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert main(["prepare", "--task", "mine", *flags]) == 2
        assert "'正面' and '负面' (both ' ⁇ ')" in capsys.readouterr().err


@settings(max_examples=3, deadline=None)
@given(st.lists(st.text("sok </s>", max_size=40), min_size=200, max_size=300))
def test_they_are_seqios_where_pieces_tie(tied: Path, texts: list[str]) -> None:
    check_against_pipelines("svamp", rows_of(texts), tied)


@pytest.mark.skipif(not (PALM.is_file() and T5_MODEL.is_file()), reason="needs the shared text")
def test_they_are_seqios_for_what_a_teacher_has_written() -> None:
    with lzma.open(PALM, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line) for line in itertools.islice(lines, PALM_TEXTS)]
    found = [
        Example(
            id=str(i), input=text[:200], label=text[:9], teacher_label=text[-9:], rationale=text
        )
        for i, text in enumerate(texts)
    ]
    assert len(found) == PALM_TEXTS
    check_against_pipelines("cqa", found, T5_MODEL, extra_ids=100)


def test_inputs_of_rows_without_a_target_are_those_of_rows_with_one(tied: Path) -> None:
    with_targets = rows_of([text or "x" for text in TRICKY])
    without = [Example(id=e.id, input=e.input) for e in with_targets]
    expected, found = store_columns(with_targets, tied), store_columns(without, tied)
    for column in ("label_inputs", "rationale_inputs"):
        for row in range(len(TRICKY)):
            assert found[column][row].tolist() == expected[column][row].tolist()
    for column in TARGETS:
        assert not found[column].lengths().any()


@settings(max_examples=30, deadline=None)
@given(labels=st.lists(st.text('ab",\\\x00\t\n\x1f\x7f[]', max_size=3), max_size=3))
def test_allowed_labels_are_json(labels: list[str]) -> None:
    row = Example(id="", input="?", allowed_labels=tuple(labels))
    found = bytes(store_columns([row])["allowed_labels"][0]).decode()
    assert found == json.dumps(labels, ensure_ascii=False)


def test_several_rationales_are_those_of_single_ones() -> None:
    texts = [text for text in TRICKY if text]
    single = store_columns([Example(id=t, input="x", rationale=t) for t in texts])
    joined = [i for row in range(len(texts)) for i in single["rationale_targets"][row].tolist()]
    several = Example(id="0", input="x", rationale=texts[0], rationales=tuple(texts))
    columns = store_columns([Example(id="1", input="y"), several])
    assert columns[SAMPLES].lengths()[0] == 0
    assert columns[SAMPLES][1].tolist() == joined


def test_the_parts_of_a_split_make_no_difference() -> None:
    from dss_jax.data.store_writer import Joined

    found = examples(load_task("cqa"), "train", RELEASE) + rows_of(TRICKY)
    whole = store_columns(found)
    parts = Joined([*whole], [store_columns(found[i : i + 7]) for i in range(0, len(found), 7)])
    for column, ragged in whole.items():
        assert parts[column].values.tolist() == ragged.values.tolist()
        assert parts[column].offsets.tolist() == ragged.offsets.tolist()


TASK_FILE = """
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.types import DistillationTask, Jsonl, plain_example
TASK = DistillationTask(
    name="mine", description="d", licence="l", sources=(Jsonl(files={"train": "t.jsonl"}),),
    to_example=plain_example, scorer=TEXT_ACCURACY)
"""


def test_both_roles_of_a_row_read_the_same_text(
    tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first row has no rationale, so SeqIO has no task that reads it in that role."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.py").write_text(TASK_FILE)
    rows: list[dict[str, Any]] = [
        {"input": "sooooooo good", "label": "yes", "rationale": ""},
        {"input": "fine", "label": "no", "rationale": "because"},
    ]
    (tmp_path / "tasks" / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setenv("DSS_TASK_PATH", str(tmp_path / "tasks"))
    caplog.set_level("INFO", "dss_jax")
    split = make_store(tmp_path, config.Task(name="mine"), tied).split("train")
    vocabulary, style = SentencePiece(tied, EXTRA_IDS), PREFIXES["paper"]
    for row in range(len(rows)):
        read = [
            split.tokens(column)[row].tolist()[len(vocabulary.encode(prefix)) :]
            for column, prefix in style.of_columns.items()
        ]
        assert read[0] == read[1]
    assert caplog.messages == ["  train: 2 rows"]
