"""What training takes, in floating-point operations of real tokens: see `dss_jax.core.flops`."""

import logging
import math
from dataclasses import replace
from functools import reduce

import numpy as np

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.flops import Work, training_flops
from dss_jax.data.store import TokenStore
from dss_jax.layouts.batches import TrainBatches, make_examples
from dss_jax.run.session import with_vocab_size

log = logging.getLogger(__name__)


def spent(run: config.Run, batches: TrainBatches) -> int:
    """Operations of all steps of a run."""
    parts = map(batches.work_at, range(run.train.steps))
    return training_flops(run.model, reduce(Work.plus, parts, Work()))


def drawn_out(run: config.Run, store: TokenStore) -> config.Run:
    """A run of `Method.equal_compute` with the steps that its label task has to make for what
    `Train.steps` of dss take, by all rows of the training split, which no seed and no subset
    change; and as many of them between evaluations as make no more of these than dss has. The rest
    of the run stays, its `warmup_steps` too. Raises UsageError: it has other tasks, or there are no
    labels or no rationales.
    """
    method = run.method
    if method.rationale or method.form != "tasks" or not store.has("rationale_targets"):
        raise UsageError(
            f"Method.equal_compute gives the label task alone what dss takes: --method "
            f"{method.name} must have no other, and {run.task.shown_name} needs rationales."
        )
    split = store.training_split()
    rows = np.arange(len(split))

    model = with_vocab_size(run, store).model

    def flops(rationale: bool) -> int:
        examples = make_examples(split, run.data, replace(method, rationale=rationale))
        return training_flops(model, examples.work(examples.usable(rows)))

    both, label = flops(True), flops(False)
    if not label or both == label:
        what = "rationales" if label else f"{method.label} labels"
        raise UsageError(
            f"Method.equal_compute needs {what} to count: the training rows of "
            f"{run.task.shown_name} have none. Give data that has {what}, or --method standard."
        )
    factor = both / label
    steps = round(factor * run.train.steps)
    every = math.ceil(steps * run.evaluate.every / run.train.steps)
    log.info(
        f"as many operations as {run.train.steps:,} steps of dss: {steps:,} steps of the label "
        f"task, {factor:.2f} times as many; evaluations every {every:,}"
    )
    train, evaluate = replace(run.train, steps=steps), replace(run.evaluate, every=every)
    return replace(run, train=train, evaluate=evaluate)
