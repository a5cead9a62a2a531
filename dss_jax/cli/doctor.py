"""Check this installation: versions, memory, devices, a training step, folders, servers, and the
T5X engine; without keys and users' names, to be shown to others. Or a folder: whether the files of
a run or of a token store are whole.

  dss doctor
  dss doctor --engine t5x
  dss doctor runs/cqa

Exit status 1 where something is wrong. Without --engine t5x a missing T5X is not wrong.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dss_jax import __version__
from dss_jax.cli.tables import say
from dss_jax.core import environment, road
from dss_jax.core.checks import among, at_least
from dss_jax.core.environment import Check
from dss_jax.core.errors import UsageError
from dss_jax.core.types import ENGINES

FOUND_WRONG = 1

_DEVICES = """
import json, jax
devices = jax.devices()
kinds = sorted({d.device_kind for d in devices})
print(json.dumps([len(devices), devices[0].platform, kinds, jax.process_count()]))
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", nargs="?", metavar="DIR", help="a run's folder, or a token store, to check")
    add("--repair", action="store_true", help="of a run: set damaged checkpoints aside")
    add("--engine", help="jax, or t5x: that T5X must be able to run")
    text = "how long JAX may take to find its devices, and twice as long for a step (default 60)"
    add("--device_seconds", type=int, default=60, help=text)
    text = "variable with the key of your LLM server"
    add("--api_key_env", default="OPENAI_API_KEY", help=text)


def main(args: argparse.Namespace) -> int:
    if args.folder is not None:
        return _check_folder(Path(args.folder), args.repair)
    if args.repair:
        raise UsageError("--repair needs the folder of a run: dss doctor DIR --repair.")
    at_least("--device_seconds", args.device_seconds, 1)
    if args.engine is not None:
        among("--engine", args.engine, ENGINES)
    servers = road.server_checks()
    wanted = [
        Check("dss-jax", __version__),
        environment.python_check(),
        *environment.package_checks(),
        road.extras_check(),
        *road.machine_checks(),
        device_check(args.device_seconds),
        *work_checks(2 * args.device_seconds),
        *environment.folder_checks(),
        *road.cache_checks(),
        environment.vocabulary_check({c.name: c.found for c in servers}.get("T5's vocabulary")),
        *servers,
        environment.key_check(args.api_key_env),
    ]
    t5x = environment.t5x_checks()
    asked = args.engine == "t5x"
    _show("dss-jax", wanted)
    _show("T5X engine" + ("" if asked else " (optional)"), t5x)
    wrong = [c for c in (wanted + t5x if asked else wanted) if c.problem]
    if any(c.problem for c in t5x):
        print(f"to install T5X: {environment.INSTALL_T5X}")
    print(f"{len(wrong)} thing(s) wrong" if wrong else "nothing is wrong")
    return FOUND_WRONG if wrong else 0


def _check_folder(folder: Path, repair: bool) -> int:
    from dss_jax.run import health, run_folder
    from dss_jax.train.broken import set_broken_aside

    if repair:
        health.checks_of(folder)  # Or it is no folder of ours.
        with run_folder.locked(folder):
            set_broken_aside(folder / run_folder.CHECKPOINTS)
    checks = health.checks_of(folder)
    _show(str(folder), checks)
    wrong = sum(bool(check.problem) for check in checks)
    print(f"{wrong} thing(s) wrong" if wrong else "nothing is wrong")
    return FOUND_WRONG if wrong else 0


def device_check(seconds: int) -> Check:
    """JAX's devices, found in a child process: a driver may hang, and would hold the memory."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _DEVICES], capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        why = f"JAX found no device within {seconds} s: another process may hold the accelerator"
        return Check("devices", "no answer", why)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Check("devices", "none", f"JAX does not start: {last}")
    count, platform, kinds, processes = json.loads(done.stdout.splitlines()[-1])
    shown = f"{count} x {', '.join(kinds)} ({platform})"
    return Check("devices", shown + (f", {processes} processes" if processes > 1 else ""))


def work_checks(seconds: int) -> list[Check]:
    """A product of matrices and a training step on the devices, in a child process."""
    command = [sys.executable, "-m", "dss_jax.run.probe"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return [Check("training step", "no answer", f"it did not end within {seconds} s")]
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return [Check("training step", "none", f"it fails: {last}")]
    found = json.loads(done.stdout.splitlines()[-1])
    product, step = found["matmul"], found["step"]
    wrong = "" if step["loss"] is not None else "its loss is not finite"
    shown = f"{step['first']:.1f} s with compilation, then {1e3 * step['second']:.1f} ms"
    side = f"{product['dtype']}, {product['side']:,} x {product['side']:,}"
    return [
        Check("matrix product", f"{product['gflops']:,.0f} GFLOP/s ({side})"),
        Check("training step", f"{shown} (a very small T5)", wrong),
    ]


def _show(title: str, checks: Sequence[Check]) -> None:
    # Not a table of rich's: this must run where the installation is broken.
    width = max(len(c.name) for c in checks)
    print(title)
    for check in checks:
        mark = "!" if check.problem else " "
        tail = f"   <- {check.problem}" if check.problem else ""
        say(road.without_names(f"{mark} {check.name:<{width}}  {check.found}{tail}"))
    print()
