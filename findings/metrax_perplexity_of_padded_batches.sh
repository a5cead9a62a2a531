#!/bin/sh
# google-metrax 0.2.4, jax 0.10.2. `metrax.Perplexity` takes a weight for each token, and its docstring has the formula
# for a corpus: exp of the weighted sum over the sum of weights. Within a batch it is that. Merged batches are weighed
# by their number of rows, padding included, whatever their tokens: a last batch with one short row counts as much
# as a full one, and a batch that is padding alone, as a process gets whose rows have run out, counts as tokens
# that are certain. So the perplexity falls with each batch of padding, and changes with how rows are batched.
# Give all in one call, or merge sums of one's own.
#
# Seen: a model that knows nothing, 16 tokens: a full batch 16; with a batch of padding 4; with three 2. 32 tokens
#       that it is sure of and one that it is not: 1.088 in one call, 4 in two batches.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  google-metrax==0.2.4 clu==0.0.12 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8
cat > "$folder/run.py" <<'PY'
import functools
import sys

import jax.numpy as jnp
import metrax

ROWS, LENGTH, VOCABULARY = 8, 4, 16
unsure = jnp.zeros((ROWS, LENGTH, VOCABULARY))
sure = unsure.at[..., 1].set(50.0)
full, padding = jnp.ones((ROWS, LENGTH)), jnp.zeros((ROWS, LENGTH))


def perplexity(*batches):
    found = [
        metrax.Perplexity.from_model_output(logits, jnp.ones(weights.shape, int), weights, True)
        for logits, weights in batches
    ]
    return round(float(functools.reduce(lambda a, b: a.merge(b), found).compute()), 3)


one = (unsure, full)
seen = [perplexity(one), *(perplexity(one, *[(unsure, padding)] * n) for n in (1, 3))]
print("one full batch, with one and with three of padding:", seen)
last = padding.at[0, 0].set(1.0)
whole = perplexity((jnp.concatenate([sure, unsure]), jnp.concatenate([full, last])))
parts = perplexity((sure, full), (unsure, last))
print("32 tokens and one:", whole, "in one call,", parts, "in two batches")
sys.exit(seen != [16, 4, 2] or (whole, parts) != (1.088, 4))
PY
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/run.py"
