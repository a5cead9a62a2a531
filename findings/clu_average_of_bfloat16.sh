#!/bin/sh
# clu 0.0.12, google-metrax 0.2.4, flax 0.12.8, jax 0.10.2. `clu.metrics.Average` keeps its total in the dtype of the
# values and its count in int32. Of a bfloat16 loss the total soon stops growing, and the count does not: the
# average falls towards 0, the lower the more batches there were, as if training went well. `metrax.Average`
# keeps the count in bfloat16 too, so that both stop: it is the average of the first batches for ever, and what comes
# later changes nothing. `nnx.metrics.Average` has a float32 total. Cast a loss to float32 before it is averaged.
#
# Seen: batches of 8 values, 250 of 8.0, then 2,000 of 2.0: the mean is 2.667. clu: 2.667 of float32, 0.8867 of
#       bfloat16. metrax: 2.667 and 7.812. nnx: 2.667 and 2.667.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  clu==0.0.12 google-metrax==0.2.4 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8
cat > "$folder/run.py" <<'PY'
import sys

import clu.metrics
import jax
import jax.numpy as jnp
import metrax
from flax import nnx

BATCHES = ((250, 8.0), (2000, 2.0))


def merged(kind, dtype):
    total = None
    for times, value in BATCHES:
        one = kind.from_model_output(jnp.full(8, value, dtype))
        if total is None:
            total, times = one, times - 1
        total = jax.lax.fori_loop(0, times, lambda _, found: found.merge(one), total)
    return float(total.compute())


def updated(dtype):
    metric = nnx.metrics.Average("loss")
    for times, value in BATCHES:
        for _ in range(times):
            metric.update(loss=jnp.full(8, value, dtype))
    return float(metric.compute())


ways = {
    "clu": lambda dtype: merged(clu.metrics.Average, dtype),
    "metrax": lambda dtype: merged(metrax.Average, dtype),
    "nnx": updated,
}
seen = {name: [way(dtype) for dtype in (jnp.float32, jnp.bfloat16)] for name, way in ways.items()}
for name, (whole, half) in seen.items():
    print(f"{name}: {whole:.4g} of float32, {half:.4g} of bfloat16")
right = all(abs(x - 8 / 3) < 0.01 for x in (*(whole for whole, _ in seen.values()), seen["nnx"][1]))
sys.exit(not (right and seen["clu"][1] < 1.2 and seen["metrax"][1] > 7))
PY
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/run.py"
