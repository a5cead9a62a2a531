"""Texts <-> ids: what every vocabulary does, and SentencePiece. No TensorFlow.

`sentencepiece` is imported when a model is opened.
"""

import abc
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dss_jax.core.errors import UsageError
from dss_jax.core.ids import EOS_ID, PAD_ID, UNK_ID
from dss_jax.core.texts import well_formed

SEPARATOR = "</s>"
"""In an input this text stands for the end-of-sequence id, as in Hugging Face's tokenizer."""


class Tokenizer(abc.ABC):
    """Texts <-> ids. No text is refused, and no ids: bytes that are no UTF-8 are left out.

    Attributes:
      path: the SentencePiece file, or the tokenizer's folder.
      extra_ids: how many sentinels it has.
      pad_id, eos_id, unk_id: of padding, end-of-sequence and unknown pieces; None: it has none.
      sentinels: ids of `<extra_id_0>` and so on, for span corruption.
      vocab_size: one more than the highest id.
    """

    path: Path
    extra_ids: int
    pad_id: int | None = PAD_ID
    eos_id: int = EOS_ID
    unk_id: int | None = UNK_ID
    sentinels: Sequence[int]
    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without end-of-sequence."""
        return self.encode_all([text])[0]

    @abc.abstractmethod
    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts, on all cores."""

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids up to the first end-of-sequence."""

    def parts(self, text: str) -> list[str]:
        """What of an input is encoded by itself, and followed by end-of-sequence."""
        return text.split(SEPARATOR)


class SentencePiece(Tokenizer):
    """Encodes and decodes exactly as `seqio.SentencePieceVocabulary(path, extra_ids)`."""

    def __init__(self, path: str | os.PathLike[str], extra_ids: int = 100) -> None:
        """Opens a `.model` file; the extra ids `<extra_id_...>` come with the highest number first.

        Raises:
          UsageError: not a SentencePiece model, or one whose padding, end-of-sequence and unknown
            ids are not 0, 1 and 2, which T5 needs.
        """
        self.path, self.extra_ids = Path(path), extra_ids
        import sentencepiece

        self._processor: Any = sentencepiece.SentencePieceProcessor()
        try:
            model = self.path.read_bytes()
            self._processor.LoadFromSerializedProto(model + _extra_pieces(extra_ids))
        except (OSError, RuntimeError) as error:
            from dss_jax.core.lfs import refuse_pointer

            refuse_pointer(self.path)
            raise UsageError(f"{self.path} cannot be read as a SentencePiece model.") from error
        ids = (self._processor.pad_id(), self._processor.eos_id(), self._processor.unk_id())
        if ids != (PAD_ID, EOS_ID, UNK_ID):
            raise UsageError(
                f"{self.path}: padding, end-of-sequence and unknown have the ids {ids}; T5 needs "
                "(0, 1, 2). Train the model with --pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1."
            )
        self.vocab_size = int(self._processor.GetPieceSize())
        self.sentinels = range(self.vocab_size - 1, self.vocab_size - 1 - extra_ids, -1)

    def encode(self, text: str) -> list[int]:
        return list(self._processor.EncodeAsIds(well_formed(text)))

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        return list(
            self._processor.Encode([*map(well_formed, texts)], out_type=int, num_threads=-1)
        )

    def decode(self, ids: Iterable[int]) -> str:
        # Ids out of range become unknown.
        known = [int(i) if i < self.vocab_size else UNK_ID for i in ids]
        if EOS_ID in known:
            known = known[: known.index(EOS_ID) + 1]
        return str(self._processor.DecodeIds(known))


def _extra_pieces(extra_ids: int) -> bytes:
    """The extra ids as SeqIO appends them to a model, in protocol-buffer wire format.

    A serialised message followed by more entries of a repeated field is that message with the
    entries added (ModelProto.pieces is field 1), so no protobuf library is needed.
    """
    pieces = bytearray()
    for number in reversed(range(extra_ids)):
        name = f"▁<extra_id_{number}>".encode()
        # piece = 1 (text), score = 2 (float 0), type = 3 (USER_DEFINED = 4)
        entry = bytes([0x0A, len(name)]) + name + b"\x15\0\0\0\0" + b"\x18\x04"
        pieces += bytes([0x0A, len(entry)]) + entry
    return bytes(pieces)
