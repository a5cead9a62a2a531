"""gin_configs/paper and gin_configs/sweeps: what they give, and whether what they say is right."""

import re
from pathlib import Path

import pytest

from dss_jax.cli import gin_config
from dss_jax.core.devices import DEVICES
from dss_jax.core.flops import training_flops, work_of_rows
from dss_jax.core.paths import shipped
from dss_jax.core.sweep_config import cells_of

TASKS = ("esnli", "anli1", "cqa", "svamp")
PUBLISHED = {
    "standard": (88.38, 43.58, 62.19, 62.63),
    "single_task": (88.88, 43.50, 61.37, 63.00),
    "dss": (89.51, 49.58, 63.29, 65.50),
}
"""Printed accuracies of T5 v1.1 base with all data, PaLM's rationales, by task."""

NEOX = (89.12, 48.15, 63.25, 63.00)
LENGTHS = {
    "esnli": (31.9, 3.0, 14.5),
    "anli1": (103, 3.0, 29.1),
    "cqa": (48.5, 2.9, 30.9),
    "svamp": (43.0, 11.4, 38.6),
}
"""Means of input, label and rationale in tokens, as measured on the release."""

PAPER = sorted((shipped("gin_configs") / "paper").glob("*.gin"))
SWEEPS = sorted((shipped("gin_configs") / "sweeps").glob("*.gin"))


def test_there_is_a_file_for_each_printed_cell() -> None:
    assert {f.stem for f in PAPER} == {f"{t}_{m}" for t in TASKS for m in PUBLISHED}


def flops(task: str, method: str) -> int:
    """Of the whole training, from the mean lengths."""
    row, label, rationale = LENGTHS[task]
    rows = {
        "standard": [(row, label)],
        "single_task": [(row, rationale + label - 1)],
        "dss": [(row, label), (row, rationale)],
    }[method]
    run = gin_config.read(["runs/train.gin", f"paper/{task}_{method}.gin"]).run()
    return training_flops(run.model, work_of_rows(rows)) * run.train.steps * run.data.batch_size


@pytest.mark.parametrize("file", PAPER, ids=lambda f: f.stem)
def test_each_gives_the_run_that_it_names(file: Path) -> None:
    task, _, method = file.stem.partition("_")
    run = gin_config.read(["runs/train.gin", f"paper/{file.name}"]).run()
    assert run.task.name == task
    assert run.task.train_fraction == 1.0
    assert run.method.name == method
    assert (run.model.emb_dim, run.model.num_encoder_layers) == (768, 12)
    assert (run.train.steps, run.data.batch_size) == (10_000, 64)
    assert (run.optimizer.name, run.optimizer.learning_rate) == ("adamw", 5e-5)
    assert run.loss.alpha == 0.5


@pytest.mark.parametrize("file", PAPER, ids=lambda f: f.stem)
def test_each_says_what_is_published_and_what_is_estimated(file: Path) -> None:
    task, _, method = file.stem.partition("_")
    text = file.read_text()
    i = TASKS.index(task)
    assert f"published (arXiv 2305.02301, not ours): {PUBLISHED[method][i]:.2f} %" in text
    assert (f"GPT-NeoX 20B's rationales: {NEOX[i]:.2f} %" in text) == (method == "dss")
    assert "our estimate (not measured)" in text
    said = re.search(r"(\d+) PFLOP", text)
    minutes = re.search(r"([\d.]+) minutes", text)
    assert said
    assert minutes
    work = flops(task, method)
    assert int(said[1]) == pytest.approx(work / 1e15, abs=0.51)
    seconds = work / (0.3 * DEVICES["h100"].peak_flops)
    assert float(minutes[1]) == pytest.approx(seconds / 60, abs=0.051)


@pytest.mark.parametrize("file", SWEEPS, ids=lambda f: f.stem)
def test_each_sweep_is_a_whole_grid_of_runs(file: Path) -> None:
    sweep = gin_config.read([f"sweeps/{file.name}"]).sweep()
    sweep.check_complete()
    models, methods = (gin_config.gin_names(kind) for kind in ("models", "methods"))
    for cell in cells_of(sweep):
        assert cell.model is None or cell.model in models
        assert cell.method in methods
    said = re.search(r"(\d+) runs", file.read_text())
    assert said
    assert int(said[1]) == len([c for c in cells_of(sweep) if c.model])
