"""`dss train` for tests of sweeps: "trains" in the output folder, and goes on from where it was.

As the real one it takes its settings from the gin file, holds the lock of each run's folder (ends
with 75 where another process has it), and saves and ends with 185 on SIGTERM. STAND_IN/train.json
says how long a step takes and which folders fail, at the end or before they are begun; each start
is a line of STAND_IN/calls.
"""

import ast
import atexit
import fcntl
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

HERE = Path(os.environ["STAND_IN"])
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
words = sys.argv[1:]


def flag(name: str) -> str:
    return words[words.index(name) + 1]


config = Path(flag("--gin_file"))
lines = [line.partition(" = ") for line in config.read_text().splitlines()]
settings = {name: ast.literal_eval(value) for name, equals, value in lines if equals}
base = Path(flag("--output_dir") if "--seeds" in words else settings["Train.output_dir"])
seeds = flag("--seeds").split(",") if "--seeds" in words else None
folders = [base / f"seed_{s}" for s in seeds] if seeds else [base]


def at_work(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


gpu, held = os.environ.get("CUDA_VISIBLE_DEVICES"), []
for folder in folders:
    # As dss_jax.core.locks.
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "run.lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{folder} is in use", flush=True)
        sys.exit(75)
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "devices": gpu, "since": "now"}
    Path(lock.name).write_text(json.dumps(owner))
    atexit.register(os.unlink, lock.name)
    held.append(lock)
earlier = (HERE / "calls").read_text().splitlines() if (HERE / "calls").exists() else []
pids = [json.loads(line)["pid"] for line in earlier]
call = {"pid": os.getpid(), "session": os.getsid(0), "gpu": gpu, "words": words}
call["cores"] = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
call["folders"] = [str(f) for f in folders]
call["others"] = [pid for pid in pids if at_work(pid)]
with (HERE / "calls").open("a") as calls:
    calls.write(json.dumps(call) + "\n")
behaviour = json.loads((HERE / "train.json").read_text())


def fail_in(what: str) -> None:
    if any(part in str(folder) for part in behaviour.get(what, [])):
        print("out of memory", file=sys.stderr, flush=True)
        sys.exit(1)


for folder in folders:
    fail_in("fail_early")
    own = folder / "config.gin"
    text = (own if own.exists() else config).read_text()
    if "# token store" not in text:
        own.write_text(f"# token store: key\n{text}")
    metrics = folder / "metrics.jsonl"
    begun = metrics.read_text().splitlines() if metrics.exists() else []
    print(f"going on from {len(begun)}" if begun else "starts anew", flush=True)
    for step in range(len(begun) + 1, settings["Train.steps"] + 1):
        time.sleep(behaviour.get("seconds", 0.0))
        with metrics.open("a") as file:
            file.write(json.dumps({"step": step, "group": "train"}) + "\n")
        if stop:
            print(f"interrupted after {step} steps", flush=True)
            sys.exit(185)
    fail_in("fail")
    # Known to tests: more data, larger models and rationales are better.
    method = settings["Method.name"]
    score = {"teacher": 60.0, "dss": 50.0, "standard": 40.0}[method]
    score += 0.0 if method == "teacher" else 30.0 * settings["Task.train_fraction"]
    scores = {"equation_accuracy": score, "examples": 10}
    results = {"metric": "equation_accuracy", "method": method, "validation": scores}
    results |= {"test": scores, "best_step": 4, "steps": 4}
    (folder / "results.json").write_text(json.dumps(results))
print("done", flush=True)
