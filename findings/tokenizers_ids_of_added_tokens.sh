#!/bin/sh
# tokenizers 0.23.3. The ids that a tokenizer.json gives to its "added_tokens" are not used: a token that
# the model's own vocabulary lacks gets the number of tokens so far, whatever the file says, and no word
# is said. A student whose added rows lie beyond padding rows (id 7 here) is fed other rows. Where the
# vocabulary itself leaves numbers out, the added token takes the id of another token, and both are one.
# `save` writes the new ids, so a file that was right is changed by being opened and saved.
#
# Seen: {"<unk>": 0, "a": 1, "b": 2} with <x> at 7: <x> has 3. {"<unk>": 0, "a": 1, "b": 3} with <x> at 7:
#       <x> has 3, "a b <x>" is [1, 3, 3], and 3 decodes to <x>.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3
cat > "$folder/run.py" <<'PY'
import json
import sys

from tokenizers import Tokenizer


def opened(vocabulary):
    token = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    content = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    content |= {"version": "1.0", "pre_tokenizer": {"type": "WhitespaceSplit"}}
    content |= {"added_tokens": [token | {"id": 7, "content": "<x>"}]}
    content |= {"model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}}
    return Tokenizer.from_str(json.dumps(content))


seen = []
for vocabulary in ({"<unk>": 0, "a": 1, "b": 2}, {"<unk>": 0, "a": 1, "b": 3}):
    tokenizer = opened(vocabulary)
    own, ids = tokenizer.token_to_id("<x>"), tokenizer.encode("a b <x>").ids
    saved = json.loads(tokenizer.to_str())["added_tokens"][0]["id"]
    print(vocabulary, "and <x> at 7: <x> has", own, "saved as", saved, "- 'a b <x>' is", ids)
    print("  3 decodes to", tokenizer.decode([3]))
    seen.append((own, saved, ids, tokenizer.decode([3])))
sys.exit(seen != [(3, 3, [1, 2, 3], "<x>"), (3, 3, [1, 3, 3], "<x>")])
PY
"$folder/venv/bin/python" "$folder/run.py"
