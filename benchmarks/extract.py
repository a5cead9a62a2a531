"""Times `dss extract`'s engine against a server that answers after a fixed time.

  python benchmarks/extract.py

Server and client share the machine, as two processes. The client is what `dss extract` runs:
requests, limits, and the journal on disk. Writes a JSON file and a picture.
"""

import argparse
import asyncio
import cProfile
import datetime
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from reporting import RESULTS, command, processor

from dss_jax import __version__
from dss_jax.teacher.asking import ExtractionProgress, ExtractionRun, SendOptions, ServerTeacher
from dss_jax.teacher.client import Client
from dss_jax.teacher.journal import Journal, Request

SERVER = Path(__file__).parents[1] / "tests" / "protocol_server.py"
PROMPT_CHARACTERS = 3000
"""About the length of cqa's prompt with ten exemplars."""

PARTS = {
    "HTTP": ("/aiohttp/", "/yarl/", "/multidict/"),
    "journal": ("/teacher/journal.py", "sqlite3"),
    "limits and runner": ("/teacher/asking.py", "/teacher/limits.py"),
    "event loop": ("asyncio", "select", "ssl", "socket"),
}
"""Part -> what its functions' places hold."""


def requests(count: int) -> Iterator[Request]:
    """Requests with prompts as long as real ones."""
    filler = "x" * PROMPT_CHARACTERS
    for i in range(count):
        text = f"row {i + 20 * count}\n{filler}"
        yield Request(str(i), 0, {"model": "m", "messages": [{"role": "user", "content": text}]})


def once(port: str, count: int, concurrency: int) -> tuple[ExtractionProgress, float, float]:
    """One run into a new journal: what was done, seconds of wall time and of this process."""

    async def work() -> ExtractionProgress:
        send = Client(url, "NO_KEY", 60, concurrency)
        teacher = ServerTeacher(send, SendOptions(concurrency=concurrency))
        try:
            return await teacher.send_all(requests(count), ExtractionRun(journal))
        finally:
            await send.close()

    url = f"http://127.0.0.1:{port}/v1"
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal") as journal:
        start, cpu = time.perf_counter(), time.process_time()
        summary = asyncio.run(work())
        return summary, time.perf_counter() - start, time.process_time() - cpu


def where(port: str, count: int, concurrency: int) -> dict[str, float]:
    """Share of the client's processor time by part, from a profile."""
    profile = cProfile.Profile(time.process_time)
    profile.runcall(once, port, count, concurrency)
    shares = dict.fromkeys([*PARTS, "other"], 0.0)
    profile.create_stats()
    for (file, _, name), (_, _, own, _, _) in profile.stats.items():
        place = f"{file} {name}"
        part = next((p for p, marks in PARTS.items() if any(m in place for m in marks)), "other")
        shares[part] += own
    total = sum(shares.values())
    return {part: round(share / total, 3) for part, share in shares.items()}


def picture(result: dict, file: Path) -> None:
    """Requests a second beside the ideal, and where the time goes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    rate, parts = figure.subplots(1, 2)
    bars = {
        "ideal": result["ideal_requests_per_second"],
        "dss extract": result["requests_per_second"],
    }
    for bar, colour in zip(
        rate.barh(*zip(*bars.items(), strict=True)), ("0.6", "#0072b2"), strict=True
    ):
        bar.set_color(colour)
        rate.text(bar.get_width(), bar.get_y() + 0.4, f" {bar.get_width():.0f}", va="center")
    rate.set_xlabel("requests a second")
    shares = dict(reversed(result["processor_time_shares"].items()))
    parts.barh(list(shares), [100 * s for s in shares.values()], color="#0072b2")
    parts.set_xlabel("% of the client's processor time")
    for axes in (rate, parts):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"server answers in {1000 * result['delay_seconds']:.0f} ms, concurrency "
        f"{result['concurrency']}, {result['rows']:,} rows"
    )
    figure.savefig(file, dpi=100)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=5000, help="of a timed round (default 5,000)")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--concurrency", type=int, default=128, help="default 128")
    parser.add_argument("--delay", type=float, default=0.2, help="seconds (default 0.2)")
    parser.add_argument(
        "--many", type=int, default=100_000, help="rows of the memory run (0: none)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: results/)")
    args = parser.parse_args()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [sys.executable, str(SERVER), f"{folder}/log", "--delay", str(args.delay)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        once(port, 300, args.concurrency)
        rounds = [once(port, args.rows, args.concurrency) for _ in range(args.rounds)]
        assert all(summary.answered == args.rows for summary, _, _ in rounds)
        memory = {str(args.rows): resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
        if args.many:
            summary, seconds, _ = once(port, args.many, args.concurrency)
            assert summary.answered == args.many
            memory[str(args.many)] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"{args.many:,} rows: {args.many / seconds:.0f} requests/s")
        shares = where(port, args.rows, args.concurrency)
        server.kill()
    walls = sorted(wall for _, wall, _ in rounds)
    cpus = sorted(cpu for _, _, cpu in rounds)
    result = {
        "rows": args.rows,
        "rounds": args.rounds,
        "concurrency": args.concurrency,
        "delay_seconds": args.delay,
        "prompt_characters": PROMPT_CHARACTERS,
        "requests_per_second": round(args.rows / walls[len(walls) // 2], 1),
        "ideal_requests_per_second": round(args.concurrency / args.delay, 1),
        "client_cpu_ms_per_request": round(1000 * cpus[len(cpus) // 2] / args.rows, 3),
        "processor_time_shares": shares,
        "peak_memory_mb_after_rows": {rows: round(mb, 1) for rows, mb in memory.items()},
        "raw_seconds": [round(wall, 3) for _, wall, _ in rounds],
        "processor": processor(),
        "load_average_1_min_before": before,
        "dss_jax": __version__,
        "date": datetime.date.today().isoformat(),
        "command": command(sys.argv[1:], "extract.py"),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "extract-cpu.json"
    file.write_text(json.dumps(result, indent=2) + "\n")
    picture(result, file.with_suffix(".png"))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
