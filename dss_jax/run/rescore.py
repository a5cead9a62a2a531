"""Scoring a run's student again, in other ways: `dss eval`."""

import logging
import tempfile
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from dss_jax.core import storage
from dss_jax.core.paths import written
from dss_jax.run import run_folder
from dss_jax.run.score import other_than, predictions_file, score_split
from dss_jax.run.session import Session

log = logging.getLogger(__name__)


def score(
    session: Session,
    splits: Sequence[str],
    checkpoint: str = "best",
    rationales: bool = False,
    limit: int | None = None,
) -> tuple[int, dict[str, Any]]:
    """Scores splits, or their first rows, with a checkpoint of a run ("best", "latest" or a step),
    and writes the predictions, with generated `rationales` where that is set. Gives the step, and
    split -> numbers; raises UsageError where there is no such checkpoint or split.
    """
    with closing(session.checkpoints()) as checkpoints:
        step = checkpoints.find(checkpoint)
        params = checkpoints.restore_params(step, session.program.abstract_state.params)
    if not storage.is_remote(folder := session.folder / run_folder.PREDICTIONS):
        with written(folder):  # Whether it can be is said before the work.
            folder.mkdir(exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
    if other := other_than(session):
        log.info("other than the run's own, so predictions get a name of their own:")
        for line in other:
            log.info("  %s", line.removeprefix("# "))
    scores = {}
    for name in splits:
        file = predictions_file(session, name, step, limit).name
        scores[name] = score_split(session, params, name, file, rationales, limit)
    return step, scores
