"""Vocabularies as SeqIO has them. Imports TensorFlow.

They are equal where their files are, wherever these lie: SeqIO's own compares paths, and refuses a
mixture of tasks whose vocabularies are byte for byte the same at two places.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

import seqio
import tensorflow as tf

from dss_jax.data.file_tokenizers import open_tokenizer
from dss_jax.data.vocabulary import BYTES, is_tokenizer, resolve, vocabulary_digest


def seqio_vocabulary(path: str | Path, extra_ids: int = 100) -> seqio.Vocabulary:
    """The vocabulary of a path, or of an address that `tf.io.gfile` opens when it is needed."""
    if "://" in str(path):
        return SentencePieceVocabulary(str(path), extra_ids=extra_ids)
    local = resolve(str(path)) if Path(path).exists() or str(path) == BYTES else Path(path)
    if is_tokenizer(local):
        return TokenizerVocabulary(local)
    return SentencePieceVocabulary(str(path), extra_ids=extra_ids)


class SentencePieceVocabulary(seqio.SentencePieceVocabulary):
    """`seqio.SentencePieceVocabulary`, compared by its file's content."""

    @cached_property
    def _content(self) -> bytes:
        return _digest(self.sentencepiece_model_file)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, seqio.SentencePieceVocabulary):
            return False
        if self.extra_ids != other.extra_ids:
            return False
        if self.sentencepiece_model_file == other.sentencepiece_model_file:
            return bool(super().__eq__(other))
        return self._content == _digest(other.sentencepiece_model_file)

    __hash__ = None  # type: ignore[assignment]


def _digest(file: str) -> bytes:
    with tf.io.gfile.GFile(file, "rb") as opened:
        return hashlib.sha256(opened.read()).digest()


class TokenizerVocabulary(seqio.Vocabulary):
    """A tokenizer of Hugging Face's; see `dss_jax.data.file_tokenizers`.

    Attributes:
      path: its folder.
      own: the tokenizer itself.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.own = path, open_tokenizer(path)
        super().__init__()

    extra_ids = property(attrgetter("own.extra_ids"))
    vocab_size = _base_vocab_size = property(attrgetter("own.vocab_size"))
    eos_id = property(attrgetter("own.eos_id"))
    unk_id = property(attrgetter("own.unk_id"))

    @property
    def pad_id(self) -> int:
        return self.own.pad_id or 0

    @property
    def bos_id(self) -> int | None:
        return next(iter(self.own.encode("")), None)

    def _encode(self, s: str) -> Sequence[int]:
        return self.own.encode(s)

    def _decode(self, ids: Iterable[int]) -> str:
        return self.own.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        """Of a text int32 [T], of texts [N] a ragged tensor [N, T]."""
        flat = tf.reshape(s, [-1])
        ids, lengths = tf.numpy_function(self._arrays, [flat], [tf.int32, tf.int64])
        if s.shape.rank == 0:
            return tf.ensure_shape(ids, [None])
        return tf.RaggedTensor.from_row_lengths(ids, lengths)

    def _arrays(self, texts: Any) -> Any:
        ids = self.own.arrays([text.decode("utf-8", errors="replace") for text in texts])
        return ids.values, ids.lengths()

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        def decoded(rows: Any) -> Any:
            return self.own.decode(rows.tolist()).encode()

        if ids.shape.rank == 1:
            return tf.ensure_shape(tf.numpy_function(decoded, [ids], tf.string), [])
        return tf.map_fn(self._decode_tf, ids, fn_output_signature=tf.string)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenizerVocabulary):
            return False
        return vocabulary_digest(self.path) == vocabulary_digest(other.path)

    __hash__ = None  # type: ignore[assignment]
