"""The model equals Hugging Face's PyTorch T5: recorded arrays, and live in the slow tier."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from hf_arrays import from_hf, to_hf

from dss_jax.core.config import T5Config
from dss_jax.interop.hf import parameters
from dss_jax.model.attention import relative_position_buckets
from dss_jax.model.build import model_of
from dss_jax.model.t5 import T5

pytestmark = [pytest.mark.usefixtures("strict"), pytest.mark.filterwarnings("error")]

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-4  # of the norm of the difference, relative to the norm of the reference.


def assert_close(ours: Any, theirs: np.ndarray, what: str) -> None:
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape, what
    difference = np.linalg.norm((ours - theirs).ravel()) / np.linalg.norm(theirs.ravel())
    assert difference < TOLERANCE, f"{what}: relative difference {difference:.2e}"


def loss_and_logits(
    params: Any, model: T5, batch: dict[str, np.ndarray]
) -> tuple[jax.Array, jax.Array]:
    logits = model.apply(
        {"params": params}, batch["encoder_input_tokens"], batch["decoder_input_tokens"]
    )
    targets = jnp.asarray(batch["decoder_target_tokens"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return losses.mean(where=targets != 0), logits


def check_against(config: T5Config, recorded: dict[str, np.ndarray]) -> None:
    """Logits, loss, each gradient and greedy tokens are those of `recorded`."""
    model = model_of(config)
    state = {k.removeprefix("param/"): v for k, v in recorded.items() if k.startswith("param/")}
    params = jax.tree.map(jnp.asarray, from_hf(state, config))
    assert len(jax.tree.leaves(params)) == len(parameters(config))

    both = jax.jit(jax.value_and_grad(loss_and_logits, has_aux=True), static_argnums=1)
    (loss, logits), gradients = both(params, model, recorded_batch(recorded))
    assert_close(logits, recorded["logits"], "logits")
    assert_close(loss, recorded["loss"], "loss")
    for name, gradient in to_hf(gradients, config).items():
        assert_close(gradient, recorded[f"grad/{name}"], f"gradient of {name}")

    inputs = jnp.asarray(recorded["encoder_input_tokens"])
    tokens = toy.tokens_of(model, params, inputs, recorded["greedy"].shape[1])
    np.testing.assert_array_equal(tokens, recorded["greedy"])


def recorded_batch(recorded: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k: v for k, v in recorded.items() if k.endswith("_tokens")}


@pytest.mark.parametrize("case", ["v1_0", "v1_1", "umt5", "silu", "t5gemma"])
def test_recorded(case: str) -> None:
    recorded = dict(np.load(GOLDEN / f"t5_hf_{case}.npz"))
    fields = json.loads(str(recorded.pop("meta")))["config"]
    fields["mlp_activations"] = tuple(fields["mlp_activations"])
    check_against(T5Config(**fields), recorded)


def test_recorded_buckets() -> None:
    recorded = np.load(GOLDEN / "t5_hf_buckets.npz")
    assert len(recorded.files) == 6
    for name in recorded.files:
        bidirectional, num_buckets, max_distance = name.split("/")
        ours = relative_position_buckets(
            np.arange(-300, 301),
            bidirectional=bidirectional == "True",
            num_buckets=int(num_buckets),
            max_distance=int(max_distance),
        )
        np.testing.assert_array_equal(ours, recorded[name], name)


@pytest.mark.parametrize("case", ["v1_1", "umt5", "t5gemma"])
def test_mapping_goes_both_ways(case: str) -> None:
    recorded = np.load(GOLDEN / f"t5_hf_{case}.npz")
    fields = json.loads(str(recorded["meta"]))["config"]
    config = T5Config(**{**fields, "mlp_activations": tuple(fields["mlp_activations"])})
    state = {k.removeprefix("param/"): recorded[k] for k in recorded if k.startswith("param/")}
    again = to_hf(from_hf(state, config), config)
    assert again.keys() == state.keys()
    for name, value in again.items():
        np.testing.assert_array_equal(value, state[name])
    # The mapping is complete: a freshly made model has the same parameters and shapes.
    tokens = [jnp.ones((1, 2), jnp.int32)] * 2
    made = jax.eval_shape(model_of(config).init, jax.random.key(0), *tokens)
    shapes = jax.tree.map(jnp.shape, from_hf(state, config))
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, unboxed(made["params"]))


def unboxed(params: Any) -> Any:
    return jax.tree.map(
        lambda leaf: leaf.value, params, is_leaf=lambda leaf: hasattr(leaf, "names")
    )


# Case, encoder and decoder layers, heads, head_dim, input and target length, seed.
SHAPES = [
    ("v1_0", 1, 1, 1, 16, 9, 5, 0),
    ("v1_0", 4, 2, 4, 8, 300, 33, 1),
    ("v1_0", 2, 4, 2, 32, 40, 200, 2),
    ("v1_1", 1, 1, 2, 4, 11, 7, 3),
    ("v1_1", 3, 6, 4, 16, 64, 64, 4),
    ("v1_1", 6, 3, 6, 8, 257, 130, 5),
    ("umt5", 3, 5, 4, 16, 300, 140, 6),
    ("silu", 2, 3, 2, 24, 40, 33, 7),
    ("t5gemma", 3, 5, 4, 16, 64, 40, 8),
]


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_live(shape: tuple[str, int, int, int, int, int, int, int]) -> None:
    pytest.importorskip("torch", reason="parity with Hugging Face needs torch")
    pytest.importorskip("transformers", reason="parity with Hugging Face needs transformers")
    import record_hf_reference as hf

    version, encoder_layers, decoder_layers, heads, head_dim, input_length, target_length, seed = (
        shape
    )
    config = dataclasses.replace(
        hf.CASES[version][0],
        vocab_size=384,
        emb_dim=48,
        mlp_dim=96,
        num_heads=heads,
        head_dim=head_dim,
        num_encoder_layers=encoder_layers,
        num_decoder_layers=decoder_layers,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
    )
    batch = hf.random_batch(config, input_length, target_length, seed)
    recorded = hf.reference(config, hf.hf_model(config, seed), batch)
    check_against(config, {**batch, **recorded})


@pytest.mark.slow
@pytest.mark.parametrize("case", ["v1_0", "v1_1", "umt5", "t5gemma"])
def test_bfloat16_live(case: str) -> None:
    """As near to float32, of the same weights, as PyTorch's own."""
    torch = pytest.importorskip("torch", reason="parity with Hugging Face needs torch")
    pytest.importorskip("transformers", reason="parity with Hugging Face needs transformers")
    import record_hf_reference as hf

    config, input_length, target_length = hf.CASES[case]
    batch, model = hf.random_batch(config, input_length, target_length, 0), hf.hf_model(config, 0)
    outs = []
    for dtype in (torch.float32, torch.bfloat16):
        # `model.to` would round the rotary frequencies, too; loading a checkpoint does not.
        for weight in model.parameters():
            weight.data = weight.data.bfloat16().to(dtype)
        with torch.no_grad():
            outs.append(hf.forward(model, batch))
    wide, theirs = (np.asarray(out.logits.float()) for out in outs)
    state = {name: np.asarray(p.detach().float()) for name, p in model.named_parameters()}
    params = jax.tree.map(jnp.asarray, from_hf(state, config))
    half = model_of(dataclasses.replace(config, dtype="bfloat16"))
    loss, ours = jax.jit(loss_and_logits, static_argnums=1)(params, half, batch)
    assert np.linalg.norm(ours - wide) < 1.1 * np.linalg.norm(theirs - wide)
    np.testing.assert_allclose(loss, outs[0].loss, rtol=1e-3)
