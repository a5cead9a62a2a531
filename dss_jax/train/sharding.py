"""The device mesh, and which array lives where on it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from dss_jax.core import config
from dss_jax.core.errors import UsageError


def make_mesh(cfg: config.Mesh, devices: list[Any] | None = None) -> Mesh:
    """A mesh with axes `data`, `fsdp`, `model` over the devices (default: all there are, of all
    processes, those of one process side by side). Raises UsageError: the sizes do not multiply to
    the number of devices.
    """
    if devices is None:
        # A TPU pod counts its chips row by row, and a host has a square of them.
        devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
    sizes = {axis: getattr(cfg, axis) for axis in config.MESH_AXES}
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if -1 in sizes.values() and len(devices) % fixed == 0:
        sizes = {a: len(devices) // fixed if s == -1 else s for a, s in sizes.items()}
    if math.prod(sizes.values()) != len(devices):
        given = ", ".join(f"Mesh.{a} = {s}" for a, s in sizes.items())
        raise UsageError(
            f"the mesh ({given}) does not fit {len(devices)} devices: the sizes must multiply to "
            "that number; one of them may be -1, for all that are left."
        )
    grid = np.asarray(devices).reshape(*sizes.values())
    if devices[0].platform == "cpu":
        from dss_jax.core.machine import keep_freed_memory

        keep_freed_memory()
    return Mesh(grid, config.MESH_AXES)


@contextmanager
def on_mesh(mesh: Mesh, rules: config.AxisRules) -> Iterator[None]:
    """Within it, logical axis names in the model mean axes of this mesh."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(list(rules)):
        yield


def data_parallelism(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts a batch is cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(size: int, mesh: Mesh | AbstractMesh, microbatches: int, name: str) -> None:
    """Raises UsageError where a batch cannot be cut evenly over devices and microbatches."""
    parts = data_parallelism(mesh) * microbatches
    if size % parts:
        raise UsageError(
            f"{name} is {size}, which {data_parallelism(mesh)} data-parallel devices x "
            f"{microbatches} microbatches cannot share evenly. Give a multiple of {parts}."
        )


def param_shardings(boxed_params: dict, mesh: Mesh | AbstractMesh, rules: config.AxisRules) -> dict:
    """Shardings of abstract parameters from their `nn.LogicallyPartitioned` boxes, by rules logical
    axis -> mesh axis. Raises UsageError: a dimension is not a multiple of the devices that share
    it.
    """
    specs = nn.get_partition_spec(boxed_params)
    # Flax's annotation has Mesh only; it makes NamedShardings, which take both.
    shardings = nn.logical_to_mesh_sharding(specs, cast(Mesh, mesh), list(rules))
    shapes = nn.meta.unbox(boxed_params)

    def check(path: tuple, leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> None:
        for size, axes in zip(leaf.shape, sharding.spec, strict=False):
            names = (axes,) if isinstance(axes, str) else axes or ()
            parts = math.prod(mesh.shape[a] for a in names)
            if size % parts:
                raise UsageError(
                    f"parameter {jax.tree_util.keystr(path)} of shape {leaf.shape} cannot be cut "
                    f"into {parts} along mesh axis {'+'.join(names)}: {size} is not a multiple. "
                    "Change Mesh.* or Mesh.logical_axis_rules."
                )

    jax.tree_util.tree_map_with_path(check, shapes, shardings)
    return shardings


def optimizer_shardings(
    optimizer: optax.GradientTransformation,
    params: dict,
    shardings: dict,
    mesh: Mesh | AbstractMesh,
) -> Any:
    """Shardings of the optimiser's state: an array that has its parameter's shape lies as the
    parameter does; the rest (counts, Adafactor's factored moments, which are small) is on every
    device.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    pairs = jax.tree.map(lambda leaf, sharding: (leaf.shape, sharding), params, shardings)
    of_params = jax.tree_util.tree_leaves_with_path(pairs, is_leaf=lambda x: isinstance(x, tuple))
    by_path = {jax.tree_util.keystr(path): pair for path, pair in of_params}

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        for start in range(len(path)):
            shape, sharding = by_path.get(jax.tree_util.keystr(path[start:]), (None, None))
            if shape == leaf.shape and sharding is not None:
                return sharding
        return replicated

    state = jax.eval_shape(optimizer.init, params)
    return jax.tree_util.tree_map_with_path(place, state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over the data and fsdp axes."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def data_slice(mesh: Mesh) -> tuple[int, int]:
    """Which part of a batch this process makes, and how many parts there are. Processes that share
    the `model` axis make the same part. Raises UsageError: a process would need rows of several
    parts that do not lie side by side.
    """
    parts_of: dict[int, list[int]] = {}
    for part, devices in enumerate(mesh.devices.reshape(data_parallelism(mesh), -1)):
        for process in {d.process_index for d in devices}:
            parts_of.setdefault(process, []).append(part)
    mine = parts_of[jax.process_index()]
    even = range(0, data_parallelism(mesh), len(mine))
    slices = {tuple(parts) for parts in parts_of.values()}
    if slices != {tuple(range(i, i + len(mine))) for i in even}:
        raise UsageError(
            f"Mesh.model = {mesh.shape['model']} cuts through the processes, which have "
            f"{jax.local_device_count()} devices each. Give one that divides that number, or a "
            "multiple of it."
        )
    return mine[0] // len(mine), len(even)


def put_whole(batch: Any, mesh: Mesh) -> Any:
    """A batch that every process has as a whole -> global arrays on the mesh."""
    if jax.process_count() == 1:
        return put_batch(batch, mesh)
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, x.__getitem__), batch
    )


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's part of a batch -> global arrays on the mesh."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
