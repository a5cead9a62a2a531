"""The training step: one pure function, and the one place where it is jitted."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dss_jax.core import config
from dss_jax.data.batches import Batch
from dss_jax.model.t5 import T5
from dss_jax.train import loss as losses
from dss_jax.train import sharding
from dss_jax.train.optimizer import learning_rate_schedule, make_optimizer

Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """What a checkpoint holds.

    Attributes:
      step: int32 scalar array, updates done; also the number of the next batch.
      params: float32 tree.
      opt_state: of the optimiser.
    """

    step: Any
    params: Any
    opt_state: Any


@dataclass(frozen=True)
class Program:
    """A run's compiled functions and where their arrays live.

    Attributes:
      model, mesh: of the run.
      abstract_state: shapes, dtypes and shardings of the state.
      init: () -> the state at step 0, on the mesh.
      train_step: (state, batch on the mesh) -> (state, metrics); the old state is given up.
      eval_step: (params, batch on the mesh) -> `TaskSums` without dropout.
    """

    model: T5
    mesh: Mesh
    abstract_state: TrainState
    init: Callable[[], TrainState]
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    eval_step: Callable[[Any, Batch], losses.TaskSums]


def split_microbatches(batch: Batch, parts: int) -> Batch:
    """[R, ...] -> [parts, R / parts, ...]. Each part takes rows from every device's share, so
    nothing moves between devices.
    """

    def split(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)

    return jax.tree.map(split, batch)


def _gradients(
    model: T5, run: config.Run, params: Any, batch: Batch, dropout_key: jax.Array | None
) -> tuple[Any, losses.TaskSums]:
    """Gradient of the weighted loss over the whole batch, and the sums behind it."""
    weights = losses.task_weights(run.loss, run.method)
    tokens_K = losses.count_tokens(batch)

    def part(params: Any, blocks: Batch, key: jax.Array | None) -> tuple[jax.Array, Any]:
        sums = losses.task_sums(model, params, blocks, run.loss, key)
        # Divided by the tokens of the whole batch, so that parts add up to its mean exactly.
        return losses.weighted_loss(sums.loss, tokens_K, weights), sums

    grad = jax.grad(part, has_aux=True)
    parts = run.train.microbatches
    if parts == 1:
        return grad(params, batch, dropout_key)

    def add(total: Any, step: tuple) -> tuple[Any, None]:
        index, blocks = step
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
        return jax.tree.map(jnp.add, total, grad(params, blocks, key)), None

    zeros = jnp.zeros(tokens_K.shape, jnp.float32)
    start = (jax.tree.map(jnp.zeros_like, params), losses.TaskSums(zeros, zeros, zeros))
    steps = (jnp.arange(parts), split_microbatches(batch, parts))
    return jax.lax.scan(add, start, steps)[0]


def _metrics(sums: losses.TaskSums, run: config.Run) -> Metrics:
    weights = losses.task_weights(run.loss, run.method)
    tokens_K = jnp.maximum(sums.tokens, losses.MIN_COUNT)
    metrics = {"loss": losses.weighted_loss(sums.loss, sums.tokens, weights)}
    names = ("label", "rationale") if run.method.rationale else ("label",)
    for k, name in enumerate(names):
        metrics[f"{name}/loss"] = sums.loss[k] / tokens_K[k]
        metrics[f"{name}/token_accuracy"] = 100.0 * sums.correct[k] / tokens_K[k]
        metrics[f"{name}/tokens"] = sums.tokens[k]
    return metrics


def make_train_step(
    model: T5, run: config.Run, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The pure step function: (state, batch) -> (state, metrics).

    The metrics are float32 scalars: `loss` (weighted), for each task `<task>/loss`,
    `<task>/token_accuracy` (per cent) and `<task>/tokens`, the global `grad_norm` before
    clipping, and `learning_rate`.
    """
    schedule = learning_rate_schedule(run.optimizer, run.train.steps)
    root_key = jax.random.fold_in(jax.random.key(run.train.seed), 1)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        # The key depends on the step alone, so a resumed run draws the same dropout masks.
        key = jax.random.fold_in(root_key, state.step) if run.model.dropout_rate else None
        gradients, sums = _gradients(model, run, state.params, batch, key)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        metrics = _metrics(sums, run)
        metrics["grad_norm"] = optax.tree.norm(gradients)
        metrics["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def make_init(
    model: T5, run: config.Run, optimizer: optax.GradientTransformation
) -> Callable[[], TrainState]:
    """() -> state at step 0, with parameters still in their logical-axis boxes."""

    def init() -> TrainState:
        tokens = jnp.ones((1, 2), jnp.int32)
        params = model.init(jax.random.key(run.train.seed), tokens, tokens)["params"]
        opt_state = optimizer.init(nn.meta.unbox(params))
        return TrainState(jnp.zeros((), jnp.int32), params, opt_state)

    return init


def build(run: config.Run, mesh: Mesh) -> Program:
    """Builds model, optimiser and jitted functions of a run on a mesh.

    Raises:
      UsageError: batch or parameters cannot be shared out over the mesh.
    """
    sharding.check_batch(run.data.batch_size, mesh, run.train.microbatches, "Data.batch_size")
    model = T5(run.model)
    optimizer = make_optimizer(run.optimizer, run.train.steps)
    init = make_init(model, run, optimizer)
    boxed = jax.eval_shape(init)
    params = nn.meta.unbox(boxed.params)
    placed = sharding.param_shardings(boxed.params, mesh, run.mesh.logical_axis_rules)
    replicated = NamedSharding(mesh, PartitionSpec())
    state_shardings = TrainState(
        replicated, placed, sharding.optimizer_shardings(optimizer, params, placed, mesh)
    )
    rows = sharding.batch_sharding(mesh)
    step = make_train_step(model, run, optimizer)
    # One jit call site; the old state's memory is given to the new one.
    train_step = jax.jit(
        step,
        in_shardings=(state_shardings, rows),
        out_shardings=(state_shardings, replicated),
        donate_argnums=0,
    )
    eval_step = jax.jit(
        lambda params, batch: losses.task_sums(model, params, batch, run.loss, None),
        in_shardings=(placed, rows),
        out_shardings=replicated,
    )

    def with_rules(function: Callable) -> Callable:
        def call(*args: Any) -> Any:
            with sharding.on_mesh(mesh, run.mesh.logical_axis_rules):
                return function(*args)

        return call

    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        TrainState(boxed.step, params, boxed.opt_state),
        state_shardings,
    )
    return Program(
        model=model,
        mesh=mesh,
        abstract_state=abstract,
        init=with_rules(jax.jit(lambda: nn.meta.unbox(init()), out_shardings=state_shardings)),
        train_step=with_rules(train_step),
        eval_step=with_rules(eval_step),
    )
