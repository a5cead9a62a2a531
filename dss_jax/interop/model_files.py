"""The two small files that say what model a folder of ours holds; read without JAX.

A run folder and a model folder have both:

t5_config.json   the model's shape, and the vocabulary's extra ids
spiece.model     the SentencePiece vocabulary, by Hugging Face's name for it; or the files of its
                 tokenizer, by Hugging Face's names for them
"""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

from dss_jax.core import strict_json
from dss_jax.core.config import T5Config
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import write_whole
from dss_jax.core.t5_config import LATER, SHAPE_FIELDS

T5_CONFIG, VOCABULARY, README = "t5_config.json", "spiece.model", "README.md"

CHECKPOINTS = "checkpoints"
"""Folder of a run's checkpoints, in the run's folder."""


class ModelFiles(NamedTuple):
    """What the files say: of `config` its shape fields, the others are the defaults; where the
    vocabulary is, if there is one; how many sentinel ids are above a SentencePiece file's pieces.
    """

    config: T5Config
    vocabulary: Path | None
    extra_ids: int


def write_model_files(folder: Path, files: ModelFiles) -> None:
    """Writes both files; no vocabulary where there is none."""
    fields = {name: getattr(files.config, name) for name in SHAPE_FIELDS}
    fields["extra_ids"] = files.extra_ids
    if files.vocabulary is not None:
        from dss_jax.data.vocabulary import files_of, vocabulary_digest

        for name, file in files_of(files.vocabulary).items():
            write_whole(folder / name, file.read_bytes())
        fields["vocabulary_sha256"] = vocabulary_digest(files.vocabulary)
    # Last: a folder that has it is taken for a whole one.
    write_whole(folder / T5_CONFIG, json.dumps(fields, indent=2) + "\n")


def read_model_files(folder: Path) -> ModelFiles:
    """Reads them. Raises UsageError: `t5_config.json` is missing or is not of this form, or the
    vocabulary is not the one that it was written beside.
    """
    config, extra_ids, digest = read_t5_config(folder)
    from dss_jax.interop.vocabularies import vocabulary_of

    return ModelFiles(config, vocabulary_of(folder, extra_ids, digest), extra_ids)


def read_t5_config(folder: Path) -> tuple[T5Config, int, str | None]:
    """`t5_config.json` alone: the shape, the vocabulary's extra ids and its digest, where known."""
    file = folder / T5_CONFIG
    try:
        fields = strict_json.loads(file.read_text())
        extra_ids, digest = fields.pop("extra_ids"), fields.pop("vocabulary_sha256", None)
        fields["mlp_activations"] = tuple(fields["mlp_activations"])
        if wrong := (fields.keys() ^ set(SHAPE_FIELDS)) - (LATER - fields.keys()):
            raise KeyError(", ".join(sorted(wrong)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{file} cannot be read ({error}). It is written by `dss train` and `dss convert "
            f"--to orbax`, and has the fields {', '.join(SHAPE_FIELDS)} and extra_ids."
        ) from error
    return dataclasses.replace(T5Config(), **fields), extra_ids, digest
