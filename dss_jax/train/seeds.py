"""Several seeds of one run trained at once: the step over states that are stacked on an axis.

A small model leaves an accelerator idle between its launches; n of them in one program cost little
more than one. Each seed draws the parameters and the dropout masks that it draws alone, and its
gradient is clipped by its own norm, so its numbers are those of a run of its own, to rounding.
Where there are several devices, each takes its share of the seeds, and nothing moves between them.

Shape letter: N seeds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dss_jax.core import checks, config
from dss_jax.layouts.blocks import Batch
from dss_jax.train.compile import step_options
from dss_jax.train.optimizer import make_optimizer, settings
from dss_jax.train.step import Metrics, Program, TrainState, make_train_step

_OF_A_SEED = PartitionSpec(("data", "fsdp"))
"""Where the leading axis of stacked arrays lies; `sharding.put_batch` places batches so too."""


def numbered(name: str, index: int) -> str:
    """Name of a metric of one seed among those of all."""
    return f"{index}:{name}"


@dataclass(frozen=True)
class Seeds:
    """Compiled functions for N seeds at once.

    Attributes:
      values: the seeds.
      mesh: one data axis over the devices that share the seeds.
      train_step: (stacked state, stacked batch on the mesh) -> (stacked state, metrics); the old
        state is given up. `step` is one int32 scalar for all seeds; every other array of the
        state, and of the batch, has N in front. The metrics are float32 scalars: each one's mean
        over the seeds under its own name, and seed i's as `numbered(name, i)`.
      abstract_state: shapes, dtypes and shardings of the stacked state.
      lower: (shapes of a stacked batch) -> `train_step` lowered; takes no memory.
    """

    values: tuple[int, ...]
    mesh: Mesh
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    abstract_state: TrainState
    lower: Callable[[Batch], jax.stages.Lowered]


def _split_metrics(metrics: Metrics) -> Metrics:
    """Float32 [N] a metric -> scalars."""
    scalars = {name: jnp.mean(values_N) for name, values_N in metrics.items()}
    for name, values_N in metrics.items():
        scalars |= {numbered(name, i): value for i, value in enumerate(values_N)}
    return scalars


def build_seeds(run: config.Run, program: Program, values: Sequence[int]) -> Seeds:
    """Builds the functions for several seeds of a run. Takes no memory.

    Args:
      run: the configuration; its own seeds are not used.
      program: of the run, for its model and where a single state lies.
      values: the seeds.

    Raises:
      UsageError: parameters are to be cut up over devices.
    """
    checks.whole_on_one_device(run.mesh)
    devices = program.mesh.devices.reshape(-1)
    shares = math.gcd(len(values), len(devices))
    mesh = Mesh(devices[:shares].reshape(shares, 1, 1), config.MESH_AXES)
    optimizer = make_optimizer(settings(run), run.train.steps)
    one = make_train_step(program.model, run, optimizer)
    states = TrainState(None, 0, 0, 0, 0)  # axes, not arrays
    specs = TrainState(PartitionSpec(), *4 * [_OF_A_SEED])

    def block(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """The seeds of one device."""
        return jax.vmap(one, in_axes=(states, 0), out_axes=(states, 0))(state, batch)

    # Within it every device works alone, so the model sees neither mesh nor logical axes.
    blocks = jax.shard_map(
        block,
        mesh=mesh,
        in_specs=(specs, _OF_A_SEED),
        out_specs=(specs, _OF_A_SEED),
        check_vma=False,
    )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        state, metrics = blocks(state, batch)
        return state, _split_metrics(metrics)

    placed = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    train_step = jax.jit(
        step,
        in_shardings=(placed, NamedSharding(mesh, _OF_A_SEED)),
        out_shardings=(placed, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
        compiler_options=step_options(),
    )
    abstract = _abstract(program, mesh, len(values))
    return Seeds(
        values=tuple(values),
        mesh=mesh,
        train_step=train_step,
        abstract_state=abstract,
        lower=lambda batch: train_step.lower(abstract, batch),
    )


def _abstract(program: Program, mesh: Mesh, number: int) -> TrainState:
    """Shapes, dtypes and shardings of the stacked state."""

    def stacked(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        place = NamedSharding(mesh, _OF_A_SEED)
        return jax.ShapeDtypeStruct((number, *x.shape), x.dtype, sharding=place)

    one = program.abstract_state
    step = jax.ShapeDtypeStruct((), one.step.dtype, sharding=NamedSharding(mesh, PartitionSpec()))
    return replace(jax.tree.map(stacked, one), step=step)


def stack_states(states: list[TrainState], mesh: Mesh) -> TrainState:
    """The states of N seeds -> one stacked state on the mesh; the old ones are given up.

    Leaf by leaf, so that the memory of the whole and one leaf is enough.
    """
    place = NamedSharding(mesh, _OF_A_SEED)
    flat = [jax.tree.flatten(replace(s, step=None)) for s in states]
    leaves = []
    for parts in zip(*(f[0] for f in flat), strict=True):
        leaves.append(jax.device_put(np.stack([np.asarray(p) for p in parts]), place))
        for part in parts:
            part.delete()
    step = jax.device_put(np.asarray(states[0].step), NamedSharding(mesh, PartitionSpec()))
    stacked: TrainState = jax.tree.unflatten(flat[0][1], leaves)
    return replace(stacked, step=step)


def take_seed(stacked: Any, index: int, like: Any) -> Any:
    """One seed of stacked arrays, copied to where `like` (abstract arrays) lies."""
    return jax.tree.map(lambda x, one: jax.device_put(x[index], one.sharding), stacked, like)


def stack_batches(batches: Sequence[Batch]) -> Batch:
    """The batches of N seeds, of the same shapes -> one with N in front of every array."""
    return jax.tree.map(lambda *arrays: np.stack(arrays), *batches)
