#!/bin/sh
# optax 0.2.8, flax 0.12.8, jax 0.10.2. `optax.contrib.muon` takes each leaf of two axes for a matrix and gives all
# others to Adam, at the same learning rate. `nn.scan` over layers, as in T5X's scalable_t5, puts an axis of layers
# in front: each kernel has three then, and the scales of the norms have two. So the very model gets the other
# optimizer of the two: without the loop Muon has kernels and Adam has scales, with it Adam has all kernels, with steps
# as large as Muon's learning rate (0.02) in each element, and Muon mixes the scales of a norm over the layers. There
# is no word of it. The embedding is "a matrix" in both, which Muon's authors leave to AdamW. Give
# `muon_weight_dimension_numbers`, which takes the axes of each leaf.
#
# Seen, first step: layers in a loop of Python: kernel orthogonal, scale as Adam's. Under nn.scan: kernel as Adam's
#       (all elements 0.02), scales of all layers made orthogonal. Embedding orthogonal in both.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  optax==0.2.8 flax==0.12.8 jax==0.10.2 jaxlib==0.10.2
cat > "$folder/run.py" <<'PY'
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

RATE, LAYERS, WIDTH = 0.02, 4, 16


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        normed = nn.RMSNorm(name="norm")(x)
        return x + nn.Dense(WIDTH, use_bias=False, name="dense")(normed), None


class Model(nn.Module):
    scanned: bool

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(64, WIDTH, name="embed")(ids)
        if self.scanned:
            split = {"params": True}
            stack = nn.scan(Block, variable_axes={"params": 0}, split_rngs=split, length=LAYERS)
            return stack(name="layers")(x, None)[0]
        for n in range(LAYERS):
            x, _ = Block(name=f"layer_{n}")(x)
        return x


def whose(update):
    """The first step of Adam has one size everywhere; that of Muon has equal singular values."""
    sizes = np.abs(update)
    if np.ptp(sizes) < 1e-3 * RATE:
        return "Adam"
    values = np.linalg.svd(update, compute_uv=False)
    return "Muon" if update.ndim == 2 and values[-1] > 0.5 * values[0] else "neither"


def seen(scanned):
    params = Model(scanned).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)
    tx = optax.contrib.muon(RATE)
    updates, _ = tx.update(grads, tx.init(params), params)
    layer = updates["layers" if scanned else "layer_0"]
    found = {
        "kernel": whose(np.asarray(layer["dense"]["kernel"])),
        "scale": whose(np.asarray(layer["norm"]["scale"])),
        "embedding": whose(np.asarray(updates["embed"]["embedding"])),
    }
    print("nn.scan:" if scanned else "loop:", found)
    return found


plain, scanned = seen(False), seen(True)
sys.exit(
    plain != {"kernel": "Muon", "scale": "Adam", "embedding": "Muon"}
    or scanned != {"kernel": "Adam", "scale": "Muon", "embedding": "Muon"}
)
PY
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/run.py"
