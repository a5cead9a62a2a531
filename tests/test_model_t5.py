"""Properties of the model: dtypes, dropout, masks, logical axes, errors."""

import collections
import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dss_jax.core.config import LOGICAL_AXES, T5Config
from dss_jax.core.errors import UsageError
from dss_jax.interop.weights import count_parameters
from dss_jax.model.layers import Dropout, Embed
from dss_jax.model.t5 import T5

pytestmark = [pytest.mark.usefixtures("strict"), pytest.mark.filterwarnings("error")]

V1_1 = T5Config(
    vocab_size=48,
    emb_dim=16,
    num_heads=2,
    head_dim=12,
    mlp_dim=40,
    num_encoder_layers=2,
    num_decoder_layers=3,
)
V1_0 = dataclasses.replace(V1_1, mlp_activations=("relu",), logits_via_embedding=True)
# Recorded outputs of both are compared in the default tier: tests/test_model_hf.py.
VERSIONS = pytest.mark.parametrize(
    "config", [pytest.param(V1_0, marks=pytest.mark.slow), V1_1], ids=["v1_0", "v1_1"]
)

INPUTS = jnp.array([[5, 6, 7, 8, 9, 1], [10, 11, 1, 0, 0, 0]], jnp.int32)
DECODER_INPUTS = jnp.array([[0, 20, 21, 22], [0, 23, 24, 25]], jnp.int32)


@functools.cache
def make(config: T5Config) -> tuple[T5, Any]:
    model = T5(config)
    init = jax.jit(model.init)
    return model, nn.unbox(init(jax.random.key(0), INPUTS, DECODER_INPUTS)["params"])


def logits_of(model: T5, params: Any, inputs: Any, decoder_inputs: Any) -> np.ndarray:
    return np.asarray(jax.jit(model.apply)({"params": params}, inputs, decoder_inputs))


@VERSIONS
def test_bfloat16_keeps_parameters_gradients_and_logits_in_float32(config: T5Config) -> None:
    half = dataclasses.replace(config, dtype="bfloat16")
    model, params = make(half)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        logits = model.apply({"params": params}, INPUTS, DECODER_INPUTS)
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1)), logits

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}
    encoded = jax.eval_shape(lambda: model.apply({"params": params}, INPUTS, method="encode"))
    assert encoded.dtype == jnp.bfloat16
    wide = logits_of(T5(config), params, INPUTS, DECODER_INPUTS)
    difference = np.linalg.norm(logits - wide) / np.linalg.norm(wide)
    assert 1e-4 < difference < 3e-2  # the activations were in bfloat16, and right


def test_a_token_at_many_places_gets_all_of_its_gradient_in_bfloat16() -> None:
    embed = Embed(8, dataclasses.replace(V1_1, dtype="bfloat16"))
    tokens = jnp.ones((2, 512), jnp.int32)
    params = embed.init(jax.random.key(0), tokens)

    def total(params: Any) -> jax.Array:
        return embed.apply(params, tokens).astype(jnp.float32).sum()

    gradient = nn.unbox(jax.jit(jax.grad(total))(params))["params"]["embedding"]
    # A sum in bfloat16 would end at 256.
    np.testing.assert_array_equal(gradient[1], 1024.0)


@VERSIONS
def test_dropout_follows_its_key(config: T5Config) -> None:
    model, params = make(config)

    @jax.jit
    def run(seed: int) -> jax.Array:
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(
            {"params": params}, INPUTS, DECODER_INPUTS, deterministic=False, rngs=rngs
        )

    first = run(1)
    np.testing.assert_array_equal(first, run(1))
    assert not np.allclose(first, run(2))
    assert not np.allclose(first, logits_of(model, params, INPUTS, DECODER_INPUTS))


def test_dropout_stands_where_hugging_face_has_it() -> None:
    draws: list[tuple[str, ...]] = []

    def count(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, Dropout) and context.method_name == "__call__":
            draws.append(context.module.path)
        return next_fun(*args, **kwargs)

    model, params = make(V1_1)
    with nn.intercept_methods(count):
        jax.eval_shape(
            lambda: model.apply(
                {"params": params},
                INPUTS,
                DECODER_INPUTS,
                deterministic=False,
                rngs={"dropout": jax.random.key(0)},
            )
        )
    counts = collections.Counter("/".join(path) for path in draws)
    # The scan may trace its layer more than once: attention's one draw is the unit.
    for stack, attention in (("encoder", "attention"), ("decoder", "self_attention")):
        unit = counts[f"{stack}/layers/{attention}/dropout"]
        assert unit > 0
        assert counts.pop(f"{stack}/dropout") == 2  # embedding, final norm
        assert counts.pop(f"{stack}/layers/dropout") == (2 if stack == "encoder" else 3) * unit
        assert counts.pop(f"{stack}/layers/mlp/Dropout_0") == unit
    assert set(counts) == {
        "encoder/layers/attention/dropout",
        "decoder/layers/self_attention/dropout",
        "decoder/layers/encoder_decoder_attention/dropout",
    }


def test_dropout_differs_from_layer_to_layer() -> None:
    model, params = make(dataclasses.replace(V1_1, dropout_rate=0.5))
    seen = []

    def keep(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        out = next_fun(*args, **kwargs)
        if isinstance(context.module, Dropout) and context.module.path[-2:-1] == ("attention",):
            jax.debug.callback(lambda x: seen.append(np.asarray(x) == 0), out)
        return out

    with nn.intercept_methods(keep):
        jax.jit(
            lambda: model.apply(
                {"params": params},
                jnp.full((2, 6), 3, jnp.int32),
                method="encode",
                deterministic=False,
                rngs={"dropout": jax.random.key(0)},
            )
        )()
    jax.effects_barrier()
    first, second = seen
    assert (first != second).any()


@VERSIONS
def test_padding_changes_nothing(config: T5Config) -> None:
    model, params = make(config)
    expected = logits_of(model, params, INPUTS, DECODER_INPUTS)
    wider = jnp.pad(INPUTS, ((0, 0), (0, 5)))
    longer = jnp.pad(DECODER_INPUTS, ((0, 0), (0, 3)))
    padded = logits_of(model, params, wider, longer)[:, : DECODER_INPUTS.shape[1]]
    np.testing.assert_allclose(padded, expected, rtol=1e-5, atol=1e-5)
    # A row alone, without its padding, gives what it gave in the batch.
    alone = logits_of(model, params, INPUTS[1:, :3], DECODER_INPUTS[1:])
    np.testing.assert_allclose(alone, expected[1:], rtol=1e-5, atol=1e-5)


def test_padding_is_what_the_configuration_says() -> None:
    model, params = make(V1_1)
    other = T5(dataclasses.replace(V1_1, pad_token_id=40))
    padded = logits_of(other, params, jnp.where(INPUTS == 0, 40, INPUTS), DECODER_INPUTS)
    np.testing.assert_array_equal(padded, logits_of(model, params, INPUTS, DECODER_INPUTS))


@VERSIONS
def test_decoder_sees_the_past_only_and_the_encoder_all(config: T5Config) -> None:
    model, params = make(config)
    expected = logits_of(model, params, INPUTS, DECODER_INPUTS)
    changed = logits_of(model, params, INPUTS, DECODER_INPUTS.at[:, 2].set(40))
    np.testing.assert_array_equal(changed[:, :2], expected[:, :2])
    assert (np.abs(changed[:, 2:] - expected[:, 2:]).max(axis=-1) > 1e-4).all()

    encode = jax.jit(lambda tokens: model.apply({"params": params}, tokens, method="encode"))
    moved = np.abs(encode(INPUTS.at[0, 3].set(40)) - encode(INPUTS)).max(axis=-1)
    assert (moved[0] > 1e-4).all()
    assert (moved[1] == 0).all()


def test_a_row_of_padding_is_finite() -> None:
    model, params = make(V1_1)

    def loss(params: Any) -> jax.Array:
        return model.apply({"params": params}, jnp.zeros_like(INPUTS), DECODER_INPUTS).sum()

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@VERSIONS
def test_every_parameter_has_logical_axes(config: T5Config) -> None:
    model = T5(config)
    boxed = jax.eval_shape(model.init, jax.random.key(0), INPUTS, DECODER_INPUTS)["params"]
    leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=lambda x: hasattr(x, "names"))
    assert len(leaves) == len(jax.tree.leaves(boxed))
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert isinstance(leaf, nn.LogicallyPartitioned), name
        assert len(leaf.names) == len(leaf.value.shape), name
        assert set(leaf.names) <= set(LOGICAL_AXES), name
        assert (leaf.names[0] == "layers") == ("/layers/" in name), name
        assert len(set(leaf.names)) == len(leaf.names), name


def test_parameter_names() -> None:
    _, params = make(V1_1)
    attention = {name: {"kernel": ...} for name in ("query", "key", "value", "out")}
    norm = {"scale": ...}
    mlp = {name: {"kernel": ...} for name in ("wi_0", "wi_1", "wo")}
    bias = {"rel_embedding": ...}
    assert jax.tree.map(lambda _: ..., params) == {
        "token_embedder": {"embedding": ...},
        "encoder": {
            "relpos_bias": bias,
            "layers": {
                "pre_attention_layer_norm": norm,
                "attention": attention,
                "pre_mlp_layer_norm": norm,
                "mlp": mlp,
            },
            "encoder_norm": norm,
        },
        "decoder": {
            "relpos_bias": bias,
            "layers": {
                "pre_self_attention_layer_norm": norm,
                "self_attention": attention,
                "pre_cross_attention_layer_norm": norm,
                "encoder_decoder_attention": attention,
                "pre_mlp_layer_norm": norm,
                "mlp": mlp,
            },
            "decoder_norm": norm,
            "logits_dense": {"kernel": ...},
        },
    }
    _, tied = make(V1_0)
    assert set(tied["decoder"]) == {"relpos_bias", "layers", "decoder_norm"}
    assert set(tied["encoder"]["layers"]["mlp"]) == {"wi", "wo"}


def test_initial_scales_are_those_of_t5x() -> None:
    config = T5Config(vocab_size=2000, emb_dim=64, num_heads=8, head_dim=16, mlp_dim=256)
    params = make(config)[1]
    layers = params["decoder"]["layers"]
    for kernel, std in (
        (params["token_embedder"]["embedding"], 1.0),
        (layers["self_attention"]["query"]["kernel"], (64 * 16) ** -0.5),
        (layers["encoder_decoder_attention"]["key"]["kernel"], 64**-0.5),
        (layers["self_attention"]["value"]["kernel"], 64**-0.5),
        (layers["self_attention"]["out"]["kernel"], 128**-0.5),
        (layers["mlp"]["wi_0"]["kernel"], 64**-0.5),
        (layers["mlp"]["wo"]["kernel"], 256**-0.5),
        (params["decoder"]["logits_dense"]["kernel"], 64**-0.5),
    ):
        assert float(kernel.std()) == pytest.approx(std, rel=0.03)
    first, second = layers["mlp"]["wo"]["kernel"][:2]
    assert not jnp.allclose(first, second)
    bias = params["encoder"]["relpos_bias"]["rel_embedding"]
    limit = math.sqrt(3 / ((8 + 32) / 2))
    assert 0.8 * limit < float(jnp.abs(bias).max()) <= limit


def test_the_vocabulary_must_be_known() -> None:
    model = T5(dataclasses.replace(V1_1, vocab_size=None))
    with pytest.raises(UsageError, match="vocab_size is None"):
        model.init(jax.random.key(0), INPUTS, DECODER_INPUTS)


def test_count_parameters() -> None:
    assert count_parameters({"a": jnp.ones((2, 3)), "b": {"c": jnp.ones(4)}}) == 10
