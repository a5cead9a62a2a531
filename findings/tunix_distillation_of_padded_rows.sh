#!/bin/sh
# google-tunix 0.1.7, `LogitStrategy` of its DistillationTrainer. A batch has an input_mask, which reaches the student's
# and the teacher's forward functions and the labels, but not the loss: both parts of it are means over all positions.
# Where labels are zero at padding, as masked one-hot labels are, the hard part is divided by the padded length, so rows
# padded to eight times their length learn with an eighth of the step. The soft part has no labels: the student is
# trained to say what the teacher says after padding, and in short rows of wide batches that is most of the gradient.
# Fill rows by packing, or write a strategy of your own that weighs positions.
#
# Seen: one row of 4 tokens, in 4, 8 and 32 positions: hard loss 4.159, 2.079, 0.520; share of the soft loss's gradient
#       (sum of squares) that comes from padding 0.00, 0.78, 0.99.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  google-tunix==0.1.7 jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 optax==0.2.8 orbax-checkpoint==0.12.8
cat > "$folder/run.py" <<'PY'
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tunix.distillation.strategies import LogitStrategy

VOCABULARY, ROW = 64, (5, 6, 7, 8)


class Bigram(nnx.Module):
    """Logits [B, T, V] that depend on each position's token alone."""

    def __init__(self, table):
        self.table = nnx.Param(jnp.asarray(table))

    def __call__(self, tokens):
        return self.table[...][tokens]


def forward(model, input_tokens, input_mask):
    return model(input_tokens)


def labels(input_tokens, input_mask):
    return jax.nn.one_hot(input_tokens + 1, VOCABULARY) * input_mask[..., None]


def padded(width):
    tokens, mask = np.zeros((2, 1, width), np.int32)
    tokens[0, : len(ROW)], mask[0, : len(ROW)] = ROW, 1
    return {"input_tokens": tokens, "input_mask": mask}


teacher = Bigram(2 * np.random.default_rng(0).normal(size=(VOCABULARY, VOCABULARY)))


def loss_and_share(width, alpha):
    """The loss of an untrained student, and the share of its gradient that is of padding's token, 0."""
    strategy = LogitStrategy(forward, forward, labels, alpha=alpha, temperature=1.0)
    batch, student = padded(width), Bigram(np.zeros((VOCABULARY, VOCABULARY)))
    theirs = strategy.get_teacher_outputs(teacher, batch)
    of = nnx.value_and_grad(lambda m: strategy.get_train_loss(m, theirs, batch), has_aux=True)
    (loss, _), gradients = of(student)
    squares = np.square(jax.tree.leaves(gradients)[0]).sum(1)
    return round(float(loss), 3), round(float(squares[0] / squares.sum()), 2)


seen = []
for width in (4, 8, 32):
    hard, soft = loss_and_share(width, 0.0)[0], loss_and_share(width, 1.0)[1]
    print(f"{width} positions: hard loss {hard}, share of padding in the soft gradient {soft}")
    seen.append((hard, soft))
sys.exit(seen != [(4.159, 0.0), (2.079, 0.78), (0.52, 0.99)])
PY
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/run.py"
