"""What is in a SentencePiece file: its pieces, and how it normalizes text."""

from pathlib import Path
from typing import Any

from dss_jax.core.errors import UsageError
from dss_jax.core.fields import first_twice
from dss_jax.core.lfs import refuse_pointer
from dss_jax.data.file_tokenizers import open_tokenizer
from dss_jax.data.vocabulary import is_tokenizer


def read_model(vocabulary: Path) -> Any:
    """The file's `ModelProto`; UsageError: it is not one."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2 as proto

    made: Any = proto
    try:
        return made.ModelProto.FromString(vocabulary.read_bytes())
    except (OSError, DecodeError) as error:
        refuse_pointer(vocabulary)
        raise UsageError(f"{vocabulary} cannot be read as a SentencePiece model.") from error


def token_names(vocabulary: Path, extra_ids: int, rows: int) -> list[str]:
    """A distinct name for each of the rows of an embedding: the piece, Hugging Face's name of an
    extra id, and for rows beyond the vocabulary `<unused_0>` and so on. (CTranslate2's converter
    calls those by names of extra ids, too, so that two ids have one name.) UsageError: a piece has
    such a name.
    """
    if is_tokenizer(vocabulary):
        names = open_tokenizer(vocabulary).names()
    else:
        names = [piece.piece for piece in read_model(vocabulary).pieces]
        names += [f"<extra_id_{i}>" for i in reversed(range(extra_ids))]
    names += [f"<unused_{i}>" for i in range(rows - len(names))]
    if (twice := first_twice(names)) is not None:
        raise UsageError(
            f"the vocabulary {vocabulary} has a piece {twice!r}, which is also the name of an "
            "extra id or of a row that it does not use: the two could not be told apart."
        )
    return names
