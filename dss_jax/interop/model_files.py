"""The two small files that say what model a folder of ours holds; read without JAX.

A run folder and a model folder have both:

t5_config.json   the model's shape, and the vocabulary's extra ids
spiece.model     the SentencePiece vocabulary, by Hugging Face's name for it
"""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

from dss_jax.core import storage, strict_json
from dss_jax.core.config import T5Config
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import write_whole
from dss_jax.core.t5_config import SHAPE_FIELDS, LATER
from dss_jax.data.vocabulary import SentencePiece

T5_CONFIG, VOCABULARY, README = "t5_config.json", "spiece.model", "README.md"

CHECKPOINTS = "checkpoints"
"""Folder of a run's checkpoints, in the run's folder."""


class ModelFiles(NamedTuple):
    """What the files say: of `config` its shape fields, the others are the defaults; where the
    SentencePiece file is, if there is one; how many sentinel ids are above its pieces.
    """

    config: T5Config
    vocabulary: Path | None
    extra_ids: int


def vocabulary_size(vocabulary: Path, extra_ids: int, config: T5Config, origin: str) -> int:
    """Ids of a checkpoint's vocabulary, extra ids included. Raises UsageError: the embedding has
    fewer rows.
    """
    ids = SentencePiece(vocabulary, extra_ids).vocab_size
    assert config.vocab_size is not None
    if ids > config.vocab_size:
        raise UsageError(
            f"the vocabulary {vocabulary} has {ids} ids ({extra_ids} of them extra ids), but the "
            f"embedding only {config.vocab_size} rows: it is not that of {origin}. Where a Hugging "
            "Face model has another number of extra ids than 100, its tokenizer_config.json must "
            "say so (extra_ids)."
        )
    return ids


def write_model_files(folder: Path, files: ModelFiles) -> None:
    """Writes both files; no vocabulary where there is none."""
    fields = {name: getattr(files.config, name) for name in SHAPE_FIELDS}
    text = json.dumps({**fields, "extra_ids": files.extra_ids}, indent=2)
    if files.vocabulary is not None:
        write_whole(folder / VOCABULARY, files.vocabulary.read_bytes())
    # Last: a folder that has it is taken for a whole one.
    write_whole(folder / T5_CONFIG, text + "\n")


def read_model_files(folder: Path) -> ModelFiles:
    """Reads them. Raises UsageError: `t5_config.json` is missing or is not of this form."""
    file = folder / T5_CONFIG
    try:
        fields = strict_json.loads(file.read_text())
        extra_ids = fields.pop("extra_ids")
        fields["mlp_activations"] = tuple(fields["mlp_activations"])
        if wrong := (fields.keys() ^ set(SHAPE_FIELDS)) - (set(LATER) - fields.keys()):
            raise KeyError(", ".join(sorted(wrong)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{file} cannot be read ({error}). It is written by `dss train` and `dss convert "
            f"--to orbax`, and has the fields {', '.join(SHAPE_FIELDS)} and extra_ids."
        ) from error
    file = folder / VOCABULARY
    vocabulary = storage.local_file(file) if file.is_file() else None
    return ModelFiles(dataclasses.replace(T5Config(), **fields), vocabulary, extra_ids)
