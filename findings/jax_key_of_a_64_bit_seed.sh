#!/bin/sh
# JAX 0.10.2. `jax.random.key(seed)` takes "a 64- or 32-bit integer used as the value of the key", and a key has 64 bits.
# But while jax_enable_x64 is off, as it is unless asked for, a seed's upper 32 bits are cut off without a word, of
# Python's int and of NumPy's alike. So `key(epoch << 32 | row)` has the same noise in all epochs, two runs whose
# seeds differ above bit 32 are one run twice, and a library that turns x64 on changes all random numbers of such
# seeds. An int beyond 64 bits is an error; so is one beyond 32 bits in `fold_in`, but an np.int64 there is cut.
#
# Seen: epochs 0, 1, 2 of row 7: one distinct draw of 3, of int and of np.int64; with x64 three. fold_in:
#       np.int64(2**32 + 7) gives the key of 7, the int an OverflowError.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
cat > "$folder/run.py" <<'PY'
import sys

import jax
import numpy as np


def distinct(make):
    return len({float(jax.random.normal(jax.random.key(make(e << 32 | 7)))) for e in range(3)})


seen = [distinct(int), distinct(np.int64)]
keys = [jax.random.fold_in(jax.random.key(0), np.int64(n)) for n in (7, 2**32 + 7)]
try:
    jax.random.fold_in(jax.random.key(0), 2**32 + 7)
    said = None
except OverflowError as error:
    said = type(error).__name__
with jax.enable_x64(True):
    seen.append(distinct(int))
print("distinct draws of 3: seeds of int", seen[0], "of np.int64", seen[1], "with x64", seen[2])
print("fold_in: of np.int64 alike:", bool(keys[0] == keys[1]), "of int:", said)
sys.exit(seen != [1, 1, 3] or keys[0] != keys[1] or said != "OverflowError")
PY
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/run.py"
