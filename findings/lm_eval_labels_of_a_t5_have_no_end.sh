#!/bin/sh
# lm_eval 0.4.13 (lm-evaluation-harness), transformers 5.23.0, torch 2.13.0. For an encoder-decoder, a multiple-choice
# task scores the tokens of each choice without `</s>`. A T5 is trained to end its label, and its answer is the label
# that it ends; without the end, a label that begins like another ("bank", "bank account"; "no", "no answer") is at
# least as probable as the other, whatever the student has learnt, for the other's probability is its own times more
# factors. `acc` is then not the accuracy of what the student writes. Score "label</s>", or generate.
#
# Seen: a T5 that was taught "bank account" for one half of the inputs and "bank" for the other, and writes both right:
#       by log-likelihood "bank" for all, 50 % right; with `</s>` after each choice 100 %.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  lm_eval==0.4.13 torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
cat > "$folder/run.py" <<'PY'
import sys

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

torch.manual_seed(0)
torch.set_num_threads(1)
WORDS = ["<pad>", "</s>", "<unk>", "bank", "account", "money", "river", *"abcdefgh"]
words = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
)
config = T5Config(
    vocab_size=len(WORDS), d_model=32, d_ff=64, d_kv=8, num_layers=1, num_heads=4,
    dropout_rate=0.0, decoder_start_token_id=0, feed_forward_proj="gated-gelu",
)
model = T5ForConditionalGeneration(config)
rows = [(f"money {x}", "bank account") for x in "abcdefgh"] + [(f"river {x}", "bank") for x in "abcdefgh"]
inputs = tokenizer([x for x, _ in rows], return_tensors="pt", padding=True)
targets = tokenizer([y for _, y in rows], return_tensors="pt", padding=True)["input_ids"]
labels = targets.masked_fill(targets == 0, -100)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
keep = {k: inputs[k] for k in ("input_ids", "attention_mask")}
for _ in range(150):
    optimizer.zero_grad()
    model(**keep, labels=labels).loss.backward()
    optimizer.step()
model.eval()
written = tokenizer.batch_decode(model.generate(**keep, max_length=5, num_beams=1), skip_special_tokens=True)
right = sum(one == y for one, (_, y) in zip(written, rows))
print(f"written right: {right} of {len(rows)}")

harness = HFLM(pretrained=model, tokenizer=tokenizer, backend="seq2seq", batch_size=4)


def chosen(end):
    asked = [
        Instance("loglikelihood", {}, (x, f" {choice}{end}"), n)
        for x, _ in rows
        for n, choice in enumerate(("bank", "bank account"))
    ]
    scores = [score for score, _ in harness.loglikelihood(asked, disable_tqdm=True)]
    pairs = zip(scores[::2], scores[1::2])
    return ["bank" if a >= b else "bank account" for a, b in pairs]


found = {}
for name, end in (("as it is", ""), ("with </s>", "</s>")):
    found[name] = sum(one == y for one, (_, y) in zip(chosen(end), rows))
    print(f"right by log-likelihood, {name}: {found[name]} of {len(rows)}")
sys.exit((right, *found.values()) != (16, 8, 16))
PY
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/run.py"
