"""launch/sky.yaml, xpk.sh and Dockerfile, with stand-ins of SkyPilot, xpk and kubectl."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
import tomllib
from pathlib import Path

import pytest
import yaml
from launching import LAUNCH, ROOT, TRAIN, Machine, machine

SKY = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
OUTPUT = ("--output_dir", "gs://bucket/runs/a b")


@pytest.fixture
def cloud(tmp_path: Path) -> Machine:
    made = machine(tmp_path)
    made.program("nvidia-smi", "#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\n")
    made.program("python3.13", "#!/bin/sh\nexit 0\n")
    made.recorder("make", 'mkdir -p .venv/bin && cp "$STAND_IN/bin/dss" .venv/bin/dss')
    return made


def script(cloud: Machine, node: int, part: str, **environment: str) -> subprocess.Popen:
    env = {**cloud.environment, "FLAGS": shlex.join([*TRAIN, *OUTPUT]), **environment}
    del env["DSS"]
    return subprocess.Popen(
        ["bash", "-c", SKY[part]],
        cwd=cloud.folder / f"node-{node}",
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def job(cloud: Machine, node: int, **environment: str) -> subprocess.Popen:
    """What SkyPilot does with the file on a machine that has the workdir and nothing else."""
    shutil.copytree(LAUNCH, cloud.folder / f"node-{node}" / "launch")
    setup = script(cloud, node, "setup")
    out, _ = setup.communicate(timeout=120)
    assert setup.returncode == 0, out
    return script(cloud, node, "run", **environment)


def test_skypilot_accepts_the_task() -> None:
    sky = pytest.importorskip("sky", reason="SkyPilot is not installed: pip install skypilot")
    task = sky.Task.from_yaml_config(dict(SKY), env_overrides=[("FLAGS", "--task cqa")])
    assert all(r.use_spot and r.job_recovery["recover_on_exit_codes"] for r in task.resources)


def test_a_managed_job_recovers_in_the_same_folder(cloud: Machine) -> None:
    cloud.train(steps=3000)
    first = job(cloud, 1)
    assert first.stdout
    while "starts from random" not in (line := first.stdout.readline()):
        assert line, "it ended"
    state = cloud.folder / "gs/bucket/runs/a b/step-0"
    while state.read_text() == "0":
        time.sleep(0.02)
    # A preempted machine is switched off: nobody saves.
    first.send_signal(signal.SIGKILL)
    first.communicate()
    saved = int(state.read_text())
    cloud.train(steps=saved + 5)
    second = job(cloud, 2)
    out, _ = second.communicate(timeout=120)
    assert second.returncode == 0, out
    assert f"going on from step {saved}" in out
    assert cloud.calls("dss") == [["dss", "train", *TRAIN, *OUTPUT]] * 2
    python = f"PYTHON={cloud.folder}/bin/python3.13"
    assert cloud.calls("make") == [["make", "install", "EXTRAS=cuda", python]] * 2


def test_a_saved_run_is_recovered_and_a_mistake_is_not(cloud: Machine) -> None:
    cloud.train(steps=3000)
    process = job(cloud, 1)
    assert process.stdout
    while "starts from random" not in process.stdout.readline():
        pass
    process.terminate()
    process.communicate(timeout=120)
    recovered = SKY["resources"]["job_recovery"]["recover_on_exit_codes"]
    assert process.returncode in recovered
    cloud.train(error="no memory", status=1)
    failed = job(cloud, 2)
    failed.communicate(timeout=120)
    assert failed.returncode == 1
    assert not {1, 2} & set(recovered)


def test_several_nodes_are_told_of_each_other(cloud: Machine) -> None:
    variables = "$JAX_COORDINATOR_ADDRESS $JAX_PROCESS_COUNT $JAX_PROCESS_INDEX"
    cloud.program("env", f'#!/bin/bash\necho "{variables}"\n')
    nodes = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8"}
    process = job(cloud, 1, **nodes, SKYPILOT_NODE_RANK="1")
    out, _ = process.communicate(timeout=120)
    assert out.splitlines()[-1] == "10.0.0.7:8476 2 1"


def test_flags_with_quotes_that_do_not_match_are_refused(cloud: Machine) -> None:
    process = job(cloud, 1, FLAGS="--task 'cqa")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "quotes do not match" in out
    assert not cloud.calls("dss")


GKE = ("--cluster", "tpus", "--zone", "us-central1-a", "--tpu_type=v5litepod-16", "--image", "i:1")


@pytest.fixture
def gke(cloud: Machine) -> Machine:
    cloud.recorder("xpk")
    cloud.recorder("kubectl", 'echo "[pod/a] step 1"')
    return cloud


def test_xpk_gets_the_run_as_one_command(gke: Machine) -> None:
    done = gke.launch("xpk.sh", "run", "my-run", *GKE, *TRAIN, *OUTPUT)
    assert done.returncode == 0, done.stderr
    (call,) = gke.calls("xpk")
    assert call[1:-1] == [
        "workload",
        "create",
        "--workload=my-run",
        "--zone=us-central1-a",
        "--cluster=tpus",
        "--tpu-type=v5litepod-16",
        "--num-slices=1",
        "--docker-image=i:1",
        "--max-restarts=100",
        "--termination-grace-period-seconds=120",
    ]
    inside = shlex.split(call[-1].removeprefix("--command="))
    local = "/opt/dss-jax/launch/local.sh"
    assert inside == ["exec", local, "--devices", "tpu", *TRAIN, *OUTPUT]


def test_a_refusal_of_xpk_is_the_exit_status(gke: Machine) -> None:
    gke.recorder("xpk", "echo '[XPK] Error: Permission denied on cluster' >&2; exit 1")
    done = gke.launch("xpk.sh", "run", "my-run", *GKE, *TRAIN, *OUTPUT)
    assert done.returncode == 1
    assert "Permission denied on cluster" in done.stderr


def test_logs_status_and_delete(gke: Machine) -> None:
    logs = gke.launch("xpk.sh", "logs", "my-run", *GKE)
    assert "[pod/a] step 1" in logs.stdout
    assert "--selector=xpk.google.com/workload=my-run" in gke.calls("kubectl")[0]
    for command in ("status", "delete"):
        assert gke.launch("xpk.sh", command, "my-run", *GKE).returncode == 0
    where = ["--zone=us-central1-a", "--cluster=tpus"]
    assert gke.calls("xpk") == [
        ["xpk", "workload", "list", *where, "--filter-by-job=my-run"],
        ["xpk", "workload", "delete", "--workload=my-run", *where],
    ]


WRONG = [
    (["run", "my-run", *GKE, *TRAIN, "--output_dir", "out"], "must be on gs://, not 'out'"),
    (["run", "my-run", *GKE[:-2], *TRAIN, *OUTPUT], "give --tpu_type"),
    (["run", "my-run", *TRAIN, *OUTPUT], "give --cluster"),
    (["run", "my-run", *GKE, *TRAIN, *OUTPUT, "--gin.Train.stepz=3"], "'Train.steps'"),
    (["run", "My_run", *GKE], "not 'My_run'"),
    (["rum", "my-run", *GKE], "unknown command 'rum'"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG)
def test_a_mistake_starts_nothing(gke: Machine, arguments: list[str], says: str) -> None:
    done = gke.launch("xpk.sh", *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert not gke.calls("xpk", "kubectl")


@pytest.mark.parametrize("command", ["run", "logs", "status", "delete"])
def test_dry_runs_call_nothing(gke: Machine, command: str) -> None:
    done = gke.launch("xpk.sh", command, "my-run", *GKE, *TRAIN, *OUTPUT, "--dry_run")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^(xpk|kubectl) ", done.stdout, re.M)
    assert not gke.calls()


def test_a_python_is_fetched_where_the_image_has_an_old_one(cloud: Machine) -> None:
    only = cloud.folder / "old"
    only.mkdir()
    for name in ("bash", "dirname", "sed", "grep"):
        os.symlink(str(shutil.which(name)), only / name)
    cloud.recorder("python3", "[[ $* != *find* ]] || echo /home/me/.local/share/uv/python3.12")
    shutil.copy(cloud.folder / "bin/python3", only / "python3")
    done = subprocess.run(
        ["bash", "-euc", "source launch/common.sh; find_python"],
        cwd=ROOT,
        text=True,
        env={**cloud.environment, "PATH": str(only)},
        capture_output=True,
    )
    assert done.stdout == "/home/me/.local/share/uv/python3.12\n", done.stderr
    assert [c[1:4] for c in cloud.calls("python3")] == [
        ["-m", "pip", "install"],
        ["-m", "uv", "python"],
        ["-m", "uv", "python"],
    ]


def test_the_image_is_pinned_runs_without_rights_and_has_what_it_copies() -> None:
    text = (LAUNCH / "Dockerfile").read_text()
    assert re.search(r"^FROM python:3\.1[123]\.\d+-slim-\w+ AS base$", text, re.M)
    assert set(re.findall(r"^FROM base AS (\w+)$", text, re.M)) == {"cuda", "tpu"}
    for stage in re.split(r"^FROM base AS ", text, flags=re.M)[1:]:
        assert "USER $UID" in stage
        assert "-c requirements.lock" in stage
    listed = (LAUNCH / "Dockerfile.dockerignore").read_text()
    allowed = re.findall(r"^!(.*)$", listed, re.M)
    assert all(list(ROOT.glob(pattern)) for pattern in allowed)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {
        *project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"],
        *project["project"]["license-files"],
        project["project"]["readme"],
        "pyproject.toml",
        "requirements.lock",
        "dss_jax",
        "launch",
    }
    assert all(any(Path(n).match(pattern) for pattern in allowed) for n in needed)
    assert set(project["project"]["optional-dependencies"]) >= {"cuda", "tpu"}
