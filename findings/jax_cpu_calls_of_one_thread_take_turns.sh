#!/bin/sh
# jax 0.10.2. On CPUs a call returns before its work is done, and a thread of Python may begin many; but each waits for the
# one before it, also where nothing connects the two, and also where they are on two devices of
# `--xla_force_host_platform_device_count`. The order is kept for each thread of Python, not for each device: two threads
# have their calls worked on at the same time, even on one device. So a loop that sends batches ahead, as one does for a
# GPU, gains nothing on a CPU with idle cores; a thread for each batch does.
#
# Seen on 2 cores: a loop of scalars takes 0.355 s. Two calls of it take 2.01 times that where one thread begins them, on one
#       device and on two; a thread each, 1.02 times on one device and 1.03 on two.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
cat > "$folder/run.py" <<'PY'
import os
import sys
import threading
import time

import jax
import jax.numpy as jnp

if len(os.sched_getaffinity(0)) < 2:
    sys.exit("This needs two cores.")


@jax.jit
def slow(x):
    return jax.lax.fori_loop(0, 100_000_000, lambda _, x: x * 0.999 + 0.001, x)


def of_one_thread(inputs):
    jax.block_until_ready([slow(x) for x in inputs])


def of_a_thread_each(inputs):
    threads = [threading.Thread(target=lambda x=x: slow(x).block_until_ready()) for x in inputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def seconds(way, inputs):
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        way(inputs)
        taken.append(time.perf_counter() - began)
    return min(taken)


first, second = jax.devices()
inputs = {
    "one device": [jax.device_put(jnp.float32(x), first) for x in (1, 2)],
    "two devices": [jax.device_put(jnp.float32(x), d) for x, d in ((1, first), (2, second))],
}
alone = seconds(of_one_thread, inputs["one device"][:1])
print(f"one call: {alone:.3f} s")
right = True
for name, both in inputs.items():
    seconds(of_one_thread, both)  # Compiled for each device.
    turns, together = seconds(of_one_thread, both) / alone, seconds(of_a_thread_each, both) / alone
    print(f"two calls on {name}: by one thread {turns:.2f} times that, by a thread each {together:.2f}")
    right = right and turns > 1.8 and together < 1.5
sys.exit(not right)
PY
JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=2 "$folder/venv/bin/python" "$folder/run.py"
