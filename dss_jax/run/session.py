"""A run with its program, its data and its scorer, ready to train or score."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jax.sharding import Mesh

from dss_jax.core import config, processes
from dss_jax.core.errors import UsageError
from dss_jax.core.types import Scorer
from dss_jax.data.store import TokenStore
from dss_jax.data.vocabulary import SentencePiece
from dss_jax.evaluate.evaluator import Evaluator
from dss_jax.layouts.layout import with_layout
from dss_jax.run import run_folder
from dss_jax.train.checkpoint import Checkpoints
from dss_jax.train.compile import cache_counts, keep_compiled_code
from dss_jax.train.sharding import make_mesh
from dss_jax.train.step import Program


def with_vocab_size(run: config.Run, store: TokenStore) -> config.Run:
    """Fills in T5Config.vocab_size where it is None: the vocabulary's, rounded up to 128s.

    Raises:
      UsageError: the model has fewer embeddings than the vocabulary has ids.
    """
    needed = SentencePiece(store.vocabulary_path, store.extra_ids).vocab_size
    size = run.model.vocab_size
    if size is None:
        size = -(-needed // 128) * 128
    if size < needed:
        raise UsageError(
            f"T5Config.vocab_size is {size}, but the vocabulary has {needed} ids "
            f"({store.extra_ids} of them extra ids). Give at least {needed}, or None."
        )
    return dataclasses.replace(run, model=dataclasses.replace(run.model, vocab_size=size))


def for_mesh(run: config.Run, mesh: Mesh) -> config.Run:
    """Fills in Data.layout where it is "auto"."""
    data = with_layout(run.data, mesh.devices.flat[0].platform)
    return dataclasses.replace(run, data=data)


@dataclass(frozen=True)
class Session:
    """A run with its program, its store and its scorer, ready to train or score.

    Attributes:
      compile_cache: where compiled code is kept; None: nowhere.
      counted: functions that were found there, and that were not, before this.
    """

    run: config.Run
    folder: Path
    store: TokenStore
    program: Program
    evaluator: Evaluator
    compile_cache: str | None
    counted: tuple[int, int]

    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints, open; with several processes, all must call this."""
        processes.barrier()  # Orbax connects them.
        return Checkpoints(
            self.folder / run_folder.CHECKPOINTS, keep=self.run.train.keep_checkpoints
        )


def open_session(run: config.Run, folder: Path, store: TokenStore, scorer: Scorer) -> Session:
    """Builds the model and its compiled functions for a run."""
    cache = keep_compiled_code()
    run, mesh = with_vocab_size(run, store), make_mesh(run.mesh)
    run = for_mesh(run, mesh)
    program, counts = Program(run, mesh), cache_counts()
    evaluator = Evaluator(run, program, store, scorer)
    return Session(run, folder, store, program, evaluator, cache, (counts.found, counts.missing))


Open = Callable[[config.Run, Path, TokenStore, Scorer], Session]


def sharing() -> Open:
    """`open_session` for runs that differ in their seeds and folders only: all get the program and
    the evaluator of the first, so that nothing is traced twice.
    """
    first: list[Session] = []

    def opened(run: config.Run, folder: Path, store: TokenStore, scorer: Scorer) -> Session:
        if not first:
            first.append(open_session(run, folder, store, scorer))
        (like,) = first
        # What the first has found out holds for all.
        data = dataclasses.replace(run.data, layout=like.run.data.layout)
        run = dataclasses.replace(run, model=like.run.model, data=data)
        counts = cache_counts()
        counted = counts.found, counts.missing
        return dataclasses.replace(like, run=run, folder=folder, counted=counted)

    return opened
