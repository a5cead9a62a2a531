"""Checkpoints that a disk or a copy has damaged: never restored; a run goes on from one that is
whole.
"""

import dataclasses
import errno
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
import t5_weights
import toy

from dss_jax.cli.main import main
from dss_jax.core import config, sums
from dss_jax.core.errors import UsageError
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.interop.formats import write_weights
from dss_jax.interop.hf import read_hf
from dss_jax.interop.orbax_folder import read_orbax
from dss_jax.run import run_folder, single
from dss_jax.run.health import checks_of
from dss_jax.train import checkpoint
from dss_jax.train.broken import BROKEN
from dss_jax.train.checkpoint import LATER, SUMMED, Checkpoints, damage_of
from dss_jax.train.loop import Interrupted

pytestmark = pytest.mark.usefixtures("linear_programs")

STOPPED, STEPS = 5, 6


def _run(folder: Path) -> config.Run:
    run = toy.make_run()
    train = dataclasses.replace(run.train, steps=STEPS, output_dir=str(folder), keep_checkpoints=3)
    return dataclasses.replace(run, train=train, evaluate=config.Evaluate(every=2))


def _params(folder: Path) -> dict[str, np.ndarray]:
    """Those of the last step."""
    with closing(Checkpoints(folder / run_folder.CHECKPOINTS)) as checkpoints:
        params = checkpoints._folder / str(checkpoints.find("latest")) / "params"

    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(params.absolute())


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, toy_store) -> Path:
    """A run that was stopped, with checkpoints of steps 2, 4 and 5."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        toy.interrupt_before(patch, STOPPED - 1)
        with pytest.raises(Interrupted):
            single.train(_run(folder), toy_store, TEXT_ACCURACY)
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["2", "4", "5"]
    return folder


@pytest.fixture(scope="module")
def whole(stopped: Path, tmp_path_factory: pytest.TempPathFactory, toy_store) -> tuple[dict, dict]:
    """Results and parameters of the run when nothing was damaged."""
    folder = shutil.copytree(stopped, tmp_path_factory.mktemp("runs") / "whole")
    return single.train(_run(folder), toy_store, TEXT_ACCURACY), _params(folder)


def largest(checkpoint: Path) -> Path:
    return max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": lambda c: flip(largest(c)),
    "a short file": lambda c: cut(largest(c)),
    "a missing file": lambda c: largest(c).unlink(),
    "an empty folder": empty,
    "no parameters": lambda c: shutil.rmtree(c / "params"),
    "no optimizer": lambda c: shutil.rmtree(c / "optimizer"),
    "a score cut short": lambda c: cut(next(p for p in (c / "metrics").iterdir() if p.is_file())),
    "no sums, as in a copy that ended early": lambda c: (c / sums.FILE).unlink(),
    "nor what Orbax writes last": lambda c: [(c / n).unlink() for n in (sums.FILE, LATER[0])],
    "sums of something else": lambda c: (c / sums.FILE).write_text("{}]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_run_goes_on_from_the_latest_that_is_whole(
    damage: str, stopped: Path, whole, toy_store, tmp_path: Path, said: list[str]
) -> None:
    folder = Path(shutil.copytree(stopped, tmp_path / "run"))
    # An evaluation is saved with its score; that of step 5 is a stop's.
    step = 4 if damage == "a score cut short" else STOPPED
    if step == 4:
        shutil.rmtree(folder / "checkpoints" / "5")
    DAMAGE[damage](folder / "checkpoints" / str(step))
    assert single.train(_run(folder), toy_store, TEXT_ACCURACY) == whole[0]
    (line,) = [line for line in said if "is damaged" in line]
    assert f"checkpoints/{step}" in line
    assert [p.name.partition("-")[0] for p in (folder / BROKEN).iterdir()] == [str(step)]
    assert f"going on from the checkpoint of step {2 if step == 4 else 4}" in said
    for name, array in whole[1].items():
        np.testing.assert_array_equal(array, _params(folder)[name])


def test_a_start_looks_at_each_once(
    stopped: Path, tmp_path: Path, toy_store, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    def damage(folder: Path, part: str = "") -> str | None:
        looked.append(folder.name)
        return sums_damage(folder, part)

    sums_damage = sums.damage
    monkeypatch.setattr(sums, "damage", damage)
    monkeypatch.setattr(single, "fit", lambda *args, **options: stop.append(looked[:]) or exit())
    stop: list[list[str]] = []
    folder = shutil.copytree(stopped, tmp_path / "run")
    with pytest.raises(SystemExit):
        single.train(_run(folder), toy_store, TEXT_ACCURACY)
    assert sorted(name for name in stop[0] if name.isdigit()) == ["2", "4", "5"]


def test_every_bit_of_every_file_is_noticed(stopped: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(stopped / "checkpoints" / "4", tmp_path / "4"))
    assert damage_of(checkpoint) is None
    files = [name for name, _ in sums._files(checkpoint, {*LATER, sums.FILE})]
    assert {"params/manifest.ocdbt", "optimizer/_METADATA"} <= set(files)
    for name in files:
        content = (checkpoint / name).read_bytes()
        if content:
            flip(checkpoint / name)
            assert damage_of(checkpoint) == f"{name} is not what was written (CRC-32)"
            (checkpoint / name).write_bytes(content)
    assert damage_of(checkpoint) is None


def test_one_that_is_asked_for_by_name_is_refused(stopped: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(stopped, tmp_path / "run"))
    flip(largest(folder / "checkpoints" / "4"))
    with closing(Checkpoints(folder / "checkpoints")) as checkpoints:
        with pytest.raises(UsageError, match=r"checkpoints/4 is damaged: .*Whole: 2, 5\."):
            checkpoints.find(4)
        assert checkpoints.find("latest") == 5
    with pytest.raises(UsageError, match=r"checkpoints/4 is damaged"):
        read_orbax(folder, 4)
    whole = r"no checkpoint .*/4 that is whole: (params|optimizer)/.* is not what was written"
    with pytest.raises(UsageError, match=whole):
        read_orbax(folder / "checkpoints" / "4")
    assert not (folder / BROKEN).exists(), "whoever only reads moves nothing"


def test_files_that_orbax_cannot_read_are_one_clear_line(
    stopped: Path, tmp_path: Path, toy_store
) -> None:
    """A checkpoint of an older version has no sums."""
    folder = Path(shutil.copytree(stopped, tmp_path / "run"))
    for saved in (folder / "checkpoints").iterdir():
        (saved / sums.FILE).unlink()
        last = saved / LATER[0]
        last.write_bytes(last.read_bytes().replace(SUMMED, b""))
    file = largest(folder / "checkpoints" / "5" / "params")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UsageError, match=r"checkpoints/5 cannot be read: ValueError: OUT_OF_RANGE"):
        single.train(_run(folder), toy_store, TEXT_ACCURACY)


@pytest.mark.parametrize("keep", [1, 3])
def test_a_run_ends_at_the_first_save_that_fails_and_goes_on(
    keep: int, stopped: Path, whole, toy_store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    run = _run(folder)
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, keep_checkpoints=keep))

    async def full(self: object) -> None:
        if not folder.joinpath("checkpoints", "2").exists():
            return await real(self)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        real = checkpoint._Summed.finalize
        patch.setattr(checkpoint._Summed, "finalize", full)
        with pytest.raises(UsageError) as error:
            single.train(run, toy_store, TEXT_ACCURACY)
    assert re.search(
        r"could not be written to .*/checkpoints: OSError: .*No space left on device\. There: "
        r"[\d,.]+ MB free, about 0\.2 MB needed; whole: 2\.",
        str(error.value),
    )
    assert damage_of(folder / "checkpoints" / "2") is None
    assert single.train(run, toy_store, TEXT_ACCURACY) == whole[0]
    for name, array in whole[1].items():
        np.testing.assert_array_equal(array, _params(folder)[name])


def test_a_save_whose_failure_training_sees_first_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orbax's own thread, which deletes what is older, asks for the failure a little later."""
    folder, waits = tmp_path / "checkpoints", ocp.CheckpointManager._wait_for_checkpointers

    async def full(self: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def late(manager: ocp.CheckpointManager) -> None:
        time.sleep(0.5)
        waits(manager)

    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save_params({"w": np.zeros(3)}, 2, 50.0)
    checkpoints.wait()
    monkeypatch.setattr(checkpoint._Summed, "finalize", full)
    monkeypatch.setattr(ocp.CheckpointManager, "_wait_for_checkpointers", late)
    checkpoints.save_params({"w": np.ones(3)}, 4, 60.0)

    def step_on() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            checkpoints.check()
            time.sleep(0.01)

    with pytest.raises(UsageError, match="whole: 2"):
        step_on()
    time.sleep(1)
    assert damage_of(folder / "2") is None


def test_the_doctor_says_what_is_whole_and_sets_the_rest_aside(
    stopped: Path, toy_store, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = Path(shutil.copytree(stopped, tmp_path / "run"))
    assert main(["doctor", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"checkpoints/5 +whole$", shown, re.M)
    assert shown.endswith("nothing is wrong\n")
    single.train(_run(folder), toy_store, TEXT_ACCURACY)
    flip(largest(folder / "checkpoints" / "4"))
    kept = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(b"")
    assert any("it is empty" in c.problem for c in checks_of(folder))
    (folder / "metrics.jsonl").write_bytes(kept)
    cut(folder / "spiece.model")
    lines = (folder / "predictions" / "test-best.jsonl").read_text().splitlines(keepends=True)
    (folder / "predictions" / "test-best.jsonl").write_text("".join(lines[:-1]))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "gro')
    assert main(["doctor", str(folder)]) == 1
    found = capsys.readouterr().out
    assert re.search(
        r"^! checkpoints/4 +damaged +<- (params|optimizer)/\S+ is not what was written", found, re.M
    )
    assert re.search(r"^! spiece.model +damaged", found, re.M)
    missing = len(lines) - 1
    assert f"<- {missing} lines, but results.json counts {len(lines)} rows" in found
    assert re.search(r"^! run/metrics.jsonl +damaged +<- line \d+ is no JSON", found, re.M)
    assert "4 thing(s) wrong" in found
    assert main(["doctor", str(folder), "--repair"]) == 1
    found = capsys.readouterr().out
    assert "checkpoints/4 " not in found
    assert re.search(r"^  broken/4-\d+ +was set aside", found, re.M)
    assert (folder / "checkpoints" / "6").is_dir()


def test_the_doctor_looks_at_stores_and_at_nothing_else(
    toy_store, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    store = Path(shutil.copytree(toy_store.path, tmp_path / "store"))
    assert main(["doctor", str(store)]) == 0
    assert "whole: train, validation, test" in capsys.readouterr().out
    flip(max(store.rglob("*.npy"), key=lambda file: file.stat().st_size))
    assert main(["doctor", str(store)]) == 1
    assert re.search(r"damaged: \S+ was changed\. Make it again", capsys.readouterr().out)
    assert main(["doctor", str(tmp_path)]) == 2
    assert "is neither a run's folder" in capsys.readouterr().err


def test_a_vocabulary_in_which_a_bit_is_flipped_is_refused(stopped: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(stopped, tmp_path / "run"))
    flip(folder / "spiece.model")
    with pytest.raises(UsageError, match=r"the vocabulary \S+spiece.model is not the one that"):
        read_orbax(folder)
    assert any(
        c.name == "spiece.model" and "is not the one" in c.problem for c in checks_of(folder)
    )


@pytest.mark.parametrize("form", ["hf", "orbax"])
def test_the_doctor_names_what_has_changed_in_an_export(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = tmp_path / "student"
    write_weights(t5_weights.random_weights(t5_weights.BASE), export, form)
    assert main(["doctor", str(export)]) == 0
    assert "whole" in capsys.readouterr().out
    (export / "README.md").write_text("A card of one's own.")
    files = [f for f in export.rglob("*") if f.is_file() and f.suffix not in (".json", ".md")]
    assert export / "spiece.model" in files
    for name in files:
        content = name.read_bytes()
        flip(name)
        assert main(["doctor", str(export)]) == 1
        said = capsys.readouterr().out
        assert f"{name.name} is not what was written (CRC-32)" in said.replace("\n", "")
        assert "README" not in said
        name.write_bytes(content)
    if form == "hf":
        assert read_hf(export).leaves, "others may have saved into it"


@pytest.mark.parametrize("damage", ["zeros", "another number", "another name"])
def test_scores_that_are_damaged_choose_no_best(damage: str, stopped: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(stopped, tmp_path / "run"))
    (file,) = (p for p in (folder / "checkpoints/2/metrics").iterdir() if "score" in p.read_text())
    text = file.read_text()
    wrong = {"zeros": "\0" * len(text), "another name": text.replace("score", "scorf")}
    file.write_text(wrong.get(damage, text.replace("0", "1", 1)))

    def best() -> int:
        with closing(Checkpoints(folder / "checkpoints")) as checkpoints:
            return checkpoints.find("best")

    with pytest.raises(UsageError) as error:
        best()
    assert re.search(r"2.*metrics/metrics is not what was written", str(error.value))
    if damage == "zeros":
        assert f"dss doctor {folder} --repair" in str(error.value)
    assert main(["doctor", str(folder), "--repair"]) == 0
    assert best() == 4
