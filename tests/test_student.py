"""A student that is asked: by Python, beside `dss eval`, from other folders, and asked wrongly."""

import dataclasses
import functools
import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import student_maker

import dss_jax
from dss_jax.cli.main import main
from dss_jax.core import student_card
from dss_jax.core.config import Method
from dss_jax.core.errors import Diverged, UsageError
from dss_jax.core.student_card import StudentCard
from dss_jax.interop.formats import read_weights, write_weights
from dss_jax.interop.weights import Leaf
from dss_jax.run import student_files
from dss_jax.student import card as cards
from dss_jax.student.student import GeneratedIds, Prediction, Predictions, Student
from dss_jax.train.compile import cache_counts

EXAMPLES = student_maker.examples(30)
TEXTS = [example.input for example in EXAMPLES]
LABELS = [example.allowed_labels for example in EXAMPLES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, with a task file beside it."""
    base = tmp_path_factory.mktemp("student")
    (base / "tasks").mkdir()
    (base / "tasks" / "choices.py").write_text(student_maker.TASK)
    store = student_maker.make_store(base / "store")
    student_maker.make_student(base / "run", store)
    return base / "run"


@pytest.fixture(scope="module")
def student(folder: Path) -> Student:
    return dss_jax.load(folder)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """Another folder with the student."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def asked(folder: Path, tmp_path: Path, rows: list[dict], *flags: str) -> list[dict]:
    """What `dss predict` makes of rows."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    out.unlink(missing_ok=True)
    command = ["predict", "--student", str(folder), "--input", str(source), "--out", str(out)]
    assert main([*command, *flags]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def evaluated(folder: Path, *flags: str) -> dict[str, dict]:
    """Id -> what `dss eval` says of a row of test."""
    tasks = ["--task_dir", str(folder.parent / "tasks")]
    assert main(["eval", "--output_dir", str(folder), *tasks, *flags]) == 0
    file = max((folder / "predictions").iterdir(), key=lambda f: f.stat().st_mtime_ns)
    return {row["id"]: row for row in map(json.loads, file.read_text().splitlines())}


def test_a_prediction_is_what_dss_eval_says_row_for_row(folder: Path, tmp_path: Path) -> None:
    found = evaluated(folder, "--decode", "rank")
    raw = student_maker.raw_rows(30)
    rows = asked(folder, tmp_path, raw, "--task", "choices", *tasks_of(folder))
    assert [row["number"] for row in rows] == list(range(30))
    assert len({row["label"] for row in rows}) > 8, "it answers alike, so this test tells nothing"
    for row in rows:
        one = found[str(row["number"])]
        assert row["label"] == one["prediction"]
        log_probs = np.array([*one["label_log_probs"].values()])
        shares = np.exp(log_probs - log_probs.max())
        assert row["probability"] == pytest.approx(max(shares / shares.sum()), rel=1e-3)


def tasks_of(folder: Path) -> list[str]:
    return ["--task_dir", str(folder.parent / "tasks")]


def test_texts_and_rationales_are_those_of_dss_eval(folder: Path, tmp_path: Path) -> None:
    found = evaluated(folder, "--rationales")
    rows = asked(folder, tmp_path, [{"input": text} for text in TEXTS], "--explain")
    for example, row in zip(EXAMPLES, rows, strict=True):
        one = found[example.id]
        assert (row["label"], row["rationale"]) == (one["prediction"], one["rationale"])
        assert row["probability"] is None


def test_a_student_knows_itself(student: Student) -> None:
    card = student.card
    assert (card.task, card.description) == ("choices", "Which number it is.")
    assert (card.label_prefix, card.rationale_prefix) == ("[label] ", "[rationale] ")
    assert (card.labels, card.row_labels) == ((), True)
    assert (card.input_length, card.max_decode_length) == (40, 5)
    assert len(card.examples) == student_card.EXAMPLES
    assert card.examples[0]["input"] == TEXTS[0]
    assert card.examples[0]["allowed_labels"] == [*LABELS[0]]
    assert card.examples[-1]["rationale"] == "because 29 is 29"


def test_labels_that_the_vocabulary_writes_alike_are_refused(student: Student) -> None:
    with pytest.raises(UsageError, match="the labels '正面' and '负面' are one to this student"):
        student.predict(TEXTS[:2], labels=[["1"], ["正面", "1", "负面"]])
    (one,) = student.predict(TEXTS[:1], labels=["1", "1 ", "负面"])
    assert one.probabilities["1"] == one.probabilities["1 "]


def test_later_rows_may_have_other_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(student_files, "LOOKED_AT", 1)
    known = student_files._known(student_maker.make_store(tmp_path / "store"))
    assert (known["labels"], known["row_labels"]) == ((), True)


def test_parameters_are_cut_as_in_the_run_where_the_devices_allow(
    copy: Path, student: Student
) -> None:
    file = copy / "config.gin"
    text = file.read_text()
    assert "Mesh.model = 1\n" in text
    wanted = student.predict(TEXTS[:3], labels=LABELS[:3])
    for parts, own in ((2, 2), (3, 1)):
        file.write_text(text.replace("Mesh.model = 1\n", f"Mesh.model = {parts}\n"))
        cut = dss_jax.load(copy)
        assert cut._engine._mesh.shape["model"] == own  # type: ignore[attr-defined]
        for one, other in zip(cut.predict(TEXTS[:3], labels=LABELS[:3]), wanted, strict=True):
            assert one.label == other.label
            assert one.log_prob == pytest.approx(other.log_prob, rel=1e-4)


def test_an_answer_depends_on_its_input_alone(student: Student) -> None:
    every = student.predict(TEXTS, labels=LABELS)
    for n in (3, 17):
        (one,) = student.predict(TEXTS[n], labels=[LABELS[n]])
        assert one.label == every[n].label
        assert one.log_prob == pytest.approx(every[n].log_prob, rel=1e-4)
        assert [*one.probabilities] == [*LABELS[n]]
        assert sum(one.probabilities.values()) == pytest.approx(1)
        assert one.probability == max(one.probabilities.values())
    swapped = student.predict(TEXTS[::-1], labels=LABELS[::-1])
    assert [one.label for one in swapped] == [one.label for one in every][::-1]


def test_some_rows_may_have_labels_and_others_any_text(student: Student) -> None:
    first, second = student.predict(TEXTS[:2], labels=[["yes", "no"], []])
    assert first.label in ("yes", "no")
    assert (second.probability, second.probabilities) == (None, {})
    same = student.predict(TEXTS[:2], labels=["yes", "no"])
    assert same[0].label == first.label
    assert same[1].label in ("yes", "no")
    assert student.predict([]) == []


def test_a_completion_says_how_it_ended(student: Student) -> None:
    (short,) = student.complete(["[label] How many"], 3)
    (long,) = student.complete(["[label] How many"], 30)
    assert (short.completion_tokens, short.finish_reason) == (3, "length")
    assert long.text.startswith(short.text)
    assert long.log_prob < short.log_prob < 0
    assert short.prompt_tokens == len(student.encode(["[label] How many"])[0])
    (given,) = student.predict("How many", labels=[[]])
    (same,) = student.complete(["[label] How many"], 5)
    assert (given.label, given.log_prob) == (same.text, pytest.approx(same.log_prob))


def test_inputs_are_encoded_as_in_training(student: Student, folder: Path) -> None:
    from dss_jax.data.store import open_store

    test = open_store(folder.parent / "store").split("test")
    for column, prefix in (("label_inputs", "[label] "), ("rationale_inputs", "[rationale] ")):
        own = student.encode(TEXTS, prefix, cut=False)
        assert own == [test.tokens(column)[n].tolist() for n in range(30)]
    two = student.encode(["a</s>b"])[0]
    assert two.count(1) == 2
    (cut,) = student.encode(["many apples " * 100])
    assert (len(cut), cut[-1]) == (40, 1)


def test_a_cpu_computes_in_float32_unless_it_is_told(copy: Path) -> None:
    file = copy / "config.gin"
    text = file.read_text()
    assert "T5Config.dtype = 'float32'" in text
    file.write_text(text.replace("T5Config.dtype = 'float32'", "T5Config.dtype = 'bfloat16'"))
    for asked, used in ((None, "float32"), ("bfloat16", "bfloat16")):
        student = dss_jax.load(copy, dtype=asked)
        assert student._engine._run.model.dtype == used  # type: ignore[attr-defined]


def test_a_folder_in_hugging_faces_form_answers_alike(
    student: Student, folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "hf"
    # A foreign T5: no prefix, any text.
    bare = dataclasses.replace(read_weights(str(folder)), card=None)
    write_weights(bare, str(other), "hf")
    foreign = dss_jax.load(other)
    assert foreign.card == StudentCard()
    prompt = ["[label] How many apples"]
    assert foreign.complete(prompt, 5)[0].text == student.complete(prompt, 5)[0].text
    shutil.copy(folder / student_card.FILE, other)
    converted = dss_jax.load(other, engine="jax", threads=1)
    before, after = (s.predict(TEXTS, labels=LABELS) for s in (student, converted))
    assert [one.label for one in before] == [one.label for one in after]
    assert [one.log_prob for one in before] == pytest.approx([one.log_prob for one in after])


def test_another_student_of_the_same_place_is_known(folder: Path, tmp_path: Path) -> None:
    place, held = tmp_path / "hf", read_weights(str(folder))

    def origin(scale: float, **options: Any) -> str:
        leaves = {
            name: Leaf(leaf.shape, functools.partial(lambda own: scale * own.read(), leaf))
            for name, leaf in held.leaves.items()
        }
        shutil.rmtree(place, ignore_errors=True)
        write_weights(dataclasses.replace(held, leaves=leaves), str(place), "hf")
        return dss_jax.load(place, **options).origin

    first = origin(1.0)
    assert str(place) in first
    assert origin(1.0) == first
    assert len({first, origin(1.001), origin(1.0, dtype="bfloat16")}) == 3


def test_a_run_of_before_is_asked_too(
    copy: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    card = student_card.read(copy)
    assert card is not None
    (copy / student_card.FILE).unlink()
    known = ("task", "method", "label_prefix", "rationale_prefix", "input_length", "metric")
    without = cards.read(copy)
    assert all(getattr(without, name) == getattr(card, name) for name in known)
    assert "its task file was not found" in said[-1]
    monkeypatch.setenv("DSS_TASK_PATH", str(copy.parent / "tasks"))
    shutil.copytree(Path(student_maker.__file__).parent / "golden", copy.parent / "tasks")
    (copy.parent / "tasks" / "choices.py").write_text(student_maker.TASK)
    assert cards.read(copy).description == "Which number it is."


def test_one_text_may_have_label_and_rationale(tmp_path: Path) -> None:
    store = student_maker.make_store(tmp_path / "store")
    method = Method(name="cot", form="rationale_label", rationale=False)
    student_maker.make_student(tmp_path / "run", store, method=method)
    student = dss_jax.load(tmp_path / "run")
    plain, explained = student.predict(TEXTS[:1])[0], student.predict(TEXTS[:1], explain=True)[0]
    assert plain.rationale is None
    assert explained.rationale is not None
    assert plain.label == explained.label
    with pytest.raises(UsageError, match="label and rationale in one text"):
        student.predict(TEXTS[:1], labels=["yes", "no"])


@pytest.mark.parametrize(
    ("form", "longest"), [("tasks", 5), ("tasks", 12), ("rationale_label", 17), ("tasks", 3)]
)
def test_what_is_no_number_is_no_answer(
    form: str, longest: int, student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a student writes: labels, rationales, both in one text, completions."""

    def generate(inputs: Any, own: int) -> list[GeneratedIds]:
        return [GeneratedIds([5], float("nan") if own == longest else -1.0, True) for _ in inputs]

    monkeypatch.setattr(student._engine, "generate", generate)
    monkeypatch.setattr(student, "card", dataclasses.replace(student.card, form=form))
    with nullcontext() if longest == 3 else pytest.raises(Diverged, match="is no number"):
        student.predict("a", explain=True)
    with pytest.raises(Diverged, match="is no number"):
        student.complete(["a"], longest)


def test_labels_of_no_number_are_no_answer(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(student._engine, "rank", lambda inputs, labels: [[np.nan, -1.0]])
    with pytest.raises(Diverged, match=r"no number \(NaN\): its parameters are damaged"):
        student.predict("a", labels=["yes", "no"])


def test_a_notebook_shows_texts_and_interprets_none() -> None:
    bad = "<script>alert(1)</script>"
    row = Prediction(input=bad, label=bad, probability=0.5, log_prob=-1.0, rationale=f"&{bad}")
    shown = Predictions([row])._repr_html_()
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;") == 3
    assert "&amp;&lt;" in shown
    assert "0.500" in shown
    assert (
        "rationale"
        not in Predictions([Prediction(**{**vars(row), "rationale": None})])._repr_html_()
    )


def test_a_student_is_warm_when_it_says_so(folder: Path) -> None:
    student, counts = dss_jax.load(folder), cache_counts()
    student.warm_up()
    before = counts.found, counts.missing
    for count in (1, 4, 16):
        some = student.card.examples[:count][::-1]
        student.predict(
            [one["input"] for one in some],
            labels=[one["allowed_labels"] for one in some],
            explain=True,
        )
        assert (counts.found, counts.missing) == before, count


@pytest.mark.parametrize("form", ["run", "hf"])
def test_inputs_are_as_long_as_the_card_says(form: str, copy: Path, tmp_path: Path) -> None:
    """Longer than the run's setting, and than the default where there is no run."""
    if form == "hf":
        write_weights(read_weights(copy, "orbax"), str(tmp_path / "hf"), "hf")
        shutil.copy(copy / student_card.FILE, tmp_path / "hf")
        copy = tmp_path / "hf"
    student_maker.with_card(copy, input_length=1200)
    student = dss_jax.load(copy)
    (word,) = student.encode(["apples"])
    long = "apples " * (1100 // (len(word) - 1))
    ends = [f"{long}{word}" for word in ("one", "two")]
    assert all(1024 < len(ids) < 1200 for ids in student.encode(ends))
    one, two = student.predict(ends, labels=["yes", "no"])
    assert one.probability != two.probability
    (one, two) = student.predict(ends, labels=[(), ()])
    assert one.log_prob != two.log_prob


def test_what_is_asked_wrongly(student: Student, copy: Path) -> None:
    for labels, text in (
        ("yes", "labels must be a list of texts"),
        ([["a"], ["b"]], "labels are 2 lists for 1 inputs"),
        ([[""]], "the labels of input 0 must be"),
        ([[1]], "the labels of input 0 must be"),
    ):
        with pytest.raises(UsageError, match=text):
            student.predict("x", labels=labels)  # type: ignore[arg-type]
    student_maker.with_card(copy, rationale_prefix=None, method="standard")
    with pytest.raises(UsageError, match=r"copy: this student \(method standard\) was not trained"):
        dss_jax.load(copy).predict("x", explain=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: shutil.rmtree(f), "there is no folder .*copy"),
        (lambda f: shutil.rmtree(f / "checkpoints"), "copy is of no known format. Looked for"),
        (
            lambda f: (f / "spiece.model").unlink(),
            r"no SentencePiece file beside it \(spiece.model",
        ),
        (lambda f: (f / "spiece.model").write_bytes(b"\x08"), "spiece.model is not the one"),
        (lambda f: (f / "student.json").write_text('{"for'), "student.json cannot be read as"),
        (
            lambda f: (f / "student.json").write_text('{"format": 1, "task": "a", "task": "b"}'),
            "student.json cannot be read as .* two fields are called 'task'",
        ),
        (
            lambda f: (f / "student.json").write_text('{"format": 1, "examples": [{"a": ""}]}'),
            "student.json cannot be read as .* input of an example must be text, not None",
        ),
        (
            lambda f: (f / "student.json").write_text(
                '{"format": 1, "examples": [{"input": "x", "allowed_labels": "yes"}]}'
            ),
            "allowed_labels of an example must be a list such as",
        ),
        (
            lambda f: (f / "t5_config.json").write_text('{"extra_ids": 1, "extra_ids": 2}'),
            "t5_config.json cannot be read .*two fields are called 'extra_ids'",
        ),
        (lambda f: student_maker.with_card(f, form="spans"), "copy is pre-trained on spans"),
        (
            lambda f: _other_vocabulary(f),
            "the vocabulary .*spiece.model has 31904 ids .* only 512 rows",
        ),
        (lambda f: _cut(f), r"checkpoints/1 is damaged: params/\S+ has [\d,]+ bytes, not"),
    ],
    ids=[
        *("folder", "checkpoints", "vocabulary", "spiece", "card", "card twice", "no input"),
        *("allowed", "shape twice", "spans", "unfit", "truncated"),
    ],
)
def test_a_folder_that_is_no_student_says_what_is_wrong(copy: Path, change, message: str) -> None:
    change(copy)
    with pytest.raises(UsageError, match=message):
        dss_jax.load(copy)


def _other_vocabulary(folder: Path) -> None:
    """The model has fewer rows than the vocabulary pieces."""
    file = folder / "t5_config.json"
    shape = json.loads(file.read_text())
    file.write_text(json.dumps(shape | {"extra_ids": 32000 - shape["vocab_size"]}))


def _cut(folder: Path) -> None:
    """The largest file of the checkpoint ends in its middle."""
    files = [f for f in (folder / "checkpoints" / "1" / "params").rglob("*") if f.is_file()]
    largest = max(files, key=lambda f: f.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def test_an_engine_that_does_not_fit_is_refused(copy: Path) -> None:
    with pytest.raises(UsageError, match="unknown engine 'onnx'"):
        dss_jax.load(copy, engine="onnx")
    with pytest.raises(UsageError, match="threads must be at least 1"):
        dss_jax.load(copy, threads=0)
    with pytest.raises(UsageError, match="unknown dtype 'int8'"):
        dss_jax.load(copy, dtype="int8")
    with pytest.raises(
        UsageError, match=r"holds no model\.bin, so it is not in CTranslate2's form"
    ):
        dss_jax.load(copy, engine="ctranslate2")
    (copy / "model.bin").touch()
    with pytest.raises(UsageError, match="which the engine jax does not read"):
        dss_jax.load(copy, engine="jax")
    with pytest.raises(UsageError, match=r"dtype \(--dtype bfloat16\) is of the engine jax"):
        dss_jax.load(copy, dtype="bfloat16")


def test_a_student_loads_what_it_needs_and_no_more(folder: Path) -> None:
    code = (
        "import sys, dss_jax.cli.predict, dss_jax.student.predict, dss_jax.student.load\n"
        "assert not {'jax', 'tensorflow', 'flax', 'tqdm'} & set(sys.modules), 'before'\n"
        f"student = dss_jax.load({str(folder)!r})\n"
        "student.predict('How many', labels=['1', '2'], explain=True)\n"
        "assert 'jax' in sys.modules\n"
        "assert not {'tensorflow', 'seqio', 'torch', 'transformers'} & set(sys.modules), 'after'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
