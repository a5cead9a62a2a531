"""Compile a run's training step for chips that are not here, by their own compiler: what it takes
on each chip, what the chips send each other and, for TPUs, where its cycles go.

  dss compile --task cqa --model t5_1_1_base --device v5e-8
  dss compile --task cqa --model t5_1_1_base --device h200-1 --gin.T5Config.dtype='"bfloat16"'

Flags and settings are those of `dss train`; the shapes are those of the task's own data.
No accelerator is needed: docs/compiled.md.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dss_jax.cli import options
from dss_jax.cli.tables import print_table, say
from dss_jax.core import config, registry
from dss_jax.core.devices import GB, TERA
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import make_folder, write_whole

if TYPE_CHECKING:
    from dss_jax.layouts.batches import TrainBatches
    from dss_jax.layouts.blocks import Batch
    from dss_jax.run.session import Session
    from dss_jax.train.aot import Measured, Slice
    from dss_jax.train.memory import Memory

ESTIMATE = "What the compiler says, not a measurement."


def add_flags(parser: argparse.ArgumentParser) -> None:
    options.add_run_flags(parser)
    text = "kind and number: v5e-8, v5p-16, v6e-4, h100-8, h200-1"
    parser.add_argument("--device", required=True, metavar="KIND-N", help=text)
    text = "write the compiled program, as text, there"
    parser.add_argument("--program", metavar="FILE", help=text)
    text = "keep the compiled step there, to be copied to the slice: docs/compiled.md"
    parser.add_argument("--keep", metavar="DIR", help=text)
    parser.set_defaults(needs_model=True)


def main(args: argparse.Namespace) -> int:
    from dss_jax.train.aot import no_accelerators, slice_named

    no_accelerators()
    wanted = slice_named(args.device)
    if args.keep and (wanted.clock is None or wanted.hosts > 1):
        raise UsageError(
            f"--keep is for TPU slices of one host; {wanted.name} compiles at its own start."
        )
    run = options.resolve(args).run
    if not run.method.trains:
        raise UsageError(f"the method {run.method.name} trains nothing: there is no step.")
    return compile_for(args, run, wanted)


def compile_for(args: argparse.Namespace, run: config.Run, wanted: "Slice") -> int:
    """Compiles a run's step for a slice and prints what is said of it: 0 if it fits, else 1."""
    if args.program:
        make_folder(Path(args.program).parent)  # Before minutes of compiling.
    session, batches, batch = open_for(args, run, wanted)
    if args.keep and session.program.train_step.folder is None:
        raise UsageError(
            f"--keep {args.keep}: no code can be kept there. Unset DSS_COMPILE_CACHE=off, and "
            "give a folder that nobody else may write to."
        )
    run, mesh = session.run, session.program.mesh
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    say(
        f"{args.model or run.task.shown_name}, {run.data.layout}, {run.model.dtype}, batch "
        f"{run.data.batch_size}: {wanted.count} x {wanted.device.title}, mesh {shape}"
    )
    from dss_jax.train.aot import TooLargeError, compile_step

    formula = formula_for(session, batch)
    try:
        measured, text = compile_step(run, session.program, batch, bool(args.keep))
    except TooLargeError as error:
        say(f"It does not fit, says the compiler: {error}")
        say(f"dss fit's formula: {formula.total / GB:,.2f} GB. See dss fit for settings that do.")
        return 1
    if args.program:
        write_whole(Path(args.program), text)
    useful = useful_flops(session, batches) // wanted.count
    fits = show(measured, formula, wanted, useful)
    if args.keep and fits:
        say(f"The step is kept: copy {args.keep} to the slice, and start dss train there with the")
        say("same flags and JAX_COMPILATION_CACHE_DIR set to that folder. docs/compiled.md")
    return 0 if fits else 1


def open_for(
    args: argparse.Namespace, run: config.Run, wanted: "Slice"
) -> "tuple[Session, TrainBatches, Batch]":
    """The run's session on the slice's devices, its batches, and the shapes of the largest."""
    import os

    import jax
    from jax.experimental.compilation_cache import compilation_cache

    if args.keep:
        folder = str(Path(args.keep).absolute())
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
        jax.config.update("jax_compilation_cache_dir", folder)

    from dss_jax.data.prepare import ensure_store
    from dss_jax.run.session import open_session, train_batches
    from dss_jax.train.aot import slice_devices

    devices = slice_devices(wanted)
    dirs = args.task_dir
    store = ensure_store(run.task, run.vocabulary, run.data, task_dirs=dirs, need=("train",))
    scorer = registry.scorer_of(run.task.name, args.task_dir)
    if run.method.equal_compute:
        from dss_jax.run.compute import drawn_out

        run = drawn_out(run, store)
    session = open_session(run, Path(), store, scorer, devices)
    # JAX's own cache would write what was compiled for these devices, and could not read it.
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    batches = train_batches(session)
    return session, batches, batches.shapes[-1]


def formula_for(session: "Session", batch: "Batch") -> "Memory":
    """What `dss fit` would say of the same step on the same shapes."""
    from dataclasses import replace

    from dss_jax.train.memory import estimate
    from dss_jax.train.step import boxed_state

    run = replace(session.run, mesh=replace(session.run.mesh, **dict(session.program.mesh.shape)))
    platform = session.program.mesh.devices.flat[0].platform
    return estimate(run, boxed_state(run), batch, platform)


SAMPLED = 256
"""Steps whose useful work is looked at."""


def useful_flops(session: "Session", batches: "TrainBatches") -> int:
    """Of all devices, in a step; the mean of those, of the first, that take the largest shape."""
    from dss_jax.core.flops import training_flops

    steps = range(min(SAMPLED, session.run.train.steps))
    largest = [s for s in steps if batches.shape_at(s) == batches.layout.shapes - 1] or [0]
    work = [training_flops(session.run.model, batches.work_at(step)) for step in largest]
    return sum(work) // len(work)


def show(measured: "Measured", formula: "Memory", wanted: "Slice", useful: int) -> bool:
    """Prints the tables; whether the step fits."""
    usable = wanted.device.usable
    sizes = {"arguments": measured.arguments, "temporary": measured.temporary}
    sizes |= {"total": measured.total, "usable": usable, "dss fit's formula": formula.total}
    rows = [[name, f"{size / GB:,.2f}"] for name, size in sizes.items()]
    print_table("", ("on each chip", "GB"), rows)
    if measured.sent:
        rows = [[kind, f"{n:,}", f"{size / GB:,.3f}"] for kind, (n, size) in measured.sent.items()]
        print_table("", ("sent between chips, in a step", "times", "GB of results"), rows)
    executed = measured.executed
    say(f"{useful / TERA:,.3f} TFLOP of useful work a step on each chip", end="")
    say("." if executed is None else f", {executed / TERA:,.3f} executed.")
    if measured.cycles and wanted.clock:
        total = sum(measured.cycles.values())
        rows = [[part, f"{n:,}", f"{n / total:.1%}"] for part, n in measured.cycles.items()]
        print_table("", ("part of the step", "cycles", "share"), [*rows, ["all", f"{total:,}", ""]])
        seconds = total / wanted.clock
        share = useful / seconds / wanted.device.peak_flops
        say(
            f"At {wanted.clock / 1e9:.2f} GHz that is {seconds * 1e3:,.1f} ms a step without what "
            f"is sent, and useful work at {share:.1%} of the peak: good for ratios on one chip."
        )
    fits = measured.total <= usable
    say(f"{ESTIMATE} Compiled in {measured.seconds:,.0f} s.")
    say("It fits." if fits else "It does not fit.")
    return fits
