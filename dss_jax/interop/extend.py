"""Tokens added to a vocabulary, and rows of the embedding for them."""

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dss_jax.core.errors import UsageError
from dss_jax.core.paths import cache_folder, write_whole
from dss_jax.data.file_tokenizers import ByteTokenizer
from dss_jax.data.tokenizer import Tokenizer
from dss_jax.data.tokenizer_files import FAST, PIECES, SETTINGS, read
from dss_jax.data.vocabulary import files_of, is_tokenizer, open_vocabulary, vocabulary_digest
from dss_jax.interop import hf_config
from dss_jax.interop.pieces import token_names
from dss_jax.interop.tokenizer_json import added_token, tokenizer_json
from dss_jax.interop.vocabularies import vocabulary_size
from dss_jax.interop.weights import Leaf, Weights

log = logging.getLogger(__name__)

EMBEDDINGS = ("token_embedder/embedding", "encoder_embedder/embedding")
"""Of every model, and of those whose encoder has its own."""
HEAD = "decoder/logits_dense/kernel"


def extended(weights: Weights, tokens: Sequence[str]) -> Weights:
    """The checkpoint with tokens that its vocabulary has not; tokens that it has are passed over,
    which is said. A token's rows, of the embedding and of a head of its own, are the mean of those
    of the pieces that it was written with before. Rows that no token has, and tokens that had no
    piece, get the mean of all, which is never the most probable.

    Raises:
      UsageError: no vocabulary, another model's, one that takes no tokens, or no new token.
    """
    path = weights.vocabulary
    if path is None:
        raise UsageError(f"{weights.origin} has no vocabulary beside it. Give --vocabulary FILE.")
    first = vocabulary_size(path, weights.extra_ids, weights.config, weights.origin)
    old = open_vocabulary(path, weights.extra_ids)
    if isinstance(old, ByteTokenizer):
        raise UsageError(f"{weights.origin} has the vocabulary of bytes, which lacks no text.")
    known = {*token_names(path, weights.extra_ids, 0)}
    new = [token for token in dict.fromkeys(tokens) if token not in known]
    if passed := [token for token in tokens if token in known]:
        log.info("the vocabulary has %s already", ", ".join(map(repr, passed)))
    if wrong := [token for token in new if not token.strip() or token != token.strip()]:
        raise UsageError(f"{wrong[0]!r} begins or ends with white space, so it is no token.")
    if not new:
        raise UsageError("no token is new to the vocabulary: there is nothing to add.")
    assert weights.config.vocab_size is not None
    rows = weights.config.vocab_size
    if first + len(new) > rows:
        rows = -(-(first + len(new)) // 128) * 128
    replaced = [_replaced(old, token) for token in new]

    def widened(table: np.ndarray) -> np.ndarray:
        """Of rows as the old vocabulary has them, [V, E]."""
        whole = np.broadcast_to(table[:first].mean(axis=0), (rows, table.shape[1])).copy()
        whole[:first] = table[:first]
        for row, ids in enumerate(replaced, first):
            if ids:  # Normalizers take some characters away: a zero-width space for one.
                whole[row] = table[ids].mean(axis=0)
        return whole

    return replace(
        weights,
        config=replace(weights.config, vocab_size=rows),
        leaves={**weights.leaves, **_leaves(weights, rows, widened)},
        vocabulary=_folder(path, weights.extra_ids, first, new),
    )


def _leaves(
    weights: Weights, rows: int, widened: Callable[[np.ndarray], np.ndarray]
) -> dict[str, Leaf]:
    def more_rows(leaf: Leaf) -> Leaf:
        return Leaf((rows, leaf.shape[1]), lambda: widened(leaf.read()))

    found = {n: more_rows(leaf) for n, leaf in weights.leaves.items() if n in EMBEDDINGS}
    if (head := weights.leaves.get(HEAD)) is not None:
        found[HEAD] = Leaf((head.shape[0], rows), lambda: widened(head.read().T).T)
    return found


def _replaced(old: Tokenizer, token: str) -> list[int]:
    """The pieces of a token, without what is written before each text, or for the space there."""
    ids = old.encode(token)[len(old.encode("")) :]
    return ids[1:] if len(ids) > 1 and not old.decode(ids[:1]).strip() else ids


def _folder(path: Path, extra_ids: int, first: int, new: Sequence[str]) -> Path:
    """The vocabulary with the new tokens: a tokenizer's folder in the cache."""
    import tokenizers

    content = {n: f.read_bytes() for n, f in files_of(path).items() if n != PIECES}
    if is_tokenizer(path):
        spec = read(files_of(path)[FAST])
    else:
        made = tokenizer_json(path, extra_ids)
        if made is None:
            raise UsageError(
                f"{path} is no SentencePiece model of T5's kind (unigrams), so no tokenizer.json "
                "can be made of it. Save it with transformers, and give that folder."
            )
        # Else each piece of text between new tokens would get a space before it.
        for name in ("pre_tokenizer", "decoder"):
            made[name]["prepend_scheme"] = "first"
        names, spec = token_names(path, extra_ids, 0), made
        settings = hf_config.tokenizer_config_json(names, extra_ids, fast=True)
        content[SETTINGS] = json.dumps(settings, indent=2, ensure_ascii=False).encode()
    backend: Any = tokenizers.Tokenizer.from_str(json.dumps(spec))
    for number, token in enumerate(new, first):
        same = backend.normalizer is None or backend.normalizer.normalize_str(token) == token
        spec["added_tokens"].append(added_token(number, token, {"normalized": same}, special=False))
    content[FAST] = json.dumps(spec, ensure_ascii=False).encode()
    made_of = tokenizers.Tokenizer.from_str(content[FAST].decode())
    for number, token in enumerate(new, first):
        if (there := made_of.token_to_id(token)) != number:
            raise UsageError(
                f"{token!r} would have the id {there}, not {number}: {path} leaves ids out, and "
                "the tokenizers library gives a new token the number of those that there are."
            )
    with tempfile.TemporaryDirectory(prefix="dss-") as temporary:
        for name, value in content.items():
            (Path(temporary) / name).write_bytes(value)
        target = cache_folder() / "vocabularies" / vocabulary_digest(Path(temporary))[:16]
    for name, value in content.items():
        if not (target / name).is_file():
            write_whole(target / name, value)
    return target
