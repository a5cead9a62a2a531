"""Damaged checkpoints, set aside."""

import logging
import os
import time
from pathlib import Path

from dss_jax.core import storage
from dss_jax.train.checkpoint import damage_of

log = logging.getLogger(__name__)

BROKEN = "broken"
"""Folder beside the checkpoints for those that were set aside."""


def set_broken_aside(folder: Path) -> list[int]:
    """Moves checkpoints that are damaged out of the way of a run that goes on, with a line each;
    the steps of the others.
    """
    with storage.explained(folder):
        there = sorted(folder.iterdir(), key=os.fspath) if folder.is_dir() else []
    whole = []
    for checkpoint in (path for path in there if path.name.isdigit()):
        if (wrong := damage_of(checkpoint)) is None:
            whole.append(int(checkpoint.name))
            continue
        aside = folder.parent / BROKEN / f"{checkpoint.name}-{time.time_ns()}"
        aside.parent.mkdir(exist_ok=True)
        checkpoint.rename(aside)
        log.warning(
            "checkpoint %s is damaged (%s): it is set aside, as %s", checkpoint, wrong, aside
        )
    return whole
