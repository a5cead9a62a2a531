#!/bin/sh
# transformers 5.23.0, torch 2.13.0. `trainer.train(resume_from_checkpoint=True)`, as a job that may
# be preempted starts itself again, on a run that has reached `max_steps` in the middle of an epoch
# does not come back at once: the loop asks whether it is done only after a step. So each such start
# trains one step more, and saves it as the newest checkpoint: a run of 6 steps is one of 7, 8, 9, ...
# and `save_total_limit` deletes the checkpoint of step 6. Weights change with each start where the
# learning rate is not 0 at the end (a constant one here; with the linear default they stay). Ask
# before: `get_last_checkpoint` against `max_steps`. A run that has ended with an epoch stays.
#
# Seen: max_steps 6 of 16 an epoch: steps 6, 7, 8; newest checkpoint 6, 7, 8; other weights each time.
#       num_train_epochs 1: steps 16, 16, 16; the same weights.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
cat > "$folder/run.py" <<'PY'
import hashlib
import sys
from pathlib import Path

import torch
from transformers import T5Config, T5ForConditionalGeneration, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

torch.set_num_threads(1)
ROWS = torch.randint(2, 60, (64, 8), generator=torch.Generator().manual_seed(1))
DATA = [{"input_ids": row, "labels": row[:4]} for row in ROWS]
CONFIG = dict(vocab_size=64, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)


def start(folder, **length):
    """The same command each time: steps done, the newest checkpoint, a digest of the weights."""
    again = folder.is_dir()
    torch.manual_seed(0)
    arguments = TrainingArguments(
        output_dir=str(folder), save_steps=2, save_total_limit=1, learning_rate=1e-3,
        per_device_train_batch_size=4, report_to=[], disable_tqdm=True, use_cpu=True,
        logging_strategy="no", lr_scheduler_type="constant", **length,
    )
    model = T5ForConditionalGeneration(T5Config(**CONFIG, decoder_start_token_id=0))
    trainer = Trainer(model=model, args=arguments, train_dataset=DATA)
    trainer.train(resume_from_checkpoint=again or None)
    newest = int(get_last_checkpoint(str(folder)).rpartition("-")[2])
    content = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    return trainer.state.global_step, newest, hashlib.sha256(content).hexdigest()[:8]


seen = {}
for name, length in (("max_steps 6", {"max_steps": 6}), ("1 epoch", {"num_train_epochs": 1})):
    seen[name] = [start(Path(sys.argv[1], name), **length) for _ in range(3)]
    for steps, newest, weights in seen[name]:
        print(f"{name}: {steps} steps, newest checkpoint {newest}, weights {weights}")
cut, whole = seen.values()
fine = [x[:2] for x in cut] == [(6, 6), (7, 7), (8, 8)] and len({x[2] for x in cut}) == 3
sys.exit(not (fine and [x[:2] for x in whole] == [(16, 16)] * 3 and len({x[2] for x in whole}) == 1))
PY
mkdir "$folder/runs"
TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" "$folder/run.py" "$folder/runs"
