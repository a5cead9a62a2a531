"""Runs a training run in a child process of another engine. Imports neither T5X nor TensorFlow."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dss_jax.core import config
from dss_jax.core.errors import Diverged
from dss_jax.core.locks import Taken
from dss_jax.data import prepare_child
from dss_jax.data.store import TokenStore
from dss_jax.train.loop import Interrupted

MODULE = "dss_jax.run.t5x_engine"


def run_from(values: Mapping[str, Mapping[str, Any]]) -> config.Run:
    """The configuration that `train` has sent, which checks itself again."""
    kinds: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(config.Run)}
    return config.Run(**{name: kinds[name](**section) for name, section in values.items()})


def train(
    run: config.Run, store: TokenStore, task_dirs: Sequence[str], environment: Mapping[str, str]
) -> dict:
    """As `single.train`, in T5X's process; Ctrl-C and SIGTERM are handed on to it. Its environment
    has the accelerator, so this process must not.

    Raises:
      UsageError, prepare_child.PrepareError: see `prepare_child.run`.
      Interrupted: it was asked to stop; T5X has saved its state.
      Diverged: its scores are not finite.
    """
    dirs = [str(Path(d).resolve()) for d in task_dirs]
    request = {"run": dataclasses.asdict(run), "store": str(store.path), "task_dirs": dirs}
    quiet = {**environment, **prepare_child.QUIET}
    asked: list[int] = []
    said = prepare_child.run(request, MODULE, environment=quiet, asked=asked)
    if "taken" in said:
        raise Taken(said["taken"])
    if "diverged" in said:
        raise Diverged(said["diverged"])
    if "interrupted" in said:
        raise Interrupted(said["interrupted"], asked[-1])
    return dict(said["results"])
