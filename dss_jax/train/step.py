"""The training step: one pure function, and the one place where it is jitted; and its optimisers:
AdamW as the authors' code uses it, Adafactor as T5X uses it.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from dss_jax.core import config
from dss_jax.layouts.blocks import Batch
from dss_jax.model import lora
from dss_jax.model.build import model_of
from dss_jax.model.t5 import T5
from dss_jax.train import loss as losses
from dss_jax.train import sharding
from dss_jax.train.compile import Compiled, abstract, step_options

Metrics = dict[str, jax.Array]
TaskWeights = tuple[float | jax.Array, float | jax.Array]


def settings(run: config.Run) -> config.Optimizer:
    """The run's optimiser; with LoRA at LoRA's learning rate."""
    if not run.lora.rank:
        return run.optimizer
    return replace(run.optimizer, learning_rate=run.lora.learning_rate)


def learning_rate_schedule(cfg: config.Optimizer, steps: int) -> Callable[[jax.Array], jax.Array]:
    """Update number (0 is the first) -> learning rate. "linear", up over the warm-up and down to 0
    at `steps`, is `transformers.get_linear_schedule_with_warmup`.
    """
    assert cfg.learning_rate is not None
    rate = float(cfg.learning_rate)

    def schedule(count: jax.Array) -> jax.Array:
        step = jnp.asarray(count, jnp.float32)
        warm = jnp.minimum(1.0, step / cfg.warmup_steps) if cfg.warmup_steps else 1.0
        if cfg.schedule == "constant":
            return jnp.asarray(rate * warm)
        left = jnp.clip((steps - step) / max(1, steps - cfg.warmup_steps), 0.0, 1.0)
        return rate * jnp.where(step < cfg.warmup_steps, warm, left)

    return schedule


def make_optimizer(cfg: config.Optimizer, steps: int) -> optax.GradientTransformation:
    """The optimiser of a run of `steps` updates: clip by global norm, then update."""
    schedule = learning_rate_schedule(cfg, steps)
    if cfg.name == "adamw":
        update = optax.adamw(schedule, cfg.b1, cfg.b2, cfg.eps, weight_decay=cfg.weight_decay)
    else:
        from dss_jax.train.adafactor import adafactor

        update = adafactor(cfg, schedule)
    clip = optax.clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity()
    return optax.chain(clip, update)


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
    pairs = None
    if beta:
        from dss_jax.train import agreement

        pairs = agreement.count_pairs(batch, size)

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
    if run.train.microbatches == 1:
        return grad(trained, batch, dropout_key)
    from dss_jax.train import microbatches

    return microbatches.add_up(grad, trained, batch, dropout_key, run.train.microbatches)


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
        key = jax.random.fold_in(root_key, state.step) if run.model.drops else None
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


def draw_params(run: config.Run, seed: jax.Array | np.ndarray) -> dict:
    """Parameters, with LoRA's, in their logical-axis boxes."""
    tokens, key = jnp.ones((1, 2), jnp.int32), jax.random.key(seed)
    params = model_of(run.model).init(key, tokens, tokens)["params"]
    return lora.add(params, run.lora, jax.random.fold_in(key, 2))


def boxed_state(run: config.Run) -> TrainState:
    """Shapes and dtypes of the state, the parameters in their logical-axis boxes."""
    optimizer = make_optimizer(settings(run), run.train.steps)

    def state(seed: jax.Array) -> TrainState:
        params, none = draw_params(run, seed), jnp.zeros((), jnp.int32)
        opt_state = optimizer.init(lora.split(nn.meta.unbox(params))[0])
        return TrainState(none, params, opt_state, seed, none)

    return jax.eval_shape(state, np.uint32(0))


def abstract_state(run: config.Run, mesh: Mesh | AbstractMesh, boxed: TrainState) -> TrainState:
    """Shapes, dtypes and shardings of the state; takes no memory and needs no device. Raises
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


class Program:
    """A run's functions and where their arrays live.

    Attributes:
      model, mesh: of the run.
      abstract_state: shapes, dtypes and shardings of the state.
      abstract_params: of the plain model's parameters, as evaluation takes them.
      train_step: (state, batch) -> (state, metrics); the old state is given up.
      eval_step: (plain params, batch) -> `TaskSums`, without dropout.
    """

    def __init__(self, run: config.Run, mesh: Mesh) -> None:
        """Takes no memory. Raises UsageError: batch or parameters cannot be shared out over the
        mesh.
        """
        sharding.check_batch(run.data.batch_size, mesh, run.train.microbatches, "Data.batch_size")
        self.model, self.mesh, self._run = model_of(run.model), mesh, run
        self._optimizer = make_optimizer(settings(run), run.train.steps)
        self.abstract_state = abstract_state(run, mesh, boxed_state(run))
        self.abstract_params = lora.base(self.abstract_state.params)
        self._placed, self._plain = jax.tree.map(
            lambda leaf: leaf.sharding, (self.abstract_state, self.abstract_params)
        )
        rows, replicated = sharding.batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
        # One jit call site; the old state's memory is given to the new one.
        train_step = jax.jit(
            make_train_step(self.model, run, self._optimizer),
            in_shardings=(self._placed, rows),
            out_shardings=(self._placed, replicated),
            donate_argnums=0,
            compiler_options=step_options(mesh.devices.flat[0], run.model.remat_policy),
        )
        eval_step = jax.jit(
            lambda params, batch: losses.task_sums(self.model, params, batch, run.loss, None),
            in_shardings=(self._plain, rows),
            out_shardings=replicated,
        )
        first, plain = self.abstract_state, self.abstract_params
        self.train_step = Compiled.kept("train step", run, mesh, train_step.lower, first)
        self.eval_step = Compiled.kept("losses", run, mesh, eval_step.lower, plain)
        self._drawing: dict[frozenset[str], Compiled] = {}

    def merge(self, params: dict) -> dict:
        """Parameters of the state -> of the plain model; without LoRA the same."""
        # Not jitted: jit would copy the kernels that stay as they are.
        return jax.device_put(lora.merge(params), self._plain)

    def init(self, seed: int | None = None) -> TrainState:
        """The state at step 0, drawn from a seed, on the mesh; None: the run's."""
        return self.complete(seed, {})

    def seeded(self, state: TrainState, seed: int | None = None) -> TrainState:
        """A state that was restored, with its seed, as `init`; no update was skipped."""
        _, seed_array, none = self._scalars(seed)
        return replace(state, seed=seed_array, bad_steps=none)

    def _scalars(self, seed: int | None) -> list[jax.Array]:
        """Step 0, the seed as a step takes it, and no step skipped."""
        seed = self._run.train.seed if seed is None else seed
        fresh = [np.zeros((), np.int32), np.array(seed, np.uint32), np.zeros((), np.int32)]
        return jax.device_put(fresh, self._placed.step)

    def complete(self, seed: int | None, there: dict[str, jax.Array]) -> TrainState:
        """The state at step 0 with the parameters that are there, path -> array on the mesh; what
        is not there is drawn from the seed.
        """
        flat = functools.partial(traverse_util.flatten_dict, sep="/")
        nested = functools.partial(traverse_util.unflatten_dict, sep="/")
        places = flat(self._placed.params)
        missing = frozenset(places.keys() - there.keys())

        def draw(seed: jax.Array, there: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], Any]:
            drawn = flat(nn.meta.unbox(draw_params(self._run, seed))) if missing else {}
            # What is drawn and not given back, XLA leaves out.
            opt_state = self._optimizer.init(lora.split(nested(drawn | there))[0])
            return {n: drawn[n] for n in missing}, opt_state

        step, seed_array, none = self._scalars(seed)
        if missing not in self._drawing:
            out = {name: places[name] for name in missing}, self._placed.opt_state
            lower = functools.partial(jax.jit(draw, out_shardings=out).lower, abstract(seed_array))
            self._drawing[missing] = Compiled(lower, self.mesh)
        with sharding.on_mesh(self.mesh, self._run.mesh.logical_axis_rules):
            drawn, opt_state = self._drawing[missing](seed_array, there)
        return TrainState(step, nested(there | drawn), opt_state, seed_array, none)
