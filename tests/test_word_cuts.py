"""Texts cut into words, beside the library's own answer to each whole text."""

import base64
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import toy

from dss_jax.data.file_tokenizers import FastTokenizer
from dss_jax.data.tokenizer_files import FAST, files_of
from dss_jax.interop.tokenizer_json import tokenizer_json


@pytest.mark.parametrize(
    ("kind", "model", "added", "text"),
    [
        ("charsmap", {}, None, "a \uff9e\u0308b \u200d\u0301"),
        ("charsmap", {}, ("\n", {}), "a b"),
        ("charsmap", {}, ("▁a", {}), "b a"),
        ("lowercase", {}, ("A b", {}), "a b a b"),
        ("underscore", {}, None, "a_b _a"),
        ("metaspace", {"continuing_subword_prefix": "##"}, None, "a ab b"),
        ("metaspace", {"end_of_word_suffix": "</w>"}, None, "a ab b"),
        ("no space", {"unk_token": "<unk>", "fuse_unk": True}, None, "x x a"),
        ("llama", {}, ("▁", {"single_word": True}), "a   b"),
    ],
)
def test_tokenizers_of_all_kinds_beside_the_library(
    kind: str,
    model: dict[str, Any],
    added: tuple[str, dict[str, bool]] | None,
    text: str,
    tmp_path: Path,
) -> None:
    pieces = ["</s>", "<unk>", *" _ab\u3099\u309a\u0301\u0308", *["▁"] * (kind != "no space")]
    pieces += ["##a", "##b", "a</w>", "b</w>"]
    pieces += ["_a", "a_", "a_b", "##_a"] * (kind == "underscore")
    merges = [("_", "a"), ("a", "_"), ("a_", "b")] * (kind == "underscore")
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges, **model))
    if kind in ("charsmap", "lowercase"):
        backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        t5 = tokenizer_json(toy.VOCABULARY, 0)
        assert t5
        charsmap = base64.b64decode(t5["normalizer"]["normalizers"][0]["precompiled_charsmap"])
        backend.normalizer = tokenizers.normalizers.Lowercase()
        if kind == "charsmap":
            backend.normalizer = tokenizers.normalizers.Precompiled(charsmap)
    elif kind == "llama":
        parts = tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")
        backend.normalizer = tokenizers.normalizers.Sequence([*parts])
    else:
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(
            "_" if kind == "underscore" else "▁", prepend_scheme="first", split=False
        )
    if added:
        flags = {"normalized": True, **added[1]}
        backend.add_tokens([tokenizers.AddedToken(added[0], **flags)])
    backend.save(str(tmp_path / FAST))
    own, texts = FastTokenizer(tmp_path, files_of(tmp_path)), [text, f"{text} b", f"b\n{text}"]
    assert own.encode_all(texts) == [backend.encode(one).ids for one in texts]


@pytest.mark.parametrize("letter", ["a", "b"])
@pytest.mark.parametrize("single", ["<s> $A </s>", "<s> $A", "$A </s>", "$A"])
def test_what_a_template_puts_before_a_text(letter: str, single: str, tmp_path: Path) -> None:
    """Also where the letter that is tried has no ids."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"</s>": 0, "<s>": 1, letter: 2}, []))
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=single, special_tokens=[("</s>", 0), ("<s>", 1)]
    )
    backend.save(str(tmp_path / FAST))
    own = FastTokenizer(tmp_path, files_of(tmp_path))
    assert own.begin == [1] * ("<s>" in single)
    assert own.encode(letter) == [*own.begin, 2]
