"""Which mesh, remat policy and microbatches let a training step fit, and cost the least time."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.flops import Device
from dss_jax.core.t5_config import REMAT_POLICIES
from dss_jax.train.memory import Memory, estimate
from dss_jax.train.step import TrainState, boxed_state

MAX_COUNT = 512
"""Most devices that `enough_devices` tries."""

REMAT_COST = {"none": 1.0, "minimal": 1.1, "full": 1.3}
MICROBATCH_COST, FSDP_COST, MODEL_COST = 1.03, 1.05, 1.15
"""Rules of thumb for the time of a step: full remat is a second forward pass; each doubling of
the microbatches makes products smaller; FSDP gathers parameters, once; each doubling of the model
axis adds sums inside every layer. They only decide the order in which plans are tried."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run on a mesh, and what it takes on each device."""

    run: config.Run
    memory: Memory

    def fits(self, device: Device) -> bool:
        """Whether the device has the memory."""
        return self.memory.total <= device.usable


def _cost(run: config.Run) -> float:
    return (
        REMAT_COST[run.model.remat_policy]
        * MICROBATCH_COST ** math.log2(run.train.microbatches)
        * (FSDP_COST if run.mesh.fsdp > 1 else 1.0)
        * MODEL_COST ** math.log2(run.mesh.model)
    )


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def candidates(run: config.Run, count: int) -> list[config.Run]:
    """The run on every mesh of `count` devices that can share it, with each remat policy and 1, 2,
    4 ... microbatches; the quickest first.
    """
    m, batch = run.model, run.data.batch_size
    shared_by_model = math.gcd(m.num_heads, m.mlp_dim, m.vocab_size or 1)

    def all_of() -> Iterator[config.Run]:
        for model in _divisors(count):
            for fsdp in _divisors(count // model):
                data = count // model // fsdp
                mesh = replace(run.mesh, data=data, fsdp=fsdp, model=model)
                rows = batch // (data * fsdp)
                if shared_by_model % model or m.emb_dim % fsdp or batch % (data * fsdp):
                    continue
                for parts in (2**i for i in range(rows.bit_length()) if rows % 2**i == 0):
                    train = replace(run.train, microbatches=parts)
                    for policy in REMAT_POLICIES:
                        own = replace(m, remat_policy=policy)
                        yield replace(run, mesh=mesh, train=train, model=own)

    return sorted(all_of(), key=_cost)


def plan(run: config.Run, device: Device, count: int, boxed: TrainState | None = None) -> Plan:
    """The quickest plan that fits; where none does, the one that takes the least.

    Args:
      run: T5Config.vocab_size must be set; its mesh, remat policy and microbatches are not read.
      device: of which there are `count`.
      count: devices.
      boxed: of `step.boxed_state(run)`, where it is at hand.

    Raises:
      UsageError: the batch cannot be shared out over the devices.
    """
    boxed = boxed_state(run) if boxed is None else boxed
    plans = []
    for candidate in candidates(run, count):
        plans.append(Plan(run=candidate, memory=estimate(candidate, boxed)))
        if plans[-1].fits(device):
            return plans[-1]
    if not plans:
        raise UsageError(
            f"a batch of {run.data.batch_size} examples and this model cannot be shared out evenly "
            f"over {count} devices. Give another --count or --batch, for example powers of 2."
        )
    return min(plans, key=lambda p: p.memory.total)


def enough_devices(run: config.Run, device: Device, count: int) -> Plan | None:
    """The plan on the fewest devices, doubling `count`, on which the run fits; None: too many."""
    boxed = boxed_state(run)
    while (count := 2 * count) <= MAX_COUNT:
        try:
            found = plan(run, device, count, boxed)
        except UsageError:
            return None
        if found.fits(device):
            return found
    return None
