"""The engine that CTranslate2 is, for folders of `dss convert --to ctranslate2`.

Neither JAX nor TensorFlow is imported. CTranslate2 takes tokens by their names.
"""

import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dss_jax.core import storage, sums
from dss_jax.core.errors import UsageError
from dss_jax.core.lfs import refuse_pointer
from dss_jax.core.machine import processors
from dss_jax.data.tokenizer import Tokenizer
from dss_jax.data.vocabulary import open_vocabulary
from dss_jax.interop.ct2_files import MODEL, TOKENS
from dss_jax.interop.model_files import T5_CONFIG, VOCABULARY, read_model_files
from dss_jax.student.student import GeneratedIds, Ids

AT_ONCE = 32
"""Inputs in a batch at most; CTranslate2 sorts them by length first."""

WORKERS = 4
"""Batches that are worked on side by side, where there are so many threads; more threads share the
products of one. Two batches on a core each take half the time of one on two cores, and a lone input
takes no longer (benchmarks/README.md, "Predictions"); how that is on many cores was not measured.
"""

NEGLIGIBLE = 1e-4
"""A label is not scored where it is surely less probable than this share of the best one. A
probability is then too low by less than this, times the labels that were left out.
"""

LOGITS_BYTES = 2**28
"""Most memory for the distributions of tokens: of 65 tokens for T5's vocabulary, of 8 for mT5's."""

MOST_BEAMS = 8
"""Likeliest texts that are looked at."""

PASSES = {"follow": 1, "search": 2}
"""Ways to learn of several labels at once -> what one costs for a row, in scores of a label."""


class CTranslate2Engine:
    """See `StudentEngine`."""

    name = "ctranslate2"

    def __init__(
        self, translator: Any, tokens: Sequence[str], eos_id: int = 1, origin: str = ""
    ) -> None:
        """`tokens`: the name of each id; `origin`: which student it is."""
        self._translator, self._tokens, self._eos = translator, tokens, eos_id
        self._workers = translator.num_translators
        self.origin = origin
        self._ids = {name: i for i, name in enumerate(tokens)}
        # Scores of labels that a way has saved, less what it has cost.
        self._saved = dict.fromkeys(PASSES, 0)

    def _batch_size(self, rows: int) -> int:
        return min(AT_ONCE, max(1, -(-rows // self._workers)))

    def _named(self, rows: Sequence[Ids]) -> list[list[str]]:
        return [[self._tokens[i] for i in ids] for ids in rows]

    def generate(self, inputs: Sequence[Ids], longest: int) -> list[GeneratedIds]:
        found = self._written(self._named(inputs), longest, beam_size=1)
        written = []
        for one in found:
            ids = [self._ids[name] for name in one.hypotheses[0]]
            ended = bool(ids) and ids[-1] == self._eos
            written.append(GeneratedIds(ids[:-1] if ended else ids, float(one.scores[0]), ended))
        return written

    def rank(self, inputs: Sequence[Ids], labels: Sequence[Sequence[Ids]]) -> list[np.ndarray]:
        """See `StudentEngine`; of a label that is surely less probable than `NEGLIGIBLE` times the
        best one, a bound from above that says so.
        """
        # CTranslate2 encodes an input in each call, and that takes longer than all labels. So what
        # the student writes by itself comes first: each step on its way tells of all labels that
        # begin so. Then the likeliest texts at once, and last the labels that are still open.
        named, rows = self._named(inputs), [LabelScores(row, self._eos) for row in labels]
        order = sorted(range(len(rows)), key=lambda n: -len(named[n]))
        self._in_batches("follow", order, named, rows)
        # Where a student writes no label, its likeliest texts are none either.
        several = [n for n in order if rows[n].known.any() and len(rows[n].open()) > 1]
        self._in_batches("search", several, named, rows)
        while asked := [(n, row.open()[0]) for n, row in enumerate(rows) if len(row.open())]:
            scored = self._translator.score_batch(
                [named[n] for n, _ in asked],
                # </s> is added to a target, and scored.
                self._named([rows[n].labels[label] for n, label in asked]),
                max_batch_size=self._batch_size(len(asked)),
                max_input_length=0,
            )
            for (n, label), one in zip(asked, scored, strict=True):
                rows[n].set(label, sum(one.log_probs), True)
        return [row.log_probs.astype(np.float32) for row in rows]

    def _in_batches(
        self,
        way: str,
        places: Sequence[int],
        named: Sequence[list[str]],
        rows: Sequence["LabelScores"],
    ) -> None:
        """Goes one of the ways of `PASSES` with the rows at some places, as long as it has paid: a
        student with which it does not pay loses about one batch by it, and no more ever.
        """
        go = {"follow": self._follow, "search": self._search}[way]
        for at in (places[i : i + AT_ONCE] for i in range(0, len(places), AT_ONCE)):
            if self._saved[way] <= -AT_ONCE:
                return
            before = sum(len(rows[n].open()) for n in at)
            go([named[n] for n in at], [rows[n] for n in at])
            left = sum(len(rows[n].open()) for n in at)
            self._saved[way] += before - left - PASSES[way] * len(at)

    def _written(self, inputs: Sequence[Sequence[str]], longest: int, **options: Any) -> Any:
        """What the student writes after inputs, its scores sums of log-probabilities."""
        return self._translator.translate_batch(
            inputs,
            max_batch_size=self._batch_size(len(inputs)),
            max_input_length=0,
            max_decoding_length=longest,
            # With its default, 1, the first token's distribution lacks </s>.
            min_decoding_length=0,
            # A score is then the sum, not the mean.
            length_penalty=0,
            return_scores=True,
            return_end_token=True,
            **options,
        )

    def _follow(self, inputs: Sequence[Sequence[str]], rows: Sequence["LabelScores"]) -> None:
        """Scores what one greedy text of each row tells of its labels, as long as it is one."""
        most = max(1, LOGITS_BYTES // (4 * AT_ONCE * len(self._tokens)))
        longest = min(most, 1 + max(row.longest for row in rows))
        texts: list[tuple[int, ...]] = [()] * len(rows)

        def left(step: Any) -> bool:
            texts[step.batch_id] += (step.token_id,)
            return not rows[step.batch_id].on(texts[step.batch_id])

        found = self._written(inputs, longest, beam_size=1, return_logits_vocab=True, callback=left)
        for row, one in zip(rows, found, strict=True):
            ids = [self._ids[name] for name in one.hypotheses[0]]
            row.follow(ids, map(np.asarray, one.logits[0]))

    def _search(self, inputs: Sequence[Sequence[str]], rows: Sequence["LabelScores"]) -> None:
        """Scores the labels that are among the likeliest texts of each row."""
        beams = min(MOST_BEAMS, 2 + max(len(row.open()) for row in rows))
        longest = 1 + max(row.longest for row in rows)
        found = self._written(inputs, longest, beam_size=beams, num_hypotheses=beams)
        for row, one in zip(rows, found, strict=True):
            for names, score in zip(one.hypotheses, one.scores, strict=True):
                *ids, last = [self._ids[name] for name in names]
                if last == self._eos and tuple(ids) in row.labels:
                    row.set(row.labels.index(tuple(ids)), score, True)


class LabelScores:
    """What is known of the log-probabilities of a row's labels.

    Attributes:
      labels: ids without `</s>`.
      log_probs: float64 [labels], with `</s>`; where they are not `known`, bounds from above.
    """

    def __init__(self, labels: Sequence[Ids], eos_id: int = 1) -> None:
        self._eos = eos_id
        self.labels = [tuple(label) for label in labels]
        self.log_probs, self.known = np.zeros(len(labels)), np.zeros(len(labels), bool)
        self.longest = max(map(len, self.labels))

    def set(self, label: int, log_prob: float, known: bool) -> None:
        self.log_probs[label], self.known[label] = log_prob, known

    def open(self) -> np.ndarray:
        """Labels that may not be left out, int, that of the highest bound first."""
        best = self.log_probs[self.known].max(initial=-np.inf)
        left = np.flatnonzero(~self.known & (self.log_probs >= best + np.log(NEGLIGIBLE)))
        return left[np.argsort(-self.log_probs[left], kind="stable")]

    def on(self, beginning: tuple[int, ...]) -> list[int]:
        """The labels that begin so."""
        return [n for n, label in enumerate(self.labels) if label[: len(beginning)] == beginning]

    def follow(self, ids: Ids, logits: Iterable[np.ndarray]) -> None:
        """Takes what the steps of one text tell: `logits`, float [V], of each token of `ids`. A
        label that goes another way is at most as probable as its first other token.
        """
        written = 0.0
        for step, logits_V in enumerate(logits):
            beginning = tuple(ids[:step])
            on = self.on(beginning)
            if not on:
                break
            highest = logits_V.max()
            total = highest + np.log(np.exp(logits_V - highest).sum(dtype=np.float64))
            for n in on:
                ended = len(self.labels[n]) == step
                token = self._eos if ended else self.labels[n][step]
                self.set(n, written + float(logits_V[token] - total), ended)
            written += float(logits_V[ids[step]] - total)


def open_engine(
    folder: Path, *, threads: int | None = None, checkpoint: str | None = None
) -> tuple[CTranslate2Engine, Tokenizer]:
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
    lacking = [name for name in (T5_CONFIG, TOKENS) if not (local / name).is_file()]
    if not lacking and read_model_files(local).vocabulary is None:
        lacking = [VOCABULARY]
    if lacking:
        raise UsageError(
            f"{folder} lacks {', '.join(lacking)}, so `dss convert --to ctranslate2` did not write "
            "it, and nothing is known of its probabilities. Convert the student with that."
        )
    files = read_model_files(local)
    threads = threads or processors()
    each = max(1, threads // WORKERS)
    try:
        tokens = json.loads((local / TOKENS).read_bytes())
        translator = ctranslate2.Translator(
            str(local), device="cpu", inter_threads=threads // each, intra_threads=each
        )
    except (RuntimeError, ValueError) as error:
        refuse_pointer(local / MODEL)
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
    vocabulary = open_vocabulary(files.vocabulary, files.extra_ids)
    used = sum(not name.startswith("<unused_") for name in tokens)
    if used != vocabulary.vocab_size:
        raise UsageError(
            f"{folder}: {VOCABULARY} has {vocabulary.vocab_size} ids, and {TOKENS} names {used}: "
            "one of them is another student's. Convert the student again."
        )
    if wrong := sums.damage(local):
        raise UsageError(f"{folder} is damaged: {wrong}. Convert the student again.")
    held = local / sums.FILE  # Of all its files.
    known = f" ({zlib.crc32(held.read_bytes()):08x})" if held.is_file() else ""
    return CTranslate2Engine(translator, tokens, vocabulary.eos_id, f"{folder}{known}"), vocabulary
