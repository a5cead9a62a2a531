#!/bin/sh
# orbax-checkpoint 0.12.8. `CheckpointManager` with `best_fn` and `max_to_keep=2` keeps the two best, and nothing beside
# them: a newer checkpoint that is worse than both is deleted by the very `save` that wrote it and that returned True.
# `latest_step()` is then the newest of the best. So a run that is past its best, on machines that are taken away, goes
# on each time from the same step and never ends, and nothing says that its checkpoints are gone. Trainers elsewhere
# keep the last one beside the best (`save_total_limit` of Hugging Face). With a preservation policy in place of
# `max_to_keep`, AnyPreservationPolicy of BestN and LatestN, the newest stays.
#
# Seen: accuracy 0.5, 0.9, 0.8, then falling: steps 2 and 3 stay. A run of 10 steps that is stopped after each second
#       one starts from steps 0, 2, 3, 3, 3, 3. With BestN(2) or LatestN(1) it starts from 0, 2, 4, 6, 8 and ends.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
cat > "$folder/run.py" <<'PY'
import logging
import sys

import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

logging.disable(logging.WARNING)
LAST, AT_ONCE, SESSIONS = 10, 2, 6
ACCURACY = [0.0, 0.5, 0.9, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.54, 0.53]


def accuracy(metrics):
    return metrics["accuracy"]


def sessions(folder, **keep):
    """The step that each session starts from; each ends after two steps, or with the run."""
    starts = []
    while len(starts) < SESSIONS:
        options = ocp.CheckpointManagerOptions(
            best_fn=accuracy, best_mode="max", enable_async_checkpointing=False, **keep
        )
        with ocp.CheckpointManager(folder, options=options) as manager:
            start = manager.latest_step() or 0
            if start == LAST:
                break
            starts.append(start)
            for step in range(start + 1, start + 1 + AT_ONCE):
                state = ocp.args.StandardSave({"step": np.asarray(step)})
                assert manager.save(step, args=state, metrics={"accuracy": ACCURACY[step]})
            kept = manager.all_steps()
    print(f"{[*keep]}: sessions start from {starts}; kept are {sorted(kept)}")
    return starts


policies = checkpoint_managers
both = policies.AnyPreservationPolicy(
    [policies.BestN(get_metric_fn=accuracy, n=2), policies.LatestN(n=1)]
)
found = [
    sessions(f"{sys.argv[1]}/best", max_to_keep=2),
    sessions(f"{sys.argv[1]}/both", preservation_policy=both),
]
sys.exit(found != [[0, 2, 3, 3, 3, 3], [0, 2, 4, 6, 8]])
PY
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/run.py" "$folder"
