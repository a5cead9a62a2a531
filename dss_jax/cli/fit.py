"""Say whether a training run fits into a device's memory, and with which mesh and settings.

  dss fit --model t5_1_1_xxl --device h200 --count 8 --batch 64
  dss fit --model t5_1_1_large                                   all devices, one of each

Nothing is allocated or compiled, and no accelerator is needed.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

from dss_jax.cli import gin_config, options
from dss_jax.core import config
from dss_jax.core.checks import at_least
from dss_jax.core.devices import DEVICES, GB, Device, device
from dss_jax.core.errors import UsageError
from dss_jax.core.t5_config import VOCAB_SIZE

FLAGS = {
    "batch": "Data.batch_size",
    "input_length": "Data.input_length",
    "target_length": "Data.target_length",
    "optimizer": "Optimizer.name",
    "dtype": "T5Config.dtype",
    "lora_rank": "Lora.rank",
}
"""Flag -> the gin binding that it is short for."""

PLANNED = ("Mesh.data", "Mesh.fsdp", "Mesh.model", "T5Config.remat_policy", "Train.microbatches")
"""What a plan decides."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    texts = {
        "--model": "for example t5_1_1_xxl: gin_configs/models/",
        "--device": f"{', '.join(DEVICES)} (default: a table of all)",
        "--method": "dss: two rows an example (default); standard: one",
        "--optimizer": "adamw (default) or adafactor",
        "--dtype": "of activations: bfloat16 or float32 (default)",
    }
    numbers = {
        "--batch": "examples a step, global (default: 64)",
        "--input_length": "longest input, tokens (default: 1024)",
        "--target_length": "longest target, tokens (default: 256)",
        "--lora_rank": "0 is off (default)",
    }
    options.add_texts(parser, texts)
    options.add_texts(parser, {"--count": "devices (default: 1)"}, type=int, default=1)
    options.add_texts(parser, numbers, type=int)
    options.add_gin_flags(parser)


def main(args: argparse.Namespace, rest: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Runs the command."""
    search = options.search_paths(args)
    if not args.model and not args.gin_file:
        known = ", ".join(sorted(gin_config.gin_names("models", search)))
        raise UsageError(f"no model: give --model NAME. Known: {known}.")
    at_least("--count", args.count, 1)
    wanted = device(args.device) if args.device else None
    named = {"model": args.model, "method": args.method}
    files = [gin_config.named_file(kind, name, search) for kind, name in named.items() if name]
    given = {flag: getattr(args, flag) for flag in FLAGS}
    bindings = [f"{FLAGS[f]} = {value!r}" for f, value in given.items() if value is not None]
    bindings += options.gin_bindings(rest, parser)
    run = gin_config.load_run([options.BASE_GIN_FILE, *files, *args.gin_file], bindings, search)
    run = replace(run, model=replace(run.model, vocab_size=run.model.vocab_size or VOCAB_SIZE))
    title = (
        f"{args.model or args.gin_file[-1]}, {run.optimizer.name}, {run.model.dtype}, batch "
        f"{run.data.batch_size}, lengths {run.data.input_length} and {run.data.target_length}"
        + (f", LoRA of rank {run.lora.rank}" if run.lora.rank else "")
    )
    if wanted is None:
        _all_devices(title, run, args.count)
        return 0
    return _one_device(title, run, wanted, args.count)


def _gb(size: int) -> str:
    return f"{size / GB:,.1f}"


def _flags(run: config.Run) -> str:
    """What to add to `dss train`; the settings that were asked for among it."""
    values = config.values_of(run)
    names = [n for n in (*FLAGS.values(), *PLANNED) if n != "Lora.rank" or run.lora.rank]
    texts = (f"'\"{v}\"'" if isinstance(v := values[n], str) else str(v) for n in names)
    return "\n".join(f"  --gin.{n}={text}" for n, text in zip(names, texts, strict=True))


def _one_device(title: str, run: config.Run, wanted: Device, count: int) -> int:
    from dss_jax.cli.tables import print_table
    from dss_jax.train.memory import enough_devices, plan

    best = plan(run, wanted, count)
    memory = best.memory
    parts = ("parameters", "gradients", "optimizer", "activations", "working", "total")
    rows = [[name, _gb(getattr(memory, name))] for name in parts]
    rows.append(["usable", _gb(wanted.usable)])
    print(f"{title}: {count} x {wanted.title}")
    print_table("", ("on each device", "GB"), rows)
    more = None if best.fits(wanted) else enough_devices(run, wanted, count)
    if best.fits(wanted):
        print("It fits. Add to dss train:")
        print(_flags(best.run))
        return 0
    print(f"It does not fit: this is the least it takes, with {_shown(best.run)}.")
    if more is None:
        print("No number of these devices helps at this batch: try --batch, --lora_rank,")
        print("--optimizer adafactor, --dtype bfloat16, or shorter lengths.")
    else:
        needed = more.run.mesh.data * more.run.mesh.fsdp * more.run.mesh.model
        print(f"{needed} of them would do, with {_shown(more.run)}.")
    return 1


def _shown(run: config.Run) -> str:
    mesh = " x ".join(f"{axis} {getattr(run.mesh, axis)}" for axis in config.MESH_AXES)
    return f"mesh {mesh}, remat {run.model.remat_policy}, {run.train.microbatches} microbatches"


def _all_devices(title: str, run: config.Run, count: int) -> None:
    from dss_jax.cli.tables import print_table
    from dss_jax.train.memory import plan
    from dss_jax.train.step import boxed_state

    boxed, rows = boxed_state(run), []
    for name, wanted in DEVICES.items():
        best = plan(run, wanted, count, boxed)
        settings = [str(config.values_of(best.run)[name]) for name in PLANNED]
        fits = "yes" if best.fits(wanted) else "no"
        rows.append([name, _gb(wanted.usable), _gb(best.memory.total), fits, *settings])
    columns = ("device", "usable GB", "needed GB", "fits", "data", "fsdp", "model", "remat")
    print_table(f"{title}: {count} of each", (*columns, "microbatches"), rows)
