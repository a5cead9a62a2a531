"""Trains a toy run again and again, each time killed at a random moment, until it is finished; and
compares it with the run that was never killed.

  python tests/faults/killing.py FOLDER --kills 200

What was done is kept in FOLDER, so that the same command goes on. Prints a line of JSON. See also
`long.py`, which kills more.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import children
import things

from dss_jax.core import signals
from dss_jax.interop.formats import read_weights
from dss_jax.run import run_folder
from dss_jax.train.metric_log import read_metrics

SIGNALS = {"TERM": signal.SIGTERM, "INT": signal.SIGINT, "KILL": signal.SIGKILL}
STATUSES = {
    "TERM": {signals.SAVED, signals.TERMINATED, -signal.SIGTERM},
    "INT": {signals.INTERRUPTED, -signal.SIGINT},
    "KILL": {-signal.SIGKILL},
}
"""How a command may end that got the signal; by the signal itself only while it starts."""

SOON = 0.6
"""Of a run's time: until then it is killed; half of the attempts, counted from the first step."""

MOST = 30
"""Attempts at one run, after which nobody kills it any more."""


@dataclass
class Task:
    """A command that is given again and again, and what it makes.

    Attributes:
      start: (folder, log) -> process id of an attempt.
      done: whether it has ended well.
      outcome: what two of its folders must have in common.
      phase: what it was doing, from what there is in the folder; the number is that of lines that
        `startup.jsonl` had before.
      trains: whether it has steps, which half of the kills wait for.
      until: see `SOON`.
      seconds: how long it takes when nobody kills it.
    """

    start: Callable[[Path, Path], int]
    outcome: Callable[[Path], dict]
    phase: Callable[[Path, int], str]
    done: Callable[[Path], bool] = lambda at: (at / run_folder.RESULTS).is_file()
    trains: bool = True
    until: float = SOON
    seconds: float = 0.0
    expected: dict | None = None

    def prepare(self, folder: Path) -> None:
        """Runs it twice undisturbed, the first time to compile; what it makes is expected."""
        log = folder.parent / f"{folder.name}.log"
        for _ in range(2):
            shutil.rmtree(folder, ignore_errors=True)
            began = time.monotonic()
            ended = children.wait(self.start(folder, log), log, 10 * children.PATIENCE)
            assert ended.status == 0, ended.said[-3000:]
            self.seconds = time.monotonic() - began
        self.expected = things.of(self.outcome, folder, log)
        assert self.expected


def linear(place: things.Place, cold: bool = False) -> Task:
    """Three arrays, trained in a child; `cold`: without the code that was compiled before, so that
    most of the time it compiles.
    """

    def start(at: Path, log: Path) -> int:
        words = place.train(at)
        more = {"DSS_COMPILE_CACHE": str(at.parent / f"{at.name}-compiled")} if cold else {}
        return children.child(lambda: children.dss(words, linear=True, **more), log)

    return Task(start, things.run_outcome, phase_of)


def program(place: things.Place) -> Task:
    """T5 in a new process that makes its token store first, with TensorFlow in a child of it."""
    settings = ("T5Config.num_encoder_layers=1", "T5Config.num_decoder_layers=1", "Train.steps=12")
    settings += ("Evaluate.every=4", "Evaluate.max_decode_length=14", "Train.log_every=1")
    settings += ("Task.train_count=32", "Data.batch_size=8", "Evaluate.validation_examples=16")

    def start(at: Path, log: Path) -> int:
        words = ["train", "--task", "word_problems", "--model", "t5_1_1_tiny", "--method", "dss"]
        words += ["--output_dir", str(at), "--store_dir", str(at.parent / f"{at.name}-stores")]
        words += [f"--gin.{one}" for one in settings]
        command = [sys.executable, "-m", "dss_jax.cli.main", *words]
        with log.open("ab") as out:
            # Waited for by its number.
            return subprocess.Popen(command, stdout=out, stderr=out).pid

    def phase(at: Path, starts: int) -> str:
        stores = at.parent / f"{at.name}-stores"
        made = stores.is_dir() and any((s / "manifest.json").is_file() for s in stores.iterdir())
        return phase_of(at, starts, 12) if made else "store making"

    return Task(start, things.run_outcome, phase)


def preparing(place: things.Place) -> Task:
    """A token store, made with TensorFlow in a child of a new process."""

    def start(at: Path, log: Path) -> int:
        words = ["prepare", "--task", "word_problems", "--store_dir", str(at)]
        with log.open("ab") as out:
            command = [sys.executable, "-m", "dss_jax.cli.main", *words]
            return subprocess.Popen(command, stdout=out, stderr=out).pid

    def outcome(at: Path) -> dict:
        return things.contents(at, lambda file: ".lock" not in file.name)

    def done(at: Path) -> bool:
        return at.is_dir() and any((s / "manifest.json").is_file() for s in at.iterdir())

    def phase(at: Path, _: int) -> str:
        return "store making"

    return Task(start, outcome, phase, done, trains=False, until=1.0)


def exporting(place: things.Place, form: str) -> Task:
    """A run's student in another form, written by a child."""
    words = ["convert", "--from", "orbax", str(place.student() / "run"), "--to", form]

    def start(at: Path, log: Path) -> int:
        return children.child(lambda: children.dss([*words, str(at)]), log)

    def outcome(at: Path) -> dict:
        # Orbax names and dates its files anew each time.
        leaves = read_weights(str(at), form).leaves
        arrays = {
            n: hashlib.sha256(leaf.read().tobytes()).hexdigest() for n, leaf in leaves.items()
        }
        return {"arrays": arrays, "files": sorted(f.name for f in at.iterdir())}

    def phase(at: Path, _: int) -> str:
        return f"dss convert --to {form}"

    return Task(start, outcome, phase, Path.is_dir, trains=False, until=1.0)


def phase_of(folder: Path, starts: int, steps: int = things.STEPS) -> str:
    """What a run that was killed was doing."""
    checkpoints = folder / run_folder.CHECKPOINTS
    if not (folder / run_folder.CONFIG).is_file():
        return "start"
    if checkpoints.is_dir() and any(not p.name.isdigit() for p in checkpoints.iterdir()):
        return "checkpoint writing"
    lines = read_metrics(folder / run_folder.METRICS)
    if _starts(folder) == starts or not lines:
        return "compilation"
    step = max(line["step"] for line in lines)
    evaluated = any(line["step"] == step and line["group"] == "validation" for line in lines)
    if step == steps and evaluated:
        return "final scoring"
    return "evaluation" if step % things.EVERY == 0 and not evaluated else "steps"


def _starts(folder: Path) -> int:
    file = folder / run_folder.STARTUP
    return len(file.read_text().splitlines()) if file.is_file() else 0


def killed(task: Task, at: Path, chance: random.Random) -> Iterator[dict]:
    """Kills a run again and again until it is done: one dict a kill, then one with `differs`."""
    log = at.parent / f"{at.name}.log"
    for attempt in range(10**6):
        log.unlink(missing_ok=True)
        starts, child = _starts(at), task.start(at, log)
        name = chance.choice(list(SIGNALS))
        if attempt < MOST:
            moment = chance.uniform(0.0, task.until * task.seconds)
            if task.trains and chance.random() < 0.5:
                _await_steps(at, starts, task.seconds)
                moment /= 2
            time.sleep(moment)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, SIGNALS[name])
        ended = children.wait(child, log, children.PATIENCE + 10 * task.seconds)
        if ended.status == 0:
            break
        right = ended.status in STATUSES[name] and ended.outcome != children.HUNG
        quiet = "Traceback" not in ended.said
        outcome = children.FINE if right and quiet else ended.outcome
        if outcome == children.REFUSED:
            outcome = children.TRACEBACK  # It refuses to go on.
        kill = {"signal": name, "phase": task.phase(at, starts), "status": ended.status}
        yield kill | {"outcome": outcome, "said": "" if outcome == "fine" else ended.said[-1500:]}
        if not right:
            return
    assert task.done(at)
    found, expected = things.of(task.outcome, at, log), task.expected or {}
    # A kill before an old one is deleted leaves it.
    if task.trains and found and {*expected["checkpoints"]} <= {*found["checkpoints"]}:
        found["checkpoints"] = expected["checkpoints"]
    yield {"differs": [part for part, value in expected.items() if found.get(part) != value]}


def _await_steps(at: Path, starts: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    while _starts(at) == starts and time.monotonic() < end:
        time.sleep(0.01)


def kill_until(folder: Path, kills: int, seed: int = 0) -> dict:
    """Kills `kills` times, over as many runs as it takes; AssertionError: one of them differs."""
    place, chance = things.Place(folder), random.Random(seed)
    done = folder / "done.json"
    counts = json.loads(done.read_text()) if done.exists() else dict.fromkeys(SIGNALS, 0)
    task = linear(place)
    task.prepare(folder / "whole")
    run = 0
    while sum(counts.values()) < kills:
        at, run = folder / f"killed-{run}", run + 1
        shutil.rmtree(at, ignore_errors=True)
        for kill in killed(task, at, chance):
            if "differs" in kill:
                assert not kill["differs"], f"{at}: another than {folder / 'whole'}: {kill}"
                continue
            assert kill["outcome"] == children.FINE, kill["said"]
            counts[kill["signal"]] += 1
            done.write_text(json.dumps(counts))
        shutil.rmtree(at)
    return {"kills": counts, "runs": run, "seconds": round(task.seconds, 1)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(json.dumps(kill_until(args.folder, args.kills, args.seed)))
