#!/bin/sh
# xgrammar 0.2.9, transformers 5.23.0. `TokenizerInfo.from_huggingface` knows how a tokenizer writes a space by its
# decoder, and T5's, a bare Metaspace, is none of those that it knows. It takes the vocabulary for raw text then, without
# a word, in which U+2581 is a letter. So a grammar of two labels, `yes` or `no`, refuses the pieces that T5 writes these
# labels with, and lets it spell them in pieces that it has never put there ("y" "es", "n" "o"): the text is a label, chosen
# by other scores than the student's. llguidance 1.9.1 refuses the same tokenizer with an error. Rank the labels
# instead, or write grammars over pieces, with U+2581 in front of each word.
#
# Seen: vocab_type RAW; first pieces that the grammar allows: n, y, yes; the tokenizer's own, U+2581 and yes, refused;
#       allowed where the grammar has U+2581 in it.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  xgrammar==0.2.9 transformers==5.23.0 torch==2.13.0
cat > "$folder/run.py" <<'PY'
import sys

import torch
import xgrammar
from transformers import T5Tokenizer

PIECES = ["<pad>", "</s>", "<unk>", "▁", "▁yes", "▁no", "yes", "y", "es", "n", "o", "▁maybe"]
tokenizer = T5Tokenizer(vocab=[(piece, -float(n)) for n, piece in enumerate(PIECES)], extra_ids=0)
first, end = tokenizer("yes")["input_ids"]
assert PIECES[first] == "▁yes" and PIECES[end] == "</s>"
info = xgrammar.TokenizerInfo.from_huggingface(tokenizer)
print("vocab_type:", info.vocab_type.name)


def allowed(labels):
    grammar = xgrammar.GrammarCompiler(info).compile_grammar(f"root ::= {labels}")
    matcher = xgrammar.GrammarMatcher(grammar)
    mask = xgrammar.allocate_token_bitmask(1, info.vocab_size)
    matcher.fill_next_token_bitmask(mask)
    scores = torch.zeros(1, info.vocab_size)
    xgrammar.apply_token_bitmask_inplace(scores, mask)
    pieces = [PIECES[n] for n in torch.nonzero(scores[0] == 0).flatten().tolist()]
    return sorted(pieces), matcher.accept_token(first)


plain, accepted = allowed('"yes" | "no"')
marked, accepted_marked = allowed('"▁yes" | "▁no"')
print("yes | no: first pieces", plain, "the tokenizer's own accepted:", accepted)
print("with U+2581: first pieces", marked, "accepted:", accepted_marked)
sys.exit(
    info.vocab_type.name != "RAW"
    or (plain, accepted) != (["n", "y", "yes"], False)
    or (marked, accepted_marked) != (["▁", "▁no", "▁yes"], True)
)
PY
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/run.py"
