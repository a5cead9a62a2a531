#!/bin/sh
# google-tunix 0.1.7. So that a run goes on from its checkpoint, `PeftTrainer.train(data)` (and DistillationTrainer's)
# passes over as many batches as the trainer has trained on, each time it is called, and not only after a restart. So
# `for epoch in range(3): trainer.train(data)` trains one epoch and reads the data three times, and a second stage on
# other data (labels, then rationales) skips its first batches, all of them where it is no longer than the first; no
# word is said, and the loop ends as if it were done. Give the epochs and stages as one iterable.
#
# Seen: 10 batches, train() three times: 10 steps. Then 10 batches of other data: 10 steps, the weight that only they
#       train is still 0; of 12 batches the last 2 are trained on. As one iterable: 30 steps.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  google-tunix==0.1.7 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 optax==0.2.8 orbax-checkpoint==0.12.8
cat > "$folder/run.py" <<'PY'
import itertools
import sys

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig, TrainingInput


class Weights(nnx.Module):
    def __init__(self):
        self.weights = nnx.Param(jnp.zeros(2))


def loss(model, input_tokens, input_mask):
    return jnp.mean((model.weights[...][input_tokens] - 1.0) ** 2)


def batches(token, count):
    """Batches that train the weight of one token, towards 1."""
    tokens = np.full((2, 1), token, np.int32)
    return [TrainingInput(input_tokens=tokens, input_mask=np.ones_like(tokens))] * count


def trainer():
    made = PeftTrainer(Weights(), optax.sgd(0.5), TrainingConfig(eval_every_n_steps=1000))
    made = made.with_loss_fn(loss)
    return made.with_gen_model_input_fn(
        lambda one: {"input_tokens": one.input_tokens, "input_mask": one.input_mask}
    )


seen = []


def say(what, one):
    weights = np.asarray(one.model.weights[...]).round(2).tolist()
    print(f"{what}: {one.train_steps} steps, weights {weights}")
    seen.append((one.train_steps, weights))


several = trainer()
for _ in range(3):
    several.train(batches(0, 10))
say("10 batches, three times", several)
for count in (10, 12):
    several.train(batches(1, count))
    say(f"then {count} batches of other data", several)
at_once = trainer()
at_once.train(itertools.chain(batches(0, 20), batches(1, 10)))
say("as one iterable", at_once)
sys.exit(seen != [(10, [1, 0]), (10, [1, 0]), (12, [1, 1]), (30, [1, 1])])
PY
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/run.py"
