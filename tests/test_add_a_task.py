"""docs/add_a_task.md, done step by step in a folder outside the repository."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import conftest
import pytest

from dss_jax.core.paths import PACKAGE, shipped
from dss_jax.core.registry import load_task_file
from dss_jax.core.types import Example
from dss_jax.data.rows import examples
from dss_jax.records.records import Reply
from dss_jax.teacher.parsing import read_reply
from dss_jax.teacher.prompting import PromptOptions, request_body

PAGE = Path(__file__).parents[1] / "docs" / "add_a_task.md"
ONE_DEVICE = conftest.FAST_COMPILE.rsplit(maxsplit=1)[0]
VOCABULARY = shipped("tasks") / "vocabularies" / "word_problems.model"
MODEL = {"emb_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 32}
LAYERS = {"num_encoder_layers": 1, "num_decoder_layers": 1}
TINY = [f"--gin.T5Config.{name}={value}" for name, value in (MODEL | LAYERS).items()]
TINY += ["--gin.Train.steps=2", "--gin.Data.batch_size=4"]


def page_files() -> dict[str, str]:
    """Name -> text of each block that follows a line with nothing but a file's name."""
    blocks = re.findall(r"^`([^`\n]+)`\n\n```\w*\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    return dict(blocks)


def page_commands() -> list[list[str]]:
    """The `dss` lines of the page, without `dss`."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("dss ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`my_data/` of the page."""
    folder = tmp_path_factory.mktemp("user") / "my_data"
    for name, text in page_files().items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def dss(arguments: list[str], cwd: Path, **env: str) -> str:
    """Runs a command as a user would and returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "dss_jax.cli.main", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), "XLA_FLAGS": ONE_DEVICE, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def command(*start: str) -> list[str]:
    """The page's first command that starts so, with the small vocabulary."""
    found = next(c for c in page_commands() if c[: len(start)] == list(start))
    return [*found, "--vocabulary", str(VOCABULARY)]


def table_row(text: str, name: str) -> list[str]:
    """The cells of a printed table's first row of that name."""
    return re.search(rf"^  {re.escape(name)}  +(.*)$", text, re.M)[1].split()


def test_the_page_has_what_it_promises() -> None:
    assert len(page_files()) == 6
    first = [" ".join(command[:2]) for command in page_commands()][:3]
    assert first == ["tasks show", "tasks stats", "train --task"]


def test_show_prints_examples_as_the_model_sees_them(folder: Path) -> None:
    text = dss(command("tasks", "show"), folder)
    assert text.count("--- train") == 2
    for prefix in ("label", "rationale"):
        pattern = rf"{prefix}_inputs \(\d+ tokens\).*\n    \[{prefix}\] An? .* dropped into fresh"
        assert len(re.findall(pattern, text)) == 2
    shown = re.search(r"^label_targets .*\n    (.*)</s>$", text, re.M)
    assert shown[1] in ("sink", "float")


def test_stats_counts_rows_and_judges_the_teacher(folder: Path) -> None:
    text = dss(command("tasks", "stats"), folder)
    assert table_row(text, "train + validation")[:5] == ["8", "87.50", "0", "0", "1"]
    assert table_row(text, "test")[:2] == ["2", "100.00"]
    assert table_row(text, "validation")[0] == "2"


def test_the_folder_is_found_from_elsewhere_with_its_gin_file(folder: Path, tmp_path: Path) -> None:
    run = ["config", "--task", "sink_or_float", "--model", "t5_1_1_small"]
    by_flag = dss([*run, "--task_dir", str(folder / "tasks")], tmp_path)
    by_path = dss(run, tmp_path, DSS_TASK_PATH=str(folder / "tasks"))
    for text in (by_flag, by_path):
        assert "Evaluate.max_decode_length = 8" in text


def test_train(folder: Path) -> None:
    arguments = [a.replace("t5_1_1_small", "t5_1_1_tiny") for a in command("train", "--task")]
    printed = dss([*arguments, *TINY], folder)
    out = folder / "runs" / "sink_or_float"
    results = json.loads((out / "results.json").read_text())
    assert results["method"] == "dss"
    assert results["test"]["examples"] == results["validation"]["examples"] == 2
    assert 0 <= results["test"]["text_accuracy"] <= 100
    assert results["test"]["teacher"] == 100
    assert results["test"]["rationale/loss"] > 0
    assert "sink_or_float, dss: text_accuracy of step 2" in printed
    assert "6 training examples" in printed
    lines = (out / "predictions" / "test-best.jsonl").read_text().splitlines()
    assert [json.loads(line)["target"] for line in lines] == ["sink", "float"]


def test_a_teacher_is_asked(folder: Path) -> None:
    pattern = r"^```python\n(from dss_jax.core.prompt.*?)^```$"
    snippet = re.search(pattern, PAGE.read_text(), re.M | re.S)[1]
    head, _, task = page_files()["tasks/sink_or_float_raw.py"].partition("TASK = ")
    file = folder / "tasks" / "sink_or_float_asked.py"
    task = task.replace("sink_or_float_raw", file.stem, 1).replace(
        "to_example=", "prompt=PROMPT, to_example="
    )
    file.write_text(f"{head}{snippet}TASK = {task}")
    prompt = load_task_file(file).prompt
    assert prompt is not None
    row = Example(id="", input="Does a cork sink?", allowed_labels=("yes", "no"))
    text = request_body(prompt, row, PromptOptions(form="completion"))["prompt"]
    assert text.endswith("So the answer is no.\n\nQ: Does a cork sink?\nA:")
    sample = read_reply(
        Reply(text=" It is light. So the answer is No."), row, prompt, PromptOptions()
    )
    assert (sample.status, sample.label) == ("ok", "no")


def test_raw_completions(folder: Path) -> None:
    found = examples(load_task_file(folder / "tasks" / "sink_or_float_raw.py"), "train")
    expected = [("yes", "yes", "Steel is denser than water."), ("no", "", "")]
    assert [(e.label, e.teacher_label, e.rationale) for e in found] == expected
