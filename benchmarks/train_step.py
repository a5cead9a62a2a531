"""Times whole training steps, and where the time goes: host, transfer, device.

  python benchmarks/train_step.py --task word_problems --model t5_1_1_tiny
  python benchmarks/train_step.py --task cqa --model t5_1_1_small --data_dir ../release

Each step is timed by itself: the batch is made in NumPy (host), put on the devices (transfer), and
the step runs until its results are there (device). Nothing overlaps here; in `dss train` the host
runs ahead of the device.

Takes the flags of `dss train`; --gin.NAME=value too. Writes a JSON file and a picture.
"""

import argparse
import datetime
import json
import os
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dss_jax import __version__
from dss_jax.cli import options
from dss_jax.core import config
from dss_jax.core.errors import UsageError

RESULTS = Path(__file__).resolve().parent / "results"
PARTS = ("host", "transfer", "device")
COLOURS = dict(zip(PARTS, ("#009E73", "#E69F00", "#0072B2"), strict=True))


class Measured(NamedTuple):
    """Raw readings.

    Attributes:
      seconds: float64 [steps, 3], of each step in `PARTS`.
      first_step_seconds: the first call of the step, compilation included.
      tokens: int64 [steps, 2, 2], of each step: encoder and decoder, real and with padding.
      losses: of the first and the last measured step.
    """

    seconds: np.ndarray
    first_step_seconds: float
    tokens: np.ndarray
    losses: tuple[float, float]


def parse(arguments: list[str]) -> tuple[argparse.Namespace, config.Run, tuple[str, ...]]:
    """Command line -> flags, the run that is timed, the user's task folders."""
    parser = argparse.ArgumentParser(
        prog="train_step.py", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    options.add_run_flags(parser)
    parser.add_argument("--batch_size", type=int, default=64, help="examples a step (default 64)")
    parser.add_argument("--steps", type=int, default=20, help="steps that are timed (default 20)")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them (default 3)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: results/)")
    parser.set_defaults(needs_model=True, task="cqa", model="t5_1_1_small")
    args, rest = parser.parse_known_args(arguments)
    if args.steps < 1 or args.warmup < 1:
        raise UsageError(
            f"--steps ({args.steps}) and --warmup ({args.warmup}) must be at least 1: the first "
            "step compiles."
        )
    rest = [f"--gin.Data.batch_size={args.batch_size}", *rest]
    resolved = options.resolve(args, rest, parser)
    return args, resolved.run, resolved.task_dirs


def count_tokens(batch: Any) -> list[list[int]]:
    """[[encoder real, encoder with padding], [decoder real, decoder with padding]]."""
    return [
        [
            sum(int(np.count_nonzero(b.encoder_input_tokens)) for b in batch),
            sum(b.encoder_input_tokens.size for b in batch),
        ],
        [
            sum(int(np.count_nonzero(b.decoder_roles)) for b in batch),
            sum(b.decoder_roles.size for b in batch),
        ],
    ]


def measure(program: Any, batches: Any, warmup: int, steps: int) -> Measured:
    """Runs `warmup` steps, then `steps` steps with the clock on each part."""
    import jax

    from dss_jax.train.sharding import put_batch

    state = jax.block_until_ready(program.init())
    seconds, tokens, losses = [], [], []
    for step in range(warmup + steps):
        times = [time.perf_counter()]
        batch = batches(step)
        times.append(time.perf_counter())
        on_device = jax.block_until_ready(put_batch(batch, program.mesh))
        times.append(time.perf_counter())
        state, metrics = jax.block_until_ready(program.train_step(state, on_device))
        times.append(time.perf_counter())
        seconds.append(np.diff(times))
        tokens.append(count_tokens(batch))
        losses.append(float(metrics["loss"]))
        label = "" if step >= warmup else " (warm-up)"
        print(f"step {step + 1}/{warmup + steps}: {sum(seconds[-1]):.3f} s{label}", flush=True)
    return Measured(
        seconds=np.array(seconds[warmup:]),
        first_step_seconds=float(seconds[0][2]),
        tokens=np.array(tokens[warmup:]),
        losses=(losses[warmup], losses[-1]),
    )


def spread(values: np.ndarray) -> dict[str, float]:
    """Median, 10th and 90th percentile, to 4 digits."""
    levels = {"median": 50, "p10": 10, "p90": 90}
    return {name: _digits(np.percentile(values, level)) for name, level in levels.items()}


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def summary(measured: Measured, batch_size: int) -> dict[str, Any]:
    """The numbers of the report. Rates are of the median step, its three parts together."""
    whole = measured.seconds.sum(axis=1)
    median = float(np.median(whole))
    (encoder, encoder_all), (decoder, decoder_all) = measured.tokens.mean(axis=0)
    useful, executed = encoder + decoder, encoder_all + decoder_all
    device_median = float(np.median(measured.seconds[:, 2]))
    parts = {name: spread(column) for name, column in zip(PARTS, measured.seconds.T, strict=True)}
    return {
        "examples_per_second": _digits(batch_size / median),
        "useful_tokens_per_second": _digits(useful / median),
        "seconds_per_step": {"whole": spread(whole), **parts},
        "first_step_seconds": _digits(measured.first_step_seconds),
        "compile_seconds": _digits(measured.first_step_seconds - device_median),
        "compile_seconds_means": "the first step less the median step's device time",
        "tokens_per_step": {
            "useful": _digits(useful),
            "executed": _digits(executed),
            "executed_over_useful": _digits(executed / useful),
            "encoder_executed_over_useful": _digits(encoder_all / encoder),
            "decoder_executed_over_useful": _digits(decoder_all / decoder),
        },
        "loss_first_and_last": [_digits(x) for x in measured.losses],
    }


def public_path(text: str) -> str:
    """A path as it may be published: relative, and its name alone if it is far from here."""
    if not text.startswith(("/", "~")):
        return text
    path = Path(text).expanduser().resolve()
    if path.is_relative_to(Path.cwd().parent):
        return Path(os.path.relpath(path)).as_posix()
    return f"PATH/{path.name}"


def command(arguments: list[str], script: str = "train_step.py") -> str:
    """The command line, without paths of this machine."""

    def shown(argument: str) -> str:
        flag, equals, value = argument.rpartition("=")
        quote = value[:1] if value[:1] in ("'", '"') else ""
        return f"{flag}{equals}{quote}{public_path(value.strip(quote or None))}{quote}"

    data_dir = os.environ.get("DSS_DATA_DIR")
    setting = f"DSS_DATA_DIR={shlex.quote(public_path(data_dir))} " if data_dir else ""
    words = ["python", f"benchmarks/{script}", *map(shown, arguments)]
    return setting + shlex.join(words)


def processor() -> str:
    """Name of the CPU where Linux tells it, and how many cores this process may use."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return f"{names[0] if names else 'CPU'}, {cores} cores"


def describe(run: config.Run, program: Any, batches: Any, model: str) -> dict[str, Any]:
    """What was timed, on what."""
    import jax
    import jaxlib

    devices = program.mesh.devices.flat
    leaves = jax.tree.leaves(program.abstract_state.params)
    return {
        "task": run.task.name or run.task.mixture_or_task_name,
        "method": run.method.name,
        "model": model,
        "parameters": sum(leaf.size for leaf in leaves),
        "batch_size": run.data.batch_size,
        "microbatches": run.train.microbatches,
        "layout": run.data.layout,
        "lengths_input_target": dict(
            zip(("label", "rationale"), batches.layout.lengths, strict=False)
        ),
        "dtype": run.model.dtype,
        "dropout_rate": run.model.dropout_rate,
        "optimizer": run.optimizer.name,
        "device": devices[0].device_kind,
        "platform": devices[0].platform,
        "devices": program.mesh.size,
        "processor": processor(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "dss_jax": __version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def draw(report: dict[str, Any], file: Path) -> None:
    """One stacked bar: the median of each part of a step; a line from p10 to p90 of the whole."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    numbers = report["seconds_per_step"]
    whole = numbers["whole"]
    figure, axes = plt.subplots(figsize=(9, 2.9), layout="constrained")
    left = 0.0
    total = sum(numbers[part]["median"] for part in PARTS)
    for part in PARTS:
        width = numbers[part]["median"]
        label = f"{part}: {_unit(width)} ({100 * width / total:.1f} %)"
        axes.barh(0, width, left=left, height=0.5, color=COLOURS[part], label=label)
        left += width
    axes.plot(
        [whole["p10"], whole["p90"]], [-0.33, -0.33], color="black", linewidth=1.5, marker="|"
    )
    axes.set(
        xlabel="seconds a step, median; black: 10th to 90th percentile of the whole step",
        yticks=[],
        ylim=(-0.42, 0.3),
        xlim=(0, 1.08 * max(left, whole["p90"])),
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 0.98))
    figure.suptitle(
        f"{report['task']}, {report['model']}, batch {report['batch_size']}, {report['dtype']}, "
        f"{report['device']}: {report['examples_per_second']:g} examples/s",
        fontsize=11,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def _unit(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def main(arguments: list[str]) -> int:
    """Measures, prints and writes."""
    args, run, task_dirs = parse(arguments)

    import jax

    from dss_jax.data.batches import TrainBatches
    from dss_jax.data.prepare import ensure_store
    from dss_jax.experiment.single import with_vocab_size
    from dss_jax.train.sharding import make_mesh
    from dss_jax.train.step import build

    if jax.process_count() > 1:
        raise UsageError("this benchmark is for one process.")
    store = ensure_store(run.task, run.vocabulary, run.data, task_dirs=task_dirs, need=["train"])
    run = with_vocab_size(run, store)
    batches = TrainBatches(store.split("train"), run.task, run.data, run.method)
    program = build(run, make_mesh(run.mesh))
    report = describe(run, program, batches, args.model)
    load_before = os.getloadavg()[0]
    measured = measure(program, batches, args.warmup, args.steps)
    report |= {
        "command": command(arguments),
        "steps": args.steps,
        "warmup_steps": args.warmup,
        # The load after the run counts the run itself.
        "load_average_1_min": {"before": load_before, "after": os.getloadavg()[0]},
        **summary(measured, run.data.batch_size),
        "raw_seconds": {
            name: [_digits(x) for x in column]
            for name, column in zip(PARTS, measured.seconds.T, strict=True)
        },
    }
    device = re.sub(r"[^a-z0-9]+", "-", str(report["device"]).lower()).strip("-")
    file = args.out / f"train_step-{report['task']}-{args.model}-{device}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    draw(report, file.with_suffix(".png"))
    print(json.dumps({k: v for k, v in report.items() if k != "raw_seconds"}, indent=1))
    print(f"{file} and its picture")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UsageError as error:
        print(f"train_step.py: error: {error}", file=sys.stderr)
        sys.exit(2)
