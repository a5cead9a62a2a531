"""Several seeds of one configuration, trained one after the other in one process, each in a run
folder of its own. They share what is compiled.

OUTPUT_DIR/seed_<n>/   the folder of a single run with that seed: see `run_folder`
OUTPUT_DIR/seeds.json  scores of all seeds, their means and standard errors
OUTPUT_DIR/curves.png
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dss_jax.core import config, processes, storage, strict_json
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import write_whole
from dss_jax.core.startup import StartClock
from dss_jax.core.types import Scorer
from dss_jax.data.store import TokenStore
from dss_jax.evaluate.statistics import mean
from dss_jax.run import run_folder, single
from dss_jax.run.curves import plot_curves
from dss_jax.run.session import sharing

log = logging.getLogger(__name__)

SUMMARY = "seeds.json"
SPLITS = ("validation", "test")


def seed_runs(run: config.Run, seeds: Sequence[int], same_order: bool = False) -> list[config.Run]:
    """The configurations of single runs, one a seed.

    Args:
      run: what they have in common, with the output folder of all.
      seeds: values of `Train.seed`, and of `Data.seed` unless `same_order`.
      same_order: all see the training examples in the order of the run's own `Data.seed`.

    Raises:
      UsageError: no output folder, or a folder that holds a single run.
    """
    if run.train.output_dir is None:
        raise UsageError("no output folder: give --output_dir DIR.")
    folder = storage.place(run.train.output_dir)
    if (folder / run_folder.CONFIG).exists():
        raise UsageError(
            f"{folder} holds a single run. Give another --output_dir for several seeds: each gets "
            "a folder in it."
        )
    return [
        replace(
            run,
            data=run.data if same_order else replace(run.data, seed=seed),
            train=replace(run.train, seed=seed, output_dir=str(folder / f"seed_{seed}")),
        )
        for seed in seeds
    ]


def train(
    runs: Sequence[config.Run], store: TokenStore, scorer: Scorer, clock: StartClock | None = None
) -> dict[str, Any]:
    """Trains each seed's run, or goes on with it, as `single.train` does.

    Args:
      runs: of `seed_runs`.
      store: of the task.
      scorer: judges labels.
      clock: of this start; None: it begins now.

    Returns:
      What `seeds.json` holds: see `summary`.

    Raises:
      What `single.train` raises; the seeds before are finished then.
    """
    results: dict[int, dict] = {}
    opened = sharing()
    for i, run in enumerate(runs):
        log.info("seed %d, %d of %d", run.train.seed, i + 1, len(runs))
        start = clock if i == 0 else None
        results[run.train.seed] = single.train(run, store, scorer, start, opened=opened)
    numbers = summary(results)
    if processes.is_first():
        folders = [storage.place(str(run.train.output_dir)) for run in runs]
        together, first = folders[0].parent, results[runs[0].train.seed]
        write_whole(together / SUMMARY, strict_json.dumps(numbers, indent=2) + "\n")
        plot_curves(
            [(f"seed {run.train.seed}", folder) for run, folder in zip(runs, folders, strict=True)],
            numbers["metric"],
            together / run_folder.CURVES,
            title=f"{runs[0].task.shown_name}, {runs[0].method.name}, {len(runs)} seeds",
            teacher=first.get("validation", {}).get("teacher"),
        )
    return numbers


def summary(results: dict[int, dict]) -> dict[str, Any]:
    """Scores of all seeds.

    Args:
      results: seed -> what its `results.json` holds.

    Returns:
      `metric`, `method`, `steps`, `seeds` (seed -> its results), and for each split number -> its
      `mean` over the seeds and the mean's `standard_error`, s / sqrt(n) with n - 1 in s, None for a
      single seed.
    """
    first = next(iter(results.values()))
    whole: dict[str, Any] = {name: first[name] for name in ("metric", "method", "steps")}
    whole["seeds"] = {str(seed): one for seed, one in results.items()}
    for split in SPLITS:
        if split in first:
            found = {n: mean([r[split][n] for r in results.values()]) for n in first[split]}
            whole[split] = {
                n: {"mean": m.value, "standard_error": m.error} for n, m in found.items()
            }
    return whole
