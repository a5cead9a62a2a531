#!/bin/sh
# flax 0.12.8, jax 0.10.2, CPU. `nn.Embed` and `nnx.Embed` with dtype=bfloat16 keep their table in float32 and give its
# gradient in float32, so one takes it for mixed precision as in `nn.Dense`, whose products are summed in float32.
# But the whole table is cast before the look-up, so the gradients of all places of a token are added one by one in
# bfloat16, whose sum stops at 256 times what is added. A token at each of 4,096 places of a batch (a prefix, "the",
# padding that is not masked) gets 1/16 of its gradient, and no word is said. dtype=float32 and a cast of
# the rows after the look-up is exact.
#
# Seen: the mean of one token's rows, which is looked up 16, 256, 1024, 4096 times; its gradient is 1 each time: by
#       nn.Embed and nnx.Embed 1, 1, 0.25, 0.0625; cast after the look-up 1, 1, 1, 1. 4,096 normal gradients, of
#       both signs: the sum is 6.5 % off in the median column; cast after the look-up 0 %.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  flax==0.12.8 jax==0.10.2 jaxlib==0.10.2
cat > "$folder/run.py" <<'PY'
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

WIDTH = 256
BFLOAT16 = jnp.bfloat16
layer = nn.Embed(8, WIDTH, dtype=BFLOAT16)
params = layer.init(jax.random.key(0), jnp.zeros(1, int))
graph, state = nnx.split(nnx.Embed(8, WIDTH, dtype=BFLOAT16, rngs=nnx.Rngs(0)))
WAYS = {
    "nn.Embed": (lambda p, ids: layer.apply(p, ids), params),
    "nnx.Embed": (lambda s, ids: nnx.merge(graph, s)(ids), state),
    "cast after": (lambda p, ids: nn.Embed(8, WIDTH).apply(p, ids).astype(BFLOAT16), params),
}


def gradient(way, weights):
    """Of token 1, which stands at each place of the batch; `weights` are its outputs' gradients."""
    look_up, table = WAYS[way]
    ids = jnp.ones(len(weights), int)
    loss = jax.jit(lambda t, ids, weights: (look_up(t, ids).astype(jnp.float32) * weights).sum())
    (leaf,) = jax.tree.leaves(jax.grad(loss)(table, ids, weights))
    assert leaf.dtype == jnp.float32
    return leaf[1]


seen = {
    way: [float(gradient(way, jnp.full((n, WIDTH), 1 / n))[0]) for n in (16, 256, 1024, 4096)]
    for way in WAYS
}
print("mean of the rows of one token, 16, 256, 1024 and 4096 times:", seen)
normal = jax.random.normal(jax.random.key(1), (4096, WIDTH)).astype(BFLOAT16).astype(jnp.float32)
exact = normal.sum(0)
off = {w: float(jnp.median(jnp.abs(gradient(w, normal) - exact) / jnp.abs(exact))) for w in WAYS}
print("normal gradients, off by", {way: f"{100 * share:.2g} %" for way, share in off.items()})
wrong = [1.0, 1.0, 0.25, 0.0625]
sys.exit(
    seen != {"nn.Embed": wrong, "nnx.Embed": wrong, "cast after": [1.0] * 4}
    or not (off["nn.Embed"] > 0.005 and off["nnx.Embed"] > 0.005 and off["cast after"] < 1e-4)
)
PY
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/run.py"
