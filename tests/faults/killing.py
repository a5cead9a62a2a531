"""Trains a toy run again and again, each time killed at a random moment, until it is finished; and
compares it with the run that was never killed.

  python tests/faults/killing.py FOLDER --kills 200

Needs a system with fork: JAX is imported once, and each attempt is a child that starts its devices
itself. What was done is kept in FOLDER, so that the same command goes on. Prints a line of JSON.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import conftest  # noqa: F401 - its settings of JAX
import numpy as np
import toy

from dss_jax.core import config
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.data.store import open_store
from dss_jax.run import run_folder, single
from dss_jax.train.loop import Interrupted
from dss_jax.train.metric_log import read_metrics

SIGNALS = {"TERM": signal.SIGTERM, "INT": signal.SIGINT, "KILL": signal.SIGKILL}
TIMES = ("examples_per_second", "tokens_per_second", "useful_tflops_per_second")
STEPS = 40
FAILED, STOPPED = 1, 130
"""Exit statuses of a child."""


def _run(folder: Path) -> config.Run:
    train = config.Train(steps=STEPS, log_every=1, output_dir=str(folder), checkpoint_every=3)
    return toy.make_run(train=train, evaluate=config.Evaluate(every=5, max_decode_length=5))


def _attempt(folder: Path, store: Path) -> int:
    """A child that trains; its process id."""

    def train() -> None:
        with toy.linear_programs():
            single.train(_run(folder), open_store(store), TEXT_ACCURACY)

    return _child(train, folder.parent / "said.log")


def _child(work: Callable[[], object], log: Path) -> int:
    """A child that does the work; its process id. This process must not have used JAX."""
    if pid := os.fork():
        return pid
    status = FAILED
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        work()
        status = 0
    except (Interrupted, KeyboardInterrupt):
        status = STOPPED
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _ended(child: int, log: Path) -> bool:
    """Whether a child did its work; False: it was killed, or stopped. AssertionError: it failed."""
    _, status = os.waitpid(child, 0)
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else STOPPED
    assert code in (0, STOPPED), log.read_text()[-5000:]
    return code == 0


def _outcome(folder: Path) -> dict:
    """What two runs must have in common: parameters, optimiser, results, numbers, predictions."""
    import orbax.checkpoint as ocp

    arrays = {}
    with ocp.PyTreeCheckpointer() as reader:
        for item in ("params", "optimizer"):
            tree = reader.restore((folder / "checkpoints" / str(STEPS) / item).absolute())
            leaves = ocp.tree.to_flat_dict(tree, sep="/")
            for name, array in leaves.items():
                digest = hashlib.sha256(np.asarray(array).tobytes()).hexdigest()
                arrays[f"{item}/{name}"] = digest
    metrics = read_metrics(folder / run_folder.METRICS)
    lines = [{k: v for k, v in line.items() if k not in TIMES} for line in metrics]
    files = sorted((folder / run_folder.PREDICTIONS).glob("*-best.jsonl"))
    return {
        "arrays": arrays,
        "metrics": lines,
        "results": run_folder.read_results(folder),
        "predictions": {file.name: file.read_text() for file in files},
        "checkpoints": sorted(p.name for p in (folder / "checkpoints").iterdir()),
    }


def outcome(folder: Path) -> dict:
    """The same, from a child."""
    file = folder.with_suffix(".json")
    child = _child(lambda: file.write_text(json.dumps(_outcome(folder))), file)
    assert _ended(child, file)
    return json.loads(file.read_text().splitlines()[-1])


def kill_until(folder: Path, kills: int, seed: int = 0) -> dict:
    """Kills `kills` times, over as many runs as it takes; AssertionError: one of them differs."""
    folder.mkdir(parents=True, exist_ok=True)
    store, chance = folder / "store", random.Random(seed)
    if not store.is_dir():
        toy.make_store(store, np.random.default_rng(0))
    done = folder / "done.json"
    counts = json.loads(done.read_text()) if done.exists() else dict.fromkeys(SIGNALS, 0)
    seconds = _whole(folder / "whole", store)
    expected = outcome(folder / "whole")
    run = 0
    while sum(counts.values()) < kills:
        at, run = folder / f"killed-{run}", run + 1
        shutil.rmtree(at, ignore_errors=True)
        while not run_folder.read_results(at):
            child = _attempt(at, store)
            name = chance.choice(list(SIGNALS))
            time.sleep(chance.uniform(0.0, seconds))
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, SIGNALS[name])
            counts[name] += not _ended(child, folder / "said.log")
            done.write_text(json.dumps(counts))
        found = outcome(at)
        for part, value in expected.items():
            assert found[part] == value, f"{at}: {part} differ from those of {folder / 'whole'}"
        shutil.rmtree(at)
    return {"kills": counts, "runs": run, "seconds": round(seconds, 1)}


def _whole(folder: Path, store: Path) -> float:
    """The run that nobody kills; how long it takes when all is compiled."""
    for _ in range(2):
        shutil.rmtree(folder, ignore_errors=True)
        began = time.monotonic()
        assert _ended(_attempt(folder, store), folder.parent / "said.log")
    return time.monotonic() - began


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ["DSS_COMPILE_CACHE"] = str(args.folder.absolute() / "compiled")
    print(json.dumps(kill_until(args.folder, args.kills, args.seed)))
