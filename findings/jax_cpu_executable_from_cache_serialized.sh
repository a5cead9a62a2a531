#!/bin/sh
# JAX 0.10.2, CPU. An executable that `jax.experimental.serialize_executable` has serialised can be
# loaded again, but only if this process compiled it: where it came from JAX's own persistent cache
# (a second start, say), `serialize` gives a shorter payload without a word, and loading that ends
# with "NOT_FOUND: Function ... not found". Whoever keeps executables for a later start, and has
# the persistent cache on, keeps ones that do not load. The executable itself runs.
#
# Seen: compiled here: loads, 0.99932194
#       read from the cache: runs, 0.99932194; serialised again: NOT_FOUND: Function ... not found
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy
cat > "$folder/run.py" <<'PY'
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import serialize_executable

jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


@jax.jit
def function(x):
    return jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ x), x)


x = jnp.ones((4, 4))
seen = []
for origin in ("compiled here", "read from the cache"):
    jax.clear_caches()
    compiled = function.lower(x).compile()
    payload = serialize_executable.serialize(compiled)
    runs = float(compiled(x)[0, 0])
    try:
        loaded = float(serialize_executable.deserialize_and_load(*payload)(x)[0, 0])
        seen.append("loads" if loaded == runs else "differs")
    except jax.errors.JaxRuntimeError as error:
        seen.append(str(error).split(":")[0])
    print(f"{origin}: runs {runs:.8f}; {len(payload[0])} bytes; serialised and loaded: {seen[-1]}")
sys.exit(seen != ["loads", "NOT_FOUND"])
PY
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/run.py" "$folder/cache"
