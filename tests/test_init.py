"""`dss init`: from a labelled table to a task whose rows stay on their side."""

import json
import re
import sys
import tracemalloc
import types
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pyarrow
import pytest
import tickets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from protocol_server import answering, completing
from pyarrow import parquet

from dss_jax.cli import gin_config, init_files
from dss_jax.cli.main import main
from dss_jax.core.errors import UsageError
from dss_jax.core.prompt import Exemplar
from dss_jax.core.registry import load_task, load_task_file
from dss_jax.core.table import TableSource, text_id
from dss_jax.core.types import SPLITS, DistillationTask, Example
from dss_jax.data import rows
from dss_jax.data.rows import examples
from dss_jax.data.survey import closed_labels
from dss_jax.interop.hub_data import fetch

COLUMNS = ["--input", "Subject,Body", "--label", "Category"]
WHOLE = ["init", "tickets", "--from", "tickets.csv", *COLUMNS, "--id", "Ticket"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the table."""
    monkeypatch.chdir(tmp_path)
    rows._say_once.cache_clear()
    tickets.write(tmp_path)
    return tmp_path


def splits_of(task: DistillationTask) -> dict[str, list[Example]]:
    return {split: examples(task, split) for split in SPLITS}


def sides(task: DistillationTask) -> dict[str, str]:
    return {e.id: split for split, rows in splits_of(task).items() for e in rows}


def test_a_table_of_excel(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(WHOLE) == 0
    said = capsys.readouterr().out
    assert said.count("tickets.csv: 5 empty rows are left out") == 1
    assert "11 rows without a label ('N/A' counts as none) are kept aside" in said
    assert re.search(r"'Acount' \(1\) looks like a slip of 'Account' \(\d+\)", said)
    assert "at most: an estimate, no vocabulary is at hand" in said
    task = load_task("tickets")
    assert task.labels == ("Account", "Billing", "Technical")
    splits = splits_of(task)
    counts = {split: len(rows) for split, rows in splits.items()}
    assert sum(counts.values()) == 109
    assert 14 <= counts["validation"] <= 19
    assert 14 <= counts["test"] <= 19
    found = Counter(e.label for rows in splits.values() for e in rows)
    assert set(found) == {*task.labels, "Acount"}
    texts = [e for rows in splits.values() for e in rows if e.label == "Billing"]
    assert all(
        re.fullmatch(r"Subject: .+\nBody: I paid \d+ euros;\nonce.+", e.input) for e in texts
    )
    assert splits["train"][0].allowed_labels == task.labels
    commands = re.findall(r"^  dss (\w+) .*$", said, re.M)
    assert commands == ["extract", "train", "predict"]
    settings = gin_config.read(["runs/train.gin", "tasks/tickets.gin"]).run()
    assert (settings.train.output_dir, settings.evaluate.decode) == ("runs/tickets", "rank")
    assert settings.train.steps * settings.data.batch_size >= 20 * counts["train"]


def test_each_label_has_its_share_of_each_split(here: Path) -> None:
    assert main(WHOLE) == 0
    splits = splits_of(load_task("tickets"))
    for label in ("Account", "Billing", "Technical"):
        counts = {s: sum(e.label == label for e in rows) for s, rows in splits.items()}
        assert abs(counts["test"] - 0.15 * sum(counts.values())) <= 2, counts


def test_columns_may_be_given_one_by_one(here: Path) -> None:
    columns = ["--input", "Subject", "--input", "Body", "--label", "Category", "--id", "Ticket"]
    assert main(["init", "tickets", "--from", "tickets.csv", *columns]) == 0
    assert "inputs=('Subject', 'Body')" in Path("tasks/tickets.py").read_text().replace('"', "'")


@pytest.mark.parametrize("name", ["tasks/tickets.py", "gin_configs/tasks/tickets.gin"])
def test_nothing_is_overwritten(here: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(name).parent.mkdir(parents=True)
    Path(name).write_text("mine")
    assert main(WHOLE) == 2
    assert f"{name} is there already, and nothing is overwritten" in capsys.readouterr().err
    assert [f.read_text() for f in [*here.rglob("*.py"), *here.rglob("*.gin")]] == ["mine"]


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    old=st.lists(texts, min_size=1, max_size=30, unique_by=text_id),
    new=st.lists(texts, max_size=100, unique_by=text_id),
    by=st.sampled_from(["id", "text", "group"]),
    order=st.randoms(use_true_random=False),
)
def test_new_rows_move_no_row(
    tmp_path_factory: pytest.TempPathFactory, old: list, new: list, by: str, order
) -> None:
    folder = tmp_path_factory.mktemp("moves")
    source = TableSource(
        file="t.jsonl",
        inputs=("text",),
        label="y",
        id="number" if by == "id" else None,
        group="who" if by == "group" else None,
        validation=0.3,
        test=0.3,
        seed=order.randrange(100),
    )
    task = DistillationTask(
        name="t",
        description="",
        licence="",
        sources=(source,),
        to_example=source.to_example,
        scorer=None,  # type: ignore[arg-type]
        file=str(folder / "t.py"),
    )

    def found(rows: list[str]) -> dict[str, str]:
        lines = [
            {"number": f"n{text_id(r)}", "text": r, "y": "a", "who": f"w{len(r) % 5}"} for r in rows
        ]
        (folder / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        sides = {}
        for split in SPLITS:
            with suppress(UsageError):  # Few rows: a split may have none.
                sides |= {e.id: split for e in examples(task, split)}
        assert len(sides) == len(rows)
        return sides

    before = found(old)
    more = [*old, *(text for text in new if text_id(text) not in set(map(text_id, old)))]
    order.shuffle(more)
    after = found(more)
    assert before.items() <= after.items()
    if by == "group":
        of_group: dict[int, set[str]] = {}
        for text in more:
            key = f"n{text_id(text)}" if source.id else text_id(text)
            of_group.setdefault(len(text) % 5, set()).add(after[key])
        assert all(len(found) == 1 for found in of_group.values())


def test_rows_are_known_by_their_text_where_they_have_no_id(here: Path) -> None:
    table = tickets.rows(60)
    # As a copy, but for case and white space; and copied again.
    table += [[*row[:2], row[2].upper(), f"{row[3]} ", row[4]] for row in table[:9]] + table[:2]
    tickets.write(here, table)
    assert main(["init", "plain", "--from", "tickets.csv", *COLUMNS]) == 0
    before = splits_of(load_task("plain"))
    ids = [e.id for rows in before.values() for e in rows]
    assert len(ids) == len(set(ids)) == 71
    assert [i.endswith("-3") for i in ids].count(True) == 2
    of_text = {split: {e.id.partition("-")[0] for e in rows} for split, rows in before.items()}
    assert not of_text["train"] & of_text["test"]
    assert not of_text["train"] & of_text["validation"]


@pytest.mark.parametrize("ending", ["tsv", "jsonl", "parquet", "csv"])
def test_forms_of_tables_give_the_same_splits(here: Path, ending: str) -> None:
    table = tickets.rows(60)
    cells = [dict(zip(tickets.HEADER, row, strict=True)) for row in table]
    file = here / f"t.{ending}"
    if ending == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(cells), file)
    elif ending == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in cells))
    else:
        plain = tickets.excel(table, empty=0).decode().replace("\ufeff", "").replace("\r", "")
        file.write_text(
            plain.replace(";\n", " \n")
            .replace("; ", " ")
            .replace("euros;", "euros")
            .replace(";", "\t" if ending == "tsv" else "|")
        )
    assert main(["init", ending, "--from", file.name, *COLUMNS, "--id", "Ticket"]) == 0
    tickets.write(here, table)
    assert main(["init", "wanted", "--from", "tickets.csv", *COLUMNS, "--id", "Ticket"]) == 0
    assert sides(load_task(ending)) == sides(load_task("wanted"))


WRONG = {
    "a column": (["--label", "Categry"], "unknown column of tickets.csv 'Categry'. Did you mean"),
    "the label": (["--input", "Body,Category"], "--input has the column of the label"),
    "the name": (["init", "my-task"], "'my-task' cannot be a task's name"),
    "a known name": (["init", "cqa"], "'cqa' is a task that comes with the package"),
    "no file": (["--from", "none.csv"], "--from none.csv: there is no such file"),
    "Excel's own": (["--from", "t.xlsx"], "In Excel: Save as, CSV UTF-8"),
    "an id twice": (["--id", "Customer"], "was seen before"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said(here: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags, error = WRONG[case]
    (here / "t.xlsx").write_bytes(b"PK")
    whole = [*flags, *WHOLE[2:]] if flags[0] == "init" else [*WHOLE, *flags]
    assert main(whole) == 2
    assert error in capsys.readouterr().err
    assert not [*here.rglob("*.py"), *here.rglob("*.gin")]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"a;b\n", "tickets.csv has no rows"),
        (b"a;b\n\xe4;y\n\xf6;n\n", "line 2: not UTF-8 text"),
        ("a;b\nx;y\n".encode("utf-16"), "not UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_read(
    here: Path, text: bytes, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "tickets.csv").write_bytes(text)
    assert main(WHOLE) == 2
    assert error in capsys.readouterr().err


def test_without_columns_it_names_them(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "tickets", "--from", "tickets.csv"]) == 2
    listed = "'Ticket', 'Customer', 'Subject', 'Body', 'Category'"
    assert f"which columns? Give --input and --label, of tickets.csv's: {listed}." in (
        capsys.readouterr().err
    )


def test_a_row_that_cannot_be_used_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tickets.rows(40)
    table[3][2:4] = ["", " "]
    tickets.write(here, table)
    assert main(WHOLE) == 2
    line = 2 + sum(1 + row[3].count("\n") for row in table[:3])
    assert f"tickets.csv, line {line}: the input is empty" in capsys.readouterr().err


def test_rows_with_one_id_can_be_left_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tickets.rows()
    tickets.write(here, [*table, *table[:2]])
    assert main(WHOLE) == 2
    assert "mend them, or leave them out with --bad_rows skip" in capsys.readouterr().err
    assert main([*WHOLE, "--bad_rows", "skip"]) == 0
    said = capsys.readouterr().out
    assert "2 rows are left out that cannot be used, as " in said
    assert "was seen before" in said
    (extract,) = (line for line in said.splitlines() if "dss extract" in line)
    assert extract.endswith("--bad_rows skip --out tickets_train.jsonl")
    flags = [*extract.split()[1:], "--dry_run", "--base_url", "http://localhost:9/v1"]
    assert main(flags) == 0
    run = gin_config.read(["gin_configs/tasks/tickets.gin"]).run()
    assert run.task.bad_rows == "skip"


def test_a_row_that_cannot_be_read_counts_once(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is of no split, so all three meet it."""
    with (here / "tickets.csv").open("ab") as table:
        table.write(b"T-1;C1;short\r\n")
    assert main([*WHOLE, "--bad_rows", "skip"]) == 0
    said = capsys.readouterr().out
    assert "1 rows are left out that cannot be used, as " in said
    assert "has not as many fields as the header line" in said
    main(["tasks", "check", "tickets", "--bad_rows", "skip"])
    assert capsys.readouterr().out.count("1 rows are left out that cannot be used") == 1


def test_few_rows_are_too_few(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tickets.write(here, tickets.rows(8))
    assert main(WHOLE) == 2
    assert "8 of 8 rows have a label in 'Category', and at least 20" in capsys.readouterr().err


def test_from_another_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WHOLE, "--dir", "project"]) == 0
    said = capsys.readouterr().out
    assert f"--task_dir {Path('project/tasks')} --rationales" in said
    monkeypatch.chdir("project")
    assert load_task("tickets").labels
    assert len(examples(load_task("tickets"), "train")) > 60
    monkeypatch.chdir(here)
    assert main(["config", "--task", "tickets", "--model", "t5_1_1_small"]) == 2
    error = capsys.readouterr().err
    assert "unknown task 'tickets'" in error
    assert "Looked in: tasks, " in error


def test_exemplars_are_explained_by_a_teacher(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with answering(completing(tickets.teacher)) as url:
        asked = ["--exemplars", "6", "--model", "m", "--base_url", url]
        assert main([*WHOLE, *asked]) == 0
        shown = load_task("tickets").prompt.exemplars
        assert Counter(e.output for e in shown) == {"Account": 2, "Billing": 2, "Technical": 2}
        words = {"Billing": "euros", "Account": "code", "Technical": "log says"}
        assert all(e.rationale == f"It is about {words[e.output]}." for e in shown)
        train = {e.input for e in examples(load_task("tickets"), "train")}
        assert {e.input for e in shown} <= train
        assert main(["init", "again", *WHOLE[2:], *asked]) == 0
    assert load_task("again").prompt.exemplars == shown


def test_exemplars_without_a_teacher_wait_for_a_person(here: Path) -> None:
    assert main([*WHOLE, "--exemplars", "4"]) == 0
    assert not load_task("tickets").prompt.exemplars
    text = Path("tasks/tickets.py").read_text()
    assert text.count("rationale='',") == 4
    Path("tasks/tickets.py").write_text(text.replace("rationale='',", "rationale='So.',", 1))
    (shown,) = load_task("tickets").prompt.exemplars
    assert shown.rationale == "So."


def test_whatever_is_in_the_data_is_text(tmp_path: Path) -> None:
    evil = '"""\\\nimport os; {x} \'%s\' ' + "long words " * 20 + "\u202e\x00#"
    table = TableSource(
        file=evil.replace("\0", ""), inputs=(evil, "b"), label=evil, no_label=(evil,), group=evil
    )
    exemplar = Exemplar(input=evil, rationale=evil, output=evil)
    for labels in ((evil, "a"), ()):
        file = tmp_path / "t.py"
        title = " ".join(evil.split())
        file.write_text(init_files.task_file("t", title, table, labels, (exemplar,)))
        task = load_task_file(file)
        assert task.sources == (table,)
        assert task.labels == labels
        assert task.prompt.exemplars == (exemplar,)


def test_a_label_like_others_is_no_slip_where_it_is_frequent() -> None:
    labels, slips = closed_labels({"card_linking": 40, "card_ticking": 35, "card_tickng": 2})
    assert (labels, slips) == (("card_linking", "card_ticking"), {"card_tickng": "card_ticking"})
    assert closed_labels({"yes": 9, "Yes": 8})[1] == {"Yes": "yes"}
    assert closed_labels({str(n): 1 for n in range(50)}) == ((), {})


class TestHub:
    def test_without_the_library_it_says_what_to_install(
        self, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        monkeypatch.setattr("dss_jax.interop.hub_data.find_spec", lambda name: None)
        assert main(["init", "e", "--from", "hf:a/b", "--input", "text", "--label", "y"]) == 2
        assert 'pip install "dss-jax[hub-data]"' in capsys.readouterr().err

    def test_a_data_set_of_the_library(
        self, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        datasets = pytest.importorskip("datasets", reason="the extra hub-data is not installed")
        features = datasets.Features(
            {"text": datasets.Value("string"), "y": datasets.ClassLabel(names=["sad", "joy"])}
        )
        rows = {"text": [f"text {n}" for n in range(60)], "y": [n % 2 for n in range(60)]}
        hidden = {"text": [f"new {n}" for n in range(5)], "y": [-1] * 5}
        both = {"train": rows, "valid": {k: v[:9] for k, v in rows.items()}, "test": hidden}
        made = {s: datasets.Dataset.from_dict(d, features=features) for s, d in both.items()}
        files = _fetched(datasets, datasets.DatasetDict(made), tmp_path / "out")
        assert list(files) == ["train", "validation"]
        first = json.loads(files["train"].read_text().splitlines()[1])
        assert first == {"text": "text 1", "y": "joy"}

    def test_few_rows_are_in_memory_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "datasets", _Library)
        monkeypatch.setattr("dss_jax.interop.hub_data.find_spec", lambda name: True)
        many = _Rows({"text": f"{n} {'x' * 1000}", "y": n % 2} for n in range(10_000))
        many.select_columns = lambda names: ({n: row[n] for n in names} for row in many)
        tracemalloc.start()
        try:
            file = _fetched(_Library, {"train": many}, tmp_path / "out")["train"]
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert most < file.stat().st_size / 10
        assert json.loads(file.read_text().splitlines()[-1])["y"] == "joy"

    def test_its_splits_stay(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", _Library)
        monkeypatch.setattr("dss_jax.interop.hub_data.find_spec", lambda name: True)
        # A command that failed may be given again.
        with monkeypatch.context() as patch:
            patch.setattr("dss_jax.cli.init.FEWEST", 100)
            assert main(["init", "e", "--from", "hf:a/b:c", "--input", "text", "--label", "y"]) == 2
        assert not Path("tasks/e").exists()
        assert main(["init", "e", "--from", "hf:a/b:c", "--input", "text", "--label", "y"]) == 0
        splits = splits_of(load_task("e"))
        assert len(splits["test"]) == 7
        assert len(splits["train"]) + len(splits["validation"]) == 60
        assert load_task("e").labels == ("joy", "sad")


def _fetched(library: types.ModuleType, data, folder: Path) -> dict[str, Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "load_dataset", lambda *_: data)
        return fetch("hf:a/b", ("text", "y"), "y", folder)


class _Rows(list):
    features = {"text": None, "y": types.SimpleNamespace(names=["sad", "joy"])}

    def select_columns(self, names: list[str]) -> list[dict]:
        return [{name: row[name] for name in names} for row in self]


class _Library:
    """As much of `datasets` as is used."""

    @staticmethod
    def load_dataset(name: str, config: str | None) -> dict[str, _Rows]:
        assert (name, config) == ("a/b", "c")
        rows = [{"text": f"text {n}", "y": n % 2, "z": 0} for n in range(60)]
        test = [{"text": f"other {n}", "y": n % 2, "z": 0} for n in range(7)]
        return {"train": _Rows(rows), "test": _Rows(test)}
