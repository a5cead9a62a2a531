"""SeqIO's own tokeniser on many texts at once, in threads. Imports TensorFlow.

It has to be the operation that SeqIO's pipelines run, `encode_tf`: SentencePiece's own library, and
so `seqio.Vocabulary.encode`, splits a text like "sooooooo" in another way of the same score.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import seqio
import tensorflow as tf

from dss_jax.data.tokens import Encode

CHUNK = 512
"""Texts in one call of the tokeniser."""


def processors() -> int:
    """How many processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@contextmanager
def encoder(vocabulary_path: str | Path, extra_ids: int) -> Iterator[Encode]:
    """Gives the ids of many texts, without end-of-sequence, while it is open.

    Args:
      vocabulary_path: the SentencePiece model.
      extra_ids: sentinel ids above the model's pieces.
    """
    vocabulary = seqio.SentencePieceVocabulary(str(vocabulary_path), extra_ids=extra_ids)

    def one_chunk(texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = vocabulary.encode_tf(tf.constant(texts, tf.string)).to_list()
        return ids

    one_chunk([""])  # Opens the model, once for all threads.
    with ThreadPoolExecutor(processors(), thread_name_prefix="encode") as pool:

        def encode(texts: Sequence[str]) -> list[list[int]]:
            chunks = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
            return [ids for chunk in pool.map(one_chunk, chunks) for ids in chunk]

        yield encode
