"""Compiles training steps for TPUs and GPUs that are not here: this tree's, those of an older tree
(`--before`), and T5X's own `train_with_lr` on the same model and batch; memory is what the compiler
asks for, cycles are what the TPU's estimates (docs/performance.md says how to read them).

  python benchmarks/compiled.py --data DATA --vocabulary MODEL --compilers FOLDER [--before TREE]

DATA is a folder in the layout of the release, FOLDER has `pip install --no-deps --target FOLDER
libtpu jax-cuda12-plugin jax-cuda12-pjrt` in it. A program takes the compiler one to six minutes, in
a process of its own. What is in the results is not compiled again, so the script can be stopped;
`--again WORDS` compiles the cells anew whose names have one of the words, `--only WORDS` no other
ones, `--tables` none. Cells of `--before` need a tree of 2026-11-29 or later.
"""

import argparse
import dataclasses
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from reporting import RESULTS, command, processor, write_report

HERE = Path(__file__).resolve().parent
FILE, PICTURE = RESULTS / "compiled.json", RESULTS / "compiled.png"
BATCH = 64
T5X = ("t5x", "t5x-scalable")
OURS = ("before", "now", "fsdp")
"""All but "fsdp" are data parallel: that is "now" with the mesh that `dss fit` gives TPU slices."""
PACKED = (*OURS, *T5X)


class Cell(NamedTuple):
    """One program: chips, model, task, layout, and whose step it is."""

    chips: str
    model: str
    task: str
    layout: str
    arm: str

    @property
    def name(self) -> str:
        return " ".join(self)


CELLS = [
    *(Cell("v5e-4", f"t5_1_1_{m}", "cqa", "packed", a) for m in ("small", "base") for a in PACKED),
    *(Cell(c, "t5_1_1_small", "cqa", "packed", a) for c in ("v6e-4", "v5p-8") for a in OURS),
    *(Cell("v5e-4", "t5_1_1_small", t, "packed", a) for t in ("esnli", "svamp") for a in OURS),
    *(
        Cell("h200-1", f"t5_1_1_{m}", "cqa", "packed" if a in T5X else "flat", a)
        for m in ("base", "large")
        for a in PACKED
        if a != "fsdp"
    ),
]
"""The targets' programs, the ones that were asked for first at the top."""

VERSIONS = ("jax", "jaxlib", "libtpu", "jax-cuda12-pjrt", "flax", "optax", "t5x")

TPU_NAMES = {"v5e-4": "v5e:2x2", "v6e-4": "v6e:2x2", "v5p-8": "v5p:2x2x1"}


# In the child process: a tree's own modules, none of this one's but the standard library's.


def _devices(spec: dict[str, Any]) -> Any:
    from jax.experimental import topologies

    if spec["chips"] in TPU_NAMES:
        return topologies.get_topology_desc(TPU_NAMES[spec["chips"]], "tpu").devices
    target = {"target_config": spec["gpu"], "topology": "1x1x1"}
    return topologies.get_topology_desc("gpu", "cuda", **target).devices


def _lowered(spec: dict[str, Any]) -> tuple[Any, list]:
    """A cell's step, lowered, and the shapes of its inputs and targets."""
    from dss_jax.cli import gin_config, options
    from dss_jax.data import prepare
    from dss_jax.layouts.batches import TrainBatches
    from dss_jax.layouts.layout import cost_of
    from dss_jax.train import sharding, step

    devices = list(_devices(spec))
    kinds = ("model", spec["model"]), ("method", "dss"), ("task", spec["task"])
    files = [gin_config.named_file(kind, name, []) for kind, name in kinds]
    fsdp = len(devices) if spec["arm"] == "fsdp" else 1
    bindings = [
        f"Data.batch_size = {BATCH}",
        f"Data.layout = '{spec['layout']}'",
        "T5Config.dtype = 'bfloat16'",
        f"Mesh.data = {len(devices) // fsdp}",
        f"Mesh.fsdp = {fsdp}",
        f"Task.data_dir = '{spec['data']}'",
        f"Vocabulary.path = '{spec['vocabulary']}'",
    ]
    run = gin_config.read([options.BASE_GIN_FILE, *files], bindings, []).run()
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, vocab_size=32_128))
    store = prepare.ensure_store(run.task, run.vocabulary, run.data)
    mesh = sharding.make_mesh(run.mesh, devices)
    batches = TrainBatches(
        store.split("train" if "train" in store.splits else "validation"),
        run.task,
        run.data,
        run.method,
        right=None,
        steps=200,
        shares=sharding.data_parallelism(mesh),
        cost=cost_of(run.model),
    )
    batch = next(iter(batches.shapes))
    pairs = [(b.encoder_input_tokens.shape, b.decoder_input_tokens.shape) for b in batch]
    if spec["arm"] in T5X:
        return _t5x(run, mesh, *pairs[0], spec["arm"]), pairs
    return step.Program(run, mesh).train_step.lower(batch), pairs


def _t5x(run: Any, mesh: Any, inputs: tuple, targets: tuple, arm: str) -> Any:
    """T5X's step on rows as ours packs them, data parallel; with its own AdamW, from optax."""
    import jax
    import jax.numpy as jnp
    import optax
    import seqio
    from jax.sharding import NamedSharding, PartitionSpec
    from t5x import models, optimizers, train_state, trainer

    if arm == "t5x":
        from t5x.examples.t5 import network
    else:
        from t5x.examples.scalable_t5 import network
    names = {f.name for f in dataclasses.fields(network.T5Config)} - {"remat_policy"}
    fields = {k: v for k, v in dataclasses.asdict(run.model).items() if k in names}
    if arm != "t5x":  # as its gin files have it
        fields["remat_policy"] = "minimal"
    vocabulary = seqio.PassThroughVocabulary(run.model.vocab_size, eos_id=1)
    o = run.optimizer
    adamw = optax.adamw(o.learning_rate, o.b1, o.b2, o.eps, weight_decay=o.weight_decay)
    clipped = optax.chain(optax.clip_by_global_norm(o.clip_norm), adamw)
    optimizer = optimizers.wrap_optax_optimizer(lambda: clipped)()
    model = models.EncoderDecoderModel(
        module=network.Transformer(network.T5Config(**fields)),
        input_vocabulary=vocabulary,
        output_vocabulary=vocabulary,
        optimizer_def=optimizer,
    )
    sizes = {"encoder": inputs, "decoder": targets}
    words = ("input_tokens", "positions", "segment_ids")
    features = {f"{side}_{w}": sizes[side] for side in sizes for w in words}
    features |= {f"decoder_{w}": targets for w in ("target_tokens", "loss_weights")}

    def created() -> Any:
        variables = model.get_initial_variables(jax.random.key(0), features)
        return train_state.FlaxOptimTrainState.create(optimizer, variables)

    def train_step(state: Any, batch: Any, number: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(0), number)
        return trainer.train_with_lr(state, batch, o.learning_rate, key, model, None)

    everywhere, rows = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    step = jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(everywhere, rows, everywhere),
        out_shardings=everywhere,
    )
    batch = {
        k: jax.ShapeDtypeStruct(v, jnp.float32 if k.endswith("weights") else jnp.int32)
        for k, v in features.items()
    }
    return step.lower(jax.eval_shape(created), batch, jax.ShapeDtypeStruct((), jnp.int32))


def child(spec: dict[str, Any]) -> None:
    """Compiles a cell; writes the program's text and what is said of its memory."""
    began = time.perf_counter()
    lowered, shapes = _lowered(spec)
    lowering = time.perf_counter()
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    sizes = {
        k: getattr(memory, f"{k}_size_in_bytes") for k in ("argument", "temp", "output", "alias")
    }
    answer = {
        "shapes": shapes,
        "trace_seconds": round(lowering - began),
        "compile_seconds": round(time.perf_counter() - lowering),
        "temporary_gb": sizes["temp"] / 1e9,
        "memory_gb": (sizes["argument"] + sizes["temp"] + sizes["output"] - sizes["alias"]) / 1e9,
    }
    folder = Path(spec["folder"])
    (folder / "program.txt").write_text(compiled.as_text(), encoding="utf-8")
    (folder / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


# In the parent.


def compile_cell(cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    """What the compiler says of a cell, or why it could not be asked."""
    from dss_jax.train import hlo
    from dss_jax.train.aot import gpu_target

    if cell.arm == "before" and not args.before:
        return {"skipped": "no --before"}
    if cell.arm in T5X and find_spec("t5x") is None:
        return {"skipped": "t5x is not installed"}
    tree = Path(args.before if cell.arm == "before" else HERE.parent).resolve()
    gpu = cell.chips.startswith("h200")
    with tempfile.TemporaryDirectory() as folder:
        spec = cell._asdict() | {"folder": folder, "gpu": gpu_target("h200")}
        spec |= {k: str(Path(getattr(args, k)).resolve()) for k in ("data", "vocabulary")}
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(tree), *args.compilers]),
            "DSS_COMPILE_CACHE": "off",
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
        if gpu:
            environment["JAX_PLATFORMS"] = "cpu"
        done = subprocess.run(
            [sys.executable, __file__, "--child", json.dumps(spec)],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if re.match(r"[\w.]+Error", line)]
            return {"failed": (errors or done.stderr.splitlines())[-1][:300]}
        answer = json.loads((Path(folder) / "answer.json").read_text())
        text = (Path(folder) / "program.txt").read_text()
    if not gpu:
        answer["cycles"] = hlo.cycles(text)
        answer["total_cycles"] = sum(answer["cycles"].values())
    commit = subprocess.run(
        ["git", "-C", str(tree), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return answer | {
        "commit": None if cell.arm in T5X else commit.stdout.strip(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {name: _version(name, args.compilers) for name in VERSIONS},
        "host": processor(),
    }


def _version(name: str, compilers: list[str]) -> str | None:
    found = next(iter(distributions(name=name, path=[*compilers, *sys.path])), None)
    return found.version if found else None


def table(cells: dict[str, dict[str, Any]]) -> str:
    """Markdown: a line for each program of ours, beside the tree before and both of T5X's, and one
    for each that could not be compiled.
    """
    lines = [
        "| chips | model | task | estimated cycles, M | of before | of T5X's, scalable T5's "
        "| temporary GB | of before | of T5X's, scalable T5's | in all GB | of before |",
        "| --- " * 11 + "|",
    ]

    def ratio(cell: Cell, arms: tuple[str, ...], key: str) -> str:
        def one(arm: str) -> str:
            layout = "packed" if arm in T5X else cell.layout
            other = cells.get(cell._replace(arm=arm, layout=layout).name, {}).get(key)
            return f"{own[key] / other:.2f}" if other and own.get(key) else "-"

        return ", ".join(map(one, arms))

    ours = [c for c in CELLS if c.arm in OURS[1:] and "memory_gb" in cells.get(c.name, {})]
    for cell in ours:
        own = cells[cell.name]
        count = own.get("total_cycles")
        mesh = ", fsdp" if cell.arm == "fsdp" else ""
        shown = [cell.chips, cell.model, f"{cell.task}, {cell.layout}{mesh}"]
        shown += [f"{count / 1e6:.1f}" if count else "-"]
        shown += [ratio(cell, arms, "total_cycles") for arms in (("before",), T5X)]
        shown += [f"{own['temporary_gb']:.2f}"]
        shown += [ratio(cell, arms, "temporary_gb") for arms in (("before",), T5X)]
        shown += [f"{own['memory_gb']:.2f}", ratio(cell, ("before",), "memory_gb")]
        lines.append(f"| {' | '.join(shown)} |")
    for cell in CELLS:
        if reason := cells.get(cell.name, {}).get("failed"):
            reason = reason.rpartition("Error: ")[2]
            said = f"{cell.task}, {cell.arm}: could not be compiled, {reason[:80]}"
            lines.append(f"| {cell.chips} | {cell.model} | {said} |" + " |" * 8)
    return "\n".join(lines)


def draw(cells: dict[str, dict[str, Any]], file: Path) -> None:
    """Bars of estimated cycles by part of the step, for the first model that has them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    arms = [c for c in CELLS[: len(PACKED)] if "cycles" in cells.get(c.name, {})]
    parts = sorted({p for c in arms for p in cells[c.name]["cycles"]})
    figure, axes = pyplot.subplots(figsize=(7, 3))
    left = [0.0] * len(arms)
    for part in parts:
        widths = [cells[c.name]["cycles"].get(part, 0) / 1e6 for c in arms]
        axes.barh([c.arm for c in arms], widths, left=left, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    first = CELLS[0]
    axes.set_xlabel(f"estimated cycles, millions: {first.chips}, {first.model}, {first.task}")
    axes.legend(fontsize=7, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.tight_layout()
    figure.savefig(file, dpi=150)


def main(arguments: list[str]) -> int:
    """Compiles what is missing, then writes the table and the picture."""
    if arguments[:1] == ["--child"]:
        child(json.loads(arguments[1]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", help="folder in the layout of the release")
    parser.add_argument("--vocabulary", help="SentencePiece model of T5")
    parser.add_argument("--compilers", nargs="*", default=[], help="folders of compilers' wheels")
    parser.add_argument("--before", help="an older tree (git worktree add)")
    parser.add_argument("--jobs", type=int, default=1, help="compilers at once")
    parser.add_argument("--only", nargs="*", default=[""], help="cells with one of these words")
    parser.add_argument("--again", nargs="*", default=[], help="compiled though they are there")
    parser.add_argument("--tables", action="store_true", help="compile nothing")
    args = parser.parse_args(arguments)
    cells: dict[str, dict[str, Any]] = {}
    if FILE.exists():
        cells = json.loads(FILE.read_text(encoding="utf-8"))["cells"]

    def wanted(cell: Cell) -> bool:
        again = any(word in cell.name for word in args.again)
        return any(w in cell.name for w in args.only) and (
            again or "memory_gb" not in cells.get(cell.name, {})
        )

    todo = [] if args.tables else [cell for cell in CELLS if wanted(cell)]
    with ThreadPoolExecutor(args.jobs) as pool:
        for cell, found in zip(todo, pool.map(lambda c: compile_cell(c, args), todo), strict=True):
            cells[cell.name] = found
            print(cell.name, {k: v for k, v in found.items() if k not in ("cycles", "versions")})
            write_report({"command": command(arguments, "compiled.py"), "cells": cells}, FILE)
    print(table(cells))
    draw(cells, PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
