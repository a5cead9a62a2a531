#!/bin/sh
# libtpu 0.0.42.1, jax 0.10.2, compiled for a v5e:2x2 slice without a TPU. Under FSDP over 4 chips the
# gradient of a kernel [512, columns] is wanted in rows. Whether the compiler reduce-scatters it, or
# all-reduces the whole gradient on each chip and then cuts it (four times the memory, about twice the
# traffic), turns on the number of columns: of n x 128 columns on the prime factors of n, not on their
# parity or size. Summed whole were all n tried that have a prime factor of 127 or more. T5's usual
# 32,128 columns are 251 x 128, mT5's and umT5's 250,112 are 2 x 977 x 128. 32,256 are scattered.
#
# Seen: scattered for n = 113, 124, 250, 252, 253, 1960; summed whole for n = 127, 251, 254, 1954.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 libtpu==0.0.42.1
cat > "$folder/run.py" <<'PY'
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
cut = NamedSharding(Mesh(np.array(devices), ("fsdp",)), PartitionSpec("fsdp"))


def loss(kernel, x):
    return jnp.sum(jnp.tanh(x @ kernel.astype(jnp.bfloat16)).astype(jnp.float32))


def is_scattered(columns):
    kernel = jax.ShapeDtypeStruct((512, columns), jnp.float32)
    x = jax.ShapeDtypeStruct((2048, 512), jnp.bfloat16)
    step = jax.jit(jax.grad(loss), in_shardings=(cut, cut), out_shardings=cut)
    return "%all-reduce-scatter" in step.lower(kernel, x).compile().as_text()


seen = {}
for tiles in (113, 124, 127, 250, 251, 252, 253, 254, 1954, 1960):
    seen[tiles] = is_scattered(128 * tiles)
    print(f"{128 * tiles:,} = {tiles} x 128:", "scattered" if seen[tiles] else "summed whole", flush=True)
whole = [tiles for tiles, scattered in seen.items() if not scattered]
sys.exit(whole != [127, 251, 254, 1954])
PY
export TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1 JAX_PLATFORMS=cpu
"$folder/venv/bin/python" "$folder/run.py" 2> "$folder/log" || { tail -3 "$folder/log"; exit 1; }
