#!/bin/sh
# flax 0.12.8, jax 0.10.2. A Linen model that is applied without a key for dropout never drops: a layer that would is an
# error. An NNX module that `nnx.bridge.to_linen` puts into a Linen model has no such guard. Without a key the
# bridge takes one of its own, and the module drops, for an NNX module does unless it is told not to. So the usual
# `model.apply(variables, x)` of evaluation answers with parts of the network gone, at each call the same ones,
# and no word is said. In each layer it is the same mask, too, whereas a key that is given differs by layer. Give
# `to_linen` deterministic=True for evaluation.
#
# Seen: three layers of dropout 0.5 on eight ones, no key: Linen InvalidRngError; to_linen, at each call, three 0 and
#       five 8, so each layer dropped the same three. A key: two 8. deterministic=True: eight 1.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  flax==0.12.8 jax==0.10.2 jaxlib==0.10.2
cat > "$folder/run.py" <<'PY'
import sys

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx


class Model(nn.Module):
    """Three layers of dropout, by Linen or through the bridge."""

    bridged: bool
    deterministic: bool = False

    @nn.compact
    def __call__(self, x):
        how = {"deterministic": self.deterministic}
        for _ in range(3):
            linen, bridged = nn.Dropout(0.5, **how), nnx.bridge.to_linen(nnx.Dropout, 0.5, **how)
            x = bridged(x) if self.bridged else linen(x)
        return x


x = jnp.ones(8)
try:
    Model(False).apply({}, x)
    said = None
except flax.errors.InvalidRngError as error:
    said = type(error).__name__
once, twice = Model(True).apply({}, x), Model(True).apply({}, x)
keyed = Model(True).apply({}, x, rngs={"dropout": jax.random.key(1)})
print("Linen, no key:", said)
print("to_linen, no key:", once, twice)
print("to_linen, a key:", keyed)
told = Model(True, deterministic=True).apply({}, x)
print("to_linen, no key, deterministic:", told)
same = (once == twice).all() and (told == x).all()
sys.exit(not (said and same and once.tolist().count(0) == 3 and once.tolist().count(8) == 5))
PY
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/run.py"
