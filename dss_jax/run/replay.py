"""Repeats the step at which a run has diverged, and finds the rows that do it."""

import logging
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dss_jax.core import storage, strict_json
from dss_jax.core.errors import UsageError
from dss_jax.run.session import Session, train_batches
from dss_jax.train.bad_steps import STATES, bad_leaves
from dss_jax.train.checkpoint import Checkpoints
from dss_jax.train.sharding import put_batch

log = logging.getLogger(__name__)

Numbers = dict[str, float]


@dataclass(frozen=True)
class Replayed:
    """What a repeated step shows.

    Attributes:
      step: number of the batch, from 0.
      numbers: its metrics, as logged.
      bad_parameters: names of arrays that hold something that is not finite before the step.
      rows: (id, its losses by task) of the batch's rows, each by itself without dropout.
    """

    step: int
    numbers: Numbers
    bad_parameters: list[str]
    rows: list[tuple[str, Numbers]]


def read(file: Path) -> dict[str, Any]:
    """What a run has kept of its bad step; raises UsageError where the file is something else."""
    if not storage.exists(file):
        raise UsageError(f"there is no {file}. A run that diverges writes it into its folder.")
    try:
        found = strict_json.loads(file.read_text())
        return {"step": int(found["step"]), "state": int(found["state"])}
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{file} is not what a run that has diverged writes: {error!r}."
        ) from error


def replay(session: Session, kept: dict[str, Any]) -> Replayed:
    """Repeats the step that `read` has given, perhaps with other settings (another dtype, say)."""
    step, program = kept["step"], session.program
    with closing(Checkpoints(session.folder / STATES)) as states:
        saved = states.restore(kept["state"], program.abstract_state)
    state = program.seeded(saved, session.run.train.seed)
    at = jax.device_put(np.array(step, np.int32), program.abstract_state.step.sharding)
    bad = bad_leaves(state.params)
    params = program.merge(jax.tree.map(lambda x: x.copy(), state.params))
    batches = train_batches(session)
    log.info("repeating step %d with %d rows", step + 1, len(batches.rows_at(step)))
    _, metrics = program.train_step(replace(state, step=at), put_batch(batches(step), program.mesh))
    numbers = {name: float(value) for name, value in metrics.items()}
    return Replayed(step, numbers, bad, _rows(session, params, step))


def _rows(session: Session, params: Any, step: int) -> list[tuple[str, Numbers]]:
    # The term that compares the two tasks is none of a row's own.
    loss = replace(session.run.loss, mutual_information=0.0)
    batches = train_batches(replace(session, run=replace(session.run, loss=loss)))
    mesh, tasks = session.program.mesh, session.run.method.tasks
    losses = session.program.eval_step.lower(batches.shapes[batches.shape_at(step)]).compile()
    rows = []
    for place, row_id in enumerate(batches.ids_at(step)):
        sums = losses(params, put_batch(batches.alone(step, place), mesh))
        own = zip(tasks, np.asarray(sums.loss), np.asarray(sums.tokens), strict=False)
        rows.append((row_id, {task: float(x / n) for task, x, n in own if n}))
    return rows


def worst_first(rows: list[tuple[str, Numbers]]) -> list[tuple[str, Numbers]]:
    """Rows whose loss is not finite first, then by their largest loss."""

    def key(row: tuple[str, Numbers]) -> float:
        return -max((x if np.isfinite(x) else np.inf for x in row[1].values()), default=0.0)

    return sorted(rows, key=key)
