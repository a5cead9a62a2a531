"""Starting a run from a checkpoint: what it decides in the configuration, and its parameters.

A run that has saved its own state goes on from that, and needs the other checkpoint no more.
"""

import dataclasses
import logging
from collections.abc import Collection
from pathlib import Path

import jax

from dss_jax.core import config, storage, t5gemma
from dss_jax.core.config import T5Config
from dss_jax.core.errors import UsageError
from dss_jax.core.ids import T5_PUBLIC
from dss_jax.core.t5_config import SHAPE_FIELDS
from dss_jax.data.store import TokenStore
from dss_jax.data.vocabulary import resolve, vocabulary_digest
from dss_jax.interop.formats import read_weights
from dss_jax.interop.hub import full_name
from dss_jax.interop.model_files import ModelFiles, read_model_files
from dss_jax.interop.vocabularies import vocabulary_size
from dss_jax.interop.weights import flat
from dss_jax.run import run_folder
from dss_jax.train.step import Program, TrainState

log = logging.getLogger(__name__)


def with_checkpoint(run: config.Run, given: Collection[str]) -> config.Run:
    """Completes a configuration by what the checkpoint in `Train.init_from` decides: the model, and
    the vocabulary where none was given.

    Args:
      run: the configuration.
      given: the settings that the user gave ("T5Config.emb_dim"); the others are defaults, which
        the checkpoint replaces.

    Raises:
      UsageError: a setting that was given differs from the checkpoint's, or there is none.
    """
    path, output_dir = run.train.init_from, run.train.output_dir
    assert path is not None
    own = None if output_dir is None else run_folder.check_output_dir(output_dir)
    if own is not None and _has_checkpoint(own):
        files, origin = read_model_files(own), str(output_dir)
    else:
        weights = read_weights(path)
        files = ModelFiles(weights.config, weights.vocabulary, weights.extra_ids)
        origin = weights.origin
    model = _model(run.model, files.config, given, origin)
    vocabulary = _vocabulary(run, files, given, origin)
    # A name of the hub stays one where the run goes on in another folder.
    train = dataclasses.replace(run.train, init_from=full_name(path))
    return dataclasses.replace(run, model=model, vocabulary=vocabulary, train=train)


def _model(own: T5Config, checkpoint: T5Config, given: Collection[str], origin: str) -> T5Config:
    """The run's model with the checkpoint's shape."""
    checkpoint = _with_dropout(checkpoint, own, "T5Config.gemma" in given)
    shape = {name: getattr(checkpoint, name) for name in SHAPE_FIELDS}
    lines = ""
    for name, there in shape.items():
        mine = getattr(own, name)
        # None stands for the vocabulary's size, which the checkpoint's rows take the place of.
        if name == "gemma" and mine is not None and there is not None:
            mine, there = t5gemma.of(own), t5gemma.of(checkpoint)
        if f"T5Config.{name}" in given and mine not in (None, there):
            lines += f"  T5Config.{name} is {mine!r}, in the checkpoint {there!r}\n"
    if lines:
        raise UsageError(
            f"the model that was given is not that of {origin}:\n{lines}"
            "Leave --model and these settings out: the checkpoint gives the model's shape."
        )
    return dataclasses.replace(own, **shape)


def _with_dropout(checkpoint: T5Config, own: T5Config, given: bool) -> T5Config:
    """The checkpoint's with the run's dropout of attention, where both are T5Gemma's."""
    if not given or None in (checkpoint.gemma, own.gemma):
        return checkpoint
    rate = t5gemma.of(own).attention_dropout
    gemma = dataclasses.replace(t5gemma.of(checkpoint), attention_dropout=rate)
    return dataclasses.replace(checkpoint, gemma=gemma.values)


def _vocabulary(
    run: config.Run, files: ModelFiles, given: Collection[str], origin: str
) -> config.Vocabulary:
    """The run's vocabulary, or the checkpoint's where the user gave none."""
    own = run.vocabulary
    if files.vocabulary is None:
        # A SeqIO task of the user's brings its own vocabulary.
        if own.path is None and run.task.mixture_or_task_name is None:
            raise UsageError(
                f"{origin} has no SentencePiece file beside it (spiece.model) and no tokenizer, so "
                f"its vocabulary is not known. Give it with --vocabulary FILE; T5's public one is "
                f"{T5_PUBLIC}, ByT5's is bytes."
            )
        if own.path is not None:
            vocabulary_size(resolve(own.path), own.extra_ids, files.config, origin)
        return own
    if own.path is not None:
        _check_same(resolve(own.path), files.vocabulary, origin)
    if "Vocabulary.extra_ids" in given and own.extra_ids != files.extra_ids:
        raise UsageError(
            f"Vocabulary.extra_ids is {own.extra_ids}, but {origin} has {files.extra_ids}. Leave "
            "the setting out: the checkpoint gives it."
        )
    vocabulary_size(files.vocabulary, files.extra_ids, files.config, origin)
    path = own.path if own.path is not None else str(files.vocabulary)
    return config.Vocabulary(path=path, extra_ids=files.extra_ids)


def _check_same(used: Path, checkpoint: Path, origin: str) -> None:
    if vocabulary_digest(used) != vocabulary_digest(checkpoint):
        raise UsageError(
            f"the vocabulary {used} is not that of {origin}, so its embeddings would stand for "
            f"other pieces. Leave --vocabulary and --store out, or make them from {checkpoint}."
        )


def start_from(run: config.Run, program: Program, store: TokenStore) -> TrainState:
    """The state at step 0 with the parameters of `Train.init_from`; what no checkpoint of T5 has
    (LoRA) is drawn.

    Each parameter goes onto the mesh as it is read, so the host holds one at a time.

    Raises:
      UsageError: no such checkpoint, another shape, or another vocabulary than the store's.
    """
    assert run.train.init_from is not None
    weights = read_weights(run.train.init_from)
    _model(run.model, weights.config, [f"T5Config.{n}" for n in SHAPE_FIELDS], weights.origin)
    if weights.vocabulary is not None:
        _check_same(store.vocabulary_path, weights.vocabulary, weights.origin)
    log.info("starts from %s", weights.origin)
    for note in weights.notes:
        log.info("  %s", note)
    places = flat(jax.tree.map(lambda x: x.sharding, program.abstract_state.params))
    there: dict[str, jax.Array] = {}
    for path, leaf in weights.leaves.items():
        read = leaf.read().__getitem__
        there[path] = jax.make_array_from_callback(leaf.shape, places[path], read)
    return program.complete(run.train.seed, there)


def _has_checkpoint(folder: Path) -> bool:
    checkpoints = folder / run_folder.CHECKPOINTS
    with storage.explained(folder):
        return checkpoints.is_dir() and any(p.name.isdigit() for p in checkpoints.iterdir())
