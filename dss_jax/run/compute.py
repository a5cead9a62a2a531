"""What training takes, in floating-point operations of real tokens: see `dss_jax.core.flops`."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from functools import reduce

import numpy as np

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.flops import Work, training_flops
from dss_jax.data.store import TokenStore
from dss_jax.layouts.batches import TrainBatches, make_examples, subset_rows

log = logging.getLogger(__name__)


def spent(run: config.Run, batches: TrainBatches) -> int:
    """Operations of all steps of a run."""
    return training_flops(run.model, _sum(map(batches.work_at, range(run.train.steps))))


def _sum(parts: Iterable[Work]) -> Work:
    return reduce(Work.plus, parts, Work())


def drawn_out(run: config.Run, store: TokenStore) -> config.Run:
    """A run of `Method.equal_compute` with the steps that its label task has to make for what
    `Train.steps` of dss take on the same rows, and as many of them between evaluations as there
    would be evaluations of dss. Raises UsageError: it has other tasks, or there are no rationales.
    """
    method = run.method
    if method.rationale or method.form != "tasks" or not store.has("rationale_targets"):
        raise UsageError(
            f"Method.equal_compute gives the label task alone what dss takes: --method "
            f"{method.name} must have no other, and {run.task.shown_name} needs rationales."
        )
    split = store.training_split()
    rows = np.concatenate([subset_rows(split.own, run.task), np.arange(split.own, len(split))])

    def flops(rationale: bool) -> int:
        examples = make_examples(split, run.data, replace(method, rationale=rationale))
        return training_flops(run.model, examples.work(examples.usable(rows)))

    factor = flops(True) / flops(False)
    steps, every = (round(factor * n) for n in (run.train.steps, run.evaluate.every))
    log.info(
        f"as many operations as {run.train.steps:,} steps of dss: {steps:,} steps of the label "
        f"task, {factor:.2f} times as many; evaluations every {every:,}"
    )
    train, evaluate = replace(run.train, steps=steps), replace(run.evaluate, every=every)
    return replace(run, train=train, evaluate=evaluate)
