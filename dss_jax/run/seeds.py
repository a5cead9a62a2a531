"""Several seeds of one configuration, trained one after the other in one process, each in a run
folder of its own. They share what is compiled.

OUTPUT_DIR/seed_<n>/   the folder of a single run with that seed: see `run_folder`
OUTPUT_DIR/seeds.json  scores of all seeds, their means and standard errors
OUTPUT_DIR/curves.png
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dss_jax.core import config, processes, storage, strict_json
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import write_whole
from dss_jax.core.startup import StartClock
from dss_jax.core.types import Scorer
from dss_jax.data.store import TokenStore
from dss_jax.evaluate.statistics import mean
from dss_jax.run import run_folder, single
from dss_jax.run.changes import with_seed
from dss_jax.run.pictures import plot_curves
from dss_jax.run.session import Open, Session, functions_counted, open_session

log = logging.getLogger(__name__)

SUMMARY = "seeds.json"


def sharing() -> Open:
    """`open_session` for runs that differ in their seeds, subsets and folders only: all get the
    program and the evaluator of the first, so that nothing is traced twice.
    """
    first: list[Session] = []

    def opened(run: config.Run, folder: Path, store: TokenStore, scorer: Scorer) -> Session:
        if not first:
            first.append(open_session(run, folder, store, scorer))
        (like,) = first
        # What the first has found out holds for all.
        data = replace(run.data, layout=like.run.data.layout)
        run = replace(run, model=like.run.model, data=data)
        return replace(like, run=run, folder=folder, counted=functions_counted())

    return opened


def seeds_of(text: str) -> list[int]:
    """ "0,1,2" -> [0, 1, 2]; UsageError: they are none, or one is there twice."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise UsageError(f"--seeds takes whole numbers, as in 0,1,2,3, not {text!r}.")
    seeds = [int(word) for word in words]
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds {text} has a seed twice.")
    return seeds


def seed_runs(run: config.Run, seeds: Sequence[int], same_order: bool = False) -> list[config.Run]:
    """The configurations of single runs, one a seed: of `Train.seed`, and of `Data.seed` unless all
    shall see the training examples in the `same_order`. UsageError: the output folder holds a
    single run.
    """
    folder = storage.place(str(run.train.output_dir))
    if (folder / run_folder.CONFIG).exists():
        raise UsageError(
            f"{folder} holds a single run. Give another --output_dir for several seeds: each gets "
            "a folder in it."
        )
    folders = {seed: str(folder / f"seed_{seed}") for seed in seeds}
    return [with_seed(run, seed, own, same_order) for seed, own in folders.items()]


def train(
    runs: Sequence[config.Run],
    store: TokenStore,
    scorer: Scorer,
    clock: StartClock | None = None,
    plan_subsets: Sequence[config.Task] = (),
) -> dict[str, Any]:
    """Trains the runs of `seed_runs`, or goes on with them, as `single.train` does, and gives their
    `summary`. Where one raises, the seeds before are finished.
    """
    results: dict[int, dict] = {}
    curves: list[tuple[str, Path]] = []
    opened, subsets = sharing(), list(dict.fromkeys([*(run.task for run in runs), *plan_subsets]))
    for i, run in enumerate(runs):
        seed = run.train.seed
        log.info("seed %d, %d of %d", seed, i + 1, len(runs))
        results[seed] = single.train(
            run, store, scorer, None if i else clock, plan_subsets=subsets, opened=opened
        )
        curves.append((f"seed {seed}", storage.place(str(run.train.output_dir))))
    numbers = summary(results)
    if processes.is_first():
        together = curves[0][1].parent
        write_whole(together / SUMMARY, strict_json.dumps(numbers, indent=2) + "\n")
        plot_curves(
            curves,
            numbers["metric"],
            together / run_folder.CURVES,
            title=f"{runs[0].task.shown_name}, {runs[0].method.name}, {len(runs)} seeds",
            teacher=results[runs[0].train.seed].get("validation", {}).get("teacher"),
        )
    return numbers


def summary(results: dict[int, dict]) -> dict[str, Any]:
    """Scores of all seeds, from what the `results.json` of each holds.

    Returns:
      `metric`, `method`, `steps`, `seeds` (seed -> its results), and for each split number -> its
      `mean` over the seeds and the mean's `standard_error`, s / sqrt(n) with n - 1 in s, None for a
      single seed.
    """
    first = next(iter(results.values()))
    whole: dict[str, Any] = {name: first[name] for name in ("metric", "method", "steps")}
    whole["seeds"] = {str(seed): one for seed, one in results.items()}
    for split in ("validation", "test"):
        means = {n: mean([r[split][n] for r in results.values()]) for n in first.get(split, ())}
        if means:
            shown = {n: {"mean": m.value, "standard_error": m.error} for n, m in means.items()}
            whole[split] = shown
    return whole
