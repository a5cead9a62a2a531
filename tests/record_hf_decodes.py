"""Records decodes of Hugging Face's `generate`: `python tests/record_hf_decodes.py`, or those of
the cases that are named after it.

The models are those of tests/golden/t5_hf_*.npz (see record_hf_reference.py, also for the
versions). Any token may be the end: here the one that ends the rows at the most different steps.
"""

import itertools
import json
import sys
from typing import Any

import numpy as np
import torch
import transformers
from record_hf_reference import CASES, GOLDEN, hf_model

from dss_jax.core.config import T5Config

ROWS, INPUT_LENGTH, MAX_DECODE_LENGTH = 20, 14, 12

SETTINGS: list[dict[str, Any]] = [
    {"num_beams": 1, "min_new_tokens": least} for least in (0, 5, MAX_DECODE_LENGTH)
]
SETTINGS += [
    {"num_beams": beams, "length_penalty": penalty, "early_stopping": stop, "min_new_tokens": 0}
    for beams, penalty, stop in itertools.product((2, 4), (0.0, 1.0, 2.5), (False, True, "never"))
]
SETTINGS += [
    {"num_beams": 4, "length_penalty": 1.0, "early_stopping": stop, "min_new_tokens": least}
    for stop, least in ((False, 5), (True, 5), (False, MAX_DECODE_LENGTH))
]
SETTINGS += [{"num_beams": 4, "length_penalty": -1.0, "early_stopping": False, "min_new_tokens": 0}]


def inputs_of(config: T5Config, seed: int) -> np.ndarray:
    """int32 [ROWS, INPUT_LENGTH], of every length."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, config.vocab_size, (ROWS, INPUT_LENGTH)).astype(np.int32)
    for number, row in enumerate(tokens):
        row[2 + number % (INPUT_LENGTH - 1) :] = 0
    return tokens


def generate(
    model: transformers.PreTrainedModel, inputs: np.ndarray, eos_id: int, settings: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [ROWS, K, MAX_DECODE_LENGTH], 0 after the end, and the scores [ROWS, K] of beams."""
    beams = settings["num_beams"]
    tokens = torch.tensor(inputs, dtype=torch.long)
    out = model.generate(
        tokens,
        attention_mask=(tokens != 0).long(),
        max_new_tokens=MAX_DECODE_LENGTH,
        do_sample=False,
        num_return_sequences=beams,
        eos_token_id=eos_id,
        use_cache=False,  # transformers 5.23 sizes it by the encoder's layers.
        output_scores=True,
        return_dict_in_generate=True,
        **settings,
    )
    generated = out.sequences[:, 1:].numpy()
    padded = np.zeros((ROWS * beams, MAX_DECODE_LENGTH), np.int32)
    padded[:, : generated.shape[1]] = generated
    ended = np.cumsum(padded == eos_id, axis=1)
    # Beam search fills up with the end token where padding is 0.
    padded[(ended > 1) | ((ended == 1) & (padded != eos_id))] = 0
    scores = out.sequences_scores.numpy() if beams > 1 else np.zeros(ROWS * beams, np.float32)
    return padded.reshape(ROWS, beams, -1), scores.reshape(ROWS, beams)


def telling_eos(model: transformers.PreTrainedModel, inputs: np.ndarray) -> int:
    """The token that, as the end, ends the greedy outputs at the most different steps."""
    free, _ = generate(model, inputs, -1, {"num_beams": 1, "min_new_tokens": 0})
    ends = {
        int(token): {int(np.argmax(row == token)) for row in free[:, 0] if token in row}
        for token in np.unique(free)
        if token > 0
    }
    return max(ends, key=lambda token: len(ends[token]))


def record(name: str, config: T5Config) -> None:
    """Writes tests/golden/t5_hf_decodes_<name>.npz."""
    seed = json.loads(str(np.load(GOLDEN / f"t5_hf_{name}.npz")["meta"]))["seed"]
    model, inputs = hf_model(config, seed), inputs_of(config, seed)
    eos_id = telling_eos(model, inputs)
    arrays: dict[str, np.ndarray] = {"encoder_input_tokens": inputs}
    for number, settings in enumerate(SETTINGS):
        arrays[f"tokens/{number}"], arrays[f"scores/{number}"] = generate(
            model, inputs, eos_id, settings
        )
    meta = {"eos_id": eos_id, "settings": SETTINGS, "transformers": transformers.__version__}
    path = GOLDEN / f"t5_hf_decodes_{name}.npz"
    np.savez_compressed(path, meta=np.array(json.dumps(meta)), **arrays)
    print(f"{path}: {len(SETTINGS) * ROWS} cases, {path.stat().st_size // 1024} KiB")
    print(arrays["tokens/0"][:6, 0])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in sys.argv[1:] or CASES:
        record(case, CASES[case][0])
