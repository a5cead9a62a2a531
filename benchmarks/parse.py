"""Times the reading of replies: PaLM's completions, from text to samples.

  python benchmarks/parse.py --data_dir ../release
  python benchmarks/parse.py --data_dir ../release --beside ../before    # by turns

`--beside` names another checkout. Each turn is a process of its own. Writes a JSON file.
"""

import argparse
import datetime
import importlib
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]
SPLITS: dict[str, tuple[str, ...]] = {
    "cqa": ("train", "validation", "test"),
    "svamp": ("train", "validation", "test"),
    "esnli": ("validation",),
    "anli1": ("validation",),
}


def once(data_dir: str, count: int) -> float:
    """Processor seconds for so many replies, in this process."""
    from dss_jax.core.registry import load_task
    from dss_jax.data.rows import examples_with_completions
    from dss_jax.teacher.parsing import read_reply
    from dss_jax.teacher.prompting import PromptOptions

    try:
        reply = importlib.import_module("dss_jax.records.records").Reply
    except ImportError:  # Of an earlier tree.
        reply = importlib.import_module("dss_jax.teacher.records").Reply
    options = PromptOptions(form="completion")
    rows: list[Any] = [
        (reply(text=text or "", finish_reason="length"), example, task.prompt, options)
        for task, split in ((load_task(name), split) for name in SPLITS for split in SPLITS[name])
        for example, text in examples_with_completions(task, split, data_dir)
    ]
    asked = list(itertools.islice(itertools.cycle(rows), count))
    start = time.process_time()
    for row in asked:
        read_reply(*row)
    return time.process_time() - start


def turn(tree: Path, args: argparse.Namespace) -> float:
    """`once` in a process that has package and tasks of a tree."""
    data_dir = str(Path(args.data_dir).resolve())
    words = [sys.executable, str(Path(__file__).resolve()), "--data_dir", data_dir, "--here"]
    words += ["--count", str(args.count)]
    here = {**os.environ, "PYTHONPATH": str(tree.resolve())}
    return float(subprocess.check_output(words, env=here, cwd=tree, text=True))


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", required=True, help="folder of the authors' release")
    parser.add_argument("--count", type=int, default=100_000, help="replies (default 100,000)")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--beside", type=Path, help="another checkout, measured by turns")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        print(once(args.data_dir, args.count))
        return
    from reporting import RESULTS, command, processor, write_report

    trees = {"now": HERE} | ({"beside": args.beside} if args.beside else {})
    before = os.getloadavg()[0]
    seconds: dict[str, list[float]] = {name: [] for name in trees}
    for _ in range(args.rounds):
        for name, tree in trees.items():
            seconds[name].append(round(turn(tree, args), 3))
    report = {
        "replies": args.count,
        "processor_seconds": {name: sorted(s)[len(s) // 2] for name, s in seconds.items()},
        "raw_processor_seconds": seconds,
        "processor": processor(),
        "load_average_1_min_before": before,
        "date": datetime.date.today().isoformat(),
        "command": command(sys.argv[1:], "parse.py"),
    }
    write_report(report, RESULTS / "parse-cpu.json")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
