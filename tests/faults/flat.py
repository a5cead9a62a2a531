"""A long run, and whether its memory, threads and open files stay what they are."""

import os
import shutil
import time
from pathlib import Path

import children
import things
from children import FINE, SILENT

from dss_jax.sweep.plan import logged_step

STEPS, EVALUATIONS = 20_000, 100
MAX_GROWTH = 0.05
"""Of resident memory, from a quarter of the run to its end."""


def _now(pid: int) -> dict[str, float]:
    """Resident memory in MB, threads and open files of a process."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return {
        "rss_mb": int(status["VmRSS"].split()[0]) / 1024,
        "threads": int(status["Threads"]),
        "files": len(os.listdir(f"/proc/{pid}/fd")),
    }


def tried(place: things.Place) -> dict:
    """Trains so many steps with so many evaluations; a reading every tenth of the run."""
    at, every = place.folder / "long-run", STEPS // EVALUATIONS
    shutil.rmtree(at, ignore_errors=True)
    words = place.train(
        at,
        Train__steps=STEPS,
        Evaluate__every=every,
        Train__checkpoint_every=every,
        Train__log_every=50,
    )
    place.log.unlink(missing_ok=True)
    child, began = children.child(lambda: children.dss(words, linear=True), place.log), time.time()
    readings: list[dict] = []
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        step = logged_step(at)
        # Between evaluations, when no checkpoint is being written.
        if step >= STEPS // 10 * (len(readings) + 1) and step % every == every // 2:
            readings.append({"step": step, **_now(child)})
        time.sleep(0.01)
    ended = children.wait(child, place.log)
    quarter, last = readings[1], readings[-1]
    flat = (
        ended.status == 0
        and last["rss_mb"] <= (1 + MAX_GROWTH) * quarter["rss_mb"]
        and last["threads"] <= quarter["threads"] + 1
        and last["files"] <= quarter["files"] + 1
    )
    shutil.rmtree(at)
    return {
        "outcome": FINE if flat else SILENT,
        "said": "" if ended.status == 0 else ended.said[-1500:],
        "seconds": round(time.time() - began),
        "readings": readings,
    }
