"""T5X's own programs on the shipped gin files, from our parameters and back. Needs T5X."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy
from test_t5x_live import random_weights

from dss_jax.core.config import T5Config
from dss_jax.core.paths import shipped
from dss_jax.interop.t5x import read_t5x, write_t5x

pytest.importorskip("t5x.checkpoints", reason="T5X is not installed: make t5x")
pytestmark = pytest.mark.slow

MODEL = T5Config(
    vocab_size=640,
    emb_dim=16,
    num_heads=4,
    head_dim=4,
    mlp_dim=32,
    num_encoder_layers=2,
    num_decoder_layers=2,
)
SHAPE = {
    f"network.T5Config.{name}": getattr(MODEL, name)
    for name in ("vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim")
}


def program(name: str, files: list[str], folder: Path, **bindings: object) -> str:
    """Runs `python -m t5x.NAME`; its log."""
    bindings = {**SHAPE, "network.T5Config.dtype": "float32", **bindings}
    command = [sys.executable, "-m", f"t5x.{name}", f"--gin_search_paths={shipped('gin_configs')}"]
    command += [f"--gin_file={f}" for f in ["t5x/examples/t5/t5_1_1/tiny.gin", *files]]
    command += [f"--gin.{key.replace('__', '.')}={value!r}" for key, value in bindings.items()]
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=550,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.parametrize("optimizer", [[], ["t5x/adamw.gin"]], ids=["adafactor", "adamw"])
def test_train_from_our_parameters_and_eval(optimizer: list[str], tmp_path: Path) -> None:
    assert toy.VOCABULARY.is_file()
    weights = random_weights(MODEL)
    write_t5x(weights, str(tmp_path / "start" / "checkpoint_6"))
    program(
        "train",
        ["t5x/finetune.gin", *optimizer],
        tmp_path,
        MIXTURE_OR_TASK_NAME="word_problems",
        TASK_FEATURE_LENGTHS={"inputs": 64, "targets": 48},
        TRAIN_STEPS=9,
        MODEL_DIR=str(tmp_path / "run"),
        BATCH_SIZE=8,
        EVAL_STEPS=1,
        INITIAL_CHECKPOINT_PATH=str(tmp_path / "start" / "checkpoint_6"),
        EVALUATOR_NUM_EXAMPLES=8,
    )
    trained = read_t5x(str(tmp_path / "run" / "checkpoint_9"))
    assert (tmp_path / "run" / "checkpoint_9" / "dataset").exists(), "save_dataset is on"
    assert (tmp_path / "run" / "inference_eval").is_dir(), "the evaluator writes its results"
    moved = {}
    for path, leaf in weights.leaves.items():
        before, after = leaf.read(), trained.leaves[path].read()
        moved[path] = float(np.abs(after - before).max())
    assert 0 < max(moved.values()) < 0.1, "three steps from the parameters that were given"
    program(
        "eval",
        ["t5x/eval.gin"],
        tmp_path,
        MIXTURE_OR_TASK_NAME="word_problems",
        EVAL_OUTPUT_DIR=str(tmp_path / "eval"),
        CHECKPOINT_PATH=str(tmp_path / "run" / "checkpoint_9"),
        **{"seqio.Evaluator.num_examples": 8},
    )
    assert list((tmp_path / "eval").rglob("word_problems_label-metrics.jsonl"))
