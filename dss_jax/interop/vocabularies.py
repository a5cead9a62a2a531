"""The vocabulary beside a checkpoint: where it is, and whether it is the checkpoint's."""

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING

from dss_jax.core import storage
from dss_jax.core.config import T5Config
from dss_jax.core.errors import UsageError
from dss_jax.data.tokenizer_files import (
    FAST,
    NAMES,
    PIECES,
    SETTINGS,
    added_tokens,
    at_hand,
    read,
    settings_of,
    token_text,
    vocabulary_in,
)
from dss_jax.data.vocabulary import (
    files_of,
    is_tokenizer,
    open_vocabulary,
    resolve,
    vocabulary_digest,
)

if TYPE_CHECKING:
    from dss_jax.interop.weights import Weights

SENTINEL = re.compile(r"<extra_id_\d+>")


def vocabulary_of(folder: Path, extra_ids: int = 100, digest: str | None = None) -> Path | None:
    """The vocabulary in a folder of a run or a model, a copy where that is remote; None: none.
    UsageError: it has another `vocabulary_digest` than `digest`.
    """
    found, file = None, folder / PIECES
    if any((folder / name).is_file() for name in (FAST, SETTINGS)):
        found = vocabulary_in(at_hand(folder), extra_ids)
    elif file.is_file():
        found = storage.local_file(file)
    # SentencePiece reads a flipped bit as another score, and cuts words elsewhere.
    if found and digest and vocabulary_digest(found) != digest:
        raise UsageError(
            f"the vocabulary {found} is not the one that {folder} was written with (its digest is "
            "another). Copy it again, or put the vocabulary of training in its place."
        )
    return found


def added_to(vocabulary: Path | None, extra_ids: int) -> list[str]:
    """Tokens that somebody has added to a vocabulary."""
    if vocabulary is None or not is_tokenizer(vocabulary):
        return []
    files = files_of(vocabulary)
    settings = settings_of(files)
    roles = (settings[role] for role in settings if role.endswith("_token"))
    own = {*NAMES.values(), *map(token_text, roles)}
    model = read(files[FAST])["model"]["vocab"] if FAST in files else ()
    # Of its own are special ones that the model has too, RoBERTa's <mask> for one.
    own |= {
        token_text(token)
        for token in added_tokens(files).values()
        if token.get("special") and token_text(token) in model
    }
    found = [token_text(token) for _, token in sorted(added_tokens(files).items())]
    return [text for text in found if text not in own and not SENTINEL.fullmatch(text)]


def with_vocabulary(weights: "Weights", name: str | None) -> "Weights":
    """The checkpoint with the vocabulary of that name, or as it is. UsageError: it has another."""
    if name is None:
        return weights
    given, own = resolve(name), weights.vocabulary
    if own and vocabulary_digest(given) != vocabulary_digest(own):
        raise UsageError(
            f"{weights.origin} has a vocabulary, {own}, and {given} is another. Leave --vocabulary "
            "out."
        )
    return dataclasses.replace(weights, vocabulary=given)


def vocabulary_size(vocabulary: Path, extra_ids: int, config: T5Config, origin: str) -> int:
    """Ids of a checkpoint's vocabulary, extra ids included. Raises UsageError: the embedding has
    fewer rows, or its texts end otherwise.
    """
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
