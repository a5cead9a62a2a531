"""What is written beside a run's scores, so that runs can be compared."""

from typing import Any

import jax

from dss_jax.core import config, storage
from dss_jax.core.digest import file_digest
from dss_jax.core.types import Scorer
from dss_jax.data.store import TokenStore
from dss_jax.layouts.batches import subset_rows
from dss_jax.train.step import Program


def teacher_accuracy(
    store: TokenStore, split_name: str, scorer: Scorer, limit: int | None = None
) -> float | None:
    """The teacher's own label accuracy on a split, per cent; None where there is no teacher.

    With `limit`, on the first so many rows that have a gold label.
    """
    if split_name not in store.splits or not store.has("teacher_label_targets"):
        return None
    split = store.split(split_name)
    pairs = [
        (gold, teacher)
        for gold, teacher in zip(
            split.text("label")[:], split.text("teacher_label")[:], strict=True
        )
        if gold
    ][:limit]
    if not any(teacher for _, teacher in pairs):
        return None
    return scorer([g for g, _ in pairs], [t for _, t in pairs])[scorer.name]


def data_key(run: config.Run, store: TokenStore) -> str:
    """Digest of all that is trained on: of the store, and of text files for pre-training."""
    if run.method.form != "spans":
        return store.key
    texts = [file_digest(storage.local_file(name)) for name in run.pretrain.text_files]
    return "+".join([store.key, *texts])


def about(run: config.Run, store: TokenStore, program: Program) -> dict[str, Any]:
    """The task, the seed, how much data and how large a model: fields of `results.json`."""
    rows = len(store.split("train"))
    return {
        "task": run.task.shown_name,
        "seed": run.train.seed,
        "train_examples": len(subset_rows(rows, run.task)),
        "train_total": rows,
        "extra_examples": sum(len(extra.split("train")) for extra in store.extras),
        "parameters": sum(x.size for x in jax.tree.leaves(program.abstract_params)),
    }
