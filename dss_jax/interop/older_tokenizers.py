"""Tokenizers of Hugging Face that have no `tokenizer.json`: one is made of their files, so that one
library tokenizes them all.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dss_jax.core.errors import UsageError
from dss_jax.core.paths import cache_folder, write_whole
from dss_jax.data import tokenizer_files
from dss_jax.data.file_tokenizers import open_backend
from dss_jax.data.tokenizer import SentencePiece
from dss_jax.data.tokenizer_files import (
    FAST,
    FLAGS,
    PIECES,
    added_tokens,
    checked_id,
    text_of,
    token_text,
)
from dss_jax.data.vocabulary import vocabulary_digest
from dss_jax.interop.tokenizer_json import added_token, tokenizer_json

WORDS, MERGES = "vocab.json", "merges.txt"

REMEDY = (
    "No tokenizer.json can be made of these here. With transformers, "
    "AutoTokenizer.from_pretrained(...).save_pretrained(...) writes one."
)


def readable_vocabulary(folder: Path, extra_ids: int) -> Path | None:
    """The vocabulary of a Hugging Face folder: see `tokenizer_files.vocabulary_in`. Where its files
    are of before `tokenizer.json`, a copy of them in the cache that has one, too. UsageError: none
    can be made of them.
    """
    return tokenizer_files.vocabulary_in(folder, extra_ids, partial(_made, extra_ids))


def _made(extra_ids: int, folder: Path, files: Mapping[str, Path]) -> Path | None:
    if PIECES in files:
        made = _of_pieces(files, extra_ids)
    elif {WORDS, MERGES} <= files.keys():
        kind = tokenizer_files.settings_of(files).get("tokenizer_class")
        if kind not in (None, "RobertaTokenizer", "RobertaTokenizerFast"):
            raise UsageError(f"{folder} has the files of a {kind}. {REMEDY}")
        made = _of_merges(files)
    else:
        return None
    text = json.dumps(made, ensure_ascii=False)
    open_backend(text, f"what is made of {', '.join(map(str, files.values()))}")
    key = hashlib.sha256(f"{vocabulary_digest(folder)} {text}".encode()).hexdigest()[:16]
    copy = cache_folder() / "vocabularies" / key
    if not (copy / FAST).is_file():
        for name, file in files.items():
            write_whole(copy / name, file.read_bytes())
        # Last: a folder that has it is taken for a whole one.
        write_whole(copy / FAST, text)
    return copy


def _of_pieces(files: Mapping[str, Path], extra_ids: int) -> dict[str, Any]:
    """T5's with added tokens, as transformers 5 makes it: cut at white space."""
    try:
        SentencePiece(files[PIECES], 0)  # Whose special ids are T5's.
        made, why = tokenizer_json(files[PIECES], extra_ids), "is not of T5's kind (unigrams)."
    except UsageError as error:
        made, why = None, f"has tokens added to it. {error}"
    if made is None:
        raise UsageError(f"{files[PIECES]} {why} {REMEDY}")
    normalizers = made["normalizer"]["normalizers"]
    made["normalizer"]["normalizers"] = [n for n in normalizers if n["type"] == "Precompiled"]
    space = {**made["pre_tokenizer"], "split": True}
    steps = [{"type": "WhitespaceSplit"}, space]
    made["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    known = {one["id"] for one in made["added_tokens"]}
    further = {n: one for n, one in sorted(added_tokens(files).items()) if n not in known}
    made["added_tokens"] += [
        added_token(n, one["content"], {"normalized": True, **_flags(one)})
        for n, one in further.items()
    ]
    return made


def _of_merges(files: Mapping[str, Path]) -> dict[str, Any]:
    """Byte-level BPE with RoBERTa's template, as CodeT5 has it."""
    words = tokenizer_files.read(files[WORDS])
    try:
        [*map(checked_id, words.values())]
    except TypeError as error:
        raise UsageError(f"{files[WORDS]}: {error}.") from error
    lines = text_of(files[MERGES]).splitlines()
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    settings = tokenizer_files.settings_of(files)
    roles = {"bos_token": "<s>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
    roles = {**tokenizer_files.NAMES, **roles}
    tokens = {role: settings.get(role, name) for role, name in roles.items()}
    listed = [*tokens.values(), *(settings.get("additional_special_tokens") or ())]
    flags = {token_text(one): _flags(one) for one in listed if isinstance(one, dict)}
    names = [*map(token_text, listed)]
    added = {n: token_text(one) for n, one in added_tokens(files).items()}
    ids = {**words, **{name: n for n, name in added.items()}}
    for name in names:
        ids.setdefault(name, max(ids.values(), default=-1) + 1)
    special = {ids[name]: name for name in names} | added
    space = bool(settings.get("add_prefix_space", False))
    level = {"type": "ByteLevel", "add_prefix_space": space, "trim_offsets": True}
    end, begin = (names[[*tokens].index(role)] for role in ("sep_token", "cls_token"))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(n, name, flags.get(name, {}), special=name in names)
            for n, name in sorted(special.items())
        ],
        "normalizer": None,
        "pre_tokenizer": {**level, "use_regex": True},
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [end, ids[end]],
            "cls": [begin, ids[begin]],
            "trim_offsets": True,
            "add_prefix_space": space,
        },
        "decoder": {**level, "use_regex": True},
        "model": {"type": "BPE", "vocab": words, "merges": merges},
    }


def _flags(token: Mapping[str, Any]) -> dict[str, Any]:
    return {flag: token[flag] for flag in FLAGS if flag in token}
