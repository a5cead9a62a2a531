"""Several seeds of one run trained at once: the step over states that are stacked on an axis.

A small model leaves an accelerator idle between its launches; n of them in one program cost little
more than one. Each seed draws the parameters and the dropout masks that it draws alone, and its
gradient is clipped by its own norm, so its numbers are those of a run of its own, to rounding.
Where there are several devices, each takes its share of the seeds, and nothing moves between them.

Shape letter: N seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dss_jax.core import checks, config
from dss_jax.layouts.blocks import Batch
from dss_jax.train.compile import step_options
from dss_jax.train.optimizer import make_optimizer, settings
from dss_jax.train.step import Program, Step, TrainState, make_train_step

_OF_A_SEED = PartitionSpec(("data", "fsdp"))
"""Where the leading axis of stacked arrays lies; `sharding.put_batch` places batches so too."""

_SPECS = TrainState(PartitionSpec(), *4 * [_OF_A_SEED])
"""`step` is one number for all seeds; every other array of the state has N in front."""


def stacked_step(run: config.Run, program: Program, count: int) -> Step:
    """The training step for several seeds. Takes no memory.

    Args:
      run: the configuration; its own seeds are not used.
      program: of the run, for its model and where a single state lies.
      count: N.

    Returns:
      (stacked state, stacked batch) -> (stacked state, metrics); the old state is given up. Every
      array of a batch has N in front. The metrics are float32 [N].

    Raises:
      UsageError: parameters are to be cut up over devices.
    """
    checks.whole_on_one_device(run.mesh)
    devices = program.mesh.devices.reshape(-1)
    shares = math.gcd(count, len(devices))
    mesh = Mesh(devices[:shares].reshape(shares, 1, 1), config.MESH_AXES)
    axes = TrainState(None, 0, 0, 0, 0)
    one = make_train_step(program.model, run, make_optimizer(settings(run), run.train.steps))
    # Within it every device works alone, so the model sees neither mesh nor logical axes.
    blocks = jax.shard_map(
        jax.vmap(one, in_axes=(axes, 0), out_axes=(axes, 0)),
        mesh=mesh,
        in_specs=(_SPECS, _OF_A_SEED),
        out_specs=(_SPECS, _OF_A_SEED),
        check_vma=False,
    )
    placed = jax.tree.map(lambda spec: NamedSharding(mesh, spec), _SPECS)
    jitted = jax.jit(
        blocks,
        in_shardings=(placed, NamedSharding(mesh, _OF_A_SEED)),
        out_shardings=(placed, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
        compiler_options=step_options(),
    )

    def stacked(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *x.shape), x.dtype, sharding=placed.params)

    whole = jax.tree.map(stacked, program.abstract_state)
    number = jax.ShapeDtypeStruct((), program.abstract_state.step.dtype, sharding=placed.step)
    return Step(jitted, replace(whole, step=number), mesh, None)


def stack_states(states: list[TrainState], mesh: Mesh) -> TrainState:
    """The states of N seeds -> one stacked state on the mesh; the old ones are given up.

    Leaf by leaf, so that the memory of the whole and one leaf is enough.
    """
    step = jax.device_put(np.asarray(states[0].step), NamedSharding(mesh, PartitionSpec()))
    place = NamedSharding(mesh, _OF_A_SEED)

    def stack(*parts: jax.Array) -> jax.Array:
        whole = jax.device_put(np.stack([np.asarray(p) for p in parts]), place)
        for part in parts:
            part.delete()
        return whole

    whole: TrainState = jax.tree.map(stack, *(replace(s, step=None) for s in states))
    return replace(whole, step=step)


def take_seed(stacked: TrainState, index: int, like: TrainState) -> TrainState:
    """One seed of a stacked state, copied to where `like` (abstract) lies."""
    one = jax.tree.map(
        lambda x, own: jax.device_put(x[index], own.sharding),
        replace(stacked, step=None),
        replace(like, step=None),
    )
    return replace(one, step=stacked.step)


def stack_batches(batches: Sequence[Batch]) -> Batch:
    """The batches of N seeds, of the same shapes -> one with N in front of every array."""
    stacked: Any = jax.tree.map(lambda *arrays: np.stack(arrays), *batches)
    return stacked
