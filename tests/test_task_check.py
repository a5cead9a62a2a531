"""`dss tasks check`: each fault of a data set is found, and a sound one passes."""

import dataclasses
from pathlib import Path

import pytest
import tickets

from dss_jax.cli.main import main
from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import shipped
from dss_jax.core.prefixes import prefixes
from dss_jax.core.prompt import Exemplar
from dss_jax.core.registry import load_task
from dss_jax.core.scoring import TEXT_ACCURACY, folded_text
from dss_jax.core.types import DistillationTask, Example, plain_example
from dss_jax.core.words import word_in
from dss_jax.data.check import _tokens, check, check_labels_asked
from dss_jax.data.vocabulary import SentencePiece, open_vocabulary, resolve
from dss_jax.interop.model_files import ModelFiles, write_model_files

VOCABULARY = shipped("tasks") / "vocabularies" / "word_problems.model"
LABELS = ("Account", "Billing", "Technical")


def task_of(labels: tuple[str, ...] = LABELS) -> DistillationTask:
    return DistillationTask(
        name="t",
        description="",
        licence="",
        sources=(),
        to_example=plain_example,
        scorer=TEXT_ACCURACY,
        labels=labels,
    )


def sound() -> dict[str, list[Example]]:
    """Three splits without a fault, all labels in each."""
    counts = {"train": 60, "validation": 20, "test": 20}
    return {
        split: [
            Example(
                id=row[0],
                input=f"{row[2]}\n{row[3]}",
                label=row[4],
                allowed_labels=LABELS,
                teacher_label=row[4],
                rationale=f"Because it is {row[0]}.",
            )
            for row in tickets.rows(count, seed)
        ]
        for seed, (split, count) in enumerate(counts.items(), 1)
    }


def stops(
    splits: dict[str, list[Example]],
    labels: tuple[str, ...] = LABELS,
    evaluate: config.Evaluate = config.Evaluate(max_decode_length=32),  # noqa: B008
) -> list[str]:
    run = config.Run(task=config.Task(name="t"), evaluate=evaluate)
    return check(task_of(labels), splits, run, SentencePiece(VOCABULARY)).stops


def notes(splits: dict[str, list[Example]], labels: tuple[str, ...] = LABELS) -> str:
    found = check(task_of(labels), splits, config.Run(), SentencePiece(VOCABULARY)).findings
    return "\n".join(one.note for one in found)


def change(splits: dict, split: str, at: int, **fields: object) -> None:
    splits[split][at] = dataclasses.replace(splits[split][at], **fields)


def test_a_sound_data_set_passes() -> None:
    assert not stops(sound())


def _copied(splits: dict, text: str) -> None:
    change(splits, "train", 0, input="Reset my password, ticket 5")
    change(splits, "test", 3, input=text)


def _renamed(splits: dict, label: str, split: str = "train") -> None:
    change(splits, split, 0, label=label)


def _told(splits: dict) -> None:
    for rows in splits.values():
        rows[:] = [dataclasses.replace(e, input=f"[{e.label}] {e.input}") for e in rows]


def _bare(splits: dict, split: str, field: str) -> None:
    splits[split] = [dataclasses.replace(e, **{field: ""}) for e in splits[split]]


def _unseen(splits: dict) -> None:
    rows = splits["train"]
    rows[:] = [e for e in rows if e.label != "Billing"]


FAULTS = {
    "an exact copy": (
        lambda s: _copied(s, "Reset my password, ticket 5"),
        r"rows of test are in a split before it, too \(exact\): test T-30003 and train T-10000",
    ),
    "a copy but for case": (
        lambda s: _copied(s, "RESET my  password, ticket 5 "),
        r"rows of test are in a split before it, too \(normalised\)",
    ),
    "a slip": (lambda s: _renamed(s, "acount"), r"'acount' \(1\), near 'Account'"),
    "a space": (lambda s: _renamed(s, "Account "), r"'Account ' \(1\), near 'Account'"),
    "a mark": (lambda s: _renamed(s, "N/A", "test"), r"not allowed: 'N/A' \(1\)"),
    "the label in the input": (_told, "the input tells its label: 100 % of the inputs name one"),
    "no gold label": (lambda s: _bare(s, "test", "label"), "no row of test has a gold label"),
    "no rationale": (lambda s: _bare(s, "train", "rationale"), "no row of train has a rationale"),
    "a label that train has not": (_unseen, "labels that train has not: 'Billing'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_should_stop_one(fault: str) -> None:
    plant, said = FAULTS[fault]
    splits = sound()
    plant(splits)
    with pytest.raises(AssertionError, match=said):
        raise AssertionError("\n".join(stops(splits)))


def test_labels_that_are_too_long_or_written_alike() -> None:
    (found,) = stops(sound(), evaluate=config.Evaluate(max_decode_length=2))
    assert "labels are longer than the 2 tokens that are decoded" in found
    splits = sound()
    for at in range(10):
        change(splits, "train", at, label="正面", allowed_labels=("正面", "负面"))
    assert any("no student can tell them apart" in stop for stop in stops(splits))


def test_slips_are_found_where_the_task_names_no_labels() -> None:
    splits = sound()
    for rows in splits.values():
        rows[:] = [dataclasses.replace(e, allowed_labels=()) for e in rows]
    assert not stops(splits, labels=())
    change(splits, "train", 0, label="acount")
    assert any("'acount' (1), near 'Account'" in stop for stop in stops(splits, labels=()))


def test_worked_examples_of_a_label_that_was_renamed() -> None:
    written = load_task("word_problems").prompt
    assert written is not None
    exemplars = tuple(
        Exemplar(input="x", rationale="y", output=text) for text in ("it is billing", "Invoices")
    )
    prompt = dataclasses.replace(written, exemplars=exemplars)
    task = dataclasses.replace(task_of(), prompt=prompt)
    found = check(task, sound(), config.Run(), SentencePiece(VOCABULARY)).stops
    assert found == ["exemplars answer with no allowed label: 'Invoices'"]
    with pytest.raises(UsageError, match=r"'Invoices'\. Mend them .* --exemplars 0\. Nothing was"):
        check_labels_asked(task, [], exemplars=True)


@pytest.mark.parametrize(
    ("label", "text", "there"),
    [
        ("\u6b63\u9762", "\u6240\u4ee5\u7b54\u6848\u662f\u6b63\u9762\u3002", True),
        ("positive", "\u7b54\u6848\u662fpositive\u3002", True),
        ("\uae0d\uc815", "\ub2f5\uc740 \uae0d\uc815\uc785\ub2c8\ub2e4", True),
        ("\u043d\u0435\u0442", "\u0438\u043d\u0442\u0435\u0440\u043d\u0435\u0442", False),
        ("negative", "negatives", False),
        ("(a)", "f(a)", False),
        ("\u5426\u5b9a", "\u7b54\u3048\u306f\u5426\u5b9a\u3067\u3059", True),
        (
            "\u0e1a\u0e27\u0e01",
            "\u0e04\u0e33\u0e15\u0e2d\u0e1a\u0e04\u0e37\u0e2d\u0e1a\u0e27\u0e01",
            True,
        ),
        ("\u0e1a\u0e27\u0e01", "\u0e25\u0e1a", False),
        ("no", "\u7b54\u3048\u306fno\u3067\u3059", True),
        ("", "anything", False),
        # Hindi: "less" in "lack", "car" in "disorder"; "no" and its like, alone.
        ("\u0915\u092e", "\u092f\u0939 \u0915\u092e\u0940 \u0939\u0948", False),
        ("\u0915\u093e\u0930", "\u0935\u093f\u0915\u093e\u0930", False),
        ("\u0928\u0939\u0940", "\u0928\u0939\u0940\u0902", False),
        (
            "\u0928\u0939\u0940\u0902",
            "\u0909\u0924\u094d\u0924\u0930: \u0928\u0939\u0940\u0902\u0964",
            True,
        ),
        # Persian, after a joiner; an emoji, whose mark is of its looks.
        (
            "\u062e\u0648\u0627\u0647\u0645",
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
            False,
        ),
        ("\u2764", "so \u2764\ufe0f", True),
        ("no", "\u2764\ufe0fno", True),
    ],
)
def test_a_label_is_a_word_of_its_own(label: str, text: str, there: bool) -> None:
    assert word_in(folded_text(label), folded_text(text)) == there


def test_a_split_that_nobody_was_asked_about_is_not_called_wrong() -> None:
    splits = sound()
    for at in range(len(splits["test"])):
        change(splits, "test", at, teacher_label="", rationale="")
    found = check(task_of(), splits, config.Run(), SentencePiece(VOCABULARY)).findings
    (one,) = (f for f in found if f.what == "with a rationale")
    assert one.found["test"] == "0 of 20"
    assert one.found["train"] == "60 of 60, right 100.0 %"
    change(splits, "train", 0, teacher_label="", rationale="")
    (one,) = (
        f for f in check(task_of(), splits, config.Run(), None).findings if f.what == one.what
    )
    assert one.found["train"] == "59 of 60, right 100.0 %"


def test_what_is_worth_a_look() -> None:
    splits = sound()
    same = splits["train"][1]
    other = "Billing" if same.label != "Billing" else "Account"
    change(splits, "train", 0, input=same.input.upper(), label=other)
    change(splits, "test", 0, input="正 " * 1100)
    said = notes(splits)
    assert f"same text, different labels: T-10000 {other!r} and T-10001 {same.label!r}" in said
    assert "1 are cut at 1024 tokens (Data.input_length)" in said
    assert "input: 1 rows with characters that the vocabulary lacks: 正 (1,100)" in said


def test_an_input_of_several_parts_is_counted_as_it_is_tokenised() -> None:
    own, text = open_vocabulary(resolve("bytes")), "ab </s> cd"
    rows = {"train": [Example(id="1", input=text, label="x")]}
    found = _tokens(rows, own, "paper")["train"]["input"]
    whole = own.parts(prefixes("paper").label + text)
    assert found.tolist() == [sum(len(own.encode(part)) + 1 for part in whole)]


def test_the_baseline_is_that_of_the_commonest_label() -> None:
    splits = sound()
    for rows in splits.values():
        rows[:] = [
            dataclasses.replace(e, label="Billing" if n % 4 else "Account")
            for n, e in enumerate(rows)
        ]
    found = check(task_of(), splits, config.Run(), None).findings
    (one,) = (f for f in found if f.what == "right who always says 'Billing'")
    assert dict(one.found) == dict.fromkeys(splits, "75.0 %")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tickets.write(tmp_path)
    columns = ["--input", "Subject,Body", "--label", "Category", "--id", "Ticket"]
    assert main(["init", "tickets", "--from", "tickets.csv", *columns]) == 0
    return tmp_path


def test_the_command_ends_with_1_for_what_should_stop_one(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["tasks", "check", "tickets"]) == 1
    said = capsys.readouterr().out
    assert "stop: gold labels that are not allowed: 'Acount' (1), near 'Account'" in said
    assert "no vocabulary is at hand" in said
    tickets.write(here, tickets.rows())
    flags = ["--vocabulary", str(VOCABULARY), "--out", "check.png"]
    assert main(["tasks", "check", "tickets", *flags]) == 0
    said = capsys.readouterr().out
    assert "nothing found that should stop you" in said
    assert "tokens of the input" in said
    assert Path("check.png").read_bytes().startswith(b"\x89PNG")


def test_the_vocabulary_is_that_of_the_run_in_the_tasks_folder(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tickets.write(here, tickets.rows())
    write_model_files(here / "runs" / "tickets", ModelFiles(config.T5Config(), VOCABULARY, 0))
    assert main(["tasks", "check", "tickets"]) == 0
    assert "tokens of the input" in capsys.readouterr().out


def test_records_of_another_task_should_stop_one(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tickets.write(here, tickets.rows())
    header = '{"dss_records": 1, "task": "other", "split": "train", "teacher": "m"}\n'
    Path("r.jsonl").write_text(header)
    assert main(["tasks", "check", "tickets", "--rationales", "r.jsonl"]) == 1
    assert "stop: r.jsonl has records of task 'other'" in capsys.readouterr().out
