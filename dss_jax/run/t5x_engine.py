"""A run through T5X's own `t5x.train.train`, on the batches of the token store. Imports T5X.

A program of its own, which `dss_jax.run.other_engine` starts, so that TensorFlow never comes
into our trainer's process. The output folder is that of any run, and has also

t5x/checkpoint_STEP/    T5X's checkpoints: parameters, optimiser, place in the data

At the end those that T5X kept become ours, each with its score on validation.
"""

import functools
import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import clu.data.dataset_iterator as clu_data
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import seqio
import t5x.train
import tensorflow as tf
from t5x import adafactor, optimizers, partitioning, utils
from t5x.examples.scalable_t5 import network as scalable_network
from t5x.examples.t5 import network as plain_network

from dss_jax.core import config, environment, strict_json
from dss_jax.core.errors import Diverged
from dss_jax.core.locks import Taken
from dss_jax.core.registry import scorer_of
from dss_jax.core.types import Scorer
from dss_jax.data.store import TokenStore, open_store
from dss_jax.interop.formats import read_weights
from dss_jax.interop.t5x import parameters, read_t5x
from dss_jax.interop.weights import Weights, flat, from_tree, nested
from dss_jax.layouts.batches import TrainBatches
from dss_jax.layouts.blocks import Batch
from dss_jax.model.t5 import T5
from dss_jax.run import other_engine, run_folder, score
from dss_jax.run.session import open_session, with_vocab_size
from dss_jax.run.student_files import write_student_files
from dss_jax.train import loop
from dss_jax.train.loss import task_weights
from dss_jax.train.metric_log import MetricLog
from dss_jax.train.step import learning_rate_schedule, make_optimizer
from dss_jax.train.t5x_model import DistillationModel, DistillationTrainer

log = logging.getLogger(__name__)

MODEL_DIR = "t5x"


def rows_of(batch: Batch, weights: tuple[Any, Any]) -> dict[str, np.ndarray]:
    """One batch as T5X takes it: R = N * roles rows, each example's roles one after the other.

    Args:
      batch: one padded block a role, of N rows each.
      weights: of the label and the rationale task.

    Returns:
      encoder_input_tokens int32 [R, S], decoder_input_tokens, decoder_target_tokens and
      decoder_roles int32 [R, T], decoder_loss_weights float32 [R, T]; S and T are the longest
      block's.
    """

    def together(name: str) -> np.ndarray:
        blocks = [np.asarray(getattr(block, name)) for block in batch]
        width = max(b.shape[1] for b in blocks)
        padded = [np.pad(b, ((0, 0), (0, width - b.shape[1]))) for b in blocks]
        return np.stack(padded, axis=1).reshape(-1, width)

    names = "encoder_input_tokens decoder_input_tokens decoder_target_tokens decoder_roles"
    rows = {name: together(name) for name in names.split()}
    loss_weights = np.asarray((0.0, *weights), np.float32)[rows["decoder_roles"]]
    return {**rows, "decoder_loss_weights": loss_weights}


class StoreIterator(clu_data.DatasetIterator):
    """The batches of a run, for T5X; its state is the number of the next."""

    def __init__(self, batch_at: Callable[[int], dict[str, np.ndarray]]) -> None:
        self._batch_at, self._next = batch_at, 0

    def __next__(self) -> dict[str, np.ndarray]:
        self._next += 1
        return self._batch_at(self._next - 1)

    def reset(self) -> None:
        self._next = 0

    @property
    def element_spec(self) -> Mapping[str, clu_data.ArraySpec]:
        first = self._batch_at(0)
        return {name: clu_data.ArraySpec(dtype=a.dtype, shape=a.shape) for name, a in first.items()}

    def save(self, filename: Any) -> None:
        Path(filename).write_text(json.dumps({"next": self._next}))

    def restore(self, filename: Any) -> None:
        self._next = strict_json.loads(Path(filename).read_text())["next"]


class Initializer(utils.TrainStateInitializer):
    """Draws T5X's state, and puts a checkpoint's parameters in it, one at a time."""

    def __init__(self, weights: Weights, **options: Any) -> None:
        super().__init__(**options)
        self._weights = weights

    def from_scratch(self, init_rng: Any) -> Any:
        state = super().from_scratch(init_rng)
        frozen = state.params
        params = {f"target/{k}": v for k, v in flat(frozen).items()}
        scanned = self._weights.config.relative_attention_per_layer
        for parameter in parameters(self._weights.config, scanned=scanned):
            arrays = parameter.to_theirs(self._weights.leaves[parameter.path].read())
            for name, array in arrays.items():
                place = params[name].sharding
                value = np.asarray(array, params[name].dtype)
                params[name] = jax.make_array_from_callback(value.shape, place, value.__getitem__)
        return state.replace_params(type(frozen)(nested(params)["target"]))


class Trainer(DistillationTrainer):
    """Writes each reading of T5X's metrics to the run's own log, and stops when it is asked to."""

    def __init__(self, report: Callable[[int, dict], bool], **options: Any) -> None:
        super().__init__(**options)
        self._report = report

    def train(self, batch_iter: Any, num_steps: int, start_step: int | None = None) -> Any:
        """As T5X's; T5X saves and ends when `stop_training` is set after it."""
        began = time.monotonic()
        summary = super().train(batch_iter, num_steps, start_step)
        values = {name: float(value.value) for name, value in summary.result().items()}
        step = int(self.train_state.step)
        names = ("loss", "learning_rate", *(n for n in values if n.endswith(OWN_METRICS)))
        numbers = {name: values[name] for name in names if name in values}
        numbers |= {n: 100 * v for n, v in numbers.items() if n.endswith("token_accuracy")}
        numbers["steps_per_second"] = num_steps / max(time.monotonic() - began, 1e-9)
        if self._report(step, numbers):
            self.stop_training = True
        return summary


OWN_METRICS = ("label/loss", "label/token_accuracy", "rationale/loss", "rationale/token_accuracy")


def make_model(run: config.Run) -> DistillationModel:
    """T5X's model, loss and optimiser of a run whose vocabulary size is known."""
    own_bias = run.model.relative_attention_per_layer
    network = scalable_network if own_bias else plain_network
    names = {f.name for f in fields(network.T5Config)}
    shape = {k: v for k, v in asdict(run.model).items() if k in names}
    assert run.model.vocab_size is not None
    vocabulary = seqio.PassThroughVocabulary(run.model.vocab_size, run.model.eos_token_id)
    cfg = run.optimizer
    if cfg.name == "adamw":
        # optax's optimisers do not read T5X's learning rate: they have the schedule in them.
        optimizer = optimizers.OptaxWrapper(make_optimizer(cfg, run.train.steps))
    else:
        optimizer = adafactor.Adafactor(
            decay_rate=cfg.decay_rate,
            step_offset=0,
            global_norm_clip_threshold=cfg.clip_norm or None,
            logical_factor_rules=adafactor.standard_logical_factor_rules(),
        )
    return DistillationModel(
        module=network.Transformer(network.T5Config(**shape)),
        input_vocabulary=vocabulary,
        output_vocabulary=vocabulary,
        optimizer_def=optimizer,
        z_loss=run.loss.z_loss,
        label_smoothing=run.loss.label_smoothing,
    )


def start_weights(run: config.Run) -> Weights:
    """The parameters that our own engine would start from."""
    if run.train.init_from is not None:
        return read_weights(run.train.init_from)
    tokens, key = jnp.ones((1, 2), jnp.int32), jax.random.key(run.train.seed)
    params = jax.jit(lambda: nn.meta.unbox(T5(run.model).init(key, tokens, tokens))["params"])()
    return from_tree(run.model, params, origin=f"Train.seed = {run.train.seed}")


def fit(
    run: config.Run,
    batch_at: Callable[[int], dict[str, np.ndarray]],
    model_dir: str,
    report: Callable[[int, dict], bool],
) -> int:
    """Trains with T5X, or goes on from its latest checkpoint in `model_dir`. Gives the step it
    ended at.

    Args:
      run: the configuration, with T5Config.vocab_size.
      batch_at: step -> `rows_of` its batch.
      model_dir: where T5X writes.
      report: (step, numbers) -> whether to stop; every Train.log_every steps.
    """
    rows = batch_at(0)["encoder_input_tokens"].shape[0]
    name = run.task.shown_name
    period = min(run.train.checkpoint_every or run.evaluate.every, run.train.steps)
    kept = run.train.keep_checkpoints
    save = utils.SaveCheckpointConfig(period=period, keep=kept, save_dataset=True)
    dimensions = 2 if run.mesh.fsdp > 1 else 1
    rules = partitioning.standard_logical_axis_rules(parameter_partitioning_dims=dimensions)
    step, _ = t5x.train.train(
        model=make_model(run),
        train_dataset_cfg=utils.DatasetConfig(name, {}, "train", rows, shuffle=False, seed=None),
        train_eval_dataset_cfg=None,
        infer_eval_dataset_cfg=None,
        checkpoint_cfg=utils.CheckpointConfig(save=save),
        partitioner=partitioning.PjitPartitioner(
            num_partitions=run.mesh.model, logical_axis_rules=rules
        ),
        trainer_cls=functools.partial(
            Trainer,
            report=report,
            learning_rate_fn=learning_rate_schedule(run.optimizer, run.train.steps),
            num_microbatches=run.train.microbatches,
        ),
        model_dir=model_dir,
        total_steps=run.train.steps,
        eval_steps=0,
        eval_period=0,
        stats_period=run.train.log_every,
        random_seed=run.train.seed,
        summarize_config_fn=lambda *_: None,
        get_dataset_fn=lambda *_: StoreIterator(batch_at),
        train_state_initializer_cls=functools.partial(Initializer, start_weights(run)),
        verify_matching_vocabs_fn=None,
    )
    return int(step)


def checkpoints_of(model_dir: Path) -> dict[int, Path]:
    """Step -> folder of the checkpoints that T5X kept, without that of step 0."""
    paths = model_dir.glob("checkpoint_*")
    matches = ((re.fullmatch(r"checkpoint_(\d+)", path.name), path) for path in paths)
    return dict(sorted((int(m[1]), path) for m, path in matches if m and int(m[1])))


@run_folder.alone
def train(run: config.Run, store: TokenStore, scorer: Scorer) -> dict:
    """As `single.train`, with T5X's loop.

    Raises:
      loop.Interrupted: it was asked to stop; T5X has saved its state.
    """
    folder = run_folder.open_run_folder(run, store.key)
    finished = run_folder.read_results(folder)
    if finished is not None:
        log.info("%s is finished; these are its results", folder)
        return finished
    run = with_vocab_size(run, store)
    environment.check_for_t5x(run)  # The vocabulary gives ids, which T5X may not have.
    write_student_files(run, folder, store, scorer.name)
    padded, steps = replace(run.data, layout="padded"), run.train.steps
    batches = TrainBatches(store.split("train"), run.task, padded, run.method, steps=steps)
    weights = task_weights(run.loss, run.method)
    model_dir = (folder / MODEL_DIR).absolute()
    first = max(checkpoints_of(model_dir), default=0)
    log.info("T5X's loop, from step %d; it compiles first", first)
    with closing(MetricLog(folder, first)) as write:
        with loop.stop_on_signals() as stop:

            def report(step: int, numbers: dict) -> bool:
                write(step, "train", numbers)
                if step % run.evaluate.every == 0 or step == steps:
                    log.info(f"step {step}/{steps}  loss {numbers['loss']:.4f}")
                return stop.asked and step < steps

            done = fit(run, lambda step: rows_of(batches(step), weights), str(model_dir), report)
        if done < steps:
            raise loop.Interrupted(done, stop.number)
        return _score(run, folder, store, scorer, write)


def _score(
    run: config.Run, folder: Path, store: TokenStore, scorer: Scorer, write: MetricLog
) -> dict:
    """T5X's checkpoints become ours, each with its score; then as after any run."""
    session = open_session(run, folder, store, scorer)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, session.program.abstract_state.params)
    with closing(session.checkpoints()) as checkpoints:
        for step, path in checkpoints_of(folder / MODEL_DIR).items():
            params = jax.tree.map(jax.device_put, read_t5x(str(path)).tree(), shardings)
            checkpoints.save_params(params, step, score.validate(session, write, params, step))
        checkpoints.wait()
        results = score.finish(session, checkpoints, write)
    score.close_folder(session, results)
    return results


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What `dss train --engine t5x` asks its child process for; see `other_engine.train`."""
    # TensorFlow would take the accelerator's memory.
    tf.config.set_visible_devices([], "GPU")
    logging.getLogger("absl").setLevel(logging.ERROR)
    run = other_engine.run_from(request["run"])
    store, scorer = open_store(request["store"]), scorer_of(run.task.name, request["task_dirs"])
    try:
        return {"results": train(run, store, scorer)}
    except loop.Interrupted as stop:
        return {"interrupted": stop.step}
    except Diverged as error:
        return {"diverged": str(error)}
    except Taken as error:
        return {"taken": str(error)}
