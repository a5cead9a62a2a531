#!/bin/sh
# transformers 5.23.0, tokenizers 0.23.3. What a call of a tokenizer asks for, `truncation` and `padding`, stays in
# it, though the docstring of what sets it says that it is reset: `save_pretrained` writes it into
# tokenizer.json. So the file of a trained student hangs on which text was encoded last before it was saved.
# transformers itself sets both anew in each call; whoever opens the file by the tokenizers library (servers in
# Rust, data pipelines) cuts each text to that length, and fills it up to the longest of its batch, without a word.
#
# Seen: saved after a plain call: 9 tokens of 9. Saved after a call with max_length=4: 4 of 9, [1, 2, 3, 4]; a batch
#       has rows of 4 and 4, the second filled up. transformers, of the same folder: 9.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  transformers==5.23.0 tokenizers==0.23.3
cat > "$folder/run.py" <<'PY'
import sys

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

NAMES = ["<pad>", *(f"w{n}" for n in range(1, 10)), "<unk>"]
TEXT = " ".join(NAMES[1:10])
backend = Tokenizer(models.WordLevel({name: n for n, name in enumerate(NAMES)}, unk_token="<unk>"))
backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>")
seen = []
for number, options in enumerate(({}, {"max_length": 4, "truncation": True, "padding": True})):
    tokenizer([TEXT], **options)
    saved = f"{sys.argv[1]}/{number}"
    tokenizer.save_pretrained(saved)
    opened = Tokenizer.from_file(f"{saved}/tokenizer.json")
    batch = [one.ids for one in opened.encode_batch([TEXT, "w1"])]
    again = len(AutoTokenizer.from_pretrained(saved)(TEXT).input_ids)
    print(f"saved after a call with {options}: tokenizers {batch}, transformers {again}")
    seen.append((batch, again))
whole = list(range(1, 10))
sys.exit(seen != [([whole, [1]], 9), ([[1, 2, 3, 4], [1, 0, 0, 0]], 9)])
PY
TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" "$folder/run.py" "$folder"
