"""What the sums of checkpoints cost: saves and restores with them and without, by turns.

  python benchmarks/checkpoint.py --megabytes 720

A state of random arrays of about that size, in the shapes of T5's layers, is saved by
`dss_jax.train.checkpoint` into a temporary folder: with sums as it is, and with Orbax's own way to
finish a checkpoint in its place, as it was before. Writes a JSON file: seconds that training waits
for a save, until the save is on the disk, and of a restore after a check of the sums.
"""

import argparse
import datetime
import shutil
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
from reporting import RESULTS, command, digits, processor, spread, write_report

from dss_jax import __version__
from dss_jax.train import checkpoint
from dss_jax.train.checkpoint import Checkpoints

LAYER = (512, 2048)


def arrays(megabytes: int) -> dict[str, jax.Array]:
    """Float32 arrays of a layer's size."""
    rng = np.random.default_rng(0)
    count = max(1, round(megabytes * 1e6 / (4 * LAYER[0] * LAYER[1])))
    return {
        f"layer_{i}": jax.device_put(rng.standard_normal(LAYER, np.float32)) for i in range(count)
    }


def save_and_restore(params: dict[str, jax.Array], sums: bool) -> dict[str, float]:
    """Seconds of one save and one restore."""
    own = checkpoint._Summed
    folder = Path(tempfile.mkdtemp())
    try:
        if not sums:
            checkpoint._Summed = None  # type: ignore[assignment, misc]
        with closing(Checkpoints(folder)) as checkpoints:
            start = time.perf_counter()
            checkpoints.save_params(params, 1, None)
            waited = time.perf_counter() - start
            checkpoints.wait()
            saved = time.perf_counter() - start
        with closing(Checkpoints(folder)) as checkpoints:
            start = time.perf_counter()
            jax.block_until_ready(checkpoints.restore_params(1, params))
            return {
                "training waits": waited,
                "on the disk": saved,
                "restore": time.perf_counter() - start,
            }
    finally:
        checkpoint._Summed = own  # type: ignore[misc]
        shutil.rmtree(folder)


def main(arguments: list[str]) -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(prog="checkpoint.py", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=720)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    params = arrays(args.megabytes)
    arms: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    for number in range(args.rounds + 1):
        for sums in (True, False) if number % 2 else (False, True):
            seconds = save_and_restore(params, sums)
            if number:  # The first warms up.
                arms[sums].append(seconds)
            print(f"round {number}, {'with' if sums else 'without'} sums: {seconds}")
    names = arms[True][0]
    report: dict[str, Any] = {
        "command": command(arguments, "checkpoint.py"),
        "date": datetime.date.today().isoformat(),
        "device": processor(),
        "versions": {"dss_jax": __version__, "jax": jax.__version__},
        "megabytes": digits(sum(x.nbytes for x in params.values()) / 1e6),
    }
    for sums, name in ((True, "with sums"), (False, "without")):
        readings = {n: np.array([one[n] for one in arms[sums]]) for n in names}
        report[name] = {n: spread(values) for n, values in readings.items()}
    report["ratio of medians"] = {
        n: digits(report["with sums"][n]["median"] / report["without"][n]["median"]) for n in names
    }
    file = args.out / f"checkpoint-{jax.default_backend()}.json"
    write_report(report, file)
    print(f"{report['ratio of medians']}\n{file}")


if __name__ == "__main__":
    main(sys.argv[1:])
