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

from dss_jax.core import storage, strict_json
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


def vocabulary_size(vocabulary: Path, extra_ids: int, config: T5Config, origin: str) -> int:
    """Ids of a checkpoint's vocabulary, extra ids included. Raises UsageError: the embedding has
    fewer rows, or its texts end otherwise.
    """
    from dss_jax.data.vocabulary import open_vocabulary

    opened = open_vocabulary(vocabulary, extra_ids)
    ids, end = opened.vocab_size, config.eos_token_id
    if opened.eos_id != end:
        raise UsageError(
            f"texts end with id {opened.eos_id} in the vocabulary {vocabulary}, and with {end} "
            f"(eos_token_id) in {origin}: it is another model's."
        )
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
        from dss_jax.data.vocabulary import files_of

        for name, file in files_of(files.vocabulary).items():
            write_whole(folder / name, file.read_bytes())
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
    vocabulary = vocabulary_of(folder, extra_ids)
    return ModelFiles(dataclasses.replace(T5Config(), **fields), vocabulary, extra_ids)


def vocabulary_of(folder: Path, extra_ids: int = 100) -> Path | None:
    """The vocabulary in a folder of a run or a model, a copy where that is remote; None: none."""
    file = folder / VOCABULARY
    if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        from dss_jax.data.tokenizer_files import at_hand, vocabulary_in

        return vocabulary_in(at_hand(folder), extra_ids)
    return storage.local_file(file) if file.is_file() else None
