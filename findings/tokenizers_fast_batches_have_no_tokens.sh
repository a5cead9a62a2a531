#!/bin/sh
# tokenizers 0.23.3. `encode_batch_fast` is documented to leave out offsets, "they will be all zeros". The
# tokens are left out too: `tokens` is a list of empty texts, and `word_ids` is None for every token, for
# words given apart (is_pretokenized) as well, so `word_to_tokens` finds nothing. Only the ids are right.
# Who counts the tokens of each word, or looks for a token's text, gets an answer of the right length.
#
# Seen: ids of both calls alike; "tokens" ["fish", "and", "chips"] and ["", "", ""]; "word_ids" [0, 1, 2] and
#       [None, None, None]; tokens of word 1 (1, 2) and None.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3 numpy==2.3.5
cat > "$folder/run.py" <<'PY'
import sys

from tokenizers import Tokenizer, models, pre_tokenizers

tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "fish": 1, "and": 2, "chips": 3}, "<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
words = ["fish", "and", "chips"]
seen = []
for texts, apart in (([" ".join(words)], False), ([words], True)):
    (slow,) = tokenizer.encode_batch(texts, is_pretokenized=apart)
    (fast,) = tokenizer.encode_batch_fast(texts, is_pretokenized=apart)
    for name, found in (("encode_batch", slow), ("encode_batch_fast", fast)):
        print(name, found.ids, found.tokens, found.word_ids, found.word_to_tokens(1))
        seen.append((found.ids, found.tokens, found.word_ids, found.word_to_tokens(1)))
full, bare = ([1, 2, 3], words, [0, 1, 2], (1, 2)), ([1, 2, 3], [""] * 3, [None] * 3, None)
sys.exit(seen != [full, bare, full, bare])
PY
"$folder/venv/bin/python" "$folder/run.py"
