"""docs/your_data.md: its commands, one after another, in a folder that holds a table of Excel's and
a checkpoint under the name of the page.
"""

import csv
import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import t5_weights
import tickets
from protocol_server import answering, completing
from test_docs import ROOT, blocks

from dss_jax.cli.main import main
from dss_jax.core.paths import shipped
from dss_jax.data import rows
from dss_jax.interop.hf import write_hf
from dss_jax.teacher import prices

PAGE = (ROOT / "docs" / "your_data.md").read_text()
LINES = next(text for language, text in blocks(PAGE) if language == "bash").splitlines()
VOCABULARY = shipped("tasks") / "vocabularies" / "word_problems.model"


def dss(line: str, *more: str) -> int:
    return main([*shlex.split(line.removeprefix("dss ")), *more])


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder, with a teacher in place of OpenAI's server."""
    folder = tmp_path_factory.mktemp("your_data")
    tickets.write(folder)
    new = [row[:4] for row in tickets.rows(9, seed=7)]
    (folder / "new.csv").write_bytes(tickets.excel(new, tickets.HEADER[:4]))
    weights = t5_weights.random_weights(t5_weights.BASE)
    own = dataclasses.replace(weights, vocabulary=VOCABULARY, extra_ids=0)
    write_hf(own, folder / "google" / "flan-t5-base")
    with pytest.MonkeyPatch.context() as patch, answering(completing(tickets.teacher)) as url:
        patch.chdir(folder)
        patch.setattr(prices, "HOSTED", url)
        patch.setenv("OPENAI_API_KEY", "none")
        patch.setenv("DSS_VOCABULARY", str(VOCABULARY))
        rows._say_once.cache_clear()
        yield folder


@pytest.fixture(scope="module")
def extracted(here: Path) -> Path:
    """After the first three commands, and the one edit: a slip in the table is put right."""
    init, check, extract, *_ = LINES
    assert dss(init) == 0
    assert dss(check) == 1
    table = here / "tickets.csv"
    table.write_bytes(table.read_bytes().replace(b"Acount", b"Account"))
    assert dss(check) == 0
    assert dss(extract) == 0
    return here


def test_the_page_has_the_road_and_what_init_prints(
    here: Path, extracted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [line.split()[1] for line in LINES]
    assert names == ["init", "tasks", "extract", "train", "predict", "serve"]
    assert dss(LINES[0].replace("tickets --from", "again --from")) == 0
    said = capsys.readouterr().out.replace("again", "tickets")
    for line in LINES[2:5]:
        assert f"  {line}\n" in said, "the page and `dss init` say the same"
    assert f"Look first: {LINES[1].partition(' --out')[0]}\n" in said
    assert Path("check.png").is_file()
    assert len(Path("tickets_train.jsonl").read_text().splitlines()) > 60


def test_new_rows_are_asked_about_alone(
    extracted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = extracted / "tickets.csv"
    before = table.read_bytes()
    more = tickets.excel(tickets.rows(30, seed=3) + tickets.untidy())
    table.write_bytes(more.replace(b"Acount", b"Account"))
    capsys.readouterr()
    assert dss(LINES[2]) == 0
    said = capsys.readouterr().out
    sent, taken = (int(re.search(rf"{x} +(\d+)", said)[1]) for x in ("sent now", "the journal"))
    assert 0 < sent <= 30
    assert taken > 60
    table.write_bytes(before)
    assert dss(LINES[2]) == 0


@pytest.mark.slow
def test_the_whole_road(extracted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    *_, train, predict, serve = LINES
    few = ["--gin.Train.steps=2", "--gin.Data.batch_size=8", "--gin.Evaluate.every=2"]
    capsys.readouterr()
    assert dss(train, *few) == 0
    said = capsys.readouterr().out
    assert "plan: --method dss on tickets: " in said
    assert "student: from google/flan-t5-base, into runs/tickets" in said
    assert "2 steps of 8 rows, " in said
    assert dss(predict) == 0
    with Path("labelled.csv").open(newline="") as file:
        answers = [*csv.DictReader(file)]
    assert [a["Ticket"] for a in answers] == [row[0] for row in tickets.rows(9, seed=7)]
    assert {a["label"] for a in answers} <= {*tickets.TEXTS}
    assert serve == "dss serve --student runs/tickets"
    pytest.importorskip("fastapi", reason='needs pip install -e ".[serve]"')
    from serving import client_of

    import dss_jax

    text = f"Subject: {answers[0]['Subject']}\nBody: {answers[0]['Body']}"
    with client_of(dss_jax.load("runs/tickets")) as client:
        (one,) = client.post("/v1/predict", json={"input": text}).json()["predictions"]
    assert one["label"] == answers[0]["label"]
