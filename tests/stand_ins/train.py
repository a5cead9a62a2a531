"""`dss train` on a stand-in machine: counts steps in the output folder, and goes on from there.

Like the real one it saves and ends with 185 on SIGTERM.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

HERE = Path(os.environ["STAND_IN"])
with (HERE / "calls").open("a") as calls:
    calls.write(json.dumps(["dss", *sys.argv[1:]]) + "\n")
if os.environ.get("RECORD_ENVIRONMENT"):
    (HERE / "environment.json").write_text(json.dumps(dict(os.environ)))
behaviour = json.loads((HERE / "train.json").read_text())
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
if "--output_dir" in sys.argv:
    output_dir = sys.argv[sys.argv.index("--output_dir") + 1]
else:
    lines = Path(sys.argv[sys.argv.index("--gin_file") + 1]).read_text().splitlines()
    settings = dict(line.split(" = ", 1) for line in lines if " = " in line)
    output_dir = settings["Train.output_dir"].strip("'")
folder = HERE / output_dir.replace("://", "/")
folder.mkdir(parents=True, exist_ok=True)
own = folder / f"step-{os.environ.get('SLURM_PROCID', os.environ.get('HOSTNAME', '0'))[-1]}"
step = int(own.read_text()) if own.exists() else 0


def save() -> None:
    whole = own.with_suffix(".part")
    whole.write_text(str(step))
    whole.replace(own)


save()
# As jax.distributed does, it waits for its peers.
while len(list(folder.glob("step-*[0-9]"))) < behaviour["peers"]:
    time.sleep(0.01)
print(f"going on from step {step}" if step else "starts from random parameters", flush=True)
while step < json.loads((HERE / "train.json").read_text())["steps"]:
    step += 1
    save()
    if stop:
        time.sleep(behaviour.get("saving", 0))
        print(f"interrupted after {step} steps", flush=True)
        sys.exit(185)
    time.sleep(behaviour.get("seconds", 0.01))
if behaviour.get("error"):
    print(behaviour["error"], file=sys.stderr, flush=True)
    sys.exit(behaviour.get("status", 1))
print(f"done after {step} steps", flush=True)
