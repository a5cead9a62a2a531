"""Compiles the training step of every size for the smallest TPU slice and number of H200s that
`dss fit` names, by their own compilers; no accelerator is needed (docs/compiled.md).

  PYTHONPATH=LIBTPU_DIR:CUDA_WHEELS_DIR python benchmarks/topologies.py [--only t5_1_1_base,h200]

cqa, batch 64, bfloat16, method dss; AdamW, and Adafactor for the two largest. Each case runs in a
process of its own and is written to the JSON file when it is done; those that are there are not run
again, but with `--again` those of other code. `--docs` writes what is there into docs/compiled.md.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reporting import RESULTS, command, write_report

from dss_jax.cli import compile as compiling
from dss_jax.cli import options
from dss_jax.cli.main import Parser
from dss_jax.core import config
from dss_jax.core.devices import GB
from dss_jax.core.digest import code_digest
from dss_jax.core.errors import UsageError

MODELS = (
    *("t5_1_1_small", "t5_1_1_base", "t5_1_1_large", "t5_1_1_xl", "t5_1_1_xxl"),
    *("t5_small", "t5_base", "t5_large", "t5_3b", "t5_11b"),
)
KINDS = ("h200", "v5e", "v6e", "v5p")
COUNTS = {"h200": (1, 2, 4, 8, 16, 32), "v5p": (4, 8, 16, 32), "v5e": (1, 4, 8, 16, 32, 64, 128)}
COUNTS["v6e"] = COUNTS["v5e"]

AXES = {"data": (8, 1, 1), "fsdp": (1, 8, 1), "fsdp, model": (1, 4, 2)}
"""What each axis of a mesh costs: of t5_1_1_base on v5e-8, unrematerialised."""

INPUTS, TARGETS = 128, 96
"""Room for the longest of cqa, tokens; what `dss fit` is given."""

CASES = [f"{model} {kind}" for kind in KINDS for model in MODELS]
CASES += [f"t5_1_1_base v5e {axes}" for axes in AXES]


def _arguments(case: str, device: str) -> argparse.Namespace:
    model = case.split()[0]
    parser = Parser("dss compile", allow_abbrev=False)
    compiling.add_flags(parser)
    optimizer = "adafactor" if model in ("t5_1_1_xxl", "t5_11b") else "adamw"
    words = ["--task", "cqa", "--method", "dss", "--model", model, "--device", device]
    words += [f'--gin.Optimizer.name="{optimizer}"', '--gin.T5Config.dtype="bfloat16"']
    words += ["--gin.Data.batch_size=64", f"--gin.Data.input_length={INPUTS}"]
    # Layers in a loop, as on GPUs: a TPU's default takes the compiler several times as long.
    words += [f"--gin.Data.target_length={TARGETS}", "--gin.T5Config.scan_unroll=1"]
    if vocabulary := os.environ.get("DSS_VOCABULARY"):
        words += ["--vocabulary", vocabulary]
    return options.parse(parser, words)


def _planned(case: str) -> tuple[argparse.Namespace, config.Run, Any]:
    """The run with the mesh, remat policy and microbatches of `dss fit`, and its slice."""
    from dss_jax.train.aot import slice_of
    from dss_jax.train.memory import plan
    from dss_jax.train.step import boxed_state

    _, kind, *axes = case.split(maxsplit=2)
    args = _arguments(case, slice_of(kind, COUNTS[kind][-1]).name)
    run = options.resolve(args).run
    if axes:
        sizes: dict[str, Any] = dict(zip(config.MESH_AXES, AXES[axes[0]], strict=True))
        mesh = dataclasses.replace(run.mesh, **sizes)
        return args, dataclasses.replace(run, mesh=mesh), slice_of(kind, 8)
    boxed = boxed_state(run)
    for count in COUNTS[kind]:
        wanted = slice_of(kind, count)
        best = plan(run, wanted.device, count, boxed)
        if best.fits(wanted.device):
            return args, best.run, wanted
    raise UsageError(f"{case}: dss fit names no number of devices up to {count}")


def measure(case: str) -> dict[str, Any]:
    """What is found for a case, as JSON has it."""
    from dss_jax.train.aot import TooLargeError, compile_step, no_accelerators

    no_accelerators()
    args, run, wanted = _planned(case)
    session, batches, batch = compiling.open_for(args, run, wanted)
    run = session.run
    formula = compiling.formula_for(session, batch)
    row = {
        "slice": wanted.name,
        "chips": wanted.count,
        "optimizer": run.optimizer.name,
        "layout": run.data.layout,
        "mesh": dict(session.program.mesh.shape),
        "remat": run.model.remat_policy,
        "microbatches": run.train.microbatches,
        "formula": dataclasses.asdict(formula) | {"total": formula.total},
        "usable": wanted.device.usable,
        "useful": compiling.useful_flops(session, batches) // wanted.count,
        "clock": wanted.clock,
        "peak": wanted.device.peak_flops,
        "date": datetime.date.today().isoformat(),
        "code": code_digest()[:12],
    }
    try:
        measured, _ = compile_step(run, session.program, batch)
    except TooLargeError as error:
        return row | {"too_large": str(error)}
    return row | dataclasses.asdict(measured)


def _versions() -> dict[str, str]:
    found = {}
    for name in ("jax", "libtpu", "jax-cuda12-plugin", "jax-cuda12-pjrt"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def run_all(cases: list[str], file: Path, again: bool) -> None:
    """Measures what is not in the file yet."""
    report = json.loads(file.read_text()) if file.exists() else {"cases": {}}
    code = code_digest()[:12]
    for case in cases:
        if (row := report["cases"].get(case)) and (not again or row.get("code") == code):
            continue
        print(f"{case} ...", flush=True)
        child = [sys.executable, __file__, "--case", case]
        done = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(f"{case}: failed with status {done.returncode}", flush=True)
            continue
        # Read again: another process may have written meanwhile.
        report = json.loads(file.read_text()) if file.exists() else {"cases": {}}
        report["cases"][case] = json.loads(done.stdout.splitlines()[-1])
        report |= {"command": command([], "topologies.py"), "versions": _versions()}
        write_report(report, file)
        print(_row(case, report["cases"][case]), flush=True)


HEADS = (
    *("model", "slice", "mesh", "remat", "microbatches", "GB", "`dss fit`'s formula"),
    *("sent, GB", "useful TFLOP", "ms", "share of peak"),
)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _row(case: str, row: dict[str, Any]) -> str:
    model = case.split()[0]
    mesh = " x ".join(f"{axis} {n}" for axis, n in row["mesh"].items() if n > 1) or "1"
    formula = row["formula"]["total"]
    head = [model, row["slice"], mesh, row["remat"], str(row["microbatches"])]
    if "too_large" in row:
        cells = ["does not fit", f"{formula / GB:.1f}", "", "", "", ""]
    else:
        sent = sum(size for _, size in row["sent"].values())
        ratio = f"{formula / GB:.1f} ({formula / row['total'] - 1:+.0%})"
        cells = [f"{row['total'] / GB:.1f}", ratio, f"{sent / GB:.2f}"]
        cells += [f"{row['useful'] / 1e12:.2f}", "", ""]
        if row["cycles"]:
            seconds = sum(row["cycles"].values()) / row["clock"]
            share = row["useful"] / seconds / row["peak"]
            cells[-2:] = [f"{1e3 * seconds:.0f}", f"{share:.1%}"]
    return _line(head + cells)


def table(file: Path) -> str:
    """The cases that were run, as Markdown, and the names of the others."""
    rows = json.loads(file.read_text())["cases"] if file.exists() else {}
    lines = [_line(HEADS), _line(["---"] * len(HEADS))]
    lines += [_row(case, rows[case]) for case in CASES if case in rows]
    left = [case for case in CASES if case not in rows]
    return "\n".join(lines) + (f"\n\nNot yet run: {', '.join(left)}." if left else "")


def with_table(page: str, file: Path) -> str:
    """A page whose text from its last table on is the table."""
    head, _, _ = page.partition(_line(HEADS))
    return f"{head.rstrip()}\n\n{table(file)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", default="", help="words that a case must have: t5_1_1_base,v5e")
    parser.add_argument("--output", type=Path, default=RESULTS / "topologies.json")
    parser.add_argument("--docs", action="store_true", help="write the table")
    parser.add_argument("--again", action="store_true", help="what other code has given, too")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.docs:
        page = RESULTS.parents[1] / "docs" / "compiled.md"
        page.write_text(with_table(page.read_text(), args.output))
    elif args.case:
        print(json.dumps(measure(args.case)))
    else:
        words = {word for word in args.only.split(",") if word}
        run_all([case for case in CASES if words <= set(case.split())], args.output, args.again)


if __name__ == "__main__":
    main()
