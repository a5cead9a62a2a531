"""`gcloud compute tpus` as far as launch/tpu_vm.sh uses it. Workers are folders on this machine.

STAND_IN/plan.json says what happens: {"create": [...], "workers": N, "preempt_at": [...],
"drop": [...]}. Each call is a line of STAND_IN/calls. Flags, states and error texts are those of
Google Cloud SDK 528.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(os.environ["STAND_IN"])
PLAN, STATE, LOCK = HERE / "plan.json", HERE / "state.json", HERE / "state.lock"
FLAGS = {
    ("queued-resources", "create"): {
        "--zone",
        "--project",
        "--node-id",
        "--accelerator-type",
        "--runtime-version",
        "--spot",
    },
    ("queued-resources", "describe"): {"--zone", "--project", "--format"},
    ("queued-resources", "delete"): {"--zone", "--project", "--force", "--quiet"},
    ("tpu-vm", "ssh"): {"--zone", "--project", "--worker", "--command", "--output-directory"},
    ("tpu-vm", "scp"): {"--zone", "--project", "--worker"},
}
NOT_FOUND = (
    "ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource was not found"
)


def fail(message: str, status: int = 1) -> None:
    print(message, file=sys.stderr)
    sys.exit(status)


def kill_jobs() -> None:
    for pid in HERE.glob("worker-*/dss-job/pid"):
        with contextlib.suppress(ProcessLookupError, ValueError):
            os.killpg(os.getpgid(int(pid.read_text())), signal.SIGKILL)


def create(state: dict, plan: dict, flags: dict) -> None:
    if state["states"]:
        fail("ERROR: (gcloud.compute.tpus.queued-resources.create) ALREADY_EXISTS: Resource exists")
    outcome = plan["create"].pop(0)
    PLAN.write_text(json.dumps(plan))
    if "error" in outcome:
        fail(f"ERROR: (gcloud.compute.tpus.queued-resources.create) {outcome['error']}")
    state.update(states=outcome["states"], reason=outcome.get("reason", ""), polls=0)
    state["preempt_at"] = outcome.get("preempt_at")
    for i in range(plan["workers"]):
        shutil.rmtree(HERE / f"worker-{i}", ignore_errors=True)
        (HERE / f"worker-{i}").mkdir()


def describe(state: dict, plan: dict, flags: dict) -> None:
    if not state["states"]:
        fail(NOT_FOUND)
    if "failedData" in flags["--format"]:
        print(state["reason"])
        return
    print(state["states"][0])
    if len(state["states"]) > 1:
        state["states"].pop(0)


def delete(state: dict, plan: dict, flags: dict) -> None:
    if not state["states"]:
        fail(NOT_FOUND)
    kill_jobs()
    state["states"] = []


def reached(state: dict, plan: dict, what: str) -> list[int]:
    """The workers, and an exit if the slice is away. A dropped worker is tried in vain once."""
    if state["states"][:1] != ["ACTIVE"]:
        fail("ERROR: (gcloud.compute.tpus.tpu-vm) The TPU is in state [PREEMPTED] and unusable.")
    workers = list(range(plan["workers"]))
    for drop in plan.get("drop", []):
        if drop["at"] in what and drop["times"]:
            drop["times"] -= 1
            PLAN.write_text(json.dumps(plan))
            workers.remove(drop["worker"])
    return workers


def ssh(state: dict, plan: dict, flags: dict) -> Callable[[], None]:
    """The command itself may take long: it comes back, to be called without the lock."""
    assert flags["--worker"] == "all"
    command = flags["--command"]
    if command.endswith(" poll"):
        state["polls"] += 1
        if state["preempt_at"] == state["polls"]:
            kill_jobs()
            state["states"] = ["SUSPENDING", "SUSPENDED"]
    workers = reached(state, plan, command)
    return lambda: on_workers(command, workers, len(workers) < plan["workers"], flags)


def on_workers(command: str, workers: list[int], dropped: bool, flags: dict) -> None:
    status = 0
    for i in workers:
        home = HERE / f"worker-{i}"
        env = {
            "PATH": os.environ["PATH"],
            "STAND_IN": str(HERE),
            "HOME": str(home),
            "HOSTNAME": f"t1v-n-1a2b3c4d-w-{i}",
        }
        done = subprocess.run(
            # sshd gives the line to the user's shell.
            ["bash", "-c", command],
            cwd=home,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        out = done.stdout + done.stderr
        if "--output-directory" in flags:
            (Path(flags["--output-directory"]) / f"{i}.log").write_text(out)
        else:
            print(out, end="")
        status = max(status, done.returncode)
    if dropped:
        fail("ERROR: [/usr/bin/ssh] exited with return code [255].", 255)
    sys.exit(status)


def scp(state: dict, plan: dict, flags: dict) -> None:
    *sources, target = flags["names"]
    assert target.endswith(":")
    workers = reached(state, plan, "scp")
    for i in workers:
        for source in sources:
            shutil.copy(source, HERE / f"worker-{i}")
    if len(workers) < plan["workers"]:
        fail("ERROR: [/usr/bin/scp] exited with return code [255].", 255)


def main() -> None:
    with (HERE / "calls").open("a") as calls:
        calls.write(json.dumps(["gcloud", *sys.argv[1:]]) + "\n")
    compute, tpus, group, verb, *rest = sys.argv[1:]
    assert (compute, tpus) == ("compute", "tpus")
    flags: dict = {"names": [w for w in rest if not w.startswith("--")]}
    for word in rest:
        name, _, value = word.partition("=")
        if word.startswith("--"):
            if name not in FLAGS[group, verb]:
                fail(
                    f"ERROR: (gcloud.compute.tpus.{group}.{verb}) unrecognized arguments: {name}", 2
                )
            flags[name] = value
    # `tpu_vm.sh run` polls while another one asks for the status.
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = json.loads(STATE.read_text()) if STATE.exists() else {"states": []}
        try:
            command = globals()[verb](state, json.loads(PLAN.read_text()), flags)
        finally:
            STATE.write_text(json.dumps(state))
    if command:
        command()


main()
