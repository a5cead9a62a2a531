"""Importing this registers every task that can be found with SeqIO. Imports TensorFlow.

For plain SeqIO and for T5X (`--gin.MIXTURE_OR_TASK_MODULE="'dss_jax.data.seqio_register'"`).
Settings come from the environment: DSS_TASK_PATH, DSS_DATA_DIR, DSS_VOCABULARY, DSS_EXTRA_IDS
(100), DSS_PREFIXES ("paper") and DSS_RATIONALES (record files, separated by commas; each goes to
its task).
"""

import logging
import os
from pathlib import Path

from dss_jax.core import storage
from dss_jax.core.errors import UsageError
from dss_jax.core.registry import load_task, task_names
from dss_jax.data import seqio_tasks, vocabulary
from dss_jax.records.files import read_records

log = logging.getLogger(__name__)


def register_all() -> tuple[str, ...]:
    """Registers every task found, and gives their names; a broken file is reported and left out."""
    extra_ids = os.environ.get("DSS_EXTRA_IDS", "100")
    if not extra_ids.isdigit():
        raise UsageError(f"DSS_EXTRA_IDS must be a whole number, not {extra_ids!r}.")
    records: dict[str, list[Path]] = {}
    for file in filter(None, os.environ.get("DSS_RATIONALES", "").split(",")):
        local = storage.local_file(file)
        records.setdefault(read_records(local)[0].task, []).append(local)
    done = []
    for name in task_names():
        try:
            task = load_task(name)
        except UsageError as error:
            log.warning("%s", error)
            continue
        seqio_tasks.register(
            task,
            # Opened by SeqIO when it is needed, so an address need not be fetched here.
            vocabulary_path=vocabulary.wanted(None, task),
            extra_ids=int(extra_ids),
            prefixes=os.environ.get("DSS_PREFIXES", "paper"),
            rationales=records.get(name, ()),
        )
        done.append(name)
    return tuple(done)


register_all()
