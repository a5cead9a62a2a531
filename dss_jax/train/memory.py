"""How much memory a training step takes on each device, without a device and without compiling; and
which mesh, remat policy and microbatches let it fit, and cost the least time.

Parameters and optimiser state are exact: their shapes under the shardings of the mesh. What the
backward pass finds kept of the forward pass is not guessed by a formula: JAX is asked, by tracing
the gradient on shapes. It is the largest part, and it does not depend on the compiler, because
what a loop over layers keeps is stacked into real arrays. The rest is a formula, tuned on
XLA's own memory analysis (tests/test_memory.py): see `WORKING` and `_gathered`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh

from dss_jax.core import config, t5gemma
from dss_jax.core.devices import Device
from dss_jax.core.errors import UsageError
from dss_jax.core.t5_config import REMAT_POLICIES
from dss_jax.layouts.blocks import Batch, Block
from dss_jax.model import lora
from dss_jax.model.attention import block_patterns, decoder_length
from dss_jax.model.build import model_of
from dss_jax.train import loss as losses
from dss_jax.train import sharding
from dss_jax.train.step import TrainState, abstract_state, boxed_state

FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on each device, at the moment of a step when they are most: when the loss is
    differentiated, or the last layer.

    Attributes:
      parameters, optimizer: are there all the time.
      gradients: float32, of what is trained, from the first layer's on; with microbatches also
        their sum, all the time; on a TPU see `TPU_COPIES`.
      activations: what the backward pass finds kept of the forward pass, dropout masks included;
        logits until the loss is differentiated.
      working: of the logits or the layer that is being differentiated; with FSDP, one layer's
        parameters gathered.
    """

    parameters: int
    optimizer: int
    gradients: int
    activations: int
    working: int

    @property
    def total(self) -> int:
        return sum(astuple(self))


def tree_bytes(tree: Any) -> int:
    """Bytes on each device of abstract arrays with shardings."""
    shards = [(x.sharding.shard_shape(x.shape), x.dtype) for x in jax.tree.leaves(tree)]
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shards)


def abstract_batch(run: config.Run, rows: int) -> Batch:
    """Shapes of a batch of `rows` examples at the longest lengths: a block for each role."""

    def tokens(length: int) -> Any:
        return jax.ShapeDtypeStruct((rows, length), jnp.int32)

    data, targets = run.data, tokens(run.data.target_length)
    block = Block(tokens(data.input_length), targets, targets, targets)
    return (block,) * (2 if run.method.rationale else 1)


def _kept(gradient_of: Callable, *args: Any) -> int:
    """Bytes of what `jax.vjp` of a function of the first argument keeps, inputs left out."""
    jaxpr = jax.make_jaxpr(
        lambda first, *rest: jax.tree.leaves(
            jax.vjp(lambda p: gradient_of(p, *rest), first, has_aux=True)[1]
        )
    )(*args).jaxpr
    inputs = set(jaxpr.invars)
    kept = {v for v in jaxpr.outvars if not hasattr(v, "val") and v not in inputs}
    arrays = [v.aval for v in kept if not jax.dtypes.issubdtype(v.aval.dtype, jax.dtypes.extended)]
    return sum(x.size * x.dtype.itemsize for x in arrays)


def _step_kept(run: config.Run, params: dict, batch: Batch) -> int:
    """Bytes that the backward pass of a step on a batch finds kept, on one device."""
    model = model_of(run.model)

    def part(trained: dict, frozen: dict, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        params, dropout_key = lora.join(trained, frozen), key if run.model.drops else None
        sums = losses.task_sums(model, params, batch, run.loss, dropout_key)
        weights = losses.task_weights(run.loss, run.method)
        return losses.weighted_loss(sums.loss, losses.count_tokens(batch), weights), sums

    return _kept(part, *lora.split(params), batch, _KEY)


def _layer_kept(run: config.Run, params: dict, stack: str, block: Block) -> int:
    """Bytes that one layer's backward pass works on: what it would keep without remat."""
    model, decodes = run.model, stack == "decoder"

    def bound(params: dict) -> Any:
        return model_of(model).bind({"params": params})

    def bias_of(params: dict) -> Any:
        relpos_bias = getattr(bound(params), stack).relpos_bias
        return relpos_bias.of_layer(relpos_bias(jnp.arange(length)), 0)

    def hidden(tokens: Any, embedder: Any) -> Any:
        shape = (*tokens.shape, embedder.config.emb_dim)
        return jax.ShapeDtypeStruct(shape, jnp.dtype(model.dtype))

    def apply(both: tuple, bias: Any, block: Block, key: jax.Array) -> Any:
        variables, inputs = both
        own, decoder, cross = block_patterns(block, model)
        patterns = [decoder._replace(bias=bias), cross] if decodes else [own._replace(bias=bias)]
        rngs, quiet = {"dropout": key, "params": key}, not model.drops
        if variables is None:
            return module.init(rngs, *inputs, *patterns, True), None
        return module.apply(variables, *inputs, *patterns, quiet, rngs=rngs)

    whole, rows = bound(params), block.encoder_rows
    inputs = [hidden(block.encoder_input_tokens, whole.encoder_embedder)]
    length = (block.encoder_input_tokens if rows is None else rows.take).shape[-1]
    if decodes:
        inputs = [hidden(block.decoder_input_tokens, whole.token_embedder), *inputs]
        length = decoder_length(block)
    layers, bias = getattr(whole, stack), jax.eval_shape(bias_of, params)
    module = layers.layer(layers.config, parent=None)
    drawn = jax.eval_shape(lambda *xs: apply((None, xs[0]), *xs[1:])[0], inputs, bias, block, _KEY)
    return _kept(apply, (nn.meta.unbox(drawn), inputs), bias, block, _KEY)


_KEY = jax.eval_shape(lambda: jax.random.key(0))

STACKS = ("encoder", "decoder")


def _kept_parts(run: config.Run, batch: Batch, platform: str | None) -> dict[str, int]:
    """What is kept of a whole step on a batch, and of single layers without remat."""
    platform = platform or jax.default_backend()
    device = AbstractDevice(device_kind=platform, num_cores=None, platform=platform)
    one = AbstractMesh((1,) * len(config.MESH_AXES), config.MESH_AXES, abstract_device=device)
    with jax.sharding.use_abstract_mesh(one):
        params = nn.meta.unbox(boxed_state(run).params)
        layers = {
            stack: max(_layer_kept(run, params, stack, block) for block in set(batch))
            for stack in STACKS
        }
        return {"step": _step_kept(run, params, batch)} | layers


@cache
def _per_row(run: config.Run, platform: str | None) -> dict[str, tuple[int, int]]:
    """`_kept_parts` of the longest lengths, as (constant, for each example)."""
    one, two = (_kept_parts(run, abstract_batch(run, rows), platform) for rows in (1, 2))
    return {name: (2 * one[name] - two[name], two[name] - one[name]) for name in one}


def _shared(model: config.T5Config) -> dict[str, int]:
    """Of a T5Gemma's own sizes, those that the mesh's model axis shares out."""
    own = () if model.gemma is None else t5gemma.of(model).values
    return {name: size for name, size in own if name.endswith(("heads", "mlp_dim"))}


def _one_device(run: config.Run, model_axis: int) -> config.Run:
    """The part of the model that a device of the mesh's model axis computes; no more than that,
    so that runs with the same activations are traced once.
    """
    m = run.model
    own = {name: max(1, size // model_axis) for name, size in _shared(m).items()}
    gemma = None if m.gemma is None else tuple({**dict(m.gemma), **own}.items())
    shared = ("num_heads", "mlp_dim", "vocab_size")
    sizes = {n: max(1, getattr(m, n) // model_axis) for n in shared}
    local = replace(m, **sizes, gemma=gemma)
    data = config.Data(input_length=run.data.input_length, target_length=run.data.target_length)
    return config.Run(data=data, method=run.method, model=local, loss=run.loss, lora=run.lora)


def estimate(
    run: config.Run, boxed: TrainState, batch: Batch | None = None, platform: str | None = None
) -> Memory:
    """Memory of a run's training step on each device of `run.mesh`.

    Args:
      run: with sizes of the mesh (none is -1), the default logical axis rules, and the vocabulary's
        size set.
      boxed: of `step.boxed_state`; the same for every mesh.
      batch: shapes of a whole batch in any layout; None: the longest lengths, padded.
      platform: of the devices, "cpu", "gpu" or "tpu"; None: of this process's.

    Raises:
      UsageError: parameters or batch cannot be shared out over the mesh.
    """
    sizes, parts = run.mesh, run.train.microbatches
    mesh = AbstractMesh(tuple(getattr(sizes, a) for a in config.MESH_AXES), config.MESH_AXES)
    sharding.check_batch(run.data.batch_size, mesh, parts, "Data.batch_size")
    state = abstract_state(run, mesh, boxed)
    trained = tree_bytes(lora.split(state.params)[0])
    local = _one_device(run, sizes.model)
    shares = sizes.data * sizes.fsdp * parts
    if batch is None:
        rows = run.data.batch_size // shares
        kept = {name: a + b * rows for name, (a, b) in _per_row(local, platform).items()}
        targets = rows * run.data.target_length
    else:
        own = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((x.shape[0] // shares, *x.shape[1:]), x.dtype), batch
        )
        kept = _kept_parts(local, own, platform)
        targets = max(math.prod(block.decoder_roles.shape) for block in own)
    logits = targets * (local.model.vocab_size or 0) * FLOAT32
    layer = int(WORKING[local.model.remat_policy] * max(kept["encoder"], kept["decoder"]))
    gathered = _gathered(state, sizes, jnp.dtype(run.model.dtype).itemsize)
    # How often the gradients are there, in each of the two moments.
    at_loss, at_layers, more = (1, 2, 1.0) if parts > 1 else (0, 1, 1.0)
    if (platform or jax.default_backend()) == "tpu":
        more, gathered = TPU_MORE, gathered + _cast(state, run.model.dtype)
        if parts > 1:
            at_loss = at_layers = TPU_COPIES

    def moment(gradients: int, activations: int, working: int) -> Memory:
        return Memory(
            parameters=tree_bytes(state.params),
            optimizer=tree_bytes(state.opt_state),
            gradients=gradients,
            activations=int(more * activations),
            working=working + gathered,
        )

    of_loss = moment(at_loss * trained, kept["step"], logits)
    of_layers = moment(at_layers * trained, kept["step"] - logits, layer)
    return max(of_loss, of_layers, key=lambda memory: memory.total)


WORKING = {"none": 0.3, "minimal": 0.8, "full": 0.8}
"""Share of one layer's activations that is in work at once in its backward pass. With remat they
are computed again, but for those that XLA fuses away; without, they are there, and only their
gradients are new."""

TPU_MORE = 1.55
"""What activations take on a TPU, beside their size: tiles that are not full, copies in another
layout, and room between arrays (libtpu asks for a third more than what lives at once). By libtpu's
own figures it is 1.2 to 1.5 of most models, and up to 2.5; with 1.55 every size that was compiled
is within 15 % (docs/compiled.md)."""

TPU_COPIES = 3
"""Gradients that a TPU's program with microbatches has at once, from the loss on: their sum, the
part's, of which the zeros are written before the forward pass, and one more, by libtpu's own
figures of t5_1_1_small and base on v5e: these are within 12 % of the estimate with 3, and with 2,
and activations of 1.25 times their size, it was 13 to 22 % too low (docs/compiled.md)."""


def _cast(state: TrainState, dtype: str) -> int:
    """A TPU's compiler brings the kernels of all layers into bfloat16 before their loop."""
    if dtype == "float32":
        return 0
    return sum(
        tree_bytes(state.params[stack]["layers"]) // FLOAT32 * jnp.dtype(dtype).itemsize
        for stack in STACKS
    )


def _gathered(state: TrainState, sizes: config.Mesh, itemsize: int) -> int:
    """With FSDP: the parameters of two layers (in use, and on the way) in the activations' dtype,
    or the gradient of the largest array that is in no stack, whole but for the model axis.
    """
    if sizes.fsdp == 1:
        return 0
    layers, single = {"encoder": 0, "decoder": 0}, 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        size = math.prod(leaf.sharding.shard_shape(leaf.shape)) * sizes.fsdp
        if any(key.key == "layers" for key in path):
            layers[path[0].key] += size // leaf.shape[0] * itemsize
        else:
            single = max(single, size * FLOAT32)
    return max(2 * max(layers.values()), single)


MAX_COUNT = 512
"""Most devices that `enough_devices` tries."""

REMAT_COST = {"none": 1.0, "minimal": 1.1, "full": 1.3}
MICROBATCH_COST, FSDP_COST, MODEL_COST = 1.03, 1.05, 1.15
UPDATE_SHARE = {"tpu": 0.3, "gpu": 0.0}
"""Rules of thumb for the time of a step: full remat is a second forward pass; each doubling of
the microbatches makes products smaller; FSDP gathers parameters, once, and divides the optimizer's
share of the step, which on a TPU is large (docs/compiled.md, "Every size"; of GPUs not known); each
doubling of the model axis adds sums inside every layer. They only decide the order in which plans
are tried."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run on a mesh, and what it takes on each device."""

    run: config.Run
    memory: Memory

    def fits(self, device: Device) -> bool:
        return self.memory.total <= device.usable


def _cost(run: config.Run, platform: str) -> float:
    remat, parts = REMAT_COST[run.model.remat_policy], run.train.microbatches
    of_batch = remat * MICROBATCH_COST ** math.log2(parts)
    of_fsdp = FSDP_COST if run.mesh.fsdp > 1 else 1.0
    of_fsdp -= UPDATE_SHARE[platform] * (1 - 1 / run.mesh.fsdp)
    return of_batch * of_fsdp * MODEL_COST ** math.log2(run.mesh.model)


def candidates(run: config.Run, count: int, platform: str) -> list[config.Run]:
    """The run on every mesh of `count` devices that can share it, with each remat policy and 1, 2,
    4 ... microbatches; the quickest on a platform, "tpu" or "gpu", first.
    """
    m, batch = run.model, run.data.batch_size
    gemma = _shared(m).values()
    shared_by_model = math.gcd(m.num_heads, m.mlp_dim, m.vocab_size or 1, *gemma)

    def divisors(n: int) -> list[int]:
        return [d for d in range(1, n + 1) if n % d == 0]

    def all_of() -> Iterator[config.Run]:
        for model in divisors(count):
            for fsdp in divisors(count // model):
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

    return sorted(all_of(), key=lambda one: _cost(one, platform))


def plan(run: config.Run, device: Device, count: int, boxed: TrainState | None = None) -> Plan:
    """The quickest plan that fits `count` devices; where none does, the one that takes the least.

    Args:
      run: T5Config.vocab_size must be set; its mesh, remat policy and microbatches are not read.
      boxed: of `step.boxed_state(run)`, where it is at hand.

    Raises:
      UsageError: the batch cannot be shared out over the devices.
    """
    boxed = boxed_state(run) if boxed is None else boxed
    plans, platform = [], "tpu" if device.title.startswith("TPU") else "gpu"
    for candidate in candidates(run, count, platform):
        plans.append(Plan(run=candidate, memory=estimate(candidate, boxed, None, platform)))
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
