"""`srun` with two tasks. They get the signals of the job, and it ends with the worse status."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(os.environ["STAND_IN"])
with (HERE / "calls").open("a") as calls:
    calls.write(json.dumps(["srun", *sys.argv[1:]]) + "\n")
words = sys.argv[1:]
while words[0].startswith("-"):
    words.pop(0)
# As the real one, it ends with its tasks, not at a signal of its own.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
tasks = [
    subprocess.Popen(words, env={**os.environ, "SLURM_PROCID": str(i)}, restore_signals=True)
    for i in range(2)
]
(HERE / "pids").write_text(" ".join(str(t.pid) for t in tasks))
status = [t.wait() for t in tasks]
sys.exit(max(s if s >= 0 else 128 - s for s in status))
