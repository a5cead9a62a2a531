"""What this machine's devices do: a product of matrices, and a training step of a very small T5.
`python -m dss_jax.run.probe` prints it as a line of JSON; `dss doctor` runs it in a child process.
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp

from dss_jax.core import config, strict_json
from dss_jax.layouts.blocks import Block
from dss_jax.train.sharding import make_mesh, put_whole
from dss_jax.train.step import Program

SIZES = {"cpu": (1536, "float32")}
"""Platform -> side of the matrices, and their type; of others 8,192 in bfloat16."""

MODEL = config.T5Config(
    vocab_size=128,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=32,
    num_encoder_layers=1,
    num_decoder_layers=1,
)


def matmul() -> dict[str, Any]:
    """The best of three: dtype, side, and GFLOP/s of one device."""
    side, dtype = SIZES.get(jax.devices()[0].platform, (8192, "bfloat16"))
    x = jnp.ones((side, side), dtype)
    product = jax.jit(jnp.dot)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        jax.block_until_ready(product(x, x))
        seconds.append(time.perf_counter() - began)
    return {"dtype": dtype, "side": side, "gflops": 2e-9 * side**3 / min(seconds[1:])}


def step() -> dict[str, Any]:
    """A training step on all devices: its loss, and seconds to compile it and to run it."""
    count = jax.device_count()
    run = config.Run(model=MODEL, data=config.Data(batch_size=8 * count, layout="padded"))
    run = dataclasses.replace(run, method=dataclasses.replace(run.method, rationale=False))
    mesh = make_mesh(run.mesh)
    program = Program(run, mesh)
    tokens = jnp.full((8 * count, 8), 5, jnp.int32)
    batch = put_whole((Block(tokens, tokens, tokens, jnp.ones_like(tokens)),), mesh)
    state, seconds = program.init(0), []
    for _ in range(2):
        began = time.perf_counter()
        state, metrics = jax.block_until_ready(program.train_step(state, batch))
        seconds.append(time.perf_counter() - began)
    return {"loss": float(metrics["loss"]), "first": seconds[0], "second": seconds[1]}


if __name__ == "__main__":
    print(strict_json.dumps({"matmul": matmul(), "step": step()}))
