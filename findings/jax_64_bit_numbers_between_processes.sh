#!/bin/sh
# JAX 0.10.2. With one process `multihost_utils.broadcast_one_to_all` and `process_allgather` give back the NumPy array
# that they are given; with two it goes through a JAX array and, while jax_enable_x64 is off, loses half of its bits
# without a word. A step or a hash of 64 bits arrives as its lower 32, float64 as float32. `assert_equal` then holds the
# cut number against the whole: two processes that agree on a 64-bit digest are told that they do not, and one process
# alone never. So a check that guards a run on many hosts passes every test on one. Send halves of 32 bits, or text.
#
# Seen: 2**40 + 7 is gathered as 1099511627783 (int64) by one process and as 7 (int32) by each of two; assert_equal of
#       that same number passes with one, AssertionError on both of two.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
cat > "$folder/run.py" <<'PY'
import json
import sys

import jax
import numpy as np

count, process, port = map(int, sys.argv[1:])
if count > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", count, process)

from jax.experimental import multihost_utils

digest = np.int64(2**40 + 7)
sent = multihost_utils.broadcast_one_to_all(digest)
gathered = multihost_utils.process_allgather(digest)
try:
    multihost_utils.assert_equal(digest, "digests differ")
    said = "equal"
except AssertionError:
    said = "not equal"
print(json.dumps([int(sent), gathered.tolist(), str(gathered.dtype), said]))
PY
cat > "$folder/both.py" <<'PY'
import json
import socket
import subprocess
import sys

here = socket.socket()
here.bind(("localhost", 0))
port = str(here.getsockname()[1])
here.close()
seen = {}
for count in (1, 2):
    words = [[sys.executable, sys.argv[1], str(count), str(i), port] for i in range(count)]
    running = [subprocess.Popen(w, stdout=subprocess.PIPE, text=True) for w in words]
    seen[count] = [json.loads(one.communicate()[0].splitlines()[-1]) for one in running]
    print(f"{count} process{'es' * (count > 1)}: broadcast, gathered, dtype, assert_equal: {seen[count]}")
whole = 2**40 + 7
one = [[whole, [whole], "int64", "equal"]]
sys.exit(seen != {1: one, 2: [[7, [7, 7], "int32", "not equal"]] * 2})
PY
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/both.py" "$folder/run.py"
