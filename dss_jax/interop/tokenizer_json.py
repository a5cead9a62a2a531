"""`tokenizer.json`: a SentencePiece file in the form of Hugging Face's `tokenizers`.

With it `transformers` needs neither SentencePiece nor protobuf. The ids of a text are those of
SentencePiece, but where it holds the name of a special token: there `tokenizers` sees the token.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dss_jax.core.ids import EOS_ID, PAD_ID, UNK_ID
from dss_jax.interop.pieces import read_model, token_names

UNIGRAM = 1
"""`TrainerSpec.ModelType` of SentencePiece; those of T5, mT5 and their relatives are all this."""

_UNUSED = 5
"""`SentencePiece.Type` of pieces that no text is encoded to."""

_NEVER = -1e9
"""Score of such a piece."""


def tokenizer_json(vocabulary: Path, extra_ids: int) -> dict[str, Any] | None:
    """The contents of `tokenizer.json`; None for a SentencePiece model that is not as T5's are: of
    unigrams, with one space before each text, and spaces at its ends and doubled ones removed.
    UsageError: the file is no SentencePiece model.
    """
    model = read_model(vocabulary)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    spaces = normalizer.add_dummy_prefix and normalizer.remove_extra_whitespaces
    if trainer.model_type != UNIGRAM or trainer.treat_whitespace_as_suffix or not spaces:
        return None
    pieces = [[p.piece, _NEVER if p.type == _UNUSED else p.score] for p in model.pieces]
    names = token_names(vocabulary, extra_ids, 0)
    pieces += [[name, 0.0] for name in names[len(pieces) :]]
    special = [PAD_ID, EOS_ID, UNK_ID, *range(len(model.pieces), len(pieces))]
    end = {"id": names[EOS_ID], "ids": [EOS_ID], "tokens": [names[EOS_ID]]}
    close = {"SpecialToken": {"id": names[EOS_ID], "type_id": 0}}
    text = [{"Sequence": {"id": part, "type_id": 0}} for part in ("A", "B")]
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(i, names[i]) for i in special],
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(normalizer)},
        # Pieces may hold spaces, so a text is cut nowhere before the model has seen it.
        "pre_tokenizer": {**metaspace, "split": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [text[0], close],
            "pair": [text[0], close, text[1], close],
            "special_tokens": {names[EOS_ID]: end},
        },
        "decoder": {**metaspace, "split": False},
        "model": {
            "type": "Unigram",
            "unk_id": UNK_ID,
            "vocab": pieces,
            "byte_fallback": trainer.byte_fallback,
        },
    }


def added_token(
    number: int, name: str, flags: Mapping[str, Any] = MappingProxyType({}), special: bool = True
) -> dict[str, Any]:
    """An entry of `added_tokens`; `flags`: of `tokenizer_files.FLAGS`, those that are not False."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": name, "special": special, **plain, **flags}


def _normalizers(spec: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if spec.precompiled_charsmap:
        charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
        found.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    # Not "Strip", which takes more than spaces.
    for pattern, content in ((" {2,}", " "), (r"\A +| +\z", "")):
        found.append({"type": "Replace", "pattern": {"Regex": pattern}, "content": content})
    return found
