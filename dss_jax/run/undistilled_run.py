"""Method "undistilled": a run folder with the scores of the checkpoint that others start from, as
it is, which distillation has to beat; with `Method.exemplars`, few-shot. Nothing is trained.
"""

import logging
from dataclasses import replace
from typing import Any

from dss_jax.core import config, processes, storage
from dss_jax.core.errors import UsageError
from dss_jax.core.types import Scorer
from dss_jax.data.few_shot import FewShotStore, few_shot
from dss_jax.data.store import TokenStore
from dss_jax.run import run_folder, trained_on
from dss_jax.run.init_from import start_from
from dss_jax.run.score import results_of
from dss_jax.run.session import open_session

log = logging.getLogger(__name__)


@run_folder.alone
def score(run: config.Run, store: TokenStore, scorer: Scorer) -> dict[str, Any]:
    """Scores `Train.init_from` on validation and test: what `results.json` holds, as of a student.
    Where all rows have allowed labels these are ranked, for what has never seen the task seldom
    writes one. Raises UsageError: see `open_run_folder`, `start_from` and `few_shot`.
    """
    if not {*store.splits} - {"train"}:
        raise UsageError(
            f"--method {run.method.name} scores a checkpoint, and the data have training rows only."
        )
    asked_store = few_shot(store, run) if run.method.exemplars else store

    def open_folder() -> list:
        folder = run_folder.open_run_folder(run, store.key)
        trained_on.write(folder, run, store)
        return [str(folder), run_folder.read_results(folder)]

    name, finished = processes.broadcast_from_first(open_folder)
    folder = storage.place(name)
    if finished is not None:
        log.info("%s is finished; these are its results", folder)
        return dict(finished)
    asked = replace(run, method=replace(run.method, form="tasks", exemplars=0))
    if run.evaluate.decode != "rank" and _closed(store):
        log.info("each row's allowed labels are ranked")
        asked = replace(asked, evaluate=replace(run.evaluate, decode="rank"))
    session = open_session(asked, folder, asked_store, scorer)
    params = start_from(session.run, session.program, store).params
    results = results_of(session, params, 0) | {"steps": 0, "train_examples": 0}
    if isinstance(asked_store, FewShotStore):
        results["exemplars"] = asked_store.mean
    if processes.is_first():
        run_folder.write_results(folder, results)
    return results


def _closed(store: TokenStore) -> bool:
    """Whether each row that may be scored has a list of allowed labels."""
    splits = [store.split(name) for name in store.splits if name != "train"]
    lists = [split.text("allowed_labels")[:] for split in splits if split.has("allowed_labels")]
    return len(lists) == len(splits) and "[]" not in {text for own in lists for text in own}
