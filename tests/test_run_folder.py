"""A run's folder: who may go on there, and the configuration that a sweep hands over."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from dss_jax.cli import gin_config
from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.run import run_folder
from dss_jax.run.changes import other_settings
from dss_jax.run.run_folder import begun, open_run_folder

KEY = "0123"


@pytest.fixture
def run(tmp_path: Path) -> config.Run:
    task = config.Task(name="svamp", extra_tasks=("asdiv",), record_files=("a.jsonl",))
    return config.Run(
        task=task,
        lora=config.Lora(rank=4),
        pretrain=config.Pretrain(text_files=("a.txt", "b.txt")),
        train=config.Train(output_dir=str(tmp_path / "run")),
    )


def changed(run: config.Run, **train: object) -> config.Run:
    return replace(run, train=replace(run.train, **train))


def test_what_a_sweep_hands_over_is_begun_when_a_run_has_opened_it(
    run: config.Run, tmp_path: Path
) -> None:
    folder, file = tmp_path / "run", tmp_path / "run" / run_folder.CONFIG
    open_run_folder(run, None)
    assert file.read_text() == config.to_gin(run)
    assert gin_config.read([file]).run() == run
    assert not begun(folder)
    # Before that it may still change, for whoever plans it.
    assert other_settings(changed(run, steps=7), folder) == ""
    open_run_folder(changed(run, steps=7), None)
    with pytest.raises(UsageError, match=r"-Train.steps = 7\n\+Train.steps = 10000"):
        open_run_folder(run, KEY)
    assert not begun(folder)
    open_run_folder(run, None)
    open_run_folder(run, KEY)
    assert begun(folder)
    assert file.read_text() == f"{run_folder.STORE_LINE}{KEY}\n{config.to_gin(run)}"


def test_a_run_that_goes_on_is_handed_over_with_its_data(run: config.Run, tmp_path: Path) -> None:
    file = tmp_path / "run" / run_folder.CONFIG
    open_run_folder(run, KEY)
    (tmp_path / "run" / run_folder.CHECKPOINTS).mkdir()
    open_run_folder(changed(run, log_every=3), None)
    assert file.read_text().startswith(f"{run_folder.STORE_LINE}{KEY}\n# Task\n")
    assert gin_config.read([file]).run().train.log_every == 3
    for store in (None, KEY):
        with pytest.raises(UsageError, match=r"another configuration(.|\n)*\+Train.steps = 7"):
            open_run_folder(changed(run, steps=7), store)
    assert "+Train.steps = 7" in other_settings(changed(run, steps=7), tmp_path / "run")
    with pytest.raises(UsageError, match=rf"\+{run_folder.STORE_LINE}other"):
        open_run_folder(run, "other")
    assert KEY in file.read_text()


@pytest.mark.parametrize("trained", [run_folder.CHECKPOINTS, run_folder.METRICS])
def test_settings_may_be_mended_until_something_was_trained(
    run: config.Run, tmp_path: Path, trained: str
) -> None:
    """As after a mesh that does not fit the devices: the run is opened, and refused after that."""
    file = tmp_path / "run" / run_folder.CONFIG
    open_run_folder(run, KEY)
    open_run_folder(changed(run, steps=7), KEY)
    assert gin_config.read([file]).run().train.steps == 7
    (tmp_path / "run" / trained).touch()
    with pytest.raises(UsageError, match=r"-Train.steps = 7\n\+Train.steps = 10000"):
        open_run_folder(run, KEY)
    assert gin_config.read([file]).run().train.steps == 7


def test_a_folder_with_something_else_in_it_is_left_alone(run: config.Run, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").touch()
    for store in (None, KEY):
        with pytest.raises(UsageError, match="it is not a run's folder"):
            open_run_folder(run, store)
    assert len(list((tmp_path / "run").iterdir())) == 1


OLDER = (
    (r"Task.record_files = .*", "Task.rationales = 'old.jsonl'"),
    (r"Task.extra_tasks = .*", "Task.extra_tasks = 'asdiv'"),
    (r"Task.seqio_cache_dirs = .*", "Task.seqio_cache_dirs = None"),
    (r"Pretrain.text_files = .*", "Pretrain.text_files = 'a.txt,b.txt'"),
    (r"Evaluate.generate_rationales = .*", "Evaluate.rationales = True"),
    (r"Lora.targets = .*", "Lora.targets = ['query', 'value']"),
    (r"Train.max_bad_steps = .*\n", ""),
    (r"Loss.z_loss = .*\n", ""),
)
"""What an older version has written."""


def test_runs_of_older_versions_go_on(run: config.Run, tmp_path: Path) -> None:
    open_run_folder(run, KEY)
    (tmp_path / "run" / run_folder.CHECKPOINTS).mkdir()
    file = tmp_path / "run" / run_folder.CONFIG
    text = file.read_text()
    for now, before in OLDER:
        text, count = re.subn(now, before, text)
        assert count == 1
    file.write_text(text)
    assert other_settings(run, tmp_path / "run") == ""
    open_run_folder(run, KEY)
    assert "Task.record_files = ('a.jsonl',)" in file.read_text()
    file.write_text(text.replace("'asdiv'", "'cqa'"))
    with pytest.raises(UsageError, match=r"-Task.extra_tasks = \('cqa',\)"):
        open_run_folder(run, KEY)
    file.write_text(text)
    with pytest.raises(UsageError, match=r"\+Loss.z_loss = 0.1"):
        open_run_folder(replace(run, loss=config.Loss(z_loss=0.1)), KEY)
