"""launch/tpu_vm.sh against a stand-in of gcloud whose workers are folders."""

import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from launching import TRAIN, Machine, machine

SLICE = ("--accelerator_type", "v5litepod-16", "--zone", "us-central1-a")
OUTPUT = ("--output_dir", "gs://bucket/runs/a b")
ACTIVE = {"states": ["ACTIVE"]}


@pytest.fixture
def cloud(tmp_path: Path) -> Machine:
    made = machine(tmp_path)
    made.python("gcloud", "gcloud.py")
    made.program("python3.13", "#!/bin/sh\nexit 0\n")
    made.recorder("make", 'mkdir -p "$2/.venv/bin" && cp "$STAND_IN/bin/dss" "$2/.venv/bin/dss"')
    plan(made)
    return made


def plan(cloud: Machine, *create: dict, workers: int = 2, drop: tuple[dict, ...] = ()) -> None:
    text = json.dumps({"create": create or [ACTIVE], "workers": workers, "drop": drop})
    (cloud.folder / "plan.json").write_text(text)


def run(cloud: Machine, *flags: str):
    return cloud.launch("tpu_vm.sh", "run", "my-slice", *SLICE, *TRAIN, *OUTPUT, *flags)


def verbs(cloud: Machine) -> list[str]:
    """create, scp, ssh setup ... in order, without the looking."""
    done = []
    for call in cloud.calls("gcloud"):
        words = [w.removeprefix("--command=bash tpu_worker.sh ") for w in call if "tpu_worker" in w]
        verb = words[-1].split()[0] if call[4] == "ssh" else call[4]
        if verb not in ("describe", "poll"):
            done.append(verb)
    return done


def steps(cloud: Machine) -> list[int]:
    return [
        int(f.read_text()) for f in sorted((cloud.folder / "gs/bucket/runs/a b").glob("step-*"))
    ]


def test_a_run_from_nothing_to_its_end(cloud: Machine) -> None:
    plan(cloud, {"states": ["CREATING", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]})
    done = run(cloud, "--spot")
    assert done.returncode == 0, done.stderr
    assert verbs(cloud) == ["create", "scp", "setup", "start"]
    create = cloud.calls("gcloud")[1]
    assert create[3:] == [
        "queued-resources",
        "create",
        "my-slice",
        "--zone=us-central1-a",
        "--node-id=my-slice",
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--spot",
    ]
    assert "WAITING_FOR_RESOURCES" in done.stderr
    # One log: every line has its worker, and none comes twice.
    for worker in ("w-0", "w-1"):
        lines = [line for line in done.stdout.splitlines() if line.startswith(f"[{worker}]")]
        assert lines.count(f"[{worker}] starts from random parameters") == 1
        assert lines.count(f"[{worker}] done after 5 steps") == 1
    assert "@w-" not in done.stdout
    assert "tpu_vm.sh delete my-slice --zone=us-central1-a" in done.stderr
    # What the quotes hold arrives as it was given.
    expected = ["dss", "train", *TRAIN, *OUTPUT]
    assert cloud.calls("dss") == [expected, expected]
    assert steps(cloud) == [5, 5]


def test_workers_get_the_code_the_store_and_nothing_of_the_environment(
    cloud: Machine, tmp_path: Path
) -> None:
    store = tmp_path / "my stores" / "word_problems-1a2b"
    store.mkdir(parents=True)
    (store / "manifest.json").write_text("{}")
    text = (cloud.folder / "bin/dss").read_text()
    cloud.program("dss", text.replace("exec", "export RECORD_ENVIRONMENT=1; exec", 1))
    done = run(cloud, "--store", str(store))
    assert done.returncode == 0, done.stderr
    for i in range(2):
        home = cloud.folder / f"worker-{i}"
        assert (home / "dss-jax/stores/word_problems-1a2b/manifest.json").read_text() == "{}"
        assert (home / "dss-jax/launch/local.sh").exists()
        assert (home / "dss-jax/pyproject.toml").exists()
        assert not (home / "dss-jax/.git").exists()
    given = cloud.calls("dss")[0]
    assert given[-1] == '--gin.Data.store="stores/word_problems-1a2b"'
    environment = json.loads((cloud.folder / "environment.json").read_text())
    assert environment["JAX_PLATFORMS"] == "tpu,cpu"
    assert not {"OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"} & environment.keys()


def test_without_capacity_it_asks_again(cloud: Machine) -> None:
    reason = 'There is no more capacity in the zone "us-central1-a"; you can try in another zone'
    plan(cloud, {"states": ["WAITING_FOR_RESOURCES", "FAILED"], "reason": reason}, ACTIVE)
    done = run(cloud)
    assert done.returncode == 0, done.stderr
    assert verbs(cloud) == ["create", "delete", "create", "scp", "setup", "start"]
    assert reason in done.stderr


def test_it_does_not_ask_for_ever(cloud: Machine) -> None:
    plan(cloud, *[{"states": ["FAILED"], "reason": "no more capacity"}] * 3)
    done = run(cloud, "--max_attempts=2")
    assert done.returncode == 1
    assert "no slice that lasted in 2 attempts" in done.stderr
    assert verbs(cloud).count("create") == 2


REFUSED = [
    "NOT_FOUND: Location 'us-central1-z' was not found",
    "PERMISSION_DENIED: Permission 'tpu.nodes.create' denied on resource",
    "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sPreemptibleLitepod' has been exceeded. Limit: 0",
    "You do not currently have an active account selected. Please run: $ gcloud auth login",
]


@pytest.mark.parametrize("reason", REFUSED)
def test_what_waiting_does_not_mend_stops_at_once(cloud: Machine, reason: str) -> None:
    plan(cloud, {"error": reason})
    done = run(cloud)
    assert done.returncode == 1
    assert reason in done.stderr
    assert verbs(cloud) == ["create"]


def test_a_quota_that_shows_only_later_stops_too(cloud: Machine) -> None:
    reason = "Quota limit 'TPUV5sPreemptibleLitepod' has been exceeded. Limit: 0"
    plan(cloud, {"states": ["WAITING_FOR_RESOURCES", "FAILED"], "reason": reason})
    done = run(cloud)
    assert done.returncode == 1
    assert reason in done.stderr
    assert verbs(cloud) == ["create"]


def test_a_passing_error_is_tried_again(cloud: Machine) -> None:
    plan(cloud, {"error": "UNAVAILABLE: The service is currently unavailable."}, ACTIVE)
    done = run(cloud)
    assert done.returncode == 0, done.stderr
    assert verbs(cloud)[:3] == ["create", "create", "scp"]


def until(cloud: Machine, process: subprocess.Popen, verb: str, times: int) -> None:
    """Waits for a call, and lets the runs come to their end."""
    while verbs(cloud).count(verb) < times:
        assert process.poll() is None
        time.sleep(0.02)
    cloud.train(steps=1)


def test_after_preemption_it_goes_on_in_the_same_folder(cloud: Machine) -> None:
    plan(cloud, {"states": ["ACTIVE"], "preempt_at": 3}, ACTIVE)
    cloud.train(steps=100_000)
    flags = (*SLICE, *TRAIN, *OUTPUT, "--spot", "--delete_after")
    process = cloud.start("tpu_vm.sh", "run", "my-slice", *flags)
    until(cloud, process, "create", 2)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert verbs(cloud) == ["create", "scp", "setup", "start", "delete"] * 2
    first, *others = cloud.calls("dss")
    assert len(others) == 3
    assert all(other == first for other in others)
    assert "[w-0] going on from step" in out
    assert "[w-1] done after" in out


@pytest.mark.parametrize("at", ["scp", "setup", "start", "poll"])
def test_a_connection_that_drops_on_one_worker(cloud: Machine, at: str) -> None:
    plan(cloud, drop=({"at": at, "worker": 1, "times": 1},))
    cloud.train(steps=30, peers=2)
    done = run(cloud)
    assert done.returncode == 0, done.stderr
    assert "[w-1] done after 30 steps" in done.stdout
    assert verbs(cloud).count("create") == 1
    # The worker that was reached is not started twice.
    assert len(cloud.calls("dss")) == 2


def test_a_worker_whose_run_is_lost_brings_all_to_a_new_start(cloud: Machine) -> None:
    cloud.train(steps=100_000)
    process = cloud.start("tpu_vm.sh", "run", "my-slice", *SLICE, *TRAIN, *OUTPUT)
    assert process.stdout
    process.stdout.readline()
    # Maintenance: the worker was started anew, and its number belongs to another process.
    (cloud.folder / "worker-1/dss-job/boot").write_text("another")
    until(cloud, process, "halt", 1)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "the run was interrupted" in err
    assert verbs(cloud) == ["create", "scp", "setup", "start", "halt", "scp", "setup", "start"]
    assert "[w-0] interrupted after" in out or "[w-0] going on from step" in out


def test_a_run_that_saved_at_a_signal_goes_on(cloud: Machine) -> None:
    cloud.train(steps=200, peers=2)
    process = cloud.start("tpu_vm.sh", "run", "my-slice", *SLICE, *TRAIN, *OUTPUT)
    assert process.stdout
    process.stdout.readline()
    # The warning before a preemption that then does not come.
    for file in cloud.folder.glob("worker-*/dss-job/child"):
        os.kill(int(file.read_text()), signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "[w-1] interrupted after" in out
    assert "[w-1] going on from step" in out
    assert verbs(cloud).count("create") == 1
    assert steps(cloud) == [200, 200]


def test_a_run_that_fails_is_not_tried_again(cloud: Machine) -> None:
    cloud.train(error="UsageError: the loss is nan", status=3)
    done = run(cloud)
    assert done.returncode == 3
    assert "[w-0] UsageError: the loss is nan" in done.stdout
    assert "the run failed with status 3" in done.stderr
    assert verbs(cloud).count("start") == 1


def test_stop_saves_and_the_same_command_goes_on(cloud: Machine) -> None:
    cloud.train(steps=3000)
    process = cloud.start("tpu_vm.sh", "run", "my-slice", *SLICE, *TRAIN, *OUTPUT)
    assert process.stdout
    first = process.stdout.readline()
    assert "starts from random parameters" in first
    status = cloud.launch("tpu_vm.sh", "status", "my-slice")
    assert status.stdout.splitlines() == ["my-slice: ACTIVE", "[w-0] running", "[w-1] running"]
    stop = cloud.launch("tpu_vm.sh", "stop", "my-slice")
    assert stop.returncode == 0, stop.stderr
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "[w-1] interrupted after" in out
    assert "The same command goes on" in err
    cloud.train(steps=max(steps(cloud)) + 5)
    done = run(cloud)
    assert done.returncode == 0, done.stderr
    assert "[w-0] going on from step" in done.stdout


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_closed_laptop_or_ctrl_c_is_no_end(cloud: Machine, how: signal.Signals) -> None:
    cloud.train(steps=100_000)
    process = cloud.start("tpu_vm.sh", "run", "my-slice", *SLICE, *TRAIN, *OUTPUT)
    assert process.stdout
    process.stdout.readline()
    process.send_signal(how)
    _, err = process.communicate(timeout=120)
    assert how == signal.SIGKILL or "the run goes on without you" in err
    seen = len(cloud.calls("gcloud"))
    process = cloud.start("tpu_vm.sh", "run", "my-slice", *SLICE, "--", *TRAIN, *OUTPUT)
    while len(cloud.calls("gcloud")) < seen + 3:
        assert process.poll() is None
        time.sleep(0.02)
    cloud.train(steps=1)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert verbs(cloud) == ["create", "scp", "setup", "start"], "it went on with the one that ran"
    assert "[w-1] done after" in (cloud.folder / "logs/my-slice.log").read_text()


WRONG = [
    (["run", "my-slice", *TRAIN, "--output_dir", "runs/a"], "must be on gs://, not 'runs/a'"),
    (["run", "my-slice", *TRAIN], "must be on gs://, not '(none)'"),
    (["run", "my-slice", *TRAIN, *OUTPUT, "--data_dir", "/data"], "Task.data_dir is '/data'"),
    (["run", "my-slice", *TRAIN, *OUTPUT, "--stor", "x"], "Did you mean --store?"),
    (["run", "my-slice", *TRAIN, *OUTPUT, "--store", "/no"], "/no is no folder here"),
    (["run", "my-slice", *TRAIN, *OUTPUT], "give --accelerator_type"),
    (["run", "my-slice", *SLICE, *TRAIN, *OUTPUT, "--gin.Train.stepz=3"], "'Train.steps'"),
    (["run", "My_slice", *TRAIN], "not 'My_slice'"),
    (["run", "--spot", "my-slice"], "the name of the slice"),
    (["rum", "my-slice"], "unknown command 'rum'"),
    (["run", "my-slice", "--max_attempts", "0"], "at least 1, not '0'"),
    (["run", "my-slice", "--zone"], "--zone needs a value"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG)
def test_a_mistake_costs_nothing(cloud: Machine, arguments: list[str], says: str) -> None:
    done = cloud.launch("tpu_vm.sh", *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert not verbs(cloud)


def test_a_dry_run_shows_every_command_and_calls_none(cloud: Machine) -> None:
    done = run(cloud, "--spot", "--dry_run", "--delete_after")
    assert done.returncode == 0, done.stderr
    assert not cloud.calls()
    shown = [line for line in done.stdout.splitlines() if line.startswith("gcloud ")]
    words = [shlex.split(line)[3:5] for line in shown]
    assert words == [
        ["queued-resources", "create"],
        ["queued-resources", "describe"],
        ["tpu-vm", "scp"],
        ["tpu-vm", "ssh"],
        ["tpu-vm", "ssh"],
        ["tpu-vm", "ssh"],
        ["queued-resources", "delete"],
    ]
    start = shlex.split(shlex.split(shown[4])[-1].removeprefix("--command="))
    assert start == ["bash", "tpu_worker.sh", "start", *TRAIN, *OUTPUT]
    assert "Train.output_dir = 'gs://bucket/runs/a b'" in done.stdout


@pytest.mark.parametrize("command", ["create", "sync", "logs", "status", "stop", "delete"])
def test_each_command_has_a_dry_run(cloud: Machine, command: str) -> None:
    done = cloud.launch("tpu_vm.sh", command, "my-slice", *SLICE, "--dry_run", *TRAIN, *OUTPUT)
    assert done.returncode == 0, done.stderr
    assert "gcloud compute tpus" in done.stdout
    assert not cloud.calls()


RUNTIMES = {
    "v4-8": "tpu-ubuntu2204-base",
    "v5litepod-8": "v2-alpha-tpuv5-lite",
    "v5p-8": "v2-alpha-tpuv5",
    "v6e-8": "v2-alpha-tpuv6e",
}


@pytest.mark.parametrize("kind", RUNTIMES)
def test_each_type_has_its_image(cloud: Machine, kind: str) -> None:
    done = cloud.launch("tpu_vm.sh", "create", "s", "--accelerator_type", kind, "--dry_run")
    assert f"--runtime-version={RUNTIMES[kind]}" in done.stdout
