#!/bin/sh
# clu 0.0.12, jax 0.10.2. `clu.metrics.LastValue` "keeps the last average global batch value", and takes the same
# values as `Average`. Of [B, 1], as a regression head or keepdims=True gives them, `Average` has the mean and
# `LastValue` B times as much: its mask of [B] stands beside the values' last axis, so that each value is counted
# B times. A logged loss of 2 is then 16 with a batch of 8, and changes with the batch's size. Of [8, 8] it is 8
# times the mean too; [8, 3] is an error, [8] and a scalar are right.
#
# Seen: eight values of 2: shape (8,): Average 2.0, LastValue 2.0. (8, 1): 2.0 and 16.0. (8, 8): 2.0 and 16.0.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  clu==0.0.12 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8
cat > "$folder/run.py" <<'PY'
import sys

import jax.numpy as jnp
from clu import metrics

seen = []
for shape in ((8,), (8, 1), (8, 8)):
    losses = jnp.full(shape, 2.0)
    average = float(metrics.Average.from_model_output(values=losses).compute())
    last = float(metrics.LastValue.from_model_output(value=losses).compute())
    print(f"values of 2 of shape {shape}: Average {average}, LastValue {last}")
    seen.append((average, last))
sys.exit(seen != [(2, 2), (2, 16), (2, 16)])
PY
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/run.py"
