#!/bin/sh
# peft 0.21.2, transformers 5.23.0. To teach a T5 new tokens (a prefix, a separator) beside LoRA, one names its embedding
# in `modules_to_save`: "shared", as `get_input_embeddings` and the checkpoint call it. PEFT copies it, counts the copy
# among what is trained and saves it with the adapter, but both stacks look tokens up in modules of their own,
# `encoder.embed_tokens` and `decoder.embed_tokens`, which share its array and not its wrapper. So the copy has no
# gradient and stays as it was; nothing is said, and `ensure_weight_tying=True` does not change it. "embed_tokens" names
# what is read (a copy for each stack, "lm_head" a third); or ask, before a long run, whether every trained parameter
# has a gradient.
#
# Seen: "shared": 1,024 parameters more, of which none has a gradient; after 5 steps the copy is the embedding to the
#       bit. "embed_tokens": two copies with gradients, both moved.
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


def trained(**embedding):
    """Number of trained parameters that are no LoRA, how many of them have a gradient, have moved."""
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(decoder_start_token_id=0, **CONFIG))
    before = model.shared.weight.detach().clone()
    lora = LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, target_modules=["q"], **embedding)
    model = get_peft_model(model, lora).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.0)
    for _ in range(5):
        optimizer.zero_grad()
        model(input_ids=INPUTS, labels=LABELS).loss.backward()
        optimizer.step()
    named = model.named_parameters()
    copies = [p for name, p in named if p.requires_grad and "lora" not in name]
    with_gradient = sum(p.numel() for p in copies if p.grad is not None)
    moved = sum(p.numel() for p in copies if not torch.equal(p, before))
    return sum(p.numel() for p in copies), with_gradient, moved


seen = {
    "shared": trained(modules_to_save=["shared"]),
    "shared, tied": trained(modules_to_save=["shared"], ensure_weight_tying=True),
    "embed_tokens": trained(modules_to_save=["embed_tokens"]),
}
for name, (count, with_gradient, moved) in seen.items():
    print(f"{name}: {count} parameters, with a gradient {with_gradient}, moved {moved}")
sys.exit([*seen.values()] != [(1024, 0, 0), (1024, 0, 0), (2048, 2048, 2048)])
PY
"$folder/venv/bin/python" "$folder/run.py"
