"""The formula of floating-point operations, against XLA's own count of the compiled program."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import toy

from dss_jax.cli import gin_config
from dss_jax.core import config
from dss_jax.core.devices import DEVICES, peak_flops
from dss_jax.core.flops import Work, forward_flops, training_flops, work_of_rows, work_of_shape
from dss_jax.core.t5gemma import Gemma
from dss_jax.model.build import model_of
from dss_jax.train.memory import abstract_batch
from dss_jax.train.sharding import make_mesh
from dss_jax.train.step import Program

ROWS, INPUT, TARGET = 4, 96, 64

GATED = config.T5Config(
    vocab_size=4096,
    emb_dim=256,
    num_heads=4,
    head_dim=96,
    mlp_dim=640,
    num_encoder_layers=2,
    num_decoder_layers=1,
    dropout_rate=0.0,
    scan_unroll=2,
)
"""Sides differ from one another, so that none can stand for another."""

PLAIN = dataclasses.replace(
    GATED, mlp_activations=("relu",), logits_via_embedding=True, num_decoder_layers=2
)
GEMMA = dataclasses.replace(
    GATED,
    num_heads=4,
    gemma=Gemma(
        num_kv_heads=2,
        encoder_num_kv_heads=1,
        encoder_emb_dim=320,
        encoder_num_heads=3,
        encoder_head_dim=64,
        encoder_mlp_dim=512,
    ).values,
)
# XLA counts the body of a loop once, so the loop over the layers must be gone: scan_unroll.


def _counted(compiled: jax.stages.Compiled) -> float:
    return compiled.cost_analysis()["flops"]


@pytest.mark.parametrize("model", [GATED, PLAIN, GEMMA], ids=["gated", "plain", "t5gemma"])
def test_the_forward_pass_is_what_xla_counts(model: config.T5Config) -> None:
    t5 = model_of(model)
    tokens = [jax.ShapeDtypeStruct((ROWS, n), jnp.int32) for n in (INPUT, TARGET)]
    params = jax.eval_shape(t5.init, jax.random.key(0), *tokens)
    counted = _counted(jax.jit(t5.apply).lower(params, *tokens).compile())
    ours = forward_flops(model, work_of_shape(ROWS, INPUT, TARGET))
    # XLA counts norms, softmax and activations too.
    assert ours < counted < 1.02 * ours


@pytest.mark.slow
def test_the_training_step_is_what_xla_counts() -> None:
    data = config.Data(batch_size=ROWS, input_length=INPUT, target_length=TARGET)
    run = toy.make_run(model=GATED, data=data)
    program = Program(run, make_mesh(run.mesh, jax.devices()[:1]))
    counted = _counted(program.train_step.lower(abstract_batch(run, ROWS)).compile())
    work = work_of_shape(ROWS, INPUT, TARGET)
    ours = training_flops(GATED, work.plus(work))  # a block for each role
    assert ours < counted < 1.03 * ours


def test_work_is_summed_over_rows_of_their_own_lengths() -> None:
    assert work_of_rows([(3, 2), (5, 1)]) == Work(8, 3, 3, 34, 5, 11)
    assert work_of_shape(2, 5, 4) == work_of_rows([(5, 4)] * 2)


def test_a_batch_of_cqa_at_base_takes_what_the_design_says() -> None:
    """64 examples of cqa at their mean lengths, both tasks: 5.35 TFLOP (PERFORMANCE.md)."""
    model = gin_config.read(["runs/train.gin", "models/t5_1_1_base.gin"]).run().model
    model = dataclasses.replace(model, vocab_size=32128)
    rows = [(48.5, 2.9), (48.5, 30.9)] * 64
    assert training_flops(model, work_of_rows(rows)) == pytest.approx(5.35e12, rel=0.01)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L4", "l4"),
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
    ],
)
def test_peaks_are_found_by_the_name_that_jax_gives(kind: str, name: str) -> None:
    assert peak_flops(kind) == DEVICES[name].peak_flops


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA L40S", "NVIDIA GeForce GTX 1080", "TPU v4 lite"])
def test_an_unknown_peak_is_not_invented(kind: str) -> None:
    assert peak_flops(kind) is None
