"""The training step: one pure function, and the one place where it is jitted."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from dss_jax.core import config
from dss_jax.layouts.blocks import Batch
from dss_jax.model import lora
from dss_jax.model.t5 import T5
from dss_jax.train import agreement, sharding
from dss_jax.train import loss as losses
from dss_jax.train.compile import first_together, step_options
from dss_jax.train.optimizer import learning_rate_schedule, make_optimizer, settings

Metrics = dict[str, jax.Array]
TaskWeights = tuple[float | jax.Array, float | jax.Array]


@flax.struct.dataclass
class TrainState:
    """What a step takes and gives. A checkpoint holds the first three.

    Attributes:
      step: int32 scalar array, batches done; also the number of the next batch.
      params: float32 tree; with LoRA its leaves too (`dss_jax.model.lora`).
      opt_state: of the optimiser, for the parameters that are trained.
      seed: uint32 scalar array, of dropout: data, so that all seeds share one compiled step.
      bad_steps: int32 scalar array, the updates in a row up to now that were skipped because loss
        or gradient was not finite.
    """

    step: Any
    params: Any
    opt_state: Any
    seed: Any
    bad_steps: Any


@dataclass(frozen=True)
class Program:
    """A run's compiled functions and where their arrays live.

    Attributes:
      model, mesh: of the run.
      abstract_state: shapes, dtypes and shardings of the state.
      abstract_params: of the plain model's parameters, as evaluation takes them.
      init: seed (`Train.seed` where none is given) -> the state at step 0, on the mesh.
      seeded: state, seed (as well) -> the same with that seed, and no update skipped.
      train_step: (state, batch on the mesh) -> (state, metrics); the old state is given up.
      lower: (shapes of a batch) -> `train_step` lowered, to be compiled; takes no memory.
      lower_eval: the same of (plain params, batch on the mesh) -> `TaskSums` without dropout.
      merge: parameters of the state -> of the plain model; without LoRA the same.
    """

    model: T5
    mesh: Mesh
    abstract_state: TrainState
    abstract_params: Any
    init: Callable[..., TrainState]
    seeded: Callable[..., TrainState]
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    lower: Callable[[Batch], jax.stages.Lowered]
    lower_eval: Callable[[Batch], jax.stages.Lowered]
    merge: Callable[[Any], Any]


def split_microbatches(batch: Batch, parts: int) -> Batch:
    """[R, ...] -> [parts, R / parts, ...]. Each part takes rows from every device's share, so
    nothing moves between devices.
    """

    def split(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)

    return jax.tree.map(split, batch)


def _gradients(
    model: T5,
    run: config.Run,
    trained: dict,
    frozen: dict,
    batch: Batch,
    dropout_key: jax.Array | None,
    weights: TaskWeights,
) -> tuple[Any, losses.TaskSums]:
    """Gradient of the weighted loss over the whole batch, for `trained`, and the sums behind it."""
    tokens_K, size = losses.count_tokens(batch), run.data.batch_size
    beta = run.loss.mutual_information
    pairs = agreement.count_pairs(batch, size) if beta else None

    def part(trained: dict, blocks: Batch, key: jax.Array | None) -> tuple[jax.Array, Any]:
        params = lora.join(trained, frozen)
        sums = losses.task_sums(model, params, blocks, run.loss, key, size)
        # Divided by the tokens of the whole batch, so that parts add up to its mean exactly.
        loss = losses.weighted_loss(sums.loss, tokens_K, weights)
        if pairs is not None:
            assert sums.disagreement is not None
            mean = sums.disagreement / jnp.maximum(pairs, losses.MIN_COUNT)
            loss, sums = loss + beta * mean, sums._replace(disagreement=mean)
        return loss, sums

    grad = jax.grad(part, has_aux=True)
    parts = run.train.microbatches
    if parts == 1:
        return grad(trained, batch, dropout_key)

    def add(total: Any, step: tuple) -> tuple[Any, None]:
        index, blocks = step
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
        return jax.tree.map(jnp.add, total, grad(trained, blocks, key)), None

    zeros = jnp.zeros(tokens_K.shape, jnp.float32)
    none = jnp.zeros((), jnp.float32) if beta else None
    start = (jax.tree.map(jnp.zeros_like, trained), losses.TaskSums(zeros, zeros, zeros, none))
    steps = (jnp.arange(parts), split_microbatches(batch, parts))
    return jax.lax.scan(add, start, steps)[0]


def _metrics(sums: losses.TaskSums, run: config.Run, weights: TaskWeights) -> Metrics:
    tokens_K = jnp.maximum(sums.tokens, losses.MIN_COUNT)
    metrics = {"loss": losses.weighted_loss(sums.loss, sums.tokens, weights)}
    if sums.disagreement is not None:
        metrics["loss"] += run.loss.mutual_information * sums.disagreement
        metrics["disagreement"] = sums.disagreement
    if run.loss.alpha_schedule != "constant" and run.method.rationale:
        metrics["alpha"] = jnp.asarray(weights[0])
    for k, name in enumerate(run.method.tasks):
        metrics[f"{name}/loss"] = sums.loss[k] / tokens_K[k]
        metrics[f"{name}/token_accuracy"] = 100.0 * sums.correct[k] / tokens_K[k]
        metrics[f"{name}/tokens"] = sums.tokens[k]
    return metrics


def make_train_step(
    model: T5, run: config.Run, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The pure step function: (state, batch) -> (state, metrics).

    The metrics are float32 scalars: `loss` (weighted), for each task `<task>/loss`,
    `<task>/token_accuracy` (per cent) and `<task>/tokens`, the global `grad_norm` before
    clipping, `learning_rate`, and `bad_steps`, that of the new state.

    Where loss or gradient is not finite, parameters and optimiser stay as they are. After
    `Train.max_bad_steps` such batches in a row they stay so whatever comes, so that the state is
    still that of the last good update when the host has seen what happened.
    """
    schedule = learning_rate_schedule(settings(run), run.train.steps)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        # The key depends on the step alone, so a resumed run draws the same dropout masks.
        root_key = jax.random.fold_in(jax.random.key(state.seed), 1)
        key = jax.random.fold_in(root_key, state.step) if run.model.dropout_rate else None
        trained, frozen = lora.split(state.params)
        alpha = losses.alpha_at(run.loss, state.step, run.train.steps)
        weights = losses.task_weights(run.loss, run.method, alpha)
        gradients, sums = _gradients(model, run, trained, frozen, batch, key, weights)
        updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
        metrics = _metrics(sums, run, weights)
        metrics["grad_norm"] = optax.tree.norm(gradients)
        metrics["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        # A sum of squares is not finite where one gradient is not.
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        good = finite & (state.bad_steps < run.train.max_bad_steps)
        updated, opt_state = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (optax.apply_updates(trained, updates), opt_state),
            (trained, state.opt_state),
        )
        bad_steps = jnp.where(good, 0, state.bad_steps + 1)
        metrics["bad_steps"] = bad_steps.astype(jnp.float32)
        params = lora.join(updated, frozen)
        return TrainState(state.step + 1, params, opt_state, state.seed, bad_steps), metrics

    return train_step


def make_init(
    model: T5, run: config.Run, optimizer: optax.GradientTransformation
) -> Callable[..., TrainState]:
    """Seed, uint32 -> state at step 0, with parameters still in their logical-axis boxes."""

    def init(seed: jax.Array) -> TrainState:
        tokens = jnp.ones((1, 2), jnp.int32)
        key = jax.random.key(seed)
        params = model.init(key, tokens, tokens)["params"]
        params = lora.add(params, run.lora, jax.random.fold_in(key, 2))
        opt_state = optimizer.init(lora.split(nn.meta.unbox(params))[0])
        none = jnp.zeros((), jnp.int32)
        return TrainState(none, params, opt_state, seed, none)

    return init


def as_seed(seed: int) -> np.ndarray:
    """A seed as a step takes it: its lower 32 bits, which are what `jax.random.key` uses too."""
    return np.array(seed & 0xFFFFFFFF, np.uint32)


def boxed_state(run: config.Run) -> TrainState:
    """Shapes and dtypes of the state, the parameters in their logical-axis boxes."""
    optimizer = make_optimizer(settings(run), run.train.steps)
    return jax.eval_shape(make_init(T5(run.model), run, optimizer), as_seed(run.train.seed))


def abstract_state(run: config.Run, mesh: Mesh | AbstractMesh, boxed: TrainState) -> TrainState:
    """Shapes, dtypes and shardings of the state; takes no memory and needs no device.

    Raises:
      UsageError: the parameters cannot be shared out over the mesh.
    """
    optimizer = make_optimizer(settings(run), run.train.steps)
    params = nn.meta.unbox(boxed.params)
    placed = sharding.param_shardings(boxed.params, mesh, run.mesh.logical_axis_rules)
    opt_placed = sharding.optimizer_shardings(
        optimizer, lora.split(params)[0], lora.split(placed)[0], mesh
    )
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        replace(boxed, params=params),
        TrainState(everywhere, placed, opt_placed, everywhere, everywhere),
    )


def build(run: config.Run, mesh: Mesh) -> Program:
    """Builds model, optimiser and jitted functions of a run on a mesh. Takes no memory.

    Raises:
      UsageError: batch or parameters cannot be shared out over the mesh.
    """
    sharding.check_batch(run.data.batch_size, mesh, run.train.microbatches, "Data.batch_size")
    model = T5(run.model)
    optimizer = make_optimizer(settings(run), run.train.steps)
    init = make_init(model, run, optimizer)
    abstract = abstract_state(run, mesh, boxed_state(run))
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    plain, rows = lora.base(placed.params), sharding.batch_sharding(mesh)
    replicated = NamedSharding(mesh, PartitionSpec())
    # One jit call site; the old state's memory is given to the new one.
    train_step = jax.jit(
        make_train_step(model, run, optimizer),
        in_shardings=(placed, rows),
        out_shardings=(placed, replicated),
        donate_argnums=0,
        compiler_options=step_options(),
    )
    eval_step = jax.jit(
        lambda params, batch: losses.task_sums(model, params, batch, run.loss, None),
        in_shardings=(plain, rows),
        out_shardings=replicated,
    )

    def merge(params: dict) -> dict:
        # Not jitted: jit would copy the kernels that stay as they are.
        return jax.device_put(lora.merge(params), plain)

    draw = first_together(jax.jit(lambda seed: nn.meta.unbox(init(seed)), out_shardings=placed))

    def seeded(state: TrainState, seed: int = run.train.seed) -> TrainState:
        fresh = jax.device_put((as_seed(seed), np.zeros((), np.int32)), replicated)
        return replace(state, seed=fresh[0], bad_steps=fresh[1])

    def with_rules(function: Callable) -> Callable:
        def call(*args: Any) -> Any:
            with sharding.on_mesh(mesh, run.mesh.logical_axis_rules):
                return function(*args)

        return call

    plain_params = lora.base(abstract.params)
    return Program(
        model=model,
        mesh=mesh,
        abstract_state=abstract,
        abstract_params=plain_params,
        init=with_rules(lambda seed=run.train.seed: draw(as_seed(seed))),
        seeded=seeded,
        train_step=with_rules(train_step),
        lower=with_rules(lambda batch: train_step.lower(abstract, batch)),
        lower_eval=with_rules(lambda batch: eval_step.lower(plain_params, batch)),
        merge=merge,
    )
