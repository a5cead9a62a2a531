#!/bin/sh
# optax 0.2.8, jax 0.10.2. `optax.adam` and `optax.adamw` keep the second moment in the parameters' dtype, and there
# is `mu_dtype` for the first one only. With bfloat16 parameters the decay, b2 = 0.999, is taken in bfloat16
# too, where it is 1: the second moment never becomes smaller, it is a sum and no mean. After one large gradient
# a parameter takes tiny steps for ever; in float32 that is over after some thousand. Parameters kept in float32
# do not have this.
#
# Seen: a gradient of 100, then 20,000 of 0.1 at a learning rate of 1: float32: second moment 0.01, last step 1.
#       bfloat16: second moment 10, last step 0.0325.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  optax==0.2.8 jax==0.10.2 jaxlib==0.10.2
cat > "$folder/run.py" <<'PY'
import sys

import jax
import jax.numpy as jnp
import optax

adam = optax.adam(1.0)


def after_a_spike(dtype):
    params = jnp.ones(1, dtype)
    _, state = adam.update(jnp.full(1, 100.0, dtype), adam.init(params))
    small = jnp.full(1, 0.1, dtype)
    state = jax.lax.fori_loop(0, 20_000, lambda _, state: adam.update(small, state)[1], state)
    step, state = adam.update(small, state)
    return float(state[0].nu[0]), float(-step[0])


seen = [after_a_spike(dtype) for dtype in (jnp.float32, jnp.bfloat16)]
for dtype, (moment, step) in zip(("float32", "bfloat16"), seen):
    print(f"{dtype}: second moment {moment:.4g}, last step {step:.3g}")
print("0.999 in bfloat16:", jnp.bfloat16(0.999))
(_, whole), (moment, step) = seen
sys.exit(not (0.99 < whole < 1.01 and moment >= 10 and step < 0.04))
PY
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/run.py"
