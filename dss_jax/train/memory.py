"""How much memory a training step takes on each device, without a device and without compiling.

Parameters and optimiser state are exact: their shapes under the shardings of the mesh. What the
backward pass finds kept of the forward pass is not guessed by a formula: JAX is asked, by tracing
the gradient on shapes. It is the largest part, and it does not depend on the compiler, because
what a loop over layers keeps is stacked into real arrays. The rest is a formula, tuned on
XLA's own memory analysis (tests/test_memory.py): see `WORKING` and `_working`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from dss_jax.core import config
from dss_jax.layouts.blocks import Batch, Block
from dss_jax.model import lora
from dss_jax.model.attention import Pattern
from dss_jax.model.t5 import T5, DecoderLayer, EncoderLayer
from dss_jax.train import loss as losses
from dss_jax.train import sharding
from dss_jax.train.step import TrainState, abstract_state, boxed_state

FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on each device.

    Attributes:
      parameters, optimizer: the state, which is there all the time.
      gradients: float32, of what is trained; twice with microbatches (the sum and the new).
      activations: what the backward pass finds kept of the forward pass, logits and dropout
        masks included.
      working: of the layer or of the logits that is being differentiated; with FSDP, one layer's
        parameters gathered.
    """

    parameters: int
    optimizer: int
    gradients: int
    activations: int
    working: int

    @property
    def total(self) -> int:
        """At the moment when it is most."""
        return self.parameters + self.optimizer + self.gradients + self.activations + self.working


def abstract_mesh(sizes: config.Mesh) -> AbstractMesh:
    """A mesh without devices."""
    return AbstractMesh(tuple(getattr(sizes, axis) for axis in config.MESH_AXES), config.MESH_AXES)


def tree_bytes(tree: Any) -> int:
    """Bytes on each device of abstract arrays with shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


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
    sizes = [(v.aval.size, v.aval.dtype) for v in kept]
    return sum(
        size * dtype.itemsize
        for size, dtype in sizes
        if not jax.dtypes.issubdtype(dtype, jax.dtypes.extended)
    )


def _step_kept(run: config.Run, rows: int) -> int:
    """Bytes that the backward pass of a step on `rows` examples finds kept, on one device."""
    model = T5(run.model)

    def part(trained: dict, frozen: dict, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        params = lora.join(trained, frozen)
        sums = losses.task_sums(
            model, params, batch, run.loss, key if run.model.dropout_rate else None
        )
        weights = losses.task_weights(run.loss, run.method)
        return losses.weighted_loss(sums.loss, losses.count_tokens(batch), weights), sums

    params = nn.meta.unbox(boxed_state(run).params)
    return _kept(part, *lora.split(params), abstract_batch(run, rows), _KEY)


def _layer_kept(run: config.Run, layer: type[nn.Module], rows: int) -> int:
    """Bytes that one layer's backward pass works on: what it would keep without remat."""
    model, dtype = run.model, jnp.dtype(run.model.dtype)
    s, t = run.data.input_length, run.data.target_length
    hidden = [jax.ShapeDtypeStruct((rows, n, model.emb_dim), dtype) for n in (s, t)]
    patterns = [
        Pattern(
            mask=jax.ShapeDtypeStruct((rows, 1, 1, n), jnp.bool_),
            bias=jax.ShapeDtypeStruct((1, model.num_heads, n, n), jnp.float32),
        )
        for n in (s, t)
    ]
    if layer is EncoderLayer:
        inputs = [hidden[0], patterns[0]]
    else:
        inputs = [hidden[1], hidden[0], patterns[1], patterns[0]._replace(bias=None)]
    module = layer(model)

    def apply(variables: dict, inputs: list, key: jax.Array) -> tuple[jax.Array, None]:
        out: Any = module.apply(variables, *inputs, not model.dropout_rate, rngs={"dropout": key})
        return out

    variables = jax.eval_shape(
        lambda *xs: nn.meta.unbox(module.init(jax.random.key(0), *xs, True)), *inputs
    )
    return _kept(lambda both, key: apply(both[0], both[1], key), (variables, inputs), _KEY)


_KEY = jax.eval_shape(lambda: jax.random.key(0))


@cache
def _per_row(run: config.Run) -> dict[str, tuple[int, int]]:
    """What is kept, as (constant, for each example), for all of a step and for single layers."""
    measured: dict[str, Callable[[int], int]] = {
        "step": lambda rows: _step_kept(run, rows),
        "encoder": lambda rows: _layer_kept(run, EncoderLayer, rows),
        "decoder": lambda rows: _layer_kept(run, DecoderLayer, rows),
    }
    found = {name: (of(1), of(2)) for name, of in measured.items()}
    return {name: (2 * one - two, two - one) for name, (one, two) in found.items()}


def _one_device(run: config.Run, model_axis: int) -> config.Run:
    """The part of the model that a device of the mesh's model axis computes; no more than that,
    so that runs with the same activations are traced once.
    """
    m, vocab_size = run.model, run.model.vocab_size
    assert vocab_size is not None
    local = replace(
        m,
        num_heads=m.num_heads // model_axis,
        mlp_dim=m.mlp_dim // model_axis,
        vocab_size=vocab_size // model_axis,
    )
    data = config.Data(input_length=run.data.input_length, target_length=run.data.target_length)
    return config.Run(data=data, method=run.method, model=local, loss=run.loss, lora=run.lora)


def estimate(run: config.Run, boxed: TrainState) -> Memory:
    """Memory of a run's training step on each device of `run.mesh`.

    Args:
      run: with sizes of the mesh (none is -1), the default logical axis rules, and the vocabulary's
        size set.
      boxed: of `step.boxed_state`; the same for every mesh.

    Raises:
      UsageError: parameters or batch cannot be shared out over the mesh.
    """
    sizes, parts = run.mesh, run.train.microbatches
    mesh = abstract_mesh(sizes)
    sharding.check_batch(run.data.batch_size, mesh, parts, "Data.batch_size")
    state = abstract_state(run, mesh, boxed)
    trained = tree_bytes(lora.split(state.params)[0])
    local = _one_device(run, sizes.model)
    rows = run.data.batch_size // (sizes.data * sizes.fsdp * parts)
    kept = {name: a + b * rows for name, (a, b) in _per_row(local).items()}
    return Memory(
        parameters=tree_bytes(state.params),
        optimizer=tree_bytes(state.opt_state),
        gradients=trained * (2 if parts > 1 else 1),
        activations=kept["step"],
        working=_working(local, rows, kept) + _gathered(state, sizes),
    )


WORKING = {"none": 0.3, "minimal": 0.8, "full": 0.8}
"""Share of one layer's activations that is in work at once in its backward pass. With remat they
are computed again, but for those that XLA fuses away; without, they are there, and only their
gradients are new."""


def _working(local: config.Run, rows: int, kept: dict[str, int]) -> int:
    logits = rows * local.data.target_length * (local.model.vocab_size or 0) * FLOAT32
    layer = max(kept["encoder"], kept["decoder"])
    return max(logits, int(WORKING[local.model.remat_policy] * layer))


def _gathered(state: TrainState, sizes: config.Mesh) -> int:
    """With FSDP: the parameters of two layers (in use, and on the way), or the largest array that
    is in no stack, whole but for the model axis.
    """
    if sizes.fsdp == 1:
        return 0
    layers = {"encoder": 0, "decoder": 0}
    single = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        size = math.prod(leaf.sharding.shard_shape(leaf.shape)) * FLOAT32 * sizes.fsdp
        if any(key.key == "layers" for key in path):
            layers[path[0].key] += size // leaf.shape[0]
        else:
            single = max(single, size)
    return max(2 * max(layers.values()), single)
