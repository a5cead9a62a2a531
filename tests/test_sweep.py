"""dss sweep: the plan of a grid, what goes on after a stop, failures and locks."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dss_jax.cli import demo, gin_config, options, sweep, sweep_options
from dss_jax.cli.main import main
from dss_jax.core import config, locks, machine
from dss_jax.core.errors import UsageError
from dss_jax.core.sweep_config import Cell, Sweep, cells_of, of_sizes, sizes_in
from dss_jax.run import run_folder
from dss_jax.run.changes import other_settings
from dss_jax.sweep import plan as sweep_plan
from dss_jax.sweep import runner as sweep_run
from dss_jax.sweep.devices import cores, slots, slots_of_small

STAND_IN = Path(__file__).parent / "stand_ins" / "sweep_train.py"
PROGRAM = (sys.executable, "-S", "-E", str(STAND_IN))
TINY = shlex.split(
    "--tasks word_problems --methods standard,dss --models t5_1_1_tiny --fractions 0.25,1 "
    "--seeds 0,1 --gin.Train.steps=4"
)
FRONTIER = shlex.split(
    "frontier --task word_problems --models t5_1_1_base,t5_1_1_tiny --fractions 0.1,0.2,0.4,0.8,1 "
    "--seeds 0,1 --gin.Train.steps=4"
)
GROUP = "word_problems/t5_1_1_tiny"


@pytest.fixture(autouse=True)
def _program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dss train` is a stand-in, and there is nothing to prepare."""
    monkeypatch.setenv("STAND_IN", str(tmp_path))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    behave(tmp_path)
    monkeypatch.setattr(sweep_run, "PROGRAM", PROGRAM)
    monkeypatch.setattr(sweep_options, "make_stores", lambda *_: {})
    monkeypatch.setattr(sweep_options, "without_teachers", lambda planned, _: list(planned))
    monkeypatch.setattr(sweep_run, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(sweep_run, "LOCKED_SECONDS", 0.05)
    monkeypatch.setattr(sweep, "write_report", lambda *_: None)


def behave(folder: Path, **behaviour: object) -> None:
    """How the stand-in works: seconds a step, parts of folders that fail."""
    (folder / "train.json").write_text(json.dumps(behaviour))


def calls(folder: Path) -> list[dict]:
    """The starts so far."""
    file = folder / "calls"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def started(folder: Path) -> list[str]:
    """Folders in the order of the starts, relative to the sweep's."""
    return [os.path.relpath(f, folder / "s") for call in calls(folder) for f in call["folders"]]


def dss_sweep(tmp_path: Path, *flags: str) -> int:
    return main(["sweep", *TINY, "--output_dir", str(tmp_path / "s"), *flags])


def test_the_grid_of_a_sweep() -> None:
    grid = Sweep(
        tasks=("cqa",), models=("a", "b"), fractions=(0.125, 1), counts=(250,), seeds=(3, 4)
    )
    cells = cells_of(grid)
    assert len(cells) == 1 + 2 * 3 * 2 * 2
    assert cells[0].folder == "cqa/teacher"
    folders = [cell.folder for cell in cells]
    assert len(set(folders)) == len(folders)
    assert folders[1:4] == [
        "cqa/a/standard/frac_0.125/seed_3",
        "cqa/a/dss/frac_0.125/seed_3",
        "cqa/a/standard/frac_1/seed_3",
    ]
    assert "cqa/b/dss/count_250/seed_4" in folders
    assert [Cell.from_json(json.loads(json.dumps(c.as_json()))) for c in cells] == cells
    assert Sweep().sizes == ((1.0, None),)
    assert Sweep(counts=(5,)).sizes == ((None, 5),)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"fractions": (0.5, 1.5)}, "between 0 and 1, not 1.5"),
        ({"fractions": (0.0,)}, "above 0"),
        ({"counts": (0,)}, "at least 1, not 0"),
        ({"seeds": (1, 1)}, "1 twice"),
        ({"methods": "dss"}, "must be a list such as ('dss',)"),
        ({"methods": ("teacher",)}, "leave the method 'teacher' out"),
        ({"models": ("a/b",)}, "must hold names"),
        ({"model_bindings": (("a", "steps"),)}, "must hold pairs"),
        ({"at_once": 1}, "True or False"),
    ],
)
def test_a_wrong_grid_is_refused(values: dict, says: str) -> None:
    with pytest.raises(UsageError) as error:
        Sweep(**values)
    assert says in str(error.value)


def test_flags_win_over_the_gin_file(tmp_path: Path) -> None:
    file = tmp_path / "my.gin"
    file.write_text(
        'Sweep.tasks = ["word_problems"]\nSweep.models = ("t5_1_1_tiny",)\nSweep.counts = (10,)\n'
        'Sweep.model_bindings = (("t5_1_1_tiny", "Data.batch_size = 16"),)\n'
        "Train.steps = 7\n"
    )
    parser = sweep_parser()
    words = ["--gin_file", str(file), "--fractions", "0.5", "--output_dir", "s"]
    args = options.parse(parser, [*words, "--gin.Optimizer.learning_rate=0.1"])
    grid = sweep_options.read_grid(args)
    assert grid.sweep.sizes == ((0.5, None),)
    planned = sweep_options.resolve(grid, [c for c in cells_of(grid.sweep) if c.model])
    run = planned[0].run
    assert (run.train.steps, run.data.batch_size, run.task.train_fraction) == (7, 16, 0.5)
    assert run.optimizer.learning_rate == 0.1
    assert run.train.output_dir == f"s/{GROUP}/standard/frac_0.5/seed_0"
    assert planned[1].work > 2 * planned[0].work, "a step with rationales is more work"


def sweep_parser():
    import argparse

    parser = argparse.ArgumentParser(prog="dss sweep", allow_abbrev=False)
    sweep.add_flags(parser)
    return parser


def test_a_run_passes_over_the_grid_of_a_gin_file(tmp_path: Path) -> None:
    file = tmp_path / "my.gin"
    file.write_text('Sweep.methods = ("dss",)\nTrain.steps = 7\n')
    assert gin_config.read([file]).run().train.steps == 7
    with pytest.raises(UsageError, match=r"Did you mean 'Sweep.methods'"):
        gin_config.read([], ["Sweep.method = 'dss'"])


WRONG = [
    (["--models", "t5_1_1_tiny,t5_1_1_bass"], "Did you mean 't5_1_1_base'"),
    (["--methods", "dsss,distil"], "Did you mean 'distill'"),
    (["--fractions", "a"], "--fractions takes numbers"),
    (["--seeds", "0,1.5"], "--seeds takes whole numbers"),
    (["--gin.Train.seed=3"], "give --seeds, not --gin.Train.seed"),
    (["--gin.Train.steps=-1"], "at least 1, not -1"),
    (["--models", ""], "the grid has no models"),
    (["--submit", "slrum"], "Did you mean 'slurm'"),
    (["--submit", "slurm", "--print", "sky"], "not both"),
    (["--launch_flags=--partition=a"], "goes with --print or --submit"),
    (["--jobs", "0"], "--jobs must be at least 1"),
    (["--gin.Sweep.seeds=(3,)"], "leave out --gin.Sweep.seeds"),
]


@pytest.mark.parametrize(("flags", "says"), WRONG)
def test_a_mistake_is_named_before_anything_starts(
    flags: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dss_sweep(tmp_path, *flags) == 2
    assert says in capsys.readouterr().err
    assert not calls(tmp_path)


def test_all_mistakes_are_named_with_their_cells(tmp_path: Path, capsys) -> None:
    assert dss_sweep(tmp_path, "--methods", "dsss,dss", "--models", "t5_1_1_tiny,t6") == 2
    said = capsys.readouterr().err
    assert "word_problems/t5_1_1_tiny/dsss/frac_0.25 and 1 more: unknown method" in said
    assert "word_problems/t6/dsss/frac_0.25 and 3 more: unknown model" in said


def without_teacher(folders: list[str]) -> list[str]:
    return [f for f in folders if not f.endswith("/teacher")]


def test_a_sweep_to_its_end_and_again(tmp_path: Path, capsys) -> None:
    assert dss_sweep(tmp_path, "--jobs", "1") == 0
    folders = without_teacher(started(tmp_path))
    assert len(folders) == 8
    assert folders[0] == f"{GROUP}/standard/frac_0.25/seed_0"
    grid = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert grid["format"] == 1
    assert [c["folder"] for c in grid["cells"] if c["model"]] == folders
    assert grid["bindings"] == ["Train.steps = 4"]
    assert not list((tmp_path / "s").rglob(run_folder.LOCK)), "locks go with their processes"
    out = capsys.readouterr().out
    assert "test 70.00" in out
    before = len(calls(tmp_path))
    assert dss_sweep(tmp_path) == 0
    assert len(calls(tmp_path)) == before, "finished runs are not started again"
    # It grows by what is new only.
    assert dss_sweep(tmp_path, "--fractions", "0.25,0.5") == 0
    assert sorted(without_teacher(started(tmp_path))[8:]) == sorted(
        f"{GROUP}/{m}/frac_0.5/seed_{s}" for m in ("standard", "dss") for s in (0, 1)
    )


def test_other_settings_are_refused_with_the_difference(tmp_path: Path, capsys) -> None:
    assert dss_sweep(tmp_path) == 0
    assert dss_sweep(tmp_path) == 0
    before = len(calls(tmp_path))
    capsys.readouterr()
    # Also where the cells asked for are other ones than those that are there.
    for flags in ([], ["--fractions", "0.5"]):
        assert dss_sweep(tmp_path, *flags, "--gin.Loss.alpha=0.3") == 2
        said = capsys.readouterr().err
        assert "-Loss.alpha = 0.5" in said
        assert "+Loss.alpha = 0.3" in said
        assert "and 8 more runs" in said
    assert len(calls(tmp_path)) == before
    # Cells that were begun stay in the grid.
    assert dss_sweep(tmp_path, "--fractions", "0.5") == 0
    cells = json.loads((tmp_path / "s" / "sweep.json").read_text())["cells"]
    assert len([c for c in cells if c["model"]]) == 12


def test_a_failed_cell_does_not_stop_the_rest(tmp_path: Path, capsys) -> None:
    behave(tmp_path, fail=["dss/frac_1/seed_1"])
    assert dss_sweep(tmp_path) == 1
    done = capsys.readouterr()
    assert "  | out of memory" in done.out
    failed = f"{GROUP}/dss/frac_1/seed_1"
    assert (
        f"{failed} (status 1, {tmp_path / 's' / failed / 'train.log'}): out of memory" in done.err
    )
    assert len(without_teacher(started(tmp_path))) == 8
    behave(tmp_path)
    assert dss_sweep(tmp_path) == 0
    assert without_teacher(started(tmp_path))[8:] == [failed], "it is tried again"


def test_a_cell_of_somebody_elses_grid_stays_in_the_folder(tmp_path: Path) -> None:
    for field in ("task", "model", "method"):
        cell = Cell("words", "dss", "tiny", 1.0).as_json() | {field: "../../harmless"}
        (tmp_path / "sweep.json").write_text(json.dumps({"format": 1, "cells": [cell]}))
        with pytest.raises(UsageError, match=r"sweep\.json names a file .*harmless"):
            sweep_plan.cells_in(tmp_path)


def test_a_cell_that_was_planned_and_never_begun_may_change(tmp_path: Path) -> None:
    behave(tmp_path, fail_early=["frac_1/seed_1"])
    assert dss_sweep(tmp_path) == 1
    folder = tmp_path / "s" / GROUP / "dss/frac_1/seed_1"
    planned = gin_config.read([folder / run_folder.CONFIG]).run()
    assert (planned.train.steps, planned.train.output_dir) == (4, str(folder))
    cells = sweep_plan.cells_in(tmp_path / "s")
    assert len(sweep_plan.begun_before(tmp_path / "s", [])) == len(cells) - 2 == 7
    run_folder.open_run_folder(planned, None)
    other = config.Run(train=config.Train(steps=5, output_dir=str(folder)))
    assert other_settings(other, folder) == ""
    done = tmp_path / "s" / GROUP / "dss/frac_1/seed_0"
    assert "Train.steps" in other_settings(other, done)


def test_a_run_that_finds_its_folder_taken_is_waited_for(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    file = tmp_path / "s" / GROUP / "dss/frac_1/seed_0" / run_folder.LOCK
    asked: list[object] = []
    real = locks.owner_of

    def owner_of(file: Path) -> locks.Owner | None:
        """The sweep asks a moment before somebody else begins."""
        asked.append(file)
        return None if len(asked) == 1 else real(file)

    begun = threading.Event()

    def hold() -> None:
        with locks.held(file, "no"):
            begun.set()
            until = time.monotonic() + 10
            while len(asked) < 4 and time.monotonic() < until:
                time.sleep(0.01)
            assert not calls(tmp_path)

    monkeypatch.setattr(locks, "owner_of", owner_of)
    other = threading.Thread(target=hold)
    other.start()
    begun.wait()
    grid = ("--methods", "dss", "--fractions", "1", "--seeds", "0", "--gin.Sweep.teacher=False")
    assert dss_sweep(tmp_path, *grid) == 0
    other.join()
    out = capsys.readouterr().out
    assert f"dss/frac_1/seed_0: process {os.getpid()} on" in out
    assert "trains it; waiting for that" in out
    assert len(calls(tmp_path)) == 1
    assert (file.parent / "results.json").exists()


def test_a_dry_run_shows_the_plan_and_starts_nothing(tmp_path: Path, capsys) -> None:
    assert dss_sweep(tmp_path, "--dry_run") == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("dss train ")]
    assert len([line for line in lines if f"/{GROUP}/" in line]) == 8
    assert not (tmp_path / "s").exists()
    # Runs that are at work at once write their calls in either order.
    assert dss_sweep(tmp_path, "--jobs", "1") == 0
    assert [call["words"] for call in calls(tmp_path)] == [line.split()[2:] for line in lines]
    command = lines[-1].split()
    capsys.readouterr()
    assert main(["config", *command[2:]]) == 0
    out = capsys.readouterr().out
    assert "Train.steps = 4\nTrain.seed = 1\n" in out
    assert f"Train.output_dir = '{tmp_path}/s/{GROUP}/dss/frac_1/seed_1'" in out


def test_flags_that_a_run_must_know_before_it_reads_its_settings(tmp_path: Path, capsys) -> None:
    own = tmp_path / "tasks"
    own.mkdir()
    t5x = ("--gin.Train.engine='t5x'", "--task_dir", str(own))
    assert dss_sweep(tmp_path, "--dry_run", *t5x) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.endswith(f"/seed_1/config.gin --engine t5x --task_dir {own}")
    assert dss_sweep(tmp_path, "--dry_run", "--at_once", "--gin.Data.seed=7") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    folder = tmp_path / "s" / GROUP / "dss/frac_1"
    flags = f"--seeds 0,1 --output_dir {folder} --gin.Data.seed=7 --sizes frac_0.25,frac_1"
    assert line == f"dss train --gin_file {folder}/seed_0/config.gin {flags}"


def test_seeds_at_once_are_one_process(tmp_path: Path) -> None:
    assert dss_sweep(tmp_path, "--at_once") == 0
    assert len([c for c in calls(tmp_path) if "--seeds" in c["words"]]) == 4
    words = next(c["words"] for c in calls(tmp_path) if "--seeds" in c["words"])
    assert words[words.index("--seeds") + 1] == "0,1"
    assert not any("Train.seed" in word or "Data.seed" in word for word in words)
    # Two more seeds train together, without those that are done.
    assert dss_sweep(tmp_path, "--at_once", "--seeds", "0,1,2,3") == 0
    last = [c["words"] for c in calls(tmp_path) if "--seeds" in c["words"]][4:]
    assert {w[w.index("--seeds") + 1] for w in last} == {"2,3"}


def test_each_run_gets_a_device_of_its_own(tmp_path: Path, monkeypatch) -> None:
    behave(tmp_path, seconds=0.02)
    assert dss_sweep(tmp_path, "--devices", "4,7") == 0
    assert {c["gpu"] for c in calls(tmp_path)} == {"4", "7"}


def test_devices() -> None:
    def two(_: object) -> list[str]:
        return ["0", "1"]

    assert slots(None, 1, 1, {}, two) == [{"CUDA_VISIBLE_DEVICES": d} for d in ("0", "1")]
    assert slots(None, 2, 1, {}, two) == [{"CUDA_VISIBLE_DEVICES": "0,1"}]
    shared = slots("3", 1, 2, {}, two)
    assert [s["CUDA_VISIBLE_DEVICES"] for s in shared] == ["3", "3"]
    assert shared[0]["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.45"
    assert slots(None, 1, 3, {}, lambda _: []) == [{}, {}, {}]
    with pytest.raises(UsageError, match="only 2 GPUs"):
        slots(None, 3, 1, {}, two)
    with pytest.raises(UsageError, match="no GPU was found"):
        slots(None, 2, 1, {}, lambda _: [])


def test_cores_are_shared_out(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5, 6}, raising=False)
    assert cores(1) == [{4, 5, 6}]
    assert cores(2) == [{4, 6}, {5}]
    assert cores(4) == [{4}, {5}, {6}, {4}]
    assert slots_of_small(7) == [{}, {}, {}]
    assert slots_of_small(2) == [{}, {}]
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(machine, "ACCELERATORS", (os.devnull,))
    assert slots_of_small(7) == [{}]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system knows no affinity")
def test_runs_at_once_without_gpus_have_cores_of_their_own(tmp_path: Path) -> None:
    behave(tmp_path, seconds=0.02)
    before = os.sched_getaffinity(0)
    assert dss_sweep(tmp_path, "--jobs", "2") == 0
    first = calls(tmp_path)
    assert {tuple(call["cores"]) for call in first} == {tuple(sorted(own)) for own in cores(2)}
    assert dss_sweep(tmp_path, "--seeds", "2") == 0  # So small a model, unasked.
    assert {len(call["cores"]) for call in calls(tmp_path)[len(first) :]} == {1}
    assert dss_sweep(tmp_path, "--seeds", "3", "--jobs", "1") == 0  # One at a time has all.
    assert set(calls(tmp_path)[-1]["cores"]) == os.sched_getaffinity(0) == before


def test_runs_on_shares_of_the_data_are_told_of_each_other(tmp_path: Path) -> None:
    assert dss_sweep(tmp_path) == 0
    for call in calls(tmp_path):
        teacher = call["folders"][0].endswith("teacher")
        assert ("--sizes frac_0.25,frac_1" in " ".join(call["words"])) is not teacher


def test_sizes() -> None:
    assert sizes_in("frac_0.5,count_100") == [(0.5, None), (None, 100)]
    tasks = [config.Task(name="t", train_count=3), config.Task(name="t", subset_seed=2)]
    found = of_sizes(tasks, "frac_0.5,count_9")
    assert [(t.train_fraction, t.train_count, t.subset_seed) for t in found] == [
        (0.5, None, 0),
        (1.0, 9, 0),
        (0.5, None, 2),
        (1.0, 9, 2),
    ]
    for wrong in ("half", "count_1.5", "frac_", "0.5"):
        with pytest.raises(UsageError, match=f"--sizes takes sizes .*{wrong}"):
            sizes_in(wrong)
    for wrong in ("frac_0", "frac_1.5", "frac_nan", "count_0", "count_-3"):
        with pytest.raises(UsageError, match=r"Task.train_(fraction|count) must be"):
            of_sizes(tasks, wrong)


def test_a_demo_of_other_settings_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its runs are done, so nothing else would look at them."""
    for run in demo._runs(tmp_path, []).values():
        run_folder.open_run_folder(run, "key")
        (Path(str(run.train.output_dir)) / run_folder.RESULTS).write_text("{}")
    assert main(["demo", "--output_dir", str(tmp_path), "--gin.Train.steps=7"]) == 2
    assert re.search(r"other settings:(?s:.*)\+Train.steps = 7", capsys.readouterr().err)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path, capsys) -> None:
    behave(tmp_path, seconds=0.1)

    def interrupt() -> None:
        while not any((tmp_path / "s").rglob("metrics.jsonl")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert dss_sweep(tmp_path, "--jobs", "2") == 130
    thread.join()
    out = capsys.readouterr().out
    assert "stopped. To go on" in out
    # A terminal's Ctrl-C reaches a whole session; a second signal would stop a run at once.
    assert all(call["session"] == call["pid"] for call in calls(tmp_path))
    begun = list((tmp_path / "s").rglob("metrics.jsonl"))
    assert begun
    assert not list((tmp_path / "s").rglob(run_folder.LOCK))
    behave(tmp_path)
    assert dss_sweep(tmp_path) == 0
    for file in (tmp_path / "s" / GROUP).rglob("metrics.jsonl"):
        steps = [json.loads(line)["step"] for line in file.read_text().splitlines()]
        assert steps == [1, 2, 3, 4], "no step is done twice"


SWEEP = """
import sys
sys.path.insert(0, {tests!r})
from dss_jax.cli import sweep_options, sweep
from dss_jax.sweep import runner as sweep_run
sweep_options.make_stores = lambda *_: {{}}
sweep_options.without_teachers = lambda planned, _: list(planned)
sweep.write_report = lambda *_: None
sweep_run.PROGRAM = {program!r}
from dss_jax.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_sweep_leaves_runs_that_are_not_started_twice(tmp_path: Path, capsys) -> None:
    behave(tmp_path, seconds=0.3)
    code = SWEEP.format(tests=str(Path(__file__).parent), program=PROGRAM)
    words = ["sweep", *TINY, "--jobs", "1", "--output_dir", str(tmp_path / "s")]
    first = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.DEVNULL)
    while not calls(tmp_path):
        assert first.poll() is None
        time.sleep(0.01)
    first.kill()
    first.wait()
    orphan = calls(tmp_path)[0]
    owner = locks.owner_of(Path(orphan["folders"][0]) / run_folder.LOCK)
    assert owner is not None
    assert owner["pid"] == orphan["pid"]
    behave(tmp_path)
    assert dss_sweep(tmp_path, "--jobs", "1") == 0
    assert f"process {orphan['pid']} on" in capsys.readouterr().out
    folders = started(tmp_path)
    assert len(folders) == len(set(folders)), "no run was started twice"
    log = Path(orphan["folders"][0]) / "train.log"
    assert "is in use" not in log.read_text(), "nor tried to"
    second = calls(tmp_path)[1]
    assert second["others"] == [], "its device was free"
    done = list((tmp_path / "s").rglob("results.json"))
    assert len(done) == len(folders)


def test_time_to_the_end() -> None:
    times = sweep_plan.Times(Path("nowhere"))
    assert times.to_the_end([], 5.0, 1) is None
    times.seconds, times.work = 10.0, 5.0
    assert times.to_the_end([(10.0, 5.0)], 30.0, 2) == pytest.approx(30.0)
    # Scoring the teacher, which is nearly no work, says nothing of training.
    times._count(6.0, sweep_plan.TEACHER_WORK)
    assert (times.seconds, times.work) == (10.0, 5.0)
    assert sweep_run.duration(59) == "59 s"
    assert sweep_run.duration(3900) == "1 h 05 min"


def test_the_step_of_a_run_at_work(tmp_path: Path) -> None:
    assert sweep_plan.logged_step(tmp_path) == 0
    (tmp_path / "metrics.jsonl").write_text('{"step": 3}\n{"step": 40}\n{"st')
    assert sweep_plan.logged_step(tmp_path) == 40


def frontier(tmp_path: Path, *flags: str) -> int:
    return main([*FRONTIER, "--output_dir", str(tmp_path / "s"), *flags])


def cells_tried(tmp_path: Path) -> list[str]:
    """MODEL/SIZE of the runs of dss in the order of their starts, each once."""
    folders = [f.split("/") for f in started(tmp_path) if "/dss/" in f]
    return list(dict.fromkeys(f"{f[1]}/{f[3]}" for f in folders))


def test_a_frontier_is_searched_and_not_again(tmp_path: Path, capsys) -> None:
    # dss reaches 50 + 30 x: the teacher's 60 with a share of 0.4.
    assert frontier(tmp_path) == 0
    assert started(tmp_path)[0] == "word_problems/teacher"
    assert cells_tried(tmp_path) == [
        "t5_1_1_tiny/frac_1",
        "t5_1_1_tiny/frac_0.4",
        "t5_1_1_tiny/frac_0.2",
    ]
    out = capsys.readouterr().out
    assert "t5_1_1_tiny reaches it with 40 % of the data; on test 62.00 +- 0.00" in out
    saved = json.loads((tmp_path / "s" / "frontier.json").read_text())
    assert saved["complete"]
    assert saved["target"] == 60.0
    assert (saved["best"]["model"], saved["best"]["fraction"]) == ("t5_1_1_tiny", 0.4)
    assert [t["fraction"] for t in saved["path"]] == [1.0, 0.4, 0.2]
    assert (tmp_path / "s" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    before = len(calls(tmp_path))
    assert frontier(tmp_path) == 0
    assert len(calls(tmp_path)) == before, "all is there"
    # The report finds in sweep.json what was trained, and no other cell.
    cells = json.loads((tmp_path / "s" / "sweep.json").read_text())["cells"]
    assert len(cells) == 1 + 3 * 2


def test_a_frontier_takes_the_runs_of_a_sweep(tmp_path: Path, capsys) -> None:
    assert dss_sweep(tmp_path, "--methods", "dss", "--fractions", "0.2,0.4") == 0
    before = len(calls(tmp_path))
    assert frontier(tmp_path, "--target", "60") == 0
    assert len(calls(tmp_path)) == before
    assert "there before" in capsys.readouterr().out
    words = [w for w in FRONTIER if w not in ("--task", "word_problems")]
    words += ["--gin.Sweep.tasks=('word_problems',)", "--target", "60"]
    assert main([*words, "--output_dir", str(tmp_path / "s")]) == 0, "a task of gin's"
    assert len(calls(tmp_path)) == before


def test_a_frontier_against_full_fine_tuning(tmp_path: Path, capsys) -> None:
    # standard: 40 + 30 x, so 70 of the largest model on all data; dss needs 0.67.
    assert frontier(tmp_path, "--target", "full_standard") == 0
    folders = [f for f in started(tmp_path) if "/standard/" in f]
    assert folders == [f"word_problems/t5_1_1_base/standard/frac_1/seed_{s}" for s in (0, 1)]
    assert "t5_1_1_tiny reaches it with 80 % of the data" in capsys.readouterr().out


def test_a_frontier_that_is_not_reached(tmp_path: Path, capsys) -> None:
    assert frontier(tmp_path, "--target", "99", "--map") == 0
    assert cells_tried(tmp_path) == ["t5_1_1_tiny/frac_1", "t5_1_1_base/frac_1"]
    assert "no model reaches 99.00" in capsys.readouterr().out


def test_a_frontier_stops_where_a_run_fails_and_goes_on(tmp_path: Path, capsys) -> None:
    behave(tmp_path, fail=["frac_0.4/seed_1"])
    assert frontier(tmp_path) == 1
    assert "frac_0.4/seed_1 (status 1" in capsys.readouterr().err
    behave(tmp_path)
    before = len(calls(tmp_path))
    assert frontier(tmp_path) == 0
    again = [f for call in calls(tmp_path)[before:] for f in call["folders"]]
    assert not any("frac_1/" in f or "frac_0.4/seed_0" in f for f in again)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--target", "teach"], "teacher, full_standard or a number"),
        (["--target", "120"], "between 0 and 100"),
        (["--split", "train"], "unknown --split"),
        (["--models", "t5_1_1_tinny"], "Did you mean 't5_1_1_tiny'"),
        (["--output_dir", "gs://a/b"], "give a local folder"),
        (["--method", ""], "give --method NAME or Sweep.methods"),
        (["--method", "standard,dss"], "--method NAME takes one, not 2: standard, dss"),
        (["--task", "cqa,esnli", "--target", "60"], "--task NAME takes one, not 2: cqa, esnli"),
        (["--gin.Sweep.methods=('standard',)"], "leave out --gin.Sweep.methods"),
    ],
)
def test_a_mistake_in_a_frontier_starts_nothing(
    flags: list[str], says: str, tmp_path: Path, capsys
) -> None:
    assert frontier(tmp_path, *flags) == 2
    assert says in capsys.readouterr().err
    assert not calls(tmp_path)
