"""Times whole training steps beside the authors' arithmetic in PyTorch, and T5X.

  python benchmarks/train_step.py --task word_problems --model t5_1_1_tiny
  python benchmarks/train_step.py --task cqa --model t5_small --data_dir ../release
  python benchmarks/train_step.py --full 512 128 --model t5_1_1_base --steps 50

Each arm (--arms) trains in a process of its own, one at a time and by turns, on the same examples:

  dss-LAYOUT            ours, in each layout, with the configured T5Config.dtype
  dss-flat-bf16         ours in bfloat16; dss-flat-bf16-unrolled: without loops over the layers
  dss-flat-umt5         ours with a position bias in each layer, as umT5
  torch-eager-fp32      what the released code does: transformers' T5, a forward pass for the labels
                        and one for the rationales, each padded to its longest row; AdamW, clip 1.0
  torch-eager-bf16      the same under torch.autocast (as `--bf16` of transformers' Trainer)
  torch-compile-bf16    that through torch.compile
  t5x-packed, t5x-fixed T5X's step on SeqIO's batches, rows of --t5x_lengths

A step's batch is made in NumPy (host), put on the device (transfer), and the step runs until its
results are there (device). Nothing overlaps here; in `dss train` the host runs ahead of the device.

Takes the flags of `dss train`; --gin.NAME=value too. Writes a JSON file and a picture.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from reporting import RESULTS, command, digits, in_file_name, processor, spread, write_report

from dss_jax import __version__
from dss_jax.cli import options
from dss_jax.core import config
from dss_jax.core.devices import peak_flops
from dss_jax.core.errors import UsageError
from dss_jax.run import pictures

PARTS = ("host", "transfer", "device")
REFERENCE = "torch-eager-fp32"
LAYOUTS = ("padded", "flat", "packed")
BF16, UNROLLED, UMT5 = "bf16", "unrolled", "umt5"
ARMS = (
    *(f"dss-{layout}" for layout in LAYOUTS),
    f"dss-flat-{BF16}",
    f"dss-flat-{BF16}-{UNROLLED}",
    f"dss-flat-{UMT5}",
    REFERENCE,
    "torch-eager-bf16",
    "torch-compile-bf16",
    "t5x-packed",
    "t5x-fixed",
)
COLOURS = {"dss": "#0072B2", "torch": "#999999", "t5x": "#E69F00"}
LARGEST_CHECKED = 1_000_000_000
"""Models with more parameters start from each framework's own random ones."""


def parse(arguments: list[str]) -> tuple[argparse.Namespace, config.Run, tuple[str, ...]]:
    """Command line -> flags, the run that is timed, the user's task folders."""
    parser = argparse.ArgumentParser(
        prog="train_step.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_run_flags(parser)
    parser.add_argument("--arms", default=",".join(ARMS), help="which, separated by commas")
    parser.add_argument("--batch_size", type=int, default=64, help="examples a step (default 64)")
    parser.add_argument("--split", default="train", help="whose rows (default: train)")
    parser.add_argument(
        "--full",
        type=int,
        nargs=2,
        metavar=("S", "T"),
        help="random tokens instead of the task's: every input S long, every target T",
    )
    parser.add_argument("--steps", type=int, default=20, help="timed steps an arm (default 20)")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each arm (default 4)")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them (default 3)")
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="a new process for each turn: where two arms do not fit into the memory",
    )
    parser.add_argument(
        "--t5x_lengths",
        type=int,
        nargs=2,
        default=(512, 128),
        metavar=("S", "T"),
        help="T5X's task_feature_lengths (default 512 128)",
    )
    parser.add_argument("--name", default="", help="added to the names of the files")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: results/)")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.set_defaults(needs_model=True, task="cqa", model="t5_small")
    args = options.parse(parser, arguments)
    for name in ("steps", "warmup", "rounds"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} must be at least 1, not {getattr(args, name)}.")
    unknown = sorted(set(args.arms.split(",")) - set(ARMS))
    if unknown:
        raise UsageError(f"unknown arm {unknown[0]!r} in --arms. Known: {', '.join(ARMS)}.")
    args.bindings.insert(0, f"Data.batch_size = {args.batch_size}")
    return args, options.resolve(args).run, tuple(args.task_dir)


class Child:
    """An arm's process."""

    def __init__(self, arguments: list[str], arm: str, work: Path) -> None:
        script = Path(__file__).with_name("train_arms.py")
        # Both sides may use the device by turns, so neither takes all of its memory.
        environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self._log = (work / f"{arm}.log").open("a")
        self._process = subprocess.Popen(
            [sys.executable, str(script), *arguments, "--arm", arm, "--work", str(work)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        self.started = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        tail = Path(self._log.name).read_text().splitlines()[-1:]
        return {"failed": f"its process ended with {code}: {' '.join(tail)[:200]}"}

    def run(self, first: int, count: int) -> dict[str, Any]:
        """Runs some steps."""
        assert self._process.stdin is not None
        # It may have been killed between two turns (for memory): then its answer says so.
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{first} {count}\n")
            self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._log.close()


def measure(args: argparse.Namespace, arguments: list[str], work: Path) -> dict[str, dict]:
    """Arm -> {"info", "steps", "peak_resident_gb"}; {"skipped"} or {"failed"} say why not.

    An arm that dies keeps the readings of its earlier turns and has "failed" beside them.
    """
    arms = [arm for arm in ARMS if arm in args.arms.split(",")]
    children: dict[str, Child] = {}
    results: dict[str, dict] = {arm: {"steps": []} for arm in arms}
    turns = np.array_split(np.arange(args.warmup, args.warmup + args.steps), args.rounds)

    def take(arm: str, answer: dict[str, Any]) -> bool:
        """Keeps an answer; whether the arm may go on."""
        if "ready" in answer:
            results[arm].setdefault("info", answer["ready"])
        elif "steps" in answer:
            results[arm]["steps"] += answer["steps"]
            results[arm]["peak_resident_gb"] = answer["peak_resident_gb"]
        else:
            results[arm] |= answer
            print(f"{arm}: {answer}", flush=True)
        return "ready" in answer or "steps" in answer

    try:
        for turn in [turn for turn in turns if len(turn)]:
            for arm in arms:
                if "skipped" in results[arm] or "failed" in results[arm]:
                    continue
                child = children.get(arm) or Child(arguments, arm, work)
                if arm not in children and not take(arm, child.started):
                    child.end()
                    continue
                if take(arm, child.run(int(turn[0]), len(turn))):
                    took = [sum(s["seconds"]) for s in results[arm]["steps"][-len(turn) :]]
                    print(f"{arm}: step {turn[-1] + 1}, {np.median(took):.3f} s", flush=True)
                if args.fresh:
                    child.end()
                else:
                    children[arm] = child
    finally:
        for child in children.values():
            child.end()
    return results


def arm_report(result: dict[str, Any]) -> dict[str, Any]:
    """Readings of an arm -> numbers of the report. Rates are of the median step."""
    why_not: dict[str, Any] = {k: result[k] for k in ("skipped", "failed") if k in result}
    if "info" not in result or not result["steps"]:
        return why_not
    seconds = np.array([s["seconds"] for s in result["steps"]])
    examples, useful, executed = (
        np.mean([s[name] for s in result["steps"]]) for name in ("examples", "useful", "executed")
    )
    whole = seconds.sum(axis=1)
    median = float(np.median(whole))
    parts = {name: spread(column) for name, column in zip(PARTS, seconds.T, strict=True)}
    peak = peak_flops(result["info"]["device"])
    per_device = useful / median / result["info"]["devices"]
    return {
        **result["info"],
        **why_not,
        "steps": len(whole),
        "examples_per_second": digits(examples / median),
        "useful_tflops_per_second": digits(useful / median / 1e12),
        # Per cent of the device's bfloat16 peak; None where that is not known, as for a CPU.
        "mfu": digits(100 * per_device / peak) if peak else None,
        "executed_over_useful_flops": digits(executed / useful),
        "seconds_per_step": {"whole": spread(whole), **parts},
        "peak_resident_gb": digits(result["peak_resident_gb"]),
        "losses": [digits(s["loss"]) for s in result["steps"]],
        "raw_seconds": {
            name: [digits(x) for x in column] for name, column in zip(PARTS, seconds.T, strict=True)
        },
    }


def add_ratios(arms: dict[str, dict]) -> None:
    """Examples a second over those of the reference, where that was measured."""
    reference = arms.get(REFERENCE, {}).get("examples_per_second")
    for numbers in arms.values():
        if reference and "examples_per_second" in numbers:
            numbers["ratio"] = digits(numbers["examples_per_second"] / reference)


def check_losses(arms: dict[str, dict]) -> str:
    """Says whether all start at the same loss, where they start from the same parameters."""
    same = {a: n for a, n in arms.items() if UMT5 not in a and "loss_without_dropout" in n}
    losses = {a: n["loss_without_dropout"] for a, n in same.items()}
    if len(losses) < 2:
        return "not checked"
    first = losses.get("dss-padded", next(iter(losses.values())))
    for arm, loss in losses.items():
        half = "bf16" in arm or arms[arm]["dtype"] != "float32"
        if abs(loss - first) > (2e-2 if half else 1e-4) * abs(first):
            return f"{arm} starts at {loss}, the others at {first}: they do not train the same"
    return f"equal at step 0 without dropout: {first:.6g}"


def write_full_store(run: config.Run, lengths: tuple[int, int], path: Path, split: str) -> None:
    """A token store of random tokens where every row has the same lengths."""
    from dss_jax.core.paths import shipped
    from dss_jax.data.store import TOKEN_COLUMNS
    from dss_jax.data.store_writer import SplitBuilder, write_store

    rng = np.random.default_rng(0)
    # Where the model's vocabulary is that of the store, which has more pieces than this.
    size = run.model.vocab_size or 300
    rows = SplitBuilder(TOKEN_COLUMNS, ("id",))
    for row in range(4 * run.data.batch_size):
        rows.append(
            {
                column: [*rng.integers(3, size, lengths["targets" in column] - 1).tolist(), 1]
                for column in TOKEN_COLUMNS
            },
            {"id": str(row)},
        )
    vocabulary = shipped("tasks") / "vocabularies" / "word_problems.model"
    write_store(path, {split: rows}, vocabulary, 0, {"name": "full", "kind": "task", "key": "full"})


def parameters(model: config.T5Config) -> int:
    """How many a model has."""
    d, hk, f = model.emb_dim, model.num_heads * model.head_dim, model.mlp_dim
    feed_forward = (len(model.mlp_activations) + 1) * d * f
    layers = model.num_encoder_layers * (4 * d * hk + feed_forward)
    layers += model.num_decoder_layers * (8 * d * hk + feed_forward)
    tables = 1 if model.logits_via_embedding else 2
    return layers + tables * d * (model.vocab_size or 0)


def draw(report: dict[str, Any], file: Path) -> None:
    """A bar an arm, with its ratio to the reference."""
    shown = {a: n for a, n in report["arms"].items() if "examples_per_second" in n}
    if not shown:
        return
    figure, axes = pictures.pyplot().subplots(
        figsize=(9, 1.3 + 0.42 * len(shown)), layout="constrained"
    )
    rates = [n["examples_per_second"] for n in shown.values()]
    bars = axes.barh(
        range(len(shown)), rates, height=0.7, color=[COLOURS[a.partition("-")[0]] for a in shown]
    )
    labels = [
        f"{n['examples_per_second']:.3g}" + (f"  ({n['ratio']:.2f} x)" if "ratio" in n else "")
        for n in shown.values()
    ]
    axes.bar_label(bars, labels, padding=4, fontsize=9)
    axes.set_yticks(range(len(shown)), [f"{a} ({n['dtype'].split()[0]})" for a, n in shown.items()])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.22 * max(rates))
    axes.set_xlabel(f"examples a second at batch {report['batch_size']}, padding not counted")
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{report['data']}, {report['model']}, {report['device']}; in brackets: {REFERENCE} = 1",
        fontsize=11,
    )
    pictures.save(figure, file)


def table(report: dict[str, Any]) -> str:
    """The report as a table in Markdown."""
    lines = [
        "| arm | dtype | examples/s | ratio | useful TFLOP/s (of peak) "
        "| s a step: median (p10 to p90) | executed / useful FLOPs |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, n in report["arms"].items():
        if "examples_per_second" not in n:
            reason = n.get("skipped") or f"failed: {n.get('failed')}"
            lines.append(f"| {arm} | | {reason} | | | | |")
            continue
        s = n["seconds_per_step"]["whole"]
        of_peak = "" if n["mfu"] is None else f" ({n['mfu']:g} %)"
        ended = f" (ended after {n['steps']} steps)" if "failed" in n else ""
        lines.append(
            f"| {arm}{ended} | {n['dtype'].split()[0]} | {n['examples_per_second']:g} "
            f"| {n.get('ratio', '')} | {n['useful_tflops_per_second']:g}{of_peak} "
            f"| {s['median']:g} ({s['p10']:g} to {s['p90']:g}) "
            f"| {n['executed_over_useful_flops']:g} |"
        )
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Measures, prints and writes."""
    args, run, _ = parse(arguments)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if args.full:
            write_full_store(run, tuple(args.full), work / "full", args.split)
        small = parameters(run.model) <= LARGEST_CHECKED
        if small and "torch" in args.arms:
            child = Child(arguments, "weights", work)
            if "ready" not in child.started:
                print(f"no common weights: {child.started}", file=sys.stderr)
            child.end()
        results = measure(args, arguments, work)
    arms = {arm: arm_report(result) for arm, result in results.items()}
    add_ratios(arms)
    measured = [n for n in arms.values() if "device" in n]
    if not measured:
        print("no arm could be measured", file=sys.stderr)
        return 1
    data = f"full {args.full[0]} to {args.full[1]}" if args.full else run.task.shown_name
    if args.split != "train":
        data += f" ({args.split} split)"
    report = {
        "data": data,
        "method": run.method.name,
        "model": args.model,
        "parameters": parameters(run.model),
        "batch_size": run.data.batch_size,
        "dropout_rate": run.model.dropout_rate,
        "optimizer": run.optimizer.name,
        "steps": args.steps,
        "rounds": args.rounds,
        "warmup_steps": args.warmup,
        "device": measured[0]["device"],
        "platform": measured[0]["platform"],
        "processor": processor(),
        # The load after the run counts the run itself.
        "load_average_1_min": {"before": load, "after": os.getloadavg()[0]},
        "dss_jax": __version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command(arguments, "train_step.py"),
        "losses": check_losses(arms) if small else "not checked: a large model",
        "arms": arms,
    }
    kind = f"full{args.full[0]}_{args.full[1]}" if args.full else run.task.shown_name
    device = in_file_name(str(report["device"]))
    name = "-".join(filter(None, ["train_step", kind, str(args.model), device, args.name]))
    file = args.out / f"{name}.json"
    write_report(report, file)
    draw(report, file.with_suffix(".png"))
    print(table(report))
    print(f"losses: {report['losses']}")
    print(f"{file} and its picture")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UsageError as error:
        print(f"train_step.py: error: {error}", file=sys.stderr)
        sys.exit(2)
