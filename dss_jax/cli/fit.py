"""Say whether a training run fits into a device's memory, and with which mesh and settings.

  dss fit --model t5_1_1_xxl --device h200 --count 8 --batch 64
  dss fit --model t5_1_1_large                                   all devices, one of each
  dss fit --model t5_1_1_base --device v5e --count 8 --compile --task cqa

Nothing is allocated, and no accelerator is needed. With --compile the device's own compiler is
asked as well, as `dss compile` does, for the planned settings and the shapes of the task's data.
"""

import argparse
from dataclasses import replace

from dss_jax.cli import gin_config, options
from dss_jax.cli.tables import print_table
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
"""Flag -> the setting that it is short for."""

PLANNED = ("Mesh.data", "Mesh.fsdp", "Mesh.model", "T5Config.remat_policy", "Train.microbatches")
"""What a plan decides."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    options.add_run_flags(parser)
    add("--device", help=f"{', '.join(DEVICES)} (default: a table of all)")
    add("--optimizer", help="adamw (default) or adafactor")
    add("--dtype", help="of activations: bfloat16 or float32 (default)")
    add("--count", type=int, default=1, help="devices (default: 1)")
    add("--batch", type=int, help="examples a step, global (default: 64)")
    add("--input_length", type=int, help="longest input, tokens (default: 1024)")
    add("--target_length", type=int, help="longest target, tokens (default: 256)")
    add("--lora_rank", type=int, help="0 is off (default)")
    text = "compile the step with the device's compiler, for the data of --task: docs/compiled.md"
    add("--compile", action="store_true", help=text)
    parser.set_defaults(needs_model=True, program=None, keep=None)


def main(args: argparse.Namespace) -> int:
    search = options.search_paths(args)
    has_data = args.task or args.mixture_or_task_name
    if not has_data and args.init_from:
        raise UsageError("--init_from needs a task's data: give --task, or --model NAME instead.")
    if not (args.model or args.gin_file or args.init_from):
        known = ", ".join(sorted(gin_config.gin_names("models", search)))
        raise UsageError(f"no model: give --model NAME. Known: {known}.")
    at_least("--count", args.count, 1)
    wanted = device(args.device) if args.device else None
    given = {setting: getattr(args, flag) for flag, setting in FLAGS.items()}
    bindings = [f"{name} = {value!r}" for name, value in given.items() if value is not None]
    args.bindings = bindings + args.bindings
    if args.compile:
        if wanted is None or not has_data:
            raise UsageError("--compile needs a device and a task's data: --device, --task.")
        from dss_jax.train.aot import no_accelerators, slice_of

        no_accelerators()
        slice_of(args.device, args.count)  # Refuses what cannot be compiled for.
    if has_data:
        run = options.resolve(args).run
    else:
        named = {"model": args.model, "method": args.method}
        files = [gin_config.named_file(kind, name, search) for kind, name in named.items() if name]
        whole = [options.BASE_GIN_FILE, *files, *args.gin_file]
        run = gin_config.read(whole, args.bindings, search).run()
    given_size = run.model.vocab_size
    run = replace(run, model=replace(run.model, vocab_size=given_size or VOCAB_SIZE))
    name = args.model or args.init_from or args.gin_file[-1]
    title = (
        f"{name}, {run.optimizer.name}, {run.model.dtype}, batch "
        f"{run.data.batch_size}, lengths {run.data.input_length} and {run.data.target_length}"
        + (f", LoRA of rank {run.lora.rank}" if run.lora.rank else "")
    )
    if wanted is not None:
        best, status = _one_device(args.count, title, run, wanted)
        if not args.compile:
            return status
        from dss_jax.cli.compile import compile_for

        print()
        # Of the vocabulary where no size is given, as in dss train.
        best = replace(best, model=replace(best.model, vocab_size=given_size))
        return compile_for(args, best, slice_of(args.device, args.count))
    _all_devices(title, run, args.count)
    return 0


def _gb(size: int) -> str:
    return f"{size / GB:,.1f}"


def _flags(run: config.Run) -> str:
    """What to add to `dss train`; the settings that were asked for among it."""
    values = config.values_of(run)
    names = [n for n in (*FLAGS.values(), *PLANNED) if n != "Lora.rank" or run.lora.rank]
    texts = {n: f"'\"{v}\"'" if isinstance(v := values[n], str) else str(v) for n in names}
    return "\n".join(f"  --gin.{name}={text}" for name, text in texts.items())


def _one_device(count: int, title: str, run: config.Run, wanted: Device) -> tuple[config.Run, int]:
    """Prints the plan: the run by it, and 0 if it fits, else 1."""
    from dss_jax.train.memory import enough_devices, plan

    best = plan(run, wanted, count)
    parts = ("parameters", "gradients", "optimizer", "activations", "working", "total")
    rows = [[name, _gb(getattr(best.memory, name))] for name in parts]
    rows.append(["usable", _gb(wanted.usable)])
    print(f"{title}: {count} x {wanted.title}")
    print_table("", ("on each device", "GB"), rows)
    if best.fits(wanted):
        print("It fits. Add to dss train:")
        print(_flags(best.run))
        return best.run, 0
    more = enough_devices(run, wanted, count)
    print(f"It does not fit: this is the least it takes, with {_shown(best.run)}.")
    if more is None:
        print("No number of these devices helps at this batch: try --batch, --lora_rank,")
        print("--optimizer adafactor, --dtype bfloat16, or shorter lengths.")
    else:
        needed = more.run.mesh.data * more.run.mesh.fsdp * more.run.mesh.model
        print(f"{needed} of them would do, with {_shown(more.run)}.")
    return best.run, 1


def _shown(run: config.Run) -> str:
    mesh = " x ".join(f"{axis} {getattr(run.mesh, axis)}" for axis in config.MESH_AXES)
    return f"mesh {mesh}, remat {run.model.remat_policy}, {run.train.microbatches} microbatches"


def _all_devices(title: str, run: config.Run, count: int) -> None:
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
