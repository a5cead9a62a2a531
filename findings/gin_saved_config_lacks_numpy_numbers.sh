#!/bin/sh
# gin-config 0.5.0, NumPy 2.4.1. `gin.operative_config_str()` is what T5X and others write beside a run to repeat it. It
# leaves out what is no literal, and asks whether repr(value) parses. NumPy 2 writes np.float64(0.001) where NumPy 1
# wrote 0.001, so a value bound from np.linspace, np.logspace or an array is left out now, though np.float64 is a
# float; so is a tuple with one in it, and infinity, which a gin file can hold as 1e999. Nothing is said, not even
# a comment in the file, and a run from that file takes the default. Bind float(x), or x.item().
#
# Seen: learning_rate bound to np.float64(0.001), warmup to np.int64(500), clip to 1e999, decay to 0.1: the file has
#       decay only; read again, the run has the defaults 1.0, 10000 and 1.0. (By hand, with NumPy 1.26.4: 0.001 and
#       500 are in the file, 1e999 is not.)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check gin-config==0.5.0 numpy==2.4.1
cat > "$folder/run.py" <<'PY'
import sys

import gin
import numpy as np


@gin.configurable
def train(learning_rate=1.0, warmup=10_000, clip=1.0, decay=0.0):
    return float(learning_rate), int(warmup), clip, decay


gin.parse_config("train.clip = 1e999\ntrain.decay = 0.1")
gin.bind_parameter("train.learning_rate", np.logspace(-3, -1, 3)[0])
gin.bind_parameter("train.warmup", np.arange(0, 1000, 500)[1])
first = train()
saved = gin.operative_config_str()
print("trained with", first)
print(saved.strip())
gin.clear_config()
gin.parse_config(saved)
again = train()
print("trained again from that file with", again)
sys.exit(first != (0.001, 500, float("inf"), 0.1) or again != (1.0, 10_000, 1.0, 0.1))
PY
"$folder/venv/bin/python" "$folder/run.py"
