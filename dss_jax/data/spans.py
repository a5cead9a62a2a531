"""Span corruption: T5's pre-training task on pieces of text. NumPy only.

Raffel et al. 2020 (arXiv 1910.10683), section 3.3, with the arithmetic of T5's own code
(`t5.data.preprocessors.span_corruption`): spans of a piece are masked and replaced by one sentinel
each, and the targets are the sentinels followed by what was masked.

    Thank you <X> me to your party <Y> week.      <X> for inviting <Y> last

Shape letters: C pieces, L tokens of a piece, S masked spans of a piece, N items of a batch.
"""

import gzip
import lzma
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from dss_jax.core import config, storage, strict_json
from dss_jax.core.errors import UsageError
from dss_jax.core.ids import EOS_ID, LABEL
from dss_jax.core.prefixes import prefixes
from dss_jax.core.texts import is_utf8
from dss_jax.data.columns import Examples, permutation
from dss_jax.data.store import TokenStore

NOISE = 2
"""Word of Philox's counter that keeps these draws apart from those of other purposes."""

ORDER = 1910
"""Key of the order of the documents, the same for every run."""

PART = 65_536
"""Documents tokenised at once."""


class SpanCounts(NamedTuple):
    """How a piece is masked: the same numbers for each piece of a length."""

    length: int
    noise: int
    spans: int

    @property
    def input_length(self) -> int:
        """Of the corrupted input, EOS included."""
        return self.length - self.noise + self.spans + 1

    @property
    def target_length(self) -> int:
        """EOS included."""
        return self.noise + self.spans + 1


def span_counts(length: int, cfg: config.Pretrain) -> SpanCounts:
    """Of a piece of `length` tokens, at least 2; rounded as T5 does."""
    noise = min(max(round(length * cfg.noise_density), 1), length - 1)
    spans = max(round(noise / cfg.mean_span_length), 1)
    return SpanCounts(length, noise, min(spans, length - noise))


def longest_piece(data: config.Data, cfg: config.Pretrain, sentinels: int) -> SpanCounts:
    """The longest piece whose input and target fit `Data.input_length` and `target_length`;
    UsageError: not even two tokens do, or it needs more sentinels than there are.
    """
    fitting = None
    for length in range(2, 2 * data.input_length):
        counts = span_counts(length, cfg)
        if counts.input_length > data.input_length or counts.target_length > data.target_length:
            break
        fitting = counts
    if fitting is None:
        raise UsageError(
            f"Data.input_length ({data.input_length}) and Data.target_length "
            f"({data.target_length}) are too short for span corruption. Give at least 16 of each."
        )
    if fitting.spans > sentinels:
        raise UsageError(
            f"pieces of {fitting.length} tokens have {fitting.spans} masked spans, but the "
            f"vocabulary has {sentinels} extra ids for them. Give a smaller Data.input_length, or "
            "a vocabulary with more (--gin.Vocabulary.extra_ids=100, as T5 has)."
        )
    return fitting


def _segments(items: int, segments: int, words: np.ndarray) -> np.ndarray:
    """Cuts `items` into non-empty segments, each cut equally likely: int [segments]."""
    cuts = np.sort(np.argsort(words[: items - 1], kind="stable")[: segments - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [items]]))


def corrupt(
    piece: np.ndarray,
    counts: SpanCounts,
    sentinels: Sequence[int] | np.ndarray,
    words: np.ndarray,
    eos_id: int = EOS_ID,
) -> tuple[np.ndarray, np.ndarray]:
    """Masks spans of a piece.

    Args:
      piece: int [L].
      sentinels: ids of `<extra_id_0>` and the next ones.
      words: uint64 [L], random.

    Returns:
      Input and target, int32 of `counts.input_length` and `target_length`; EOS at their ends.
    """
    kept = counts.length - counts.noise
    # A piece begins with a kept span and ends with a masked one, as in T5's code.
    kept_lengths = _segments(kept, counts.spans, words)
    masked_lengths = _segments(counts.noise, counts.spans, words[kept:])
    lengths = np.stack([kept_lengths, masked_lengths], axis=1).ravel()
    masked = np.repeat(np.arange(2 * counts.spans) % 2, lengths).astype(bool)
    sentinels = np.asarray(sentinels[: counts.spans])
    # A sentinel goes where a masked span begins, in the input; where a kept one begins, in the
    # target.
    inputs = np.insert(piece[~masked], np.cumsum(kept_lengths), sentinels)
    targets = np.insert(piece[masked], np.cumsum(masked_lengths) - masked_lengths, sentinels)
    return np.append(inputs, eos_id).astype(np.int32), np.append(targets, eos_id).astype(np.int32)


@dataclass(frozen=True)
class Pieces:
    """The text of the split `name` as pieces of equal length, in place of a store's split."""

    name: str
    tokens: np.ndarray  # int32 [C, L].
    counts: SpanCounts  # How each is masked.
    sentinels: Sequence[int]  # Ids of `<extra_id_0>` and the next ones.
    eos_id: int = EOS_ID

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def own(self) -> int:
        """As of a split: all."""
        return len(self)


class SpanExamples(Examples):
    """Pieces with other spans masked each epoch: item = piece + C * epoch."""

    def __init__(self, pieces: Pieces, data: config.Data) -> None:
        """Of `data` only the seed is used: pieces fit its lengths already."""
        self.roles, self.count = (LABEL,), len(pieces)
        self._pieces, self._seed = pieces, data.seed
        # A batch asks for its targets and for its inputs.
        self._made = lru_cache(maxsize=1)(lambda items: [*map(self._corrupted, items)])

    def usable(self, rows: np.ndarray) -> np.ndarray:
        """All of them."""
        return rows

    def items(self, rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """Each piece in this epoch's form."""
        del seed
        return rows + self.count * epoch

    def lengths(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All pieces have the same."""
        there = (np.asarray(items) >= 0).astype(np.int32)[None]
        counts = self._pieces.counts
        return there * counts.input_length, there * counts.target_length

    def longest(self, roles: slice = slice(None)) -> tuple[int, int]:
        """Of every piece."""
        del roles  # There is one.
        return self._pieces.counts.input_length, self._pieces.counts.target_length

    def _side(self, side: int, items: np.ndarray) -> np.ndarray:
        made = self._made(tuple(int(item) for item in items if item >= 0))
        return np.concatenate([np.zeros(0, np.int32), *(both[side] for both in made)])

    def _corrupted(self, item: int) -> tuple[np.ndarray, np.ndarray]:
        epoch, piece = divmod(item, self.count)
        key, of = np.array([self._seed, epoch], np.uint64), self._pieces
        draws = np.random.Philox(key=key, counter=[0, piece, 0, NOISE])
        words = draws.random_raw(of.counts.length)
        return corrupt(of.tokens[piece], of.counts, of.sentinels, words, of.eos_id)


def _lines(path: Path) -> Iterator[str]:
    openers: dict[str, Callable[..., IO[str]]] = {".gz": gzip.open, ".xz": lzma.open}
    kind = path.with_suffix("").suffix if path.suffix in openers else path.suffix
    opened = openers.get(path.suffix, open)
    with opened(path, "rt", encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            text, where = line.strip(), f"{path}:{number}"
            if not is_utf8(line):
                raise UsageError(f"{where}: not UTF-8 text.")
            if text and kind == ".jsonl":
                try:
                    value = strict_json.loads(text)
                except ValueError as error:
                    raise UsageError(f"{where}: not JSON ({error}).") from error
                text = value.get("text") if isinstance(value, dict) else value
                if not isinstance(text, str):
                    such = 'a JSON string, or an object with a string "text"'
                    raise UsageError(f"{where}: must be {such}.")
            if text := text.strip():
                yield text


def pieces_of(store: TokenStore, split_name: str, run: config.Run) -> Pieces:
    """The text of a split as pieces; for "train" that of `Pretrain.text_files` too.

    Its documents come in an order of their own, so that a rationale does not follow its input:
    span corruption would learn the one from the other, which is what the methods are compared by.
    The end of the text that fills no piece is left out.

    Raises:
      UsageError: a file is missing or ill-formed, there is less text than one piece, or the
        vocabulary has too few extra ids.
    """
    vocabulary = store.vocabulary
    counts = longest_piece(run.data, run.pretrain, len(vocabulary.sentinels))
    split, style = store.split(split_name), store.manifest.get("prefixes")
    # Inputs without their prefix, and rationales; no end-of-sequence, and not what a tokenizer puts
    # before each text.
    begin = len(vocabulary.encode(""))
    prefix = len(split.encode(prefixes(style).label)) if style else begin
    columns = [(split.tokens("label_inputs"), prefix)]
    if split.has("rationale_targets"):
        columns.append((split.tokens("rationale_targets"), begin))
    rows = range(len(split))
    found = [c[row][start:-1] for row in rows for c, start in columns if len(c[row])]
    for name in run.pretrain.text_files if split_name == "train" else ():
        path = storage.local_file(name)
        if not path.is_file():
            raise UsageError(f"Pretrain.text_files: there is no file {name!r}.")
        texts = _lines(path)
        while part := [*islice(texts, PART)]:
            found += (np.array(ids[begin:], np.int32) for ids in vocabulary.encode_all(part))
    order = permutation(len(found), ORDER)
    tokens = np.concatenate([np.zeros(0, np.int32), *(found[i] for i in order)]).astype(np.int32)
    if len(tokens) < counts.length:
        raise UsageError(
            f"the {split_name} split has {len(tokens)} tokens of text, less than a piece of "
            f"{counts.length}. Give more with --gin.Pretrain.text_files, or a smaller "
            "Data.input_length."
        )
    pieces = tokens[: len(tokens) // counts.length * counts.length].reshape(-1, counts.length)
    return Pieces(split_name, pieces, counts, vocabulary.sentinels, vocabulary.eos_id)
