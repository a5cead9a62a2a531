"""Training steps compiled for accelerators that are not here, by their own compilers; and what the
compiler says of them: memory, what devices send each other, a TPU's cycles.

TPUs need `libtpu`, NVIDIA's GPUs two wheels of JAX's, no chip and no driver (docs/compiled.md).
Everything is a model's estimate but memory, which is what the program asks for.
"""

import importlib.metadata
import os
import re
import time
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import jax
from jax.experimental import topologies
from jax.extend.core import jaxprs_in_params

from dss_jax.core import config
from dss_jax.core.devices import DEVICES, Device
from dss_jax.core.errors import UsageError
from dss_jax.layouts.blocks import Batch
from dss_jax.train import hlo
from dss_jax.train.sharding import on_mesh
from dss_jax.train.step import Program, make_optimizer, make_train_step, settings

_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8"}

TPUS = {"v5e": (_FLAT, 1, 1.5e9), "v6e": (_FLAT, 1, 1.75e9), "v5p": (_CUBES, 2, 1.75e9)}
"""Kind -> chips -> how they are connected; by how many the slice's name counts a chip (Google's
names count cores: v5p-16 has 8 chips); and the clock, Hz, that the chip's peak is given at."""

ONE_HOST = 8
"""Chips of the largest v5e and v6e slice, and GPUs, that one machine has."""

GPUS = {
    "h100": ("NVIDIA H100 80GB HBM3", 84942979072, 3352320000000),
    "h200": ("NVIDIA H200", 151397597184, 4800000000000),
}
"""Kind -> name, bytes of memory, bytes a second."""

_GPU_TARGET = """gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: %d l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: %d shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
runtime_version { major: 12 minor: 9 } platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 }
device_description_str: "%s"
"""
"""An H100 and an H200 have the same chip."""


def gpu_target(kind: str) -> str:
    """XLA's `GpuTargetConfigProto` of "h100" or "h200", as text."""
    name, memory, bandwidth = GPUS[kind]
    return _GPU_TARGET % (bandwidth, memory, name)


@dataclass(frozen=True)
class Slice:
    """Chips that a step is compiled for.

    Attributes:
      name: "v5p-16", "h200-8".
      kind: "v5p"; `device` is what it is.
      count: of chips.
    """

    name: str
    kind: str
    count: int

    @property
    def device(self) -> Device:
        return DEVICES[self.kind]

    @property
    def hosts(self) -> int:
        """Machines that they are in."""
        one = ONE_HOST if self.kind != "v5p" else 4
        return 1 if self.count <= one else self.count // (4 if self.kind in TPUS else one)

    @property
    def clock(self) -> float | None:
        """Hz; None for GPUs, of which there are no cycles."""
        return TPUS[self.kind][2] if self.kind in TPUS else None


def slice_of(kind: str, count: int) -> Slice:
    """So many chips of a kind. Raises UsageError: there are none to compile for."""
    _, cores, _ = TPUS.get(kind, ({}, 1, 0))
    return slice_named(f"{kind}-{count * cores}")


def slice_named(name: str) -> Slice:
    """The chips of a name. Raises UsageError: there are none of that name."""
    kind, _, number = name.partition("-")
    count = int(number) if re.fullmatch("[1-9][0-9]{0,3}", number) else 0
    if kind in GPUS and count and (count <= ONE_HOST or count % ONE_HOST == 0):
        return Slice(name, kind, count)
    shapes, cores, _ = TPUS.get(kind, ({}, 1, 0))
    if count % cores == 0 and count // cores in shapes:
        return Slice(name, kind, count // cores)
    known = [f"{tpu}-{n * cores}" for tpu, (shapes, cores, _) in TPUS.items() for n in shapes]
    raise UsageError(
        f"no device {name!r} to compile for. Known: {', '.join(known)}; {' and '.join(GPUS)} with "
        f"-1 to -{ONE_HOST}, or a multiple of {ONE_HOST}, for example h200-1."
    )


def _wanted(requirement: str) -> str:
    """What the installed JAX goes with, as pip takes it: "libtpu==0.0.42.*"."""
    for text in importlib.metadata.requires("jax") or ():
        if text.startswith(requirement):
            return text.split(";")[0].strip().replace("[with-cuda]", "")
    return requirement


def _need(module: str, requirement: str, *more: str) -> None:
    if find_spec(module) is None:
        wheels = " ".join(f"'{x}'" for x in (_wanted(requirement), *more))
        raise UsageError(
            f"the compiler is not installed: {module} is not here. It needs no chip and no driver; "
            f"to have it in a folder of its own:\n  pip install --no-deps --target DIR {wheels}\n"
            "and put PYTHONPATH=DIR before the command."
        )


def no_accelerators() -> None:
    """Lets this process start none of this machine's accelerators; comes before JAX's first use.
    With them, JAX would look for drivers, and leave out the compilers where there are none.
    """
    jax.config.update("jax_platforms", "cpu")


def slice_devices(wanted: Slice) -> list[jax.Device]:
    """Devices of the chips, that programs can be compiled for and not run on; in the order in which
    a mesh of real ones has them. Raises UsageError: the compiler is not installed.
    """
    if wanted.kind in TPUS:
        _need("libtpu", "libtpu")
        # It would ask Google's cloud where it is, and refuse a second process.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        shape = TPUS[wanted.kind][0][wanted.count]
        bounds: dict[str, Any] = {}
        if shape.count("x") == 1 and wanted.count <= ONE_HOST:
            bounds["chips_per_host_bounds"] = (*map(int, shape.split("x")), 1)
        name = f"{wanted.kind}:{shape}"
        found = topologies.get_topology_desc(name, "tpu", **bounds).devices
    else:
        wheels = "jax-cuda12-plugin", f"jax-cuda12-pjrt=={jax.__version__}"
        for module in ("jax_cuda12_plugin", "jax_plugins", "jax_plugins.xla_cuda12"):
            _need(module, *wheels)
        hosts = -(-wanted.count // ONE_HOST)
        found = topologies.get_topology_desc(
            wanted.kind,
            "cuda",
            target_config=gpu_target(wanted.kind),
            topology=f"1x{hosts}x{wanted.count // hosts}",
        ).devices
    return sorted(found, key=lambda d: (d.process_index, d.id))


class TooLargeError(UsageError):
    """The compiler has given up: the program needs more memory than a chip has."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the compiler says of a step; sizes in bytes on each device.

    Attributes:
      arguments: the state and the batch. temporary: all else that is there at once at most.
      total: both, and results that do not take an argument's place.
      sent: kind of collective -> how many, bytes of their results (`hlo.sent`).
      cycles: part of the model -> cycles; empty but for TPUs.
      executed: FLOPs of matrix products that each device does, what is computed twice included;
        None where the program has parts that do not tell.
      seconds: to trace and compile.
    """

    arguments: int
    temporary: int
    total: int
    sent: dict[str, tuple[int, int]]
    cycles: dict[str, int]
    executed: int | None
    seconds: float


def compile_step(
    run: config.Run, program: Program, batch: Batch, keep: bool = False
) -> tuple[Measured, str]:
    """Compiles the training step for a batch's shapes: what the compiler says, and the program's
    text. With `keep` it is kept where compiled code is.

    Raises:
      UsageError: it could not be kept.
      TooLargeError: the compiler says so (TPUs; for GPUs look at `Measured.total`).
    """
    began = time.monotonic()
    try:
        compiled = program.train_step.made((batch,))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise TooLargeError(str(error).partition("\n")[0]) from error
    seconds = time.monotonic() - began
    if keep and program.train_step.keep((batch,), compiled) is None:
        raise UsageError(f"the step could not be kept in {program.train_step.folder}.")
    said: Any = compiled.memory_analysis()
    text = compiled.as_text() or ""
    arguments, temporary = said.argument_size_in_bytes, said.temp_size_in_bytes
    measured = Measured(
        arguments=arguments,
        temporary=temporary,
        total=arguments + temporary + said.output_size_in_bytes - said.alias_size_in_bytes,
        sent=hlo.sent(text),
        cycles=hlo.cycles(text),
        executed=executed_flops(run, program, batch),
        seconds=seconds,
    )
    return measured, text


def executed_flops(run: config.Run, program: Program, batch: Batch) -> int | None:
    """See `Measured`."""
    optimizer = make_optimizer(settings(run), run.train.steps)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    with on_mesh(program.mesh, run.mesh.logical_axis_rules):
        step = make_train_step(program.model, run, optimizer)
        traced = jax.make_jaxpr(step)(program.abstract_state, shapes)
    found = products(traced.jaxpr)
    return None if found is None else found // program.mesh.size


def products(jaxpr: Any) -> int | None:
    """FLOPs of the matrix products of a traced function, those of loops as often as they turn; None
    where there are some in a loop that has no known length, or a kernel of another language.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval
            depth = 1
            for axis in contracted:
                depth *= left.shape[axis]
            total += 2 * depth * equation.outvars[0].aval.size
            continue
        inner = [products(x) for x in jaxprs_in_params(params)]
        if name == "pallas_call" or None in inner or (name == "while" and any(inner)):
            return None
        counts = [x for x in inner if x is not None]
        total += max(counts, default=0) if name == "cond" else params.get("length", 1) * sum(counts)
    return total
