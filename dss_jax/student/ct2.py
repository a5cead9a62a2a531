"""The engine that CTranslate2 is, for folders of `dss convert --to ctranslate2`.

Neither JAX nor TensorFlow is imported. CTranslate2 takes tokens by their names.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dss_jax.core import storage, sums
from dss_jax.core.errors import UsageError
from dss_jax.core.ids import EOS_ID
from dss_jax.core.machine import processors
from dss_jax.data.vocabulary import SentencePiece
from dss_jax.interop.ct2_files import TOKENS
from dss_jax.interop.model_files import T5_CONFIG, VOCABULARY, read_model_files
from dss_jax.student.student import GeneratedIds, Ids

AT_ONCE = 32
"""Inputs in a batch; CTranslate2 sorts them by length first."""


class CTranslate2Engine:
    """See `StudentEngine`."""

    name = "ctranslate2"

    def __init__(self, translator: Any, tokens: Sequence[str]) -> None:
        """`tokens`: the name of each id."""
        self._translator, self._tokens = translator, tokens
        self._ids = {name: i for i, name in enumerate(tokens)}

    def _named(self, rows: Sequence[Ids]) -> list[list[str]]:
        return [[self._tokens[i] for i in ids] for ids in rows]

    def generate(self, inputs: Sequence[Ids], longest: int) -> list[GeneratedIds]:
        found = self._translator.translate_batch(
            self._named(inputs),
            max_batch_size=AT_ONCE,
            beam_size=1,
            max_input_length=0,
            max_decoding_length=longest,
            # With its default, 1, the first token's distribution lacks </s>.
            min_decoding_length=0,
            # A score is then the sum, not the mean.
            length_penalty=0,
            return_scores=True,
            return_end_token=True,
        )
        written = []
        for one in found:
            ids = [self._ids[name] for name in one.hypotheses[0]]
            ended = bool(ids) and ids[-1] == EOS_ID
            written.append(GeneratedIds(ids[:-1] if ended else ids, float(one.scores[0]), ended))
        return written

    def rank(self, inputs: Sequence[Ids], labels: Sequence[Sequence[Ids]]) -> list[np.ndarray]:
        # It encodes an input once for each of its labels: there is no call that keeps what it has
        # encoded.
        named = self._named(inputs)
        sources = [source for source, row in zip(named, labels, strict=True) for _ in row]
        targets = [target for row in labels for target in self._named(row)]
        # </s> is added to a target, and scored.
        scored = iter(
            self._translator.score_batch(
                sources, targets, max_batch_size=AT_ONCE, max_input_length=0
            )
        )
        return [np.array([sum(next(scored).log_probs) for _ in row], np.float32) for row in labels]


def open_engine(
    folder: Path, *, threads: int | None = None, checkpoint: str | None = None
) -> tuple[CTranslate2Engine, SentencePiece]:
    """The engine and the vocabulary of a folder that `dss convert` wrote, local or remote.

    Raises:
      UsageError: CTranslate2 is not installed, or the folder lacks a file, or one is damaged.
    """
    if checkpoint is not None:
        raise UsageError(f"{folder} holds one student, so there is no checkpoint to choose.")
    try:
        import ctranslate2
    except ImportError as error:
        raise UsageError(
            f"{folder} is in CTranslate2's form, and that is not installed: pip install "
            "'dss-jax[ctranslate2]'."
        ) from error
    local = storage.local_folder(folder)
    lacking = [name for name in (T5_CONFIG, VOCABULARY, TOKENS) if not (local / name).is_file()]
    if lacking:
        raise UsageError(
            f"{folder} lacks {', '.join(lacking)}, so `dss convert --to ctranslate2` did not write "
            "it, and nothing is known of its probabilities. Convert the student with that."
        )
    files = read_model_files(local)
    try:
        tokens = json.loads((local / TOKENS).read_bytes())
        translator = ctranslate2.Translator(
            str(local), device="cpu", intra_threads=threads or processors()
        )
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"{folder} cannot be read by CTranslate2 {ctranslate2.__version__}: {error}. Convert "
            "the student again."
        ) from error
    if len(set(tokens)) != files.config.vocab_size:
        raise UsageError(
            f"{folder}: {TOKENS} has {len(set(tokens))} different tokens for "
            f"{files.config.vocab_size} rows of the embedding. Convert the student again."
        )
    assert files.vocabulary is not None
    vocabulary = SentencePiece(files.vocabulary, files.extra_ids)
    used = sum(not name.startswith("<unused_") for name in tokens)
    if used != vocabulary.vocab_size:
        raise UsageError(
            f"{folder}: {VOCABULARY} has {vocabulary.vocab_size} ids, and {TOKENS} names {used}: "
            "one of them is another student's. Convert the student again."
        )
    if wrong := sums.damage(local):
        raise UsageError(f"{folder} is damaged: {wrong}. Convert the student again.")
    return CTranslate2Engine(translator, tokens), vocabulary
