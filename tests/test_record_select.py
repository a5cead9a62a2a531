"""`dss records select`: each way against brute force, and what it writes is taken by the others."""

import dataclasses
import itertools
import json
import math
import random
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from test_record_files import HEADER, record, sample

from dss_jax.cli.main import main
from dss_jax.core.errors import UsageError
from dss_jax.core.registry import load_task
from dss_jax.data.rationales import join_records
from dss_jax.data.rows import examples
from dss_jax.records import select
from dss_jax.records.files import read_records, write_records
from dss_jax.records.ids import ids_in
from dss_jax.records.near import words

WORDS = [
    "the",
    "a",
    "red",
    "blue",
    "big",
    "dog",
    "cat",
    "house",
    "runs",
    "sleeps",
    "eats",
    "tree",
    "small",
    "green",
    "bird",
]


def texts(count: int, seed: int = 0) -> dict[str, str]:
    rng = random.Random(seed)
    return {f"r{i}": " ".join(rng.choices(WORDS, k=rng.randint(1, 8))) for i in range(count)}


ROWS = texts(40)


def cosine(a: str, b: str, every: list[str]) -> float:
    """By the definition, a word at a time."""

    def weights(text: str) -> dict[str, float]:
        counts = Counter(text.split())
        rows = {w: sum(w in other.split() for other in every) for w in counts}
        return {w: n * (1 + math.log((1 + len(every)) / (1 + rows[w]))) for w, n in counts.items()}

    x, y = weights(a), weights(b)
    norm = math.hypot(*x.values()) * math.hypot(*y.values())
    return round(sum(v * y.get(w, 0) for w, v in x.items()) / norm, select.DECIMALS)


def test_what_is_drawn_hangs_on_the_seed_and_the_ids_alone() -> None:
    names = [*ROWS]
    order = select.drawn(names, 3)
    assert sorted(order) == sorted(names)
    assert select.drawn(reversed(names), 3) == order != select.drawn(names, 4)
    # Other rows beside them move none.
    assert [n for n in select.drawn([*names, "new"], 3) if n != "new"] == order


def test_tf_idf_is_that_of_the_definition() -> None:
    every = [*ROWS.values()]
    found = select.tf_idf(every).toarray()
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(len(every)))
    for i, j in itertools.combinations(range(12), 2):
        assert found[i] @ found[j] == pytest.approx(cosine(every[i], every[j], every))
    assert not select.tf_idf(["", "?!"]).toarray().any(), "without a word"


@pytest.mark.parametrize("seed", range(3))
def test_diverse_is_the_farthest_each_time(seed: int) -> None:
    every, order = [*ROWS.values()], select.drawn(ROWS, seed)
    chosen = [order[0]]
    while len(chosen) < 12:
        # The first of equals in the order that is drawn.
        far = {n: max(cosine(ROWS[n], ROWS[c], every) for c in chosen) for n in order}
        chosen.append(min((n for n in order if n not in chosen), key=far.__getitem__))
    assert select.diverse(ROWS, 12, seed) == chosen
    assert select.diverse(ROWS, 5, seed) == chosen[:5], "a smaller budget is a part"
    shuffled = dict(random.Random(seed).sample([*ROWS.items()], len(ROWS)))
    assert select.diverse(shuffled, 12, seed) == chosen
    assert sorted(select.diverse(ROWS, len(ROWS), seed)) == sorted(ROWS)


def test_diverse_covers_as_gonzalez_proved() -> None:
    """No row is farther from the chosen ones than twice the least possible, in a metric."""
    rows = texts(11, seed=5)
    every = [*rows.values()]
    far = {
        (a, b): math.sqrt(max(0, 2 - 2 * cosine(rows[a], rows[b], every)))
        for a, b in itertools.product(rows, rows)
    }

    def radius(chosen: tuple[str, ...]) -> float:
        return max(min(far[row, c] for c in chosen) for row in rows)

    best = min(map(radius, itertools.combinations(rows, 3)))
    assert radius(tuple(select.diverse(rows, 3, 0))) <= 2 * best


@pytest.mark.parametrize("seed", range(3))
def test_nearest_takes_turns_over_the_targets(seed: int) -> None:
    targets = ["the red dog", "a cat sleeps", "big house", "the red dog"]
    order, every = select.drawn(ROWS, seed), [*ROWS.values(), *sorted(set(targets))]
    ranks = {name: len(ROWS) for name in order}
    for target in set(targets):
        near = sorted(order, key=lambda n: -cosine(ROWS[n], target, every))
        near = [name for name in near if cosine(ROWS[name], target, every) > 0]
        ranks = {n: min(ranks[n], near.index(n) if n in near else len(ROWS)) for n in order}
    expected = sorted(order, key=ranks.__getitem__)
    assert select.nearest(ROWS, targets, len(ROWS), seed) == expected
    assert select.nearest(ROWS, targets, 7, seed) == expected[:7]
    assert {ranks[n] for n in expected[:3]} == {0}, "the nearest of each target is there"


def test_rows_without_words_and_scripts_without_spaces() -> None:
    rows = {f"e{i}": "?!" for i in range(9)} | {"a": "red dog", "b": "red cat", "c": "red dog cat"}
    for seed in range(5):
        assert {"a", "b"} <= {*select.diverse(rows, 4, seed)}
        assert set(select.nearest(rows, ["cat", "?!"], 2, seed)) == {"b", "c"}
    for near, far, target in (
        ("\u6211\u559c\u6b22\u732b", "\u4eca\u5929\u4e0b\u96e8", "\u732b\u5728\u7761\u89c9\u3002"),
        ("\u732b\u304c\u597d\u304d", "\u6c34\u66dc\u65e5", "\u9ed2\u3044\u732b\u3001"),
        ("\u0e09\u0e31\u0e19\u0e23\u0e31\u0e01", "\u0e1e\u0e1a", "\u0e09\u0e23"),
    ):
        for seed in range(5):
            assert select.nearest({"near": near, "far": far}, [target], 1, seed) == ["near"]
    assert words("A\u732b\u3002dogs, \u72ac") == ["a", "\u732b", "dogs", "\u72ac"]
    # Hindi "a girl plays", Thai "comes"; a joiner of Persian's.
    hindi, persian = (
        ["\u0932\u095c\u0915\u0940", "\u0916\u0947\u0932\u0924\u0940"],
        "\u0645\u06cc\u200c\u0631\u0648\u062f",
    )
    assert words(" ".join(hindi)) == [unicodedata.normalize("NFC", one) for one in hindi]
    assert words("\u0e21\u0e32\u0e01\u0e34\u0e19") == [*"\u0e21\u0e32\u0e01\u0e34\u0e19"]
    assert words(persian) == [persian]


def test_scores_and_their_ties() -> None:
    scores = {name: float(int(name[1:]) % 3) for name in ROWS}
    found = select.by_score(scores, 20, 1)
    assert [scores[n] for n in found] == [2.0] * 13 + [1.0] * 7
    assert found[:13] == [n for n in select.drawn(ROWS, 1) if scores[n] == 2]


def test_difficulty() -> None:
    log_probs = {"yes": math.log(0.3), "no": math.log(0.1)}
    line = {"id": "x", "prediction": "yes", "correct": True, "label_log_probs": log_probs}
    # Of the allowed labels yes has 0.3 / 0.4.
    assert select.difficulty(line | {"target": "yes"}) == pytest.approx(0.25)
    assert select.difficulty(line | {"target": "no"}) == pytest.approx(0.75)
    with pytest.raises(UsageError, match="target of 'x' is 'maybe', which is not among"):
        select.difficulty(line | {"target": "maybe"})
    never = {"id": "x", "label_log_probs": {**log_probs, "maybe": None}}
    assert select.difficulty(never | {"target": "maybe"}) == 1.0
    assert select.difficulty(never | {"target": "yes"}) == pytest.approx(0.25)
    assert select.difficulty(line) == pytest.approx(0.25), "of what is predicted, without gold"
    assert select.difficulty({"id": "x", "correct": False}) == 1.0
    assert select.difficulty({"id": "x", "probability": 0.9}) == pytest.approx(0.1)
    for wrong in ({}, {"correct": "no"}, {"label_log_probs": {"yes": None}}, {"probability": ""}):
        with pytest.raises(UsageError, match="the prediction of 'x' has neither"):
            select.difficulty({"id": "x"} | wrong)


TASK = """
from dss_jax.core.completions import UP_TO_FINAL_STOP, AnswerForm
from dss_jax.core.prompt import Prompt
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.core.types import DistillationTask, Example, Jsonl

TASK = DistillationTask(
    name="rows", description="rows", licence="none",
    sources=(Jsonl(files={"train": "train.jsonl", "validation": "validation.jsonl"}),),
    to_example=lambda row, _: Example(
        id=row["id"], input=row["input"], label="yes", allowed_labels=("yes", "no")),
    scorer=TEXT_ACCURACY,
    prompt=Prompt(
        instruction="Answer.", question="Q: {input}", opening="A:", stop=("Q:",),
        answer="A: {rationale} So the answer is {output}.", exemplars=(),
        form=AnswerForm(run_on="Q:", marker="So the answer is", label=UP_TO_FINAL_STOP),
    ),
)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows.py").write_text(TASK)
    for split, rows in (("train", ROWS), ("validation", {"v0": "the red dog", "v1": "big house"})):
        lines = [json.dumps({"id": name, "input": text}) + "\n" for name, text in rows.items()]
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    several = [
        record(name, sample("yes"), sample("no"), gold="yes", agreement=(1 + i % 4) / 4)
        for i, name in enumerate(ROWS)
    ]
    records = [dataclasses.replace(r, input=ROWS[r.id]) for r in several]
    header = dataclasses.replace(HEADER, task="rows")
    write_records(tmp_path / "records.jsonl", header, records)
    (tmp_path / "p.jsonl").write_text(
        "".join(json.dumps({"id": f"r{i}", "correct": i % 2 == 0}) + "\n" for i in range(30))
    )
    return tmp_path


def selected(folder: Path, *flags: str, budget: int = 8) -> Path:
    out = folder / "chosen.jsonl"
    words = ["--task_dir", str(folder), "--budget", str(budget), "--out", str(out), *flags]
    assert main(["records", "select", *words]) == 0
    return out


OF_TASK = {
    "random": select.drawn(ROWS, 0)[:8],
    "diversity": select.diverse(ROWS, 8, 0),
    "nearest": select.nearest(ROWS, ["the red dog", "big house"], 8, 0),
}


@pytest.mark.parametrize("way", OF_TASK)
def test_rows_of_a_task_are_those_that_are_asked_about(way: str, folder: Path, capsys) -> None:
    chosen = selected(folder, "--task", "rows", "--by", way)
    lines = [json.loads(line) for line in chosen.read_text().splitlines()]
    assert [line["id"] for line in lines] == OF_TASK[way]
    assert all(line["input"] == ROWS[line["id"]] for line in lines)
    assert "8 of 40 rows, by " + way in capsys.readouterr().out
    command = ["extract", "--task", "rows", "--task_dir", str(folder), "--model", "m"]
    assert main([*command, "--ids", str(chosen), "--show_prompt", "99"]) == 0
    asked = [x.split()[1] for x in capsys.readouterr().out.splitlines() if x.startswith("--- r")]
    assert asked == [f"{name}," for name in ROWS if name in OF_TASK[way]]
    flags = ["--ids", str(chosen), "--limit", "3", "--show_prompt", "99"]
    assert main([*command, *flags]) == 0
    asked = [x.split()[1] for x in capsys.readouterr().out.splitlines() if x.startswith("--- r")]
    assert asked == [f"{name}," for name in ROWS if name in OF_TASK[way][:3]], "the first chosen"


def test_difficulty_and_a_pool(folder: Path, capsys) -> None:
    hard = folder / "hard.jsonl"
    flags = ["--task", "rows", "--by", "difficulty", "--predictions", str(folder / "p.jsonl")]
    chosen = selected(folder, *flags, budget=20)
    assert "10 of 40 rows have no prediction" in capsys.readouterr().out
    assert sum(int(name[1:]) % 2 for name in ids_in(chosen)) == 15, "all that are wrong"
    chosen.rename(hard)
    chosen = selected(folder, "--task", "rows", "--by", "diversity", "--ids", str(hard))
    assert ids_in(chosen) < ids_in(hard)


def test_records_are_those_that_are_trained_on(folder: Path) -> None:
    chosen = selected(folder, str(folder / "records.jsonl"), "--by", "agreement", budget=10)
    header, records = read_records(chosen)
    kept = {r.id: r.agreement for r in records}
    assert [*kept] == [name for name in ROWS if name in kept], "in their order"
    assert [*kept.values()] == [1.0] * 10
    (entry,) = header.filters
    assert (entry["filter"], entry["value"]) == ("ids", "agreement, seed 0")
    assert (entry["rows_left_out"], entry["rows_kept"]) == (30, 10)
    task = load_task("rows", [str(folder)])
    rows = {"train": examples(task, "train")}
    joined, _ = join_records(task, rows, [chosen])
    assert {e.id for e in joined["train"] if e.rationale} == set(kept)


def test_records_are_filtered_by_ids(folder: Path) -> None:
    out = folder / "f.jsonl"
    flags = ["--task_dir", str(folder), "--ids", str(folder / "p.jsonl"), "--out", str(out)]
    assert main(["records", "filter", str(folder / "records.jsonl"), *flags]) == 0
    assert ids_in(out) == {f"r{i}" for i in range(30)}


WRONG = [
    ("--by random", "Give --budget N --by WAY"),
    ("--budget 3", "Give --budget N --by WAY"),
    ("--by randm --budget 3 --task rows", "Did you mean 'random'?"),
    ("--by random --budget 0 --task rows", "--budget must be at least 1"),
    ("--by random --budget 41 --task rows", "--budget 41: there are 40 rows"),
    ("--by random --budget 3", "select takes one record file; or none, and --task NAME"),
    ("DIR/records.jsonl --by random --budget 3 --task rows", "select takes one record file"),
    ("--by agreement --budget 3 --task rows", "several samples a row: dss extract --samples 5"),
    ("--by difficulty --budget 3 --task rows", "needs --predictions FILE"),
    ("--by nearest --like train --budget 3 --task rows", "unknown split --like 'train'"),
    ("--by nearest --like test --budget 3 --task rows", "has no test split"),
    ("--by random --budget 3 --task rows --ids DIR/rows.py", "rows.py:2: no line of JSON with an"),
    ("--by random --budget 3 --task rows --ids DIR/none", "cannot read"),
]


@pytest.mark.parametrize(("flags", "says"), WRONG)
def test_a_mistake_is_named_with_the_fix(flags: str, says: str, folder: Path, capsys) -> None:
    words = flags.replace("DIR", str(folder)).split()
    out = folder / "out.jsonl"
    command = ["records", "select", *words, "--task_dir", str(folder), "--out", str(out)]
    assert main(command) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_ids_of_no_row_are_told(folder: Path, capsys) -> None:
    ids = folder / "ids.jsonl"
    ids.write_text('{"id": "r1"}\n\n{"id": "gone"}\n')
    command = ["extract", "--task", "rows", "--task_dir", str(folder), "--model", "m"]
    assert main([*command, "--ids", str(ids), "--show_prompt", "9"]) == 0
    assert "1 of 2 ids are of no row of train" in capsys.readouterr().out
    ids.write_text('{"id": "gone"}\n')
    assert main([*command, "--ids", str(ids), "--show_prompt", "9"]) == 2
    assert "no row is left to ask about. See --ids" in capsys.readouterr().err


def test_released_completions_of_some_rows(tmp_path: Path) -> None:
    release = Path(__file__).parent / "fixtures" / "release"
    names = [e.id for e in examples(load_task("cqa"), "train", release)]
    ids, out = tmp_path / "ids.jsonl", tmp_path / "out.jsonl"
    ids.write_text("".join(json.dumps({"id": name}) + "\n" for name in names[1:4]))
    command = ["extract", "--task", "cqa", "--from_release", str(release), "--out", str(out)]
    for flags, kept in ((["--ids", str(ids)], names[1:4]), (["--shard", "1/2"], names[1::2])):
        assert main([*command, *flags]) == 0
        assert [r.id for r in read_records(out)[1]] == kept
