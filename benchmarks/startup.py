"""Times starts: of `dss train`, from the command to the end of the first step; with `--student`, of
`dss predict` for one row, from the command to its end.

  python benchmarks/startup.py --task word_problems --model t5_1_1_tiny
  python benchmarks/startup.py --task cqa --model t5_1_1_small --data_dir ../release
  python benchmarks/startup.py --student students/cqa --explain

The token store is made before, so that it is in neither. The first start has an empty folder of
compiled code; it is stopped (SIGTERM) after its first step, which saves. The second is the same
command again: it goes on. A third, in another output folder, starts from nothing, and a fourth has
another seed. Takes the flags of `dss train`, or of `dss predict`; writes a JSON file. Seconds of
`dss predict` are of the clock, and of all processors together.
"""

import argparse
import datetime
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from reporting import RESULTS, command, processor, write_report

from dss_jax import __version__

DSS = [sys.executable, "-m", "dss_jax.cli.main"]


def start(flags: list[str], folder: Path, cache: Path) -> dict[str, Any]:
    """Starts the run, waits for its first step, stops it; its line of `startup.jsonl`."""
    file = folder / "startup.jsonl"
    lines = len(file.read_text().splitlines()) if file.exists() else 0
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment["DSS_COMPILE_CACHE"] = str(cache)
    process = subprocess.Popen(
        [*DSS, "train", *flags, "--output_dir", str(folder)],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    while process.poll() is None:
        found = file.read_text().splitlines() if file.exists() else []
        if len(found) > lines:
            process.send_signal(signal.SIGTERM)
            process.wait()
            return json.loads(found[-1])
        time.sleep(0.2)
    raise RuntimeError(f"dss train ended with {process.returncode} before its first step")


def predict_starts(student: str, flags: list[str], count: int = 4) -> dict[str, Any]:
    """Starts `dss predict` for the student's first example, of which the first has nothing kept."""
    card = json.loads((Path(student) / "student.json").read_text())
    row = (card["examples"] or [{"input": "Is it?", "allowed_labels": ["yes", "no"]}])[0]
    clock, processors = [], []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.jsonl"
        source.write_text(json.dumps(row) + "\n")
        environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        environment["DSS_COMPILE_CACHE"] = f"{folder}/compiled"
        asked = ["--student", student, "--input", str(source), "--out", "-", *flags]
        for _ in range(count):
            before, began = os.times(), time.perf_counter()
            subprocess.run(
                [*DSS, "predict", *asked], env=environment, check=True, stdout=subprocess.DEVNULL
            )
            after = os.times()
            clock.append(round(time.perf_counter() - began, 2))
            used = after.children_user + after.children_system
            processors.append(round(used - before.children_user - before.children_system, 2))
            print(f"{clock[-1]} s, {processors[-1]} of processors", flush=True)
    return {
        "seconds": clock,
        "processor_seconds": processors,
        "second_over_first": round(statistics.median(clock[1:]) / clock[0], 3),
        "second_over_first_by_processor_time": round(
            statistics.median(processors[1:]) / processors[0], 3
        ),
    }


def of_predict(arguments: list[str], student: str, flags: list[str], out: Path) -> int:
    """Measures `dss predict` and writes."""
    load = os.getloadavg()[0]
    report = {
        **predict_starts(student, flags),
        "command": command(arguments, "startup.py"),
        "processor": processor(),
        "load_average_1_min": {"before": load, "after": os.getloadavg()[0]},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "dss_jax": __version__,
    }
    kind = "predict-explain" if "--explain" in flags else "predict"
    write_report(report, out / f"startup-{kind}-{Path(student).name}-cpu.json")
    print(json.dumps(report, indent=1))
    return 0


def main(arguments: list[str]) -> int:
    """Measures and writes."""
    parser = argparse.ArgumentParser(prog="startup.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--task", default="word_problems")
    parser.add_argument("--model", default="t5_1_1_tiny")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--student", help="of dss predict, whose starts are timed then")
    args, rest = parser.parse_known_args(arguments)
    if args.student:
        return of_predict(arguments, args.student, rest, args.out)
    flags = ["--task", args.task, "--model", args.model, *rest]
    kept = [f for f in flags if not f.startswith("--gin.")]
    kept = [f for i, f in enumerate(kept) if f != "--model" and kept[i - 1] != "--model"]
    subprocess.run([*DSS, "prepare", *kept], check=True)
    starts = {}
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        cache, run = Path(folder) / "compiled", Path(folder) / "run"
        seed = ["--gin.Train.seed=1", "--gin.Data.seed=1"]
        for name, output, own in (
            ("first", run, []),
            ("second", run, []),
            ("another run", Path(folder) / "b", []),
            ("another seed", Path(folder) / "c", seed),
        ):
            starts[name] = start([*flags, *own], output, cache)
            starts[name].pop("compile_cache")
            print(f"{name}: {json.dumps(starts[name])}", flush=True)
    total = {name: line["total_seconds"] for name, line in starts.items()}
    report = {
        "command": command(arguments, "startup.py"),
        "processor": processor(),
        "load_average_1_min": {"before": before, "after": os.getloadavg()[0]},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "dss_jax": __version__,
        "starts": starts,
        "second_over_first": round(total["second"] / total["first"], 3),
        "another_run_over_first": round(total["another run"] / total["first"], 3),
        "another_seed_over_first": round(total["another seed"] / total["first"], 3),
    }
    file = args.out / f"startup-{args.task}-{args.model}-cpu.json"
    write_report(report, file)
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
