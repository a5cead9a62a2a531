"""Times `dss serve` on its student's test examples: one client, many, and many among bad ones.

  python benchmarks/serve.py --student runs/cqa

The server is `dss serve`, another process on this machine; the clients share the machine with it.
What every answer must be comes from `predict` in this process. In four parts:

1. the latency of a lone request beside a call of `predict`, by turns;
2. answers a second: one client, and `--clients`, one input a request;
3. `--seconds` of load: mixed lengths and several inputs a request, malformed bodies, clients that
   hang up, write and read slowly; memory and open files of the server every second;
4. SIGTERM in the middle of requests.

Writes a JSON file and a picture.
"""

import argparse
import asyncio
import datetime
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import aiohttp
import numpy as np
from load_clients import Body, Load, files_of, memory_of
from reporting import RESULTS, command, digits, processor, spread, write_report

from dss_jax import __version__
from dss_jax.student.load import load
from dss_jax.student.student import Prediction, Student

TOLERANCE = 2e-3
"""Of a probability: sums are rounded otherwise in a batch of another size."""

CLOSE = 0.02
"""Two labels whose probabilities differ by less may change places in another batch."""

MAX_INPUTS = 4
"""Of a request of part 3."""


class Server:
    """`dss serve` as a process."""

    def __init__(self, args: argparse.Namespace) -> None:
        words = ["serve", "--student", args.student, "--port", "0"]
        for flag in ("engine", "threads"):
            if (value := getattr(args, flag)) is not None:
                words += [f"--{flag}", str(value)]
        command = [sys.executable, "-m", "dss_jax.cli.main", *words]
        start = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = ""
        for line in self.process.stdout:
            if " at http" in line:
                self.url = line.partition(" at ")[2].split("/ ")[0]
            if line.startswith("ready"):
                break
        assert self.url, "the server has not started"
        self.start_seconds = time.perf_counter() - start

    def stop(self) -> str:
        """Gives the server's last words."""
        self.process.send_signal(signal.SIGTERM)
        said, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, said
        return said.strip().splitlines()[-1]


def same(found: list[dict[str, Any]], wanted: list[Prediction]) -> bool:
    """Whether the answers are those of `predict`."""
    return len(found) == len(wanted) and all(map(_alike, found, wanted))


def _alike(found: dict[str, Any], wanted: Prediction) -> bool:
    shares = wanted.probabilities
    if any(abs(found["probabilities"][label] - shares[label]) > TOLERANCE for label in shares):
        return False
    alike = found["label"] == wanted.label or (
        bool(shares) and shares[wanted.label] - shares[found["label"]] < CLOSE
    )
    return alike and (found["rationale"] is None) == (wanted.rationale is None)


def questions(student: Student, explain: bool, mixed: bool) -> list[tuple[Body, Any]]:
    """Requests of the examples with their answers; `mixed`: of several inputs and lengths."""
    rows = [(one["input"], one["allowed_labels"]) for one in student.card.examples]
    found = []
    for n in range(len(rows)):
        own = [rows[(n + i) % len(rows)] for i in range(1 + n % MAX_INPUTS if mixed else 1)]
        texts = [f"{'And so on. ' * (3 * n % 8) if mixed else ''}{text}" for text, _ in own]
        labels = [labels for _, labels in own]
        given = labels if all(labels) else None
        wanted = list(student.predict(texts, explain=explain, labels=given))
        body: Body = {"input": texts, "explain": explain}
        found.append((body | ({"labels": given} if given else {}), wanted))
    return found


async def _lone(url: str, asked: list[tuple[Body, Any]], student: Student, count: int) -> dict:
    """Milliseconds of requests one after another, and of the same calls of `predict`."""
    served, called = [], []
    async with aiohttp.ClientSession() as session:
        for n in range(-len(asked), count):  # Those before 0 are not timed: shapes are compiled.
            body, wanted = asked[n % len(asked)]
            start = time.perf_counter()
            async with session.post(f"{url}/v1/predict", json=body) as answer:
                found = await answer.json()
            between = time.perf_counter()
            student.predict(body["input"], explain=body["explain"], labels=body.get("labels"))
            end = time.perf_counter()
            assert same(found["predictions"], wanted), (found, wanted)
            if n >= 0:
                served.append(1000 * (between - start))
                called.append(1000 * (end - between))
    ratio = digits(statistics.median(served) / statistics.median(called))
    served_ms, called_ms = (spread(np.array(values)) for values in (served, called))
    return {"request_ms": served_ms, "predict_ms": called_ms, "ratio_of_medians": ratio}


def rate(url: str, asked: list[tuple[Body, Any]], clients: int, seconds: float) -> dict:
    """Answers a second of clients that each ask one question after another."""
    start = time.monotonic()
    load = Load(url, asked, same, start + seconds)
    asyncio.run(load.run(clients, 0))
    taken = time.monotonic() - start
    assert not load.wrong, load.wrong[:3]
    milliseconds = spread(1000 * np.array(load.seconds))
    return {
        "clients": clients,
        "answers_per_second": digits(load.counts["answered"] / taken),
        "latency_ms": milliseconds,
    }


def under_load(server: Server, asked: list[tuple[Body, Any]], args: argparse.Namespace) -> dict:
    """What becomes of good requests among bad ones; memory and open files meanwhile."""
    load = Load(server.url, asked, same, time.monotonic() + args.seconds)
    pid, memory, files = server.process.pid, [], []

    async def watched() -> None:
        clients = asyncio.create_task(load.run(args.clients, args.bad))
        while not clients.done():
            memory.append(round(memory_of(pid) / 1e6, 1))
            files.append(files_of(pid))
            await asyncio.sleep(1)
        await clients

    asyncio.run(watched())
    assert not load.wrong, load.wrong[:3]
    third = len(memory) // 3
    return {
        "seconds": args.seconds,
        "good_clients": args.clients,
        "bad_clients_of_each_kind": args.bad,
        "counts": dict(sorted(load.counts.items())),
        "wrong_or_lost": len(load.wrong),
        "latency_ms": spread(1000 * np.array(load.seconds)),
        "memory_mb_medians_of_thirds": [
            statistics.median(memory[n * third : (n + 1) * third]) for n in range(3)
        ],
        "memory_mb": memory,
        "open_files_most": max(files),
        "open_files_after": files[-1],
    }


def stopped(server: Server, asked: list[tuple[Body, Any]], clients: int) -> dict:
    """SIGTERM among requests: what was taken and what was answered."""
    load = Load(server.url, asked, same, time.monotonic() + 60)
    last = ""

    async def work() -> None:
        nonlocal last
        running = asyncio.create_task(load.run(clients, 0))
        await asyncio.sleep(5)
        load.going = False
        last = await asyncio.to_thread(server.stop)
        await running

    asyncio.run(work())
    assert not load.wrong, load.wrong[:3]
    counts = {"answered": load.counts["answered"], "not_taken": load.counts["not taken"]}
    return counts | {"server_said": last}


def picture(result: dict, file: Path) -> None:
    """Latency, rates, and memory under load."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained")
    lone, rates, memory = figure.subplots(1, 3)
    for axes, values, label in (
        (
            lone,
            {
                "request": result["lone"]["request_ms"]["median"],
                "predict": result["lone"]["predict_ms"]["median"],
            },
            "ms, median",
        ),
        (
            rates,
            {f"{one['clients']} clients": one["answers_per_second"] for one in result["rates"]},
            "answers a second",
        ),
    ):
        axes.barh(list(values), list(values.values()), color="#0072b2")
        for y, value in enumerate(values.values()):
            axes.text(value, y, f" {value:.3g}", va="center")
        axes.set_xlabel(label)
        axes.margins(x=0.2)
    memory.plot(result["load"]["memory_mb"], color="#0072b2")
    memory.set_ylim(bottom=0)
    memory.set_xlabel("seconds of load")
    memory.set_ylabel("the server's memory, MB")
    for axes in (lone, rates, memory):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{result['task']}, engine {result['engine']}, {result['processor']}")
    figure.savefig(file, dpi=100)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--student", required=True, metavar="DIR", help="as of dss serve")
    parser.add_argument("--engine", help="as of dss serve")
    parser.add_argument("--threads", type=int, help="as of dss serve")
    parser.add_argument("--explain", action="store_true", help="ask for rationales too")
    parser.add_argument("--clients", type=int, default=64, help="default 64")
    parser.add_argument("--bad", type=int, default=2, help="of each bad kind (default 2)")
    parser.add_argument("--seconds", type=float, default=120, help="of load (default 120)")
    parser.add_argument("--rate_seconds", type=float, default=20, help="of part 2 (default 20)")
    parser.add_argument("--lone", type=int, default=100, help="lone requests (default 100)")
    parser.add_argument("--name", default="", help="added to the files' names")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: results/)")
    args = parser.parse_args()
    before = os.getloadavg()[0]
    student = load(args.student, engine=args.engine, threads=args.threads)
    single = questions(student, args.explain, mixed=False)
    mixed = questions(student, args.explain, mixed=True)
    server = Server(args)
    try:
        result: dict[str, Any] = {
            "task": student.card.task,
            "engine": student.engine,
            "explain": args.explain,
            "ready_seconds": digits(server.start_seconds),
            "lone": asyncio.run(_lone(server.url, single, student, args.lone)),
        }
        rate(server.url, single, args.clients, 5)  # Shapes of batches are compiled.
        result["rates"] = [
            rate(server.url, single, clients, args.rate_seconds) for clients in (1, args.clients)
        ]
        one, many = (r["answers_per_second"] for r in result["rates"])
        result["many_beside_one"] = digits(many / one)
        result["load"] = under_load(server, mixed, args)
        result["stop"] = stopped(server, mixed, args.clients)
    finally:
        server.process.kill()
    result |= {
        "processor": processor(),
        "load_average_1_min_before": before,
        "dss_jax": __version__,
        "date": datetime.date.today().isoformat(),
        "command": command(sys.argv[1:], "serve.py"),
    }
    name = f"serve-{student.card.task}-{student.engine}{args.name and '-'}{args.name}-cpu"
    write_report(result, args.out / f"{name}.json")
    picture(result, args.out / f"{name}.png")
    print({**result, "load": {**result["load"], "memory_mb": "..."}})


if __name__ == "__main__":
    main()
