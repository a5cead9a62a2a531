"""Labels that are taken for each other, counted by hand."""

import json
from pathlib import Path

import pytest
from results_maker import write_run

from dss_jax.report import report
from dss_jax.report.found_runs import closed_labels, find_runs
from dss_jax.report.labels import named_other
from dss_jax.report.page import page_data


def _write(folder: Path, pairs: list[tuple[str, str]], seed: int) -> None:
    """A run that answers (gold, prediction); its rationale names "no"."""
    write_run(folder, [gold == said for gold, said in pairs], seed=seed)
    for split in ("validation", "test"):
        file = folder / "predictions" / f"{split}-best.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line, (gold, said) in zip(lines, pairs, strict=True):
            line |= {"target": gold, "prediction": said, "rationale": "It is no, for sure."}
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    first = [("yes", "yes")] * 3 + [("yes", "no")] + [("no", "no")] * 2 + [("no", "perhaps")] * 2
    second = [("yes", "yes")] * 4 + [("no", "no")] * 4
    for seed, pairs in enumerate((first, second)):
        _write(tmp_path / f"seed_{seed}", pairs, seed)
    return tmp_path


def test_precision_recall_and_confusion_by_hand(runs: Path) -> None:
    (table,) = [t for t in report.write(runs).tables if "labels, dss" in t.title]
    assert table.header[4:] == ("said yes", "said no", "no label")
    assert table.rows == (
        ("yes", "4", "100.0", "87.5", "3.5", "0.5", "0"),
        ("no", "4", "85.7", "75.0", "0", "3", "1"),
    )


def test_the_most_frequent_label_is_a_baseline(runs: Path) -> None:
    assert report.write(runs).tables[0].rows[-1] == ("the most frequent label", "-", "50.00")


def test_the_page_knows_where_a_rationale_argues_for_another_label(runs: Path) -> None:
    (task,) = page_data(find_runs(runs), [], "test", "t")["tasks"]
    names = [item["answers"][0].get("names") for item in task["items"]]
    assert names == ["no"] * 3 + [None] * 3 + ["no"] * 2


def test_what_is_named() -> None:
    labels = ["entailment", "neutral", "not entailment"]
    assert named_other("That is neutral.", "entailment", labels) == "neutral"
    assert named_other("That is Neutral.", "neutral", labels) is None
    assert named_other("neutral or entailment", "neutral", labels) is None, "names both"
    assert named_other("neutrally", "entailment", labels) is None, "no word of its own"
    assert named_other(None, "entailment", labels) is None


def test_what_is_named_where_words_have_no_space_between_them() -> None:
    yes, no = "\u80af\u5b9a", "\u5426\u5b9a"
    assert named_other(f"\u3088\u3063\u3066{no}\u3067\u3059\u3002", yes, (yes, no)) == no
    assert named_other(f"{yes}\u304b{no}\u3067\u3059", yes, (yes, no)) is None, "names both"
    good, bad = "\u0e1a\u0e27\u0e01", "\u0e25\u0e1a"
    said = f"\u0e04\u0e33\u0e15\u0e2d\u0e1a\u0e04\u0e37\u0e2d{good}\u0e04\u0e23\u0e31\u0e1a"
    assert named_other(said, bad, (good, bad)) == good


def test_what_is_no_class_has_no_table() -> None:
    def answers(*targets: str) -> list[dict]:
        return [{"id": str(i), "target": t} for i, t in enumerate(targets)]

    assert closed_labels(answers("a", "b", "b", "b")) == {"b": 0.75, "a": 0.25}
    assert closed_labels(answers("a", "a")) == {}
    assert closed_labels(answers("1 + 2", "3 - 1", "4")) == {}
    assert closed_labels(answers(*(str(i % 13) for i in range(100)))) == {}
