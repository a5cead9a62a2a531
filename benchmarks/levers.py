"""Times single levers of the training step, each with and without, by turns.

  python benchmarks/levers.py

Parts of a step have the shapes of T5 v1.1 small on a flat batch of cqa: 6,656 encoder tokens, 128
rows of 88. Whole steps are those of the demo (word_problems, runs/demo.gin).
Writes a JSON file with every reading.
"""

import argparse
import datetime
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from reporting import RESULTS, command, processor, write_report
from train_arms import train_batches

from dss_jax.cli import options
from dss_jax.core import config
from dss_jax.data.prepare import ensure_store
from dss_jax.layouts.batches import TrainBatches
from dss_jax.layouts.blocks import StreamRows
from dss_jax.layouts.flat import stream_rows
from dss_jax.model.attention import to_rows
from dss_jax.model.layers import keep_mask
from dss_jax.model.matmul import matmul
from dss_jax.model.sampling import first_argmax
from dss_jax.run.session import with_vocab_size
from dss_jax.train import loss
from dss_jax.train.compile import step_options
from dss_jax.train.loop import prefetch
from dss_jax.train.sharding import make_mesh, put_batch
from dss_jax.train.step import Program, make_optimizer, settings

N, E, J, F, ROWS, LENGTH, HEADS = 6656, 512, 384, 1024, 128, 88, 6
TARGETS, VOCABULARY = 2048, 32128
KEY = jax.random.key(0)

STEP_OPTIONS = "sums over tokens by XLA's own code"

LOOP_STEPS = 10
"""Steps of one reading of the loop."""

Variant = tuple[Callable, tuple]
"""A function, which is to be jitted, and its arguments."""
Calls = dict[str, Callable[[], Any]]
"""Variant -> what is timed; returns arrays to wait for."""


def _dropout(shape: tuple[int, ...]) -> dict[str, Variant]:
    x = jnp.ones(shape)

    def with_mask(mask: Callable) -> Variant:
        return (lambda key, x: jnp.where(mask(key, 0.9, x.shape), x / 0.9, 0.0), (KEY, x))

    return {"without": with_mask(jax.random.bernoulli), "with": with_mask(keep_mask)}


def _gradient(function: Callable, inputs: tuple, cotangent: Any) -> Variant:
    return (lambda inputs, g: jax.vjp(function, *inputs)[1](g), (inputs, cotangent))


def _kernels() -> dict[str, Variant]:
    """A gated MLP, forward and backward, on [1, N, E]."""
    x, g = jnp.ones((1, N, E)), jnp.ones((1, N, E))
    wi_0, wi_1, wo = jnp.ones((E, F)), jnp.ones((E, F)), jnp.ones((F, E))

    def three_axes(x: jax.Array, w: jax.Array) -> jax.Array:
        return x @ w

    def two_axes(x: jax.Array, w: jax.Array) -> jax.Array:
        return (x.reshape(-1, x.shape[-1]) @ w).reshape(*x.shape[:-1], -1)

    def mlp(product: Callable, x: jax.Array, wi_0: Any, wi_1: Any, wo: Any) -> jax.Array:
        return matmul(jax.nn.gelu(matmul(x, wi_0)) * matmul(x, wi_1), wo)

    inputs = (x, wi_0, wi_1, wo)
    return {
        "without": _gradient(partial(mlp, three_axes), inputs, g),
        "with": _gradient(partial(mlp, two_axes), inputs, g),
    }


def _gathers() -> dict[str, Variant]:
    lengths = np.full(ROWS, 48)
    rows = StreamRows(*(x[None] for x in stream_rows(lengths, N, LENGTH)))
    x, g = jnp.ones((1, N, J)), jnp.ones((ROWS, LENGTH, J))
    plain = jnp.asarray(rows.take)

    def scatter_add(x: jax.Array) -> jax.Array:
        return jax.vmap(lambda x, i: x[i])(x, plain).reshape(ROWS, LENGTH, J)

    return {
        "without": _gradient(scatter_add, (x,), g),
        "with": _gradient(lambda x: to_rows(x, rows), (x,), g),
    }


def _fused(width: int, count: int) -> dict[str, Variant]:
    x = jnp.ones((N, E))
    kernels = tuple(jnp.ones((E, width)) for _ in range(count))
    gs = tuple(jnp.ones((N, width)) for _ in range(count))

    def fused(x: jax.Array, *kernels: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(jnp.split(x @ jnp.concatenate(kernels, axis=1), count, axis=1))

    inputs = (x, *kernels)
    return {
        "without": _gradient(lambda x, *ks: tuple(x @ k for k in ks), inputs, gs),
        "with": _gradient(fused, inputs, gs),
    }


def _adamw() -> dict[str, Variant]:
    shapes = [(VOCABULARY, E), (E, VOCABULARY)] + [(8, E, J)] * 12 + [(8, E, F)] * 6
    params = [jnp.ones(s) for s in shapes]
    gradients = [jnp.full(s, 0.1) for s in shapes]
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(5e-5, weight_decay=0.0))
    zeros = [jnp.zeros_like(p) for p in params]

    def by_optax(params: list, state: Any, gradients: list) -> Any:
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    def written_out(params: list, state: Any, gradients: list) -> Any:
        first, second, count = state
        norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in gradients))
        scale, count = jnp.minimum(1.0, 1.0 / norm), count + 1
        c1, c2 = 1 - 0.9**count, 1 - 0.999**count

        def one(p: Any, m: Any, v: Any, g: Any) -> tuple:
            g = g * scale
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            return p - 5e-5 * (m / c1) / (jnp.sqrt(v / c2) + 1e-8), m, v

        new = [one(*a) for a in zip(params, first, second, gradients, strict=True)]
        return [n[0] for n in new], ([n[1] for n in new], [n[2] for n in new], count)

    return {
        "without": (by_optax, (params, optimizer.init(params), gradients)),
        "with": (written_out, (params, (zeros, zeros, jnp.float32(0)), gradients)),
    }


def _products(back: bool) -> dict[str, Variant]:
    """A kernel's product, or its two gradients, in bfloat16: as autodiff has it, and ours."""
    x, w = jnp.ones((N, E), jnp.bfloat16), jnp.ones((E, F))
    g = jnp.ones((N, F), jnp.bfloat16)

    def plain(x: jax.Array, w: jax.Array) -> jax.Array:
        return x @ w.astype(x.dtype)

    def ours(x: jax.Array, w: jax.Array) -> jax.Array:
        return matmul(x, w, x.dtype)

    if back:
        return {"without": _gradient(plain, (x, w), g), "with": _gradient(ours, (x, w), g)}
    return {"without": (plain, (x, w)), "with": (ours, (x, w))}


def _sums() -> dict[str, Variant]:
    """The gradient of a norm's scale: a sum over all tokens."""
    x, g = jnp.ones((N, E)), jnp.ones((N, E))
    return {name: (lambda x, g: jnp.sum(x * g, axis=0), (x, g)) for name in ("without", "with")}


def _argmax() -> dict[str, Variant]:
    logits = jax.random.normal(KEY, (TARGETS, VOCABULARY))
    return {
        "without": (lambda x: jnp.argmax(x, axis=-1), (logits,)),
        "with": (first_argmax, (logits,)),
    }


def _embedding() -> dict[str, Variant]:
    """The embedding and its gradient: a product with one-hot rows, as T5X has it, and a gather."""
    ids = jax.random.randint(KEY, (N,), 0, VOCABULARY)
    table, g = jnp.ones((VOCABULARY, E)), jnp.ones((N, E))
    return {
        "without": _gradient(lambda t: jax.nn.one_hot(ids, VOCABULARY) @ t, (table,), g),
        "with": _gradient(lambda t: t[ids], (table,), g),
    }


def _cross_entropy() -> dict[str, Variant]:
    """The loss and its gradient: against one-hot targets, as T5X has it, and against integers."""
    logits = jax.random.normal(KEY, (1, TARGETS, VOCABULARY))
    targets = jax.random.randint(KEY, (1, TARGETS), 0, VOCABULARY)

    def one_hot(logits: jax.Array) -> jax.Array:
        wanted = jax.nn.one_hot(targets, VOCABULARY)
        return -jnp.sum(wanted * jax.nn.log_softmax(logits), axis=-1)

    def integers(logits: jax.Array) -> jax.Array:
        return loss.token_losses(logits, targets, config.Loss())

    g = jnp.ones((1, TARGETS))
    return {"without": _gradient(one_hot, (logits,), g), "with": _gradient(integers, (logits,), g)}


def _demo(layout: str) -> tuple[config.Run, Program, TrainBatches]:
    """The demo's run on one device, and its batches in a layout."""
    parser = argparse.ArgumentParser()
    options.add_run_flags(parser)
    parser.set_defaults(needs_model=True, gin_file=["runs/demo.gin"])
    run = options.resolve(options.parse(parser, [])).run
    store = ensure_store(run.task, run.vocabulary, run.data, task_dirs=(), need=["train"])
    mesh = make_mesh(run.mesh, jax.devices()[:1])
    run = with_vocab_size(run, store)
    batches = train_batches(run, store.split("train"), run.train.steps, layout)
    return run, Program(run, mesh), batches


def _one_step() -> Calls:
    """A training step in layout `padded`, whose blocks are the tasks: as one program that gives
    up its old state; and as a program for each task's gradient and one for the update.
    """
    run, program, batches = _demo("padded")
    optimizer, cfg = make_optimizer(settings(run), run.train.steps), run.loss
    weights = loss.task_weights(cfg, run.method)
    batch = put_batch(batches(0), program.mesh)
    tokens = loss.count_tokens(batch)

    @jax.jit
    def gradient(params: Any, blocks: Any, key: jax.Array) -> Any:
        def of(params: Any) -> jax.Array:
            sums = loss.task_sums(program.model, params, blocks, cfg, key)
            return loss.weighted_loss(sums.loss, tokens, weights)

        return jax.value_and_grad(of)(params)

    @jax.jit
    def update(params: Any, state: Any, parts: Any) -> Any:
        sums = jax.tree.map(lambda *gs: sum(gs), *parts)
        updates, state = optimizer.update(sums, state, params)
        return optax.apply_updates(params, updates), state

    now = {"with": program.init(), "without": program.init()}

    def whole() -> Any:
        now["with"], metrics = program.train_step(now["with"], batch)
        return now["with"], metrics

    def apart() -> Any:
        state = now["without"]
        key = jax.random.fold_in(KEY, state.step)
        parts = [gradient(state.params, (block,), key)[1] for block in batch]
        params, opt_state = update(state.params, state.opt_state, parts)
        now["without"] = replace(state, step=state.step + 1, params=params, opt_state=opt_state)
        return now["without"]

    return {"without": apart, "with": whole}


def _thread() -> Calls:
    """Steps in a loop that waits for the step before: batches made in it, or in a thread."""
    _, program, batches = _demo("flat")
    now = {"state": program.init()}

    def make(number: int) -> Any:
        return put_batch(batches(number), program.mesh)

    def loop(next_batch: Callable[[int], Any]) -> Any:
        before = None
        for number in range(LOOP_STEPS):
            now["state"], metrics = program.train_step(now["state"], next_batch(number))
            jax.block_until_ready(before)
            before = metrics
        return before

    def with_thread() -> Any:
        with prefetch(make, 0, LOOP_STEPS) as made:
            return loop(made)

    return {"without": lambda: loop(make), "with": with_thread}


def _jitted(make: Callable[[], dict[str, Variant]], compiler_options: dict | None = None) -> Calls:
    """`compiler_options`: for the variant "with"."""
    calls: Calls = {}
    for name, (function, arguments) in make().items():
        compiled = jax.jit(function, compiler_options=compiler_options if name == "with" else None)
        calls[name] = partial(compiled, *arguments)
    return calls


PARTS: dict[str, Callable[[], dict[str, Variant]]] = {
    "dropout masks of attention weights": lambda: _dropout((ROWS, HEADS, LENGTH, LENGTH)),
    "dropout masks of the MLP": lambda: _dropout((1, N, F)),
    "kernels' gradients from two axes (MLP)": _kernels,
    "gathers with an inverse gather as their backward": _gathers,
    "fused query, key, value": lambda: _fused(J, 3),
    "fused gated input": lambda: _fused(F, 2),
    "AdamW written out, beside optax": _adamw,
    "bf16 products in XLA's fast form": lambda: _products(False),
    "their gradients": lambda: _products(True),
    "hits of the loss by an argmax in two stages": _argmax,
    "embedding by a gather": _embedding,
    "cross entropy of integers": _cross_entropy,
}

LEVERS: dict[str, Callable[[], Calls]] = {
    **{name: partial(_jitted, make) for name, make in PARTS.items()},
    STEP_OPTIONS: lambda: _jitted(_sums, step_options(jax.devices()[0])),
    "one jitted step for both tasks, state donated": _one_step,
    "batches from a thread": _thread,
}


def measure(calls: Calls, rounds: int) -> dict[str, list[float]]:
    """Seconds of each variant, by turns; the first call of each compiles and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def main() -> int:
    """Runs all levers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="levers with this in their name")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    report: dict[str, Any] = {
        "command": command(sys.argv[1:], "levers.py"),
        "processor": processor(),
        "platform": jax.default_backend(),
        "jax": jax.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "load_before": os.getloadavg(),
        "levers": {},
    }
    for name, make in LEVERS.items():
        if args.only not in name:
            continue
        seconds = measure(make(), args.rounds)
        medians = {variant: float(np.median(times)) for variant, times in seconds.items()}
        gain = medians["without"] / medians["with"]
        report["levers"][name] = {"gain": round(gain, 3), "medians": medians, "seconds": seconds}
        shown = ", ".join(f"{variant} {1e3 * s:.1f} ms" for variant, s in medians.items())
        print(f"{name}: {gain:.2f} ({shown})", flush=True)
    report["load_after"] = os.getloadavg()
    file = args.out / f"levers-{report['platform']}.json"
    write_report(report, file)
    print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
