"""The tokens of a store: SeqIO's own tokeniser on many texts at once. Imports TensorFlow.

The one way to tokenise for a store. Of a SentencePiece file no other library may do it:
SentencePiece's own, and so `seqio.Vocabulary.encode`, splits a text like "sooooooo" in another way
of the same score than the operation `encode_tf` that SeqIO's pipelines run.
tests/test_seqio_tokens.py holds the columns to what the tasks of `seqio_tasks` give row by row.
"""

import functools
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import seqio
import tensorflow as tf

from dss_jax.core.machine import processors
from dss_jax.core.prefixes import prefixes
from dss_jax.core.texts import utf8
from dss_jax.core.types import Example
from dss_jax.data.beside import side_by_side
from dss_jax.data.file_tokenizers import behind_each, open_tokenizer
from dss_jax.data.ragged import Ragged
from dss_jax.data.store import SAMPLES, TARGETS, TOKEN_COLUMNS
from dss_jax.data.tokenizer import SEPARATOR

Content = bytes | tuple[tuple[str, bytes], ...]
"""Of a SentencePiece file, or of a tokenizer's files with their names."""


class Encode(NamedTuple):
    """A tokeniser.

    Attributes:
      encode: texts -> ids of each, int32, without end-of-sequence.
      behind: prefixes, texts -> for each prefix the ids of each text behind it.
      parts: what of an input is encoded by itself.
      eos_id: of end-of-sequence.
    """

    encode: Callable[[Sequence[str]], Ragged]
    behind: Callable[[Sequence[str], Sequence[str]], Sequence[Ragged]]
    parts: Callable[[str], list[str]]
    eos_id: int

    def __call__(self, texts: Sequence[str]) -> Ragged:
        return self.encode(texts)


CHUNK = 512
"""Texts in one call of the tokeniser."""


@functools.cache
def encoder(vocabulary: Content, extra_ids: int) -> Encode:
    """The tokeniser of a vocabulary, with its threads; kept for the life of the process."""
    if isinstance(vocabulary, tuple):
        return _of_tokenizer(vocabulary)
    with tempfile.NamedTemporaryFile(suffix=".model") as file:
        file.write(vocabulary)
        file.flush()
        model = seqio.SentencePieceVocabulary(file.name, extra_ids=extra_ids)
        model.load_model()  # After that the file is not needed.
    pool = ThreadPoolExecutor(processors(), thread_name_prefix="encode")

    def chunk(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        ids = model.encode_tf(tf.constant([*map(utf8, texts)], tf.string))
        return ids.values.numpy(), np.diff(ids.row_splits.numpy())

    def encode(texts: Sequence[str]) -> Ragged:
        # One chunk at least, so that there are arrays to join where there is no text.
        starts = range(0, max(1, len(texts)), CHUNK)
        chunks = pool.map(chunk, [texts[start : start + CHUNK] for start in starts])
        values, lengths = (np.concatenate(arrays) for arrays in zip(*chunks, strict=True))
        return Ragged(values, np.cumsum([0, *lengths]))

    behind = functools.partial(behind_each, encode)
    return Encode(encode, behind, lambda text: text.split(SEPARATOR), model.eos_id)


def _of_tokenizer(files: Sequence[tuple[str, bytes]]) -> Encode:
    # It has its own threads, and what it is asked by SeqIO's pipelines is the same function.
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files:
            (Path(folder) / name).write_bytes(content)
        own = open_tokenizer(Path(folder))
    return Encode(own.arrays, own.behind, own.parts, own.eos_id)


def token_columns(examples: Sequence[Example], encode: Encode, style: str) -> dict[str, Ragged]:
    """All token columns of some rows of a task file: ids of each row, int32, end-of-sequence
    included; none for a target that is empty, and in `SAMPLES` for a row that has not several
    rationales.
    """
    of_columns = prefixes(style).of_columns
    inputs = [*map(attrgetter("input"), examples)]
    behind, rest = functools.partial(encode.behind, [*of_columns.values()]), None
    if any(SEPARATOR in text for text in inputs):
        parts = map(encode.parts, inputs)
        inputs, counts, others = [], list[int](), list[str]()
        for first, *behind_it in parts:
            inputs.append(first)
            others += behind_it
            counts.append(len(behind_it))
        rest = _ended(others, counts, encode)
    # Whole inputs hardly come again, and to look them up takes time.
    found = behind(inputs) if rest is None else _each_once(inputs, behind)
    of_inputs = dict(zip(of_columns, found, strict=True))

    def column(name: str) -> Ragged:
        if name == SAMPLES:
            return _of_rows(map(attrgetter("rationales"), examples), encode)
        if name not in of_inputs:
            targets = [*map(attrgetter(TARGETS[name]), examples)]
            return _ended([*filter(None, targets)], [*map(bool, targets)], encode)
        firsts = _with_end(of_inputs.pop(name), encode.eos_id)
        return firsts if rest is None else side_by_side([firsts, rest])

    return {name: column(name) for name in (*TOKEN_COLUMNS, SAMPLES)}


def _of_rows(rows: Iterable[Sequence[str]], encode: Encode) -> Ragged:
    """The texts of each row as ids, one after another, each ended by end-of-sequence."""
    texts, counts = list[str](), list[int]()
    # No list of lists: Python's garbage collector would look through all rows again and again.
    for row in rows:
        texts += row
        counts.append(len(row))
    return _ended(texts, counts, encode)


def _ended(texts: list[str], counts: list[int] | list[bool], encode: Encode) -> Ragged:
    """As `_of_rows`, of the texts of all rows and how many each has."""
    (ended,) = _each_once(texts, lambda own: [_with_end(encode(own), encode.eos_id)])
    return Ragged(ended.values, ended.offsets[np.cumsum([0, *counts])])


def _each_once(
    texts: Sequence[str], columns: Callable[[Sequence[str]], Sequence[Ragged]]
) -> Sequence[Ragged]:
    """`columns` of texts; where texts come again, as labels and premises do, of each once."""
    numbers = dict[str, int]()
    at = np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int64)
    if len(numbers) > 0.9 * len(texts):
        return columns(texts)
    return [side_by_side([found.take(at)]) for found in columns([*numbers])]


def _with_end(ids: Ragged, eos_id: int) -> Ragged:
    offsets = ids.offsets + np.arange(len(ids.offsets))
    return Ragged(np.insert(ids.values, ids.ends, eos_id), offsets)
