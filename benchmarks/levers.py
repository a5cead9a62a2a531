"""Times single levers of the training step, each with and without, by turns.

  python benchmarks/levers.py

Shapes are those of T5 v1.1 small on a flat batch of cqa: 6,656 encoder tokens, 128 rows of 88.
Writes a JSON file with every reading.
"""

import argparse
import datetime
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from reporting import RESULTS, command, processor, write_report

from dss_jax.data.blocks import StreamRows
from dss_jax.data.flat import stream_rows
from dss_jax.model.attention import to_rows
from dss_jax.model.dropout import keep_mask
from dss_jax.model.products import product
from dss_jax.model.sampling import first_argmax
from dss_jax.train.compile import step_options

N, E, J, F, ROWS, LENGTH, HEADS = 6656, 512, 384, 1024, 128, 88, 6
KEY = jax.random.key(0)

STEP_OPTIONS = "sums over tokens by XLA's own code"

Variant = tuple[Callable, tuple]
"""A function and its arguments."""


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
        return product(jax.nn.gelu(product(x, wi_0)) * product(x, wi_1), wo)

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
    shapes = [(32128, E), (E, 32128)] + [(8, E, J)] * 12 + [(8, E, F)] * 6
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
        return product(x, w, x.dtype)

    if back:
        return {"without": _gradient(plain, (x, w), g), "with": _gradient(ours, (x, w), g)}
    return {"without": (plain, (x, w)), "with": (ours, (x, w))}


def _sums() -> dict[str, Variant]:
    """The gradient of a norm's scale: a sum over all tokens."""
    x, g = jnp.ones((N, E)), jnp.ones((N, E))
    return {name: (lambda x, g: jnp.sum(x * g, axis=0), (x, g)) for name in ("without", "with")}


def _argmax() -> dict[str, Variant]:
    logits = jax.random.normal(KEY, (2048, 32128))
    return {
        "without": (lambda x: jnp.argmax(x, axis=-1), (logits,)),
        "with": (first_argmax, (logits,)),
    }


LEVERS: dict[str, Callable[[], dict[str, Variant]]] = {
    "dropout masks of attention weights": lambda: _dropout((ROWS, HEADS, LENGTH, LENGTH)),
    "dropout masks of the MLP": lambda: _dropout((1, N, F)),
    "kernels' gradients from two axes (MLP)": _kernels,
    "gathers with an inverse gather as their backward": _gathers,
    "fused query, key, value": lambda: _fused(J, 3),
    "fused gated input": lambda: _fused(F, 2),
    "AdamW written out, beside optax": _adamw,
    "bf16 products in XLA's fast form": lambda: _products(False),
    "their gradients": lambda: _products(True),
    STEP_OPTIONS: _sums,
    "hits of the loss by an argmax in two stages": _argmax,
}


def measure(variants: dict[str, Variant], rounds: int, options: dict) -> dict[str, list[float]]:
    """Seconds of each variant, by turns; the first call of each compiles and is not counted.

    `options`: of the compiler, for the variant "with".
    """
    compiled = {
        name: jax.jit(function, compiler_options=options if name == "with" else None)
        for name, (function, _) in variants.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, (_, arguments) in variants.items():
            began = time.perf_counter()
            jax.block_until_ready(compiled[name](*arguments))
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
        seconds = measure(make(), args.rounds, step_options() if name == STEP_OPTIONS else {})
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
