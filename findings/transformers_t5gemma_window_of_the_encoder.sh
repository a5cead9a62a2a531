#!/bin/sh
# transformers 4.57.6 and 5.23.0, torch 2.13.0. T5Gemma's encoder has layers with a sliding window. With
# `sliding_window` w a token of transformers 4 sees w - 1 tokens to each side, as in Google's own code
# (gemma/research/t5gemma: triu(1 - w), tril(w - 1)), by which the weights were trained; one of transformers 5
# sees w, for its mask of all bidirectional models is "distance <= w". The same folder gives other encodings,
# and so other texts, for every input longer than the window, and no word is said.
#
# Seen: window 3, the first of 8 tokens changed: in 4.57.6 the encodings of tokens 0 1 2 change, in 5.23.0 of 0 1 2 3.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
for version in 4.57.6 5.23.0; do
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check --target "$folder/$version" \
    "transformers==$version" safetensors numpy
done
cat > "$folder/run.py" <<'PY'
import sys

import torch
import transformers
from transformers import T5GemmaConfig, T5GemmaForConditionalGeneration, T5GemmaModuleConfig

SIZES = dict(
    vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, head_dim=8, sliding_window=3, layer_types=["sliding_attention"],
)
torch.manual_seed(0)
config = T5GemmaConfig(
    encoder=T5GemmaModuleConfig(**SIZES), decoder=T5GemmaModuleConfig(**SIZES), vocab_size=16,
    attn_implementation="eager",
)
encoder = T5GemmaForConditionalGeneration(config).get_encoder().eval()
ids = torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10]])
other = ids.clone()
other[0, 0] = 11
with torch.no_grad():
    one, two = (encoder(input_ids=x, attention_mask=torch.ones_like(x))[0][0] for x in (ids, other))
changed = [n for n in range(8) if not torch.equal(one[n], two[n])]
print(f"transformers {transformers.__version__}: changed are the encodings of", *changed)
sys.exit(changed != list(range(int(sys.argv[1]))))
PY
for given in "4.57.6 3" "5.23.0 4"; do
  set -- $given
  PYTHONPATH="$folder/$1" TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" "$folder/run.py" "$2"
done
