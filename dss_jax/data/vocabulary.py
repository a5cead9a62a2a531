"""The SentencePiece vocabulary without TensorFlow: finding the file, encoding, decoding.

`sentencepiece` is imported when a model is opened, so that finding one costs nothing.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from dss_jax.core import storage
from dss_jax.core.errors import UsageError
from dss_jax.core.ids import EOS_ID, GCS, PAD_ID, T5_PUBLIC, UNK_ID
from dss_jax.core.paths import cache_folder, write_whole
from dss_jax.core.texts import well_formed
from dss_jax.core.types import DistillationTask

SEPARATOR = "</s>"
"""In an input this text stands for the end-of-sequence id, as in Hugging Face's tokenizer."""


def wanted(path: str | None, task: DistillationTask | None) -> str:
    """Path or address of the vocabulary: the argument, the task's own, DSS_VOCABULARY, T5's."""
    if path:
        return path
    if task is not None and task.default_vocabulary and task.file:
        return str(Path(task.file).parent / task.default_vocabulary)
    return os.environ.get("DSS_VOCABULARY") or T5_PUBLIC


def resolve(path: str | None, task: DistillationTask | None = None) -> Path:
    """A local file with the vocabulary that is `wanted`: a local path, or an address (`https://`,
    `s3://`, `gs://`, where a public bucket needs no extra), which is fetched into the cache.
    UsageError: no such file, or it cannot be fetched.
    """
    name = wanted(path, task)
    if name.startswith("s3://"):
        return storage.local_file(name)
    url = web_address(name)
    if not url.startswith(("https://", "http://")):
        file = Path(name).expanduser()
        if not file.is_file():
            raise UsageError(
                f"the vocabulary {name!r} does not exist. Give a SentencePiece .model file with "
                "--vocabulary FILE, or set DSS_VOCABULARY."
            )
        return file.resolve()
    file = cached(url)
    if not file.is_file():
        try:
            _fetch(url, name, file)
        except UsageError as error:
            # Over https:// only public buckets can be read. gcsfs would try for a minute to reach
            # one that did not answer.
            denied = getattr(error.__cause__, "code", None) in (401, 403, 404)
            if not (denied and name.startswith("gs://") and storage.has_extra(name)):
                raise
            return storage.local_file(name)
    return file


def web_address(name: str) -> str:
    """An address as `https://`, by which public buckets need no extra; a path as it is."""
    return name.replace("gs://", GCS, 1)


def cached(url: str) -> Path:
    """Where a vocabulary of an address is, once it was fetched."""
    stem = hashlib.sha256(url.encode()).hexdigest()[:12]
    return cache_folder() / "vocabularies" / f"{stem}-{Path(url).name}"


def _fetch(url: str, name: str, file: Path) -> None:
    from dss_jax.data.download import answer

    fix = "Give a local SentencePiece .model file with --vocabulary FILE, or set DSS_VOCABULARY."
    with answer(url, f"the vocabulary {name}", fix) as response:
        write_whole(file, response.read())


class SentencePiece:
    """Encodes and decodes exactly as `seqio.SentencePieceVocabulary(path, extra_ids)`."""

    def __init__(self, path: str | os.PathLike[str], extra_ids: int = 100) -> None:
        """Opens a `.model` file; the extra ids `<extra_id_...>` come with the highest number first.

        Raises:
          UsageError: not a SentencePiece model, or one whose padding, end-of-sequence and unknown
            ids are not 0, 1 and 2, which T5 needs.
        """
        self.path = Path(path)
        self.extra_ids = extra_ids
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

    @cached_property
    def vocab_size(self) -> int:
        """Pieces and extra ids together."""
        return int(self._processor.GetPieceSize())

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without end-of-sequence."""
        return list(self._processor.EncodeAsIds(well_formed(text)))

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts, on all cores."""
        return list(
            self._processor.Encode([*map(well_formed, texts)], out_type=int, num_threads=-1)
        )

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids up to the first end-of-sequence; ids out of range become unknown."""
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
