"""The card of the student in a folder, whatever made the folder. Reads text files only.

The card itself is of `dss_jax.core.student_card`, which the rooms before this one write and copy.
"""

import logging
from pathlib import Path

from dss_jax.core import config, registry, storage
from dss_jax.core.errors import UsageError
from dss_jax.core.method_config import UNTRAINED
from dss_jax.core.student_card import FILE, StudentCard, of_run, write
from dss_jax.core.student_card import read as read_file
from dss_jax.run.run_folder import CONFIG

__all__ = ("FILE", "StudentCard", "read", "write")

log = logging.getLogger(__name__)


def read(folder: str | Path) -> StudentCard:
    """The card in a folder. Where there is none it is made from the run's `config.gin` and its task
    file; for another folder from the defaults: no prefix, and any text may be a label.

    Raises:
      UsageError: the file is not one, or the run has no student.
    """
    place = storage.place(folder)
    with storage.explained(folder):
        card = read_file(place)
        own = place / CONFIG
        saved = own.read_text() if card is None and own.is_file() else None
    if card is None and saved is not None:
        card = _of_old_run(place, config.from_gin(saved))
    elif card is None:
        log.info(
            "%s has no %s: inputs are given to it as they are, and any text may be a label",
            folder,
            FILE,
        )
        card = StudentCard()
    if card.form in ("spans", *UNTRAINED):
        what = "is pre-trained on spans" if card.form == "spans" else "holds scores alone"
        raise UsageError(f"{folder} {what}, so no student can be asked. Give a trained one's.")
    return card


def _of_old_run(folder: Path, run: config.Run) -> StudentCard:
    metric, known = "text_accuracy", {}
    try:
        if run.task.name:
            task = registry.load_task(run.task.name)
            metric = task.scorer.name
            known = {"description": task.description, "labels": task.labels}
        said = "of its task are taken"
    except UsageError:
        said = "are not known, for its task file was not found"
    log.info("%s is of a version that wrote no %s: allowed labels %s", folder, FILE, said)
    return of_run(run, metric, **known)
