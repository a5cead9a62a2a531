"""One arm of `train_step.py`, in a process of its own: waits on its input for "FIRST COUNT", runs
those steps, and answers in a line of JSON. Not to be called by hand.
"""

import argparse
import dataclasses
import importlib.util
import json
import logging
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from train_step import BF16, UMT5, UNROLLED, parse

from dss_jax.core import config
from dss_jax.core.flops import Work, training_flops, work_of_rows, work_of_shape
from dss_jax.core.log import shown
from dss_jax.data.store import StoreSplit, TokenStore
from dss_jax.layouts.batches import TrainBatches

Clock = Callable[[], None]


class Skipped(Exception):  # noqa: N818 - it is no error
    """This arm cannot run here."""


class Step(NamedTuple):
    """One step's readings.

    Attributes:
      examples: trained on, each in every role of the method.
      seconds: host, transfer, device.
      useful, executed: FLOPs of the real tokens, and of what was computed, padding included.
      loss: of the step, dropout on.
    """

    examples: float
    seconds: tuple[float, float, float]
    useful: int
    executed: int
    loss: float


def timed_step(
    run: config.Run,
    times: Sequence[float],
    useful: Work,
    executed: Sequence[Work],
    loss: float,
    examples: float | None = None,
) -> Step:
    """The readings of a step: `times` are before host, transfer and device, and at the end."""
    host, transfer, device = map(float, np.diff(times))
    return Step(
        run.data.batch_size if examples is None else examples,
        (host, transfer, device),
        training_flops(run.model, useful),
        sum(int(training_flops(run.model, work)) for work in executed),
        loss,
    )


def role_columns(method: config.Method) -> list[tuple[str, str]]:
    """The store's columns of inputs and targets of each role."""
    label = "label" if method.label == "gold" else "teacher_label"
    columns = [("label_inputs", f"{label}_targets"), ("rationale_inputs", "rationale_targets")]
    return columns if method.rationale else columns[:1]


class Arm(Protocol):
    """What is timed. `info` goes into the report."""

    info: dict[str, Any]

    def step(self, number: int) -> Step: ...
    def release(self) -> None:
        """Gives back cached device memory, so that another arm has it."""


def open_data(args: argparse.Namespace, run: config.Run, task_dirs: tuple[str, ...]) -> TokenStore:
    """The token store; with `--full` that which `train_step.py` has made."""
    from dss_jax.data.prepare import ensure_store
    from dss_jax.data.store import open_store

    if args.full:
        return open_store(Path(args.work) / "full")
    with shown(logging.StreamHandler()):
        return ensure_store(
            run.task, run.vocabulary, run.data, task_dirs=task_dirs, need=[args.split]
        )


def train_batches(
    run: config.Run, split: StoreSplit, steps: int, layout: str = "padded", shares: int = 1
) -> TrainBatches:
    """The batches of a run of so many steps."""
    data = dataclasses.replace(run.data, layout=layout)
    return TrainBatches(split, run.task, data, run.method, steps=steps, shares=shares)


class Ours:
    """`dss_jax.train.step` in one layout."""

    def __init__(self, run: config.Run, split: StoreSplit, layout: str, steps: int) -> None:
        import jax
        import jaxlib

        from dss_jax.train import loss, step
        from dss_jax.train.sharding import data_parallelism, make_mesh, put_batch

        self._jax, self._put, self._run = jax, put_batch, run
        mesh = make_mesh(run.mesh)
        shares = data_parallelism(mesh) * run.train.microbatches
        self._batches = train_batches(run, split, steps, layout, shares)
        self._program = step.Program(run, mesh)
        began = time.perf_counter()
        state = self._program.init()
        for shape in range(self._batches.layout.shapes):
            empty = put_batch(self._batches.empty(shape), mesh)
            state, _ = jax.block_until_ready(self._program.train_step(state, empty))
        compile_seconds = time.perf_counter() - began
        del state
        self._state = jax.block_until_ready(self._program.init())
        first = put_batch(self._batches(0), self._program.mesh)
        sums = self._program.eval_step.lower(first).compile()(self._state.params, first)
        weights = loss.task_weights(run.loss, run.method)
        device = self._program.mesh.devices.flat[0]
        self.info = {
            "dtype": run.model.dtype,
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "device": device.device_kind,
            "platform": device.platform,
            "devices": self._program.mesh.size,
            "shapes": self._batches.layout.shapes,
            "compile_seconds": compile_seconds,
            "loss_without_dropout": float(loss.weighted_loss(sums.loss, sums.tokens, weights)),
        }

    def step(self, number: int) -> Step:
        """One step."""
        times = [time.perf_counter()]
        batch = self._batches(number)
        times.append(time.perf_counter())
        there = self._jax.block_until_ready(self._put(batch, self._program.mesh))
        times.append(time.perf_counter())
        self._state, metrics = self._jax.block_until_ready(
            self._program.train_step(self._state, there)
        )
        times.append(time.perf_counter())
        block_shapes = self._batches.layout.block_shapes(self._batches.shape_at(number))
        return timed_step(
            self._run,
            times,
            self._batches.work_at(number),
            [e.work for e in block_shapes],
            float(metrics["loss"]),
        )

    def release(self) -> None:
        """JAX keeps what it has; `train_step.py --fresh` ends the process instead."""


def write_weights(run: config.Run, folder: Path) -> None:
    """The parameters that ours starts from, as a Hugging Face folder."""
    from dss_jax.interop.hf import write_hf
    from dss_jax.interop.weights import from_tree
    from dss_jax.train.sharding import make_mesh
    from dss_jax.train.step import Program

    params = Program(run, make_mesh(run.mesh)).init().params
    write_hf(from_tree(run.model, params, origin="the benchmark"), folder)


class Torch:
    """The released code's arithmetic on `transformers`' T5."""

    def __init__(
        self, run: config.Run, split: StoreSplit, variant: str, weights: Path, steps: int
    ) -> None:
        for name in ("torch", "transformers"):
            if importlib.util.find_spec(name) is None:
                raise Skipped(f"{name} is not installed")
        import torch
        import transformers

        from dss_jax.interop.hf_config import config_json

        torch.manual_seed(run.train.seed)
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._torch, self._run, self._split = torch, run, split
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._half = variant.endswith("bf16")
        settings = config_json(run.model, "float32") | {"dropout_rate": run.model.dropout_rate}
        shape = transformers.T5Config(**settings)
        kind: Any = transformers.T5ForConditionalGeneration
        if weights.is_dir():
            model = kind.from_pretrained(weights, config=shape, dtype=torch.float32)
        else:
            model = kind(shape)
        self._model = model.to(self._device)
        o = run.optimizer
        assert o.learning_rate is not None
        # The fused update is the quickest that PyTorch has.
        self._optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=o.learning_rate,
            betas=(o.b1, o.b2),
            eps=o.eps,
            weight_decay=o.weight_decay,
            fused=True,
        )
        self._schedule = transformers.get_linear_schedule_with_warmup(
            self._optimizer, o.warmup_steps, run.train.steps
        )
        self._batches = train_batches(run, split, steps)
        cuda = self._device.type == "cuda"
        self.info = {
            "dtype": "bfloat16 autocast, float32 parameters" if self._half else "float32",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "threads": torch.get_num_threads(),
            "attention": str(model.config._attn_implementation),
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "platform": "gpu" if cuda else "cpu",
            "devices": 1,
            "loss_without_dropout": self._loss_without_dropout(),
        }
        self._forward = torch.compile(model) if "compile" in variant else model
        self._model.train()

    def _collate(self, rows: np.ndarray) -> list[dict[str, np.ndarray]]:
        """What the released collator makes: each role padded to its longest row."""
        from dss_jax.layouts.layout import pad_rows

        made = []
        for columns in role_columns(self._run.method):
            inputs, targets = map(self._split.tokens, columns)
            s = min(int(inputs.lengths()[rows].max()), self._run.data.input_length)
            t = min(int(targets.lengths()[rows].max(initial=1)), self._run.data.target_length)
            tokens = pad_rows(inputs, rows, s).astype(np.int64)
            labels = pad_rows(targets, rows, max(t, 1)).astype(np.int64)
            mask = (tokens != 0).astype(np.int64)
            made.append(
                {
                    "input_ids": tokens,
                    "attention_mask": mask,
                    "labels": np.where(labels == 0, -100, labels),
                }
            )
        return made

    def _put(self, made: list[dict[str, np.ndarray]]) -> list[dict[str, Any]]:
        torch = self._torch
        there = [
            {k: torch.from_numpy(v).to(self._device, non_blocking=True) for k, v in one.items()}
            for one in made
        ]
        self._wait()
        return there

    def _wait(self) -> None:
        if self._device.type == "cuda":
            self._torch.cuda.synchronize()

    def _loss(self, model: Any, batch: list[dict[str, Any]]) -> Any:
        with self._torch.autocast(
            self._device.type, dtype=self._torch.bfloat16, enabled=self._half
        ):
            losses = [model(**one).loss for one in batch]
        if len(losses) == 1:
            return losses[0]
        alpha = self._run.loss.alpha
        return alpha * losses[0] + (1.0 - alpha) * losses[1]

    def _loss_without_dropout(self) -> float:
        self._model.eval()
        with self._torch.no_grad():
            batch = self._put(self._collate(self._batches.rows_at(0)))
            return float(self._loss(self._model, batch))

    def step(self, number: int) -> Step:
        """One step."""
        rows = self._batches.rows_at(number)
        times = [time.perf_counter()]
        made = self._collate(rows)
        times.append(time.perf_counter())
        batch = self._put(made)
        times.append(time.perf_counter())
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss(self._forward, batch)
        loss.backward()
        clip = self._run.optimizer.clip_norm
        if clip:
            self._torch.nn.utils.clip_grad_norm_(self._model.parameters(), clip)
        self._optimizer.step()
        self._schedule.step()
        self._wait()
        times.append(time.perf_counter())
        shapes = [(*one["input_ids"].shape, one["labels"].shape[1]) for one in made]
        executed = [work_of_shape(*shape) for shape in shapes]
        return timed_step(
            self._run, times, self._batches.work_at(number), executed, float(loss.detach())
        )

    def release(self) -> None:
        """Empties PyTorch's cache."""
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()


class T5X:
    """T5X's `trainer.train_with_lr` on the batches of SeqIO's feature converter.

    The tasks are mixed one to one, row by row; the loss is T5X's, a sum over tokens. It is timed,
    not compared: its arithmetic is not the paper's.
    """

    def __init__(
        self, run: config.Run, split: StoreSplit, packed: bool, lengths: tuple[int, int], steps: int
    ) -> None:
        if importlib.util.find_spec("t5x") is None:
            raise Skipped("t5x is not installed")
        import jax
        import optax
        import seqio
        from t5x import models, optimizers, train_state, trainer
        from t5x.examples.t5 import network

        self._jax, self._run, self._split = jax, run, split
        self._packed, self._lengths = packed, lengths
        self._order = train_batches(run, split, steps)
        names = {f.name for f in dataclasses.fields(network.T5Config)}
        fields = {k: v for k, v in dataclasses.asdict(run.model).items() if k in names}
        vocabulary = seqio.PassThroughVocabulary(run.model.vocab_size, eos_id=1)
        o = run.optimizer
        adamw = optax.adamw(o.learning_rate, o.b1, o.b2, o.eps, weight_decay=o.weight_decay)
        clipped = optax.chain(optax.clip_by_global_norm(o.clip_norm or 1.0), adamw)
        optimizer = optimizers.wrap_optax_optimizer(lambda: clipped)()
        model = models.EncoderDecoderModel(
            module=network.Transformer(network.T5Config(**fields)),
            input_vocabulary=vocabulary,
            output_vocabulary=vocabulary,
            optimizer_def=optimizer,
        )
        self._stream, rows = self._make_stream(seqio)
        shapes = {k: (rows, v.shape[1]) for k, v in self._peek.items()}
        variables = jax.jit(lambda: model.get_initial_variables(jax.random.key(0), shapes))()
        self._state = train_state.FlaxOptimTrainState.create(optimizer, variables)

        def train_step(state: Any, batch: Any, number: Any) -> Any:
            key = jax.random.fold_in(jax.random.key(run.train.seed), number)
            return trainer.train_with_lr(state, batch, o.learning_rate, key, model, None)

        self._train_step = jax.jit(train_step, donate_argnums=0)
        self.info = {
            "dtype": run.model.dtype,
            "jax": jax.__version__,
            "seqio": seqio.__version__,
            "device": jax.devices()[0].device_kind,
            "platform": jax.devices()[0].platform,
            "devices": 1,
            "rows": rows,
            "lengths": list(lengths),
        }

    def _examples(self) -> Iterator[dict[str, np.ndarray]]:
        """Every example in every role, in the order in which ours takes them."""
        number = 0
        while True:
            for row in self._order.rows_at(number):
                for columns in role_columns(self._run.method):
                    inputs, targets = map(self._split.tokens, columns)
                    if targets.lengths()[row]:
                        yield {"inputs": _row(inputs, row), "targets": _row(targets, row)}
            number += 1

    def _make_stream(self, seqio: Any) -> tuple[Iterator[dict[str, np.ndarray]], int]:
        import itertools

        import tensorflow as tf

        s, t = self._lengths
        signature = {k: tf.TensorSpec([None], tf.int32) for k in ("inputs", "targets")}
        converter = seqio.EncDecFeatureConverter(pack=self._packed)

        def rows(source: Callable[[], Any]) -> Any:
            made = tf.data.Dataset.from_generator(source, output_signature=signature)
            made = made.map(lambda x: {"inputs": x["inputs"][:s], "targets": x["targets"][:t]})
            return converter(made, task_feature_lengths={"inputs": s, "targets": t})

        # As many rows as hold, on the average, the batch's examples in both roles.
        roles = len(role_columns(self._run.method))
        wanted = roles * self._run.data.batch_size
        sample = 10 * wanted
        count = sum(1 for _ in rows(lambda: itertools.islice(self._examples(), sample)))
        size = max(1, round(wanted * count / sample))
        batches = rows(self._examples).batch(size, drop_remainder=True).prefetch(2)
        stream = batches.as_numpy_iterator()
        self._peek = next(stream)
        return stream, size

    def step(self, number: int) -> Step:
        """One step."""
        times = [time.perf_counter()]
        batch = next(self._stream)
        times.append(time.perf_counter())
        there = self._jax.block_until_ready(self._jax.device_put(batch))
        times.append(time.perf_counter())
        self._state, metrics = self._jax.block_until_ready(
            self._train_step(self._state, there, number)
        )
        times.append(time.perf_counter())
        rows, s = batch["encoder_input_tokens"].shape
        work = work_of_shape(rows, s, batch["decoder_input_tokens"].shape[1])
        lengths = list(_segments(batch))
        roles = len(role_columns(self._run.method))
        return timed_step(
            self._run,
            times,
            work_of_rows(lengths),
            [work],
            float(metrics["loss"].compute()),
            examples=len(lengths) / roles,
        )

    def release(self) -> None:
        """As `Ours`."""


def _row(tokens: Any, row: int) -> np.ndarray:
    return np.asarray(tokens.values[tokens.offsets[row] : tokens.offsets[row + 1]], np.int32)


def _segments(batch: dict[str, np.ndarray]) -> Iterator[tuple[int, int]]:
    """(input length, target length) of each example of a T5X batch."""
    if "encoder_segment_ids" not in batch:
        pairs = (batch["encoder_input_tokens"], batch["decoder_target_tokens"])
        lengths = [np.count_nonzero(x, axis=1).tolist() for x in pairs]
        yield from zip(*lengths, strict=True)
        return
    for a, b in zip(batch["encoder_segment_ids"], batch["decoder_segment_ids"], strict=True):
        for segment in range(1, int(b.max(initial=0)) + 1):
            yield int((a == segment).sum()), int((b == segment).sum())


def make_arm(args: argparse.Namespace, run: config.Run, store: TokenStore) -> Arm:
    """The arm of `--arm`.

    Raises:
      Skipped: it cannot run here.
    """
    split, steps = store.split(args.split), args.warmup + args.steps
    engine, _, variant = args.arm.partition("-")
    if engine == "dss":
        layout, *changes = variant.split("-")
        model = run.model
        if BF16 in changes:
            model = dataclasses.replace(model, dtype="bfloat16")
        if UNROLLED in changes:
            layers = max(model.num_encoder_layers, model.num_decoder_layers)
            model = dataclasses.replace(model, scan_unroll=layers)
        if UMT5 in changes:
            model = dataclasses.replace(model, relative_attention_per_layer=True)
        return Ours(dataclasses.replace(run, model=model), split, layout, steps)
    if engine == "torch":
        return Torch(run, split, variant, Path(args.work) / "hf", steps)
    return T5X(run, split, variant == "packed", tuple(args.t5x_lengths), steps)


def main(arguments: list[str]) -> int:
    """Answers on the original standard output; everything that prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")

    args, run, task_dirs = parse(arguments)
    try:
        store = open_data(args, run, task_dirs)
        from dss_jax.run.session import with_vocab_size

        run = with_vocab_size(run, store)
        if args.arm == "weights":
            write_weights(run, Path(args.work) / "hf")
            answer({"ready": {}})
            return 0
        began = time.perf_counter()
        arm = make_arm(args, run, store)
        first = arm.step(0)
        arm.info["seconds_to_first_step"] = time.perf_counter() - began
        arm.info["first_step_seconds"] = sum(first.seconds)
        for number in range(1, args.warmup):
            arm.step(number)
    except Skipped as reason:
        answer({"skipped": str(reason)})
        return 0
    except Exception as error:
        traceback.print_exc()
        answer({"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"})
        return 1
    arm.release()
    answer({"ready": arm.info})
    for line in sys.stdin:
        start, count = map(int, line.split())
        steps = [arm.step(number)._asdict() for number in range(start, start + count)]
        arm.release()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        answer({"steps": steps, "peak_resident_gb": peak})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
