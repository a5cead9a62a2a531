"""launch/slurm.sbatch with stand-ins of srun, scancel and scontrol.

Slurm 22.05 itself, with preemption, requeue, scancel and arrays, was tried by hand.
"""

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from launching import LAUNCH, ROOT, TRAIN, Machine, machine

JOB = {"SLURM_JOB_ID": "41"}
STEP = ["--gpu-bind=none", "--kill-on-bad-exit=0", "--wait=300", "--label"]


@pytest.fixture
def cluster(tmp_path: Path) -> Machine:
    made = machine(tmp_path)
    made.python("srun", "srun.py")
    made.recorder("scancel", 'kill -TERM $(cat "$STAND_IN/pids")')
    made.program("nvidia-smi", "#!/bin/sh\necho 'GPU 0: H100'\n")
    job_state(made, "RUNNING")
    made.train(peers=2)
    return made


def job_state(cluster: Machine, state: str) -> None:
    """What `scontrol show job` says; `scontrol requeue` is recorded only."""
    cluster.recorder(
        "scontrol", f'[[ $1 != show ]] || echo "JobId=41 JobState={state} Reason=None"'
    )


def output(cluster: Machine) -> tuple[str, str]:
    return "--output_dir", str(cluster.folder / "runs" / "a b")


def started(cluster: Machine, **environment: str) -> subprocess.Popen:
    """A job whose tasks are at work."""
    cluster.train(steps=3000, peers=2)
    process = cluster.start("slurm.sbatch", *TRAIN, *output(cluster), **JOB, **environment)
    assert process.stdout
    lines = {process.stdout.readline(), process.stdout.readline()}
    assert lines == {"starts from random parameters\n"}
    return process


def requeued(cluster: Machine) -> bool:
    return ["scontrol", "requeue", "41"] in cluster.calls("scontrol")


def signal_tasks(cluster: Machine, number: signal.Signals) -> None:
    for pid in (cluster.folder / "pids").read_text().split():
        os.kill(int(pid), number)


def test_a_run_to_its_end(cluster: Machine) -> None:
    done = cluster.launch("slurm.sbatch", *TRAIN, *output(cluster), **JOB)
    assert done.returncode == 0, done.stderr
    assert not cluster.calls("scontrol", "scancel")
    (step,) = cluster.calls("srun")
    local = str(ROOT / "launch/local.sh")
    assert step[1:] == [*STEP, local, "--devices", "all", *TRAIN, *output(cluster)]
    assert cluster.calls("dss") == [["dss", "train", *TRAIN, *output(cluster)]] * 2
    assert not cluster.calls("make"), "it was installed on the login node"


def test_the_warning_saves_queues_again_and_the_job_goes_on(cluster: Machine) -> None:
    process = started(cluster)
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.count("interrupted after") == 2
    assert cluster.calls("scancel") == [["scancel", "--signal=TERM", "41"]]
    assert requeued(cluster)
    first = cluster.calls("dss")[0]
    again = started_again(cluster)
    assert again.count("going on from step") == 2
    assert cluster.calls("dss")[-1] == first


def started_again(cluster: Machine) -> str:
    saved = (cluster.folder / "runs" / "a b").glob("step-[0-9]")
    cluster.train(steps=max(int(f.read_text()) for f in saved) + 3, peers=2)
    done = cluster.launch("slurm.sbatch", *TRAIN, *output(cluster), **JOB, SLURM_RESTART_COUNT="1")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_preemption_that_signals_the_tasks_queues_again(cluster: Machine) -> None:
    process = started(cluster)
    signal_tasks(cluster, signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert requeued(cluster)
    assert not cluster.calls("scancel"), "a second signal would stop the run at once"


def test_scancel_is_the_end(cluster: Machine) -> None:
    process = started(cluster)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    signal_tasks(cluster, signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 185
    assert not requeued(cluster)


def test_a_job_that_is_cancelled_already_is_not_queued_again(cluster: Machine) -> None:
    job_state(cluster, "CANCELLED")
    process = started(cluster)
    signal_tasks(cluster, signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 185
    assert not requeued(cluster)


@pytest.mark.parametrize("warned", [True, False])
def test_a_kill_queues_again_only_after_the_warning(cluster: Machine, warned: bool) -> None:
    cluster.recorder("scancel", "")
    process = started(cluster)
    if warned:
        process.send_signal(signal.SIGUSR1)
        while not cluster.calls("scancel"):
            time.sleep(0.02)
    signal_tasks(cluster, signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode == (0 if warned else 137)
    assert requeued(cluster) == warned


def test_a_run_that_fails_is_not_queued_again(cluster: Machine) -> None:
    cluster.train(error="no memory", status=1)
    done = cluster.launch("slurm.sbatch", *TRAIN, *output(cluster), **JOB)
    assert done.returncode == 1
    assert not requeued(cluster)


def test_the_job_of_an_array_has_its_own_flags_and_folder(cluster: Machine, tmp_path: Path) -> None:
    sweep = tmp_path / "my sweep"
    sweep.write_text("--gin.Train.seed=5\n--method standard --gin.Optimizer.name='\"adafactor\"'\n")
    base = str(tmp_path / "runs")
    words = ["--sweep", str(sweep), "--output_dir", f"{base}/s%a", *TRAIN]
    done = cluster.launch("slurm.sbatch", *words, SLURM_ARRAY_TASK_ID="2", **JOB)
    assert done.returncode == 0, done.stderr
    own = ["--method", "standard", '--gin.Optimizer.name="adafactor"']
    assert cluster.calls("dss")[0] == ["dss", "train", "--output_dir", f"{base}/s2", *TRAIN, *own]


def test_an_array_of_seeds_needs_no_file(cluster: Machine) -> None:
    own = [f"--output_dir={cluster.folder}/%a", "--gin.Train.seed=%a", "--dry_run"]
    done = cluster.launch("slurm.sbatch", *TRAIN, *own, SLURM_ARRAY_TASK_ID="0")
    assert done.returncode == 0, done.stderr
    assert f"Train.output_dir = '{cluster.folder}/0'" in done.stdout
    assert "Train.seed = 0" in done.stdout


WRONG = [
    (["--output_dir", "runs/a"], {"SLURM_ARRAY_TASK_ID": "1"}, "would share one folder"),
    (
        ["--output_dir", "o", "--gin.Train.seed=%a"],
        {"SLURM_ARRAY_TASK_ID": "1"},
        "share one folder",
    ),
    (["--output_dir", "runs/%a"], {}, "%a is for arrays"),
    (["--output_dir", "r/%a", "--sweep", "no"], {"SLURM_ARRAY_TASK_ID": "1"}, "no such file"),
    (["--output_dir", "r/%a", "--sweep", "LICENSE"], {"SLURM_ARRAY_TASK_ID": "0"}, "array from 1"),
    (["--output_dir", "r/%a", "--sweep", "LICENSE"], {"SLURM_ARRAY_TASK_ID": "9999"}, "line 9999"),
    (["--sweep"], {}, "--sweep needs a value"),
]


@pytest.mark.parametrize(("flags", "environment", "says"), WRONG)
def test_a_mistake_starts_nothing(cluster: Machine, flags, environment, says) -> None:
    done = cluster.launch("slurm.sbatch", *TRAIN, *flags, **JOB, **environment)
    assert done.returncode == 2
    assert says in done.stderr
    assert not cluster.calls("srun")


def test_outside_of_the_project_it_says_where_to_submit(cluster: Machine, tmp_path: Path) -> None:
    done = cluster.launch("slurm.sbatch", *TRAIN, cwd=tmp_path, **JOB)
    assert done.returncode == 2
    assert "submit from the project's folder" in done.stderr


@pytest.mark.parametrize("image", ["dss.sif", "docker://me/dss-jax:cuda"])
def test_containers(cluster: Machine, image: str) -> None:
    done = cluster.launch("slurm.sbatch", *TRAIN, "--container", image, "--dry_run")
    assert done.returncode == 0, done.stderr
    shown = next(line for line in done.stdout.splitlines() if line.startswith("srun "))
    words = shlex.split(shown)[1 + len(STEP) :]
    inside = ["/opt/dss-jax/launch/local.sh", "--devices", "all", *TRAIN]
    if image.endswith(".sif"):
        enter = ["apptainer", "exec", "--nv", "--bind", str(ROOT), "--pwd", str(ROOT), image]
    else:
        enter = [
            f"--container-image={image}",
            f"--container-mounts={ROOT}:{ROOT}",
            f"--container-workdir={ROOT}",
        ]
    assert words == [*enter, *inside]


def test_a_dry_run_shows_the_step_and_starts_nothing(cluster: Machine) -> None:
    done = cluster.launch("slurm.sbatch", *TRAIN, "--dry_run", "--output_dir", "runs/a")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "# dry run: nothing is started"
    assert done.stdout.splitlines()[1].startswith("srun --gpu-bind=none")
    assert "T5Config.dtype = 'bfloat16'" in done.stdout
    assert not cluster.calls()


def test_what_slurm_is_asked_for() -> None:
    text = (LAUNCH / "slurm.sbatch").read_text()
    asked = dict(
        re.fullmatch(r"--([\w-]+)=?(.*)", line.split()[1]).groups()
        for line in text.splitlines()
        if line.startswith("#SBATCH")
    )
    assert asked["signal"] == "B:USR1@120"
    assert asked["open-mode"] == "append"
    assert "requeue" in asked
    assert asked["ntasks-per-node"] == asked["gpus-per-node"] == "1", "one task a GPU"
