"""What a run writes beside its checkpoints, so that its student knows itself."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dss_jax.core import config, student_card
from dss_jax.data.store import StoreSplit, TextColumn, TokenStore
from dss_jax.interop.model_files import ModelFiles, write_model_files
from dss_jax.run import trained_on

LOOKED_AT = 1000
"""Rows of each split whose allowed labels are compared, beside one whose are longer or shorter."""


def write_student_files(run: config.Run, folder: Path, store: TokenStore, metric: str) -> None:
    """Writes the model's shape, the vocabulary, what it is trained on and the student's card, which
    pre-training has not.
    """
    trained_on.write(folder, run, store)
    write_model_files(folder, ModelFiles(run.model, store.vocabulary_path, store.extra_ids))
    if run.method.form != "spans":
        student_card.write(folder, student_card.of_run(run, metric, **_known(store)))


def _known(store: TokenStore) -> dict[str, Any]:
    """What the data tell of a student: see `student_card.of_run`."""
    splits = [store.split(name) for name in store.splits]
    allowed = {
        text
        for split in splits
        if split.has("allowed_labels")
        for text in _some(split.text("allowed_labels"))
    }
    own = len(allowed) > 1
    labels = json.loads(allowed.pop()) if allowed and not own else []
    shown = next((split for split in splits if split.name == "test"), splits[-1])
    rows = np.linspace(0, len(shown) - 1, min(len(shown), student_card.EXAMPLES))
    return {
        "description": store.manifest.get("description", ""),
        "labels": () if own else labels or store.manifest.get("labels", ()),
        "row_labels": own,
        "columns": store.manifest.get("columns", ()),
        "examples": [_example(shown, int(row)) for row in rows],
    }


def _some(column: TextColumn) -> Iterator[str]:
    """Texts from all over a column, for rows of one kind may lie together."""
    lengths = column.utf8.lengths()
    spread = np.linspace(0, len(lengths) - 1, min(len(lengths), LOOKED_AT), dtype=int)
    return (column[row] for row in (*spread, *np.flatnonzero(lengths != lengths[:1])[:1]))


def _example(split: StoreSplit, row: int) -> dict[str, Any]:
    found: dict[str, Any] = {c: split.text(c)[row] for c in student_card.TEXTS if split.has(c)}
    if split.has("allowed_labels"):
        found["allowed_labels"] = json.loads(split.text("allowed_labels")[row])
    return found
