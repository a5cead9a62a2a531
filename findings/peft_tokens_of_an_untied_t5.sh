#!/bin/sh
# peft 0.21.2, transformers 5.23.0. `LoraConfig(trainable_token_indices=[...])` trains a few rows of the embedding; a
# fresh adapter should change nothing. PEFT asks the configuration whether the head is tied, and transformers 5 says so
# of every T5, v1.1 and Flan-T5 too, whose heads are not. So there the head's rows of these tokens are replaced by the
# embedding's at once: their logits are wrong before the first step, with no warning, and input and output rows are
# trained as one from then on. Naming the stacks' modules, {"embed_tokens": [...]}, leaves the head alone.
#
# Seen: an untied T5, loaded from its checkpoint, and a fresh adapter for tokens 21 and 22: their logits differ by more
#       than 5, those of the other 62 tokens by less than 0.001. With {"embed_tokens": [21, 22]}, and of a tied T5: none.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0
cat > "$folder/run.py" <<'PY'
import sys
import warnings

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import T5Config, T5ForConditionalGeneration

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
CONFIG = dict(vocab_size=64, d_model=16, d_ff=32, d_kv=8, num_layers=2, num_heads=2)
INPUTS, LABELS = torch.arange(3, 13)[None], torch.arange(20, 26)[None]


def logits(model):
    return model.eval()(input_ids=INPUTS, labels=LABELS).logits.detach()


def changed(tied, tokens):
    """The tokens whose logits a fresh adapter changes, and by how much at most."""
    torch.manual_seed(0)
    config = T5Config(decoder_start_token_id=0, tie_word_embeddings=tied, **CONFIG)
    model = T5ForConditionalGeneration(config)
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(64, 16))
    model.save_pretrained("model")
    model = T5ForConditionalGeneration.from_pretrained("model")
    assert (model.lm_head.weight is model.shared.weight) == tied
    before = logits(model)
    lora = LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, target_modules=["q"], trainable_token_indices=tokens)
    difference = (logits(get_peft_model(model, lora)) - before).abs().amax((0, 1))
    return (difference > 1e-3).nonzero().flatten().tolist(), difference.max().item()


seen = []
for name, tied, tokens in (
    ("tied", True, [21, 22]),
    ("untied", False, [21, 22]),
    ("untied, embed_tokens", False, {"embed_tokens": [21, 22]}),
):
    where, most = changed(tied, tokens)
    print(f"{name}: logits of tokens {where} have changed, by up to {most:.3g}")
    seen.append((where, most > 5))
sys.exit(seen != [([], False), ([21, 22], True), ([], False)])
PY
cd "$folder" && venv/bin/python run.py
