"""The tokens of many examples at once, as the SeqIO tasks of `seqio_tasks` give them one by one.

SeqIO says what the tokens are; here they come several times as fast, because its tokeniser is given
many texts in one call. `dss_jax.data.seqio_prepare` compares a sample with SeqIO's own pipeline.
"""

import time
from collections.abc import Callable, Sequence

from dss_jax.core.ids import EOS_ID
from dss_jax.core.prefixes import prefixes
from dss_jax.core.types import Example
from dss_jax.data.vocabulary import SEPARATOR

Encode = Callable[[Sequence[str]], list[list[int]]]
"""Texts -> ids of each, without end-of-sequence."""

PART = 16_384
"""Texts between two looks at the clock."""

PROGRESS_SECONDS = 2.0

TARGETS = {
    "label_targets": "label",
    "teacher_label_targets": "teacher_label",
    "rationale_targets": "rationale",
}
"""Token column -> the field of `Example` that it is made from."""


class _Progress:
    """Says how many texts are done, every few seconds."""

    def __init__(self, split: str, total: int, say: Callable[[str], None]) -> None:
        self._split, self._total, self._say = split, total, say
        self._done, self._said = 0, time.monotonic()

    def add(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._said > PROGRESS_SECONDS:
            self._said = time.monotonic()
            self._say(f"  {self._split}: {self._done:,} of {self._total:,} texts")


def _encode(texts: Sequence[str], encode: Encode, progress: _Progress) -> list[list[int]]:
    ids: list[list[int]] = []
    for start in range(0, len(texts), PART):
        ids += encode(texts[start : start + PART])
        progress.add(len(texts[start : start + PART]))
    return ids


def token_columns(
    examples: Sequence[Example],
    encode: Encode,
    style: str,
    *,
    split: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, list[list[int]]]:
    """All token columns of a split.

    Args:
      examples: its rows.
      encode: gives SeqIO's ids of many texts.
      style: of the prefixes, "paper" or "released_code".
      split: its name, for `say`.
      say: told how far it is, every few seconds.

    Returns:
      Column -> ids of each row, end-of-sequence included; [] for a target that is empty.
    """
    progress = _Progress(split, 5 * len(examples), say)
    columns: dict[str, list[list[int]]] = {}
    for column, prefix in prefixes(style).of_columns.items():
        texts = [prefix + example.input for example in examples]
        parts = [text.split(SEPARATOR) for text in texts]
        flat = _encode([p for row in parts for p in row], encode, progress)
        joined, at = [], 0
        for row in parts:
            ids: list[int] = []
            for one in flat[at : at + len(row)]:
                ids += one
                ids.append(EOS_ID)
            at += len(row)
            joined.append(ids)
        columns[column] = joined
    for column, field in TARGETS.items():
        texts = [getattr(example, field) for example in examples]
        # Labels are few: each is encoded once.
        known = list(dict.fromkeys(texts))
        encoded = _encode(known, encode, progress)
        ids_of = {
            text: [*ids, EOS_ID] if text else [] for text, ids in zip(known, encoded, strict=True)
        }
        columns[column] = [ids_of[text] for text in texts]
    return columns
