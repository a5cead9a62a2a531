"""The model and the checkpoints against T5X itself. Skipped where T5X is not installed.

T5X is not on PyPI; it is imported here from a checkout of commit cc342d4.
"""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from flax import traverse_util

from dss_jax.core.config import T5Config
from dss_jax.interop.t5x import parameters, read_t5x, write_t5x
from dss_jax.interop.weights import Weights, expected_shapes, flat, from_tree, nested
from dss_jax.model.t5 import T5

pytest.importorskip("t5x.checkpoints", reason="T5X is not installed (it is not on PyPI)")
pytestmark = pytest.mark.slow

TOLERANCE = 1e-5  # of the norm of the difference, relative to the norm of T5X's.

# Vocabulary, emb_dim, heads, head_dim, mlp_dim, encoder and decoder layers, input and target
# length. T5X shards heads, vocabulary and mlp_dim over the 4 simulated devices.
SHAPES = [
    (128, 64, 4, 16, 128, 2, 2, 24, 12),
    (96, 32, 4, 8, 80, 1, 3, 150, 40),
    (256, 132, 8, 20, 164, 3, 1, 17, 70),
]


def config(shape: tuple[int, ...], version: str) -> T5Config:
    vocab, emb, heads, head_dim, mlp, encoder, decoder, _, _ = shape
    return T5Config(
        vocab_size=vocab,
        emb_dim=emb,
        num_heads=heads,
        head_dim=head_dim,
        mlp_dim=mlp,
        num_encoder_layers=encoder,
        num_decoder_layers=decoder,
        mlp_activations=("relu",) if version == "v1_0" else ("gelu", "linear"),
        logits_via_embedding=version == "v1_0",
        relative_attention_per_layer=version == "umt5",
    )


def t5x_model(config: T5Config, *, scalable: bool | None = None, **options: Any) -> Any:
    """T5X's model of the same configuration."""
    scalable = config.relative_attention_per_layer if scalable is None else scalable
    import seqio
    from t5x import adafactor, models
    from t5x.examples.scalable_t5 import network as scalable_network
    from t5x.examples.t5 import network

    chosen = scalable_network if scalable else network
    names = {f.name for f in dataclasses.fields(network.T5Config)}
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k in names}
    vocabulary = seqio.PassThroughVocabulary(config.vocab_size, eos_id=1)
    rules = adafactor.standard_logical_factor_rules()
    return models.EncoderDecoderModel(
        module=chosen.Transformer(chosen.T5Config(**fields)),
        input_vocabulary=vocabulary,
        output_vocabulary=vocabulary,
        optimizer_def=adafactor.Adafactor(
            1e-3, decay_rate=0.8, step_offset=0, logical_factor_rules=rules
        ),
        **options,
    )


def batch_of(shape: tuple[int, ...], size: int = 4) -> dict[str, np.ndarray]:
    """Random tokens with padding."""
    vocab, source, target = shape[0], shape[-2], shape[-1]
    rng = np.random.default_rng(3)
    inputs, targets = (rng.integers(2, vocab, (size, length)) for length in (source, target))
    for row in range(1, size):
        inputs[row, source - row * source // (size + 1) :] = 0
        targets[row, target - row * target // (size + 1) :] = 0
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    return {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": shifted,
        "decoder_target_tokens": targets,
    }


def session(model: Any, batch: dict[str, np.ndarray], *, training: bool = True) -> Any:
    """What `t5x.train` (or, without training, `t5x.eval` and `t5x.infer`) sets up."""
    from t5x import partitioning, utils

    partitioner = partitioning.PjitPartitioner(num_partitions=1)
    initializer = utils.TrainStateInitializer(
        optimizer_def=model.optimizer_def if training else None,
        init_fn=model.get_initial_variables,
        input_shapes={name: tokens.shape for name, tokens in batch.items()},
        input_types=dict.fromkeys(batch, jnp.int32),
        partitioner=partitioner,
    )
    return SimpleNamespace(partitioner=partitioner, initializer=initializer)


def random_state(run: Any, *, shared_bias: bool = False) -> Any:
    """A train state whose norms and biases are random too."""
    state = run.initializer.from_scratch(jax.random.PRNGKey(0))
    rng = np.random.default_rng(4)
    params = traverse_util.flatten_dict(jax.tree.map(np.asarray, state.params.unfreeze()), sep="/")
    for name, value in params.items():
        if name.endswith(("scale", "rel_embedding")):
            params[name] = value + rng.normal(size=value.shape, scale=0.5).astype(np.float32)
        if name.endswith("rel_embedding") and shared_bias:
            params[name] = np.repeat(params[name][:, :1], value.shape[1], axis=1)
    return state.replace_params(traverse_util.unflatten_dict(params, sep="/"))


def save(run: Any, state: Any, folder: Path, *, orbax: bool) -> Path:
    """A checkpoint that T5X writes."""
    from t5x import checkpoints

    shapes = run.initializer.global_train_state_shape
    folder.mkdir()
    if orbax:
        manager = checkpoints.OrbaxCheckpointManagerInterface(
            str(folder), shapes, run.partitioner, save_dtype=jnp.float32
        )
        manager.save(state)
        manager.wait_until_finished()
        manager.close()
    else:
        checkpoints.Checkpointer(shapes, run.partitioner, str(folder)).save(state)
    [checkpoint] = folder.glob("checkpoint_*")
    return checkpoint


def assert_close(ours: Any, theirs: Any, what: str) -> None:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, what
    difference = np.linalg.norm((ours - theirs).ravel()) / np.linalg.norm(theirs.ravel())
    print(f"{what}: {difference:.1e}")
    assert difference < TOLERANCE, f"{what}: relative difference {difference:.2e}"


def losses(logits: jax.Array, targets: np.ndarray) -> jax.Array:
    each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(targets))
    return each.sum(where=targets != 0) / (targets != 0).sum()


@pytest.mark.parametrize("version", ["v1_0", "v1_1", "umt5"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("orbax", [False, True])
def test_same_logits_loss_and_gradients(
    tmp_path: Path, shape: tuple[int, ...], version: str, orbax: bool
) -> None:
    batch = batch_of(shape)
    model = t5x_model(config(shape, version))
    run = session(model, batch)
    state = random_state(run)
    weights = read_t5x(str(save(run, state, tmp_path / "t5x", orbax=orbax)))
    assert weights.config == config(shape, version)
    targets = batch["decoder_target_tokens"]

    def theirs(params: Any) -> tuple[jax.Array, jax.Array]:
        logits = model.module.apply({"params": params}, *batch.values(), enable_dropout=False)
        return losses(logits, targets), logits

    def ours(params: Any) -> tuple[jax.Array, jax.Array]:
        tokens = batch["encoder_input_tokens"], batch["decoder_input_tokens"]
        logits = T5(weights.config).apply({"params": params}, *tokens)
        return losses(logits, targets), logits

    params = jax.tree.map(np.asarray, state.params)
    (loss_t5x, logits_t5x), gradients_t5x = jax.jit(jax.value_and_grad(theirs, has_aux=True))(
        params
    )
    (loss, logits), gradients = jax.jit(jax.value_and_grad(ours, has_aux=True))(weights.tree())
    real = targets != 0
    assert_close(logits[real], logits_t5x[real], "logits")
    assert_close(loss, loss_t5x, "loss")
    expected = traverse_util.flatten_dict({"target": gradients_t5x}, sep="/")
    for parameter in parameters(weights.config, scanned=version == "umt5"):
        found = parameter.to_theirs(np.asarray(flat(gradients)[parameter.path]))
        for name, gradient in found.items():
            assert_close(gradient, expected.pop(name), f"gradient of {name}")
    assert not expected


@pytest.mark.parametrize("version", ["v1_1", "umt5"])
def test_same_greedy_tokens(version: str) -> None:
    import functools

    from t5x import decoding

    shape = SHAPES[0]
    sampler = functools.partial(decoding.temperature_sample, temperature=0.0)
    model = t5x_model(config(shape, version), decode_fn=sampler)
    weights = random_weights(config(shape, version))
    batch = batch_of(shape, size=64)
    arrays = traverse_util.unflatten_dict(t5x_arrays(weights), sep="/")["target"]
    expected = model.predict_batch(arrays, {k: jnp.asarray(v) for k, v in batch.items()})
    tokens = toy.tokens_of(T5(weights.config), weights.tree(), batch["encoder_input_tokens"], 12)
    np.testing.assert_array_equal(tokens, expected)


def random_weights(config: T5Config) -> Weights:
    rng = np.random.default_rng(5)
    shapes = expected_shapes(config)
    arrays = {p: rng.normal(size=s, scale=0.3).astype(np.float32) for p, s in shapes.items()}
    return from_tree(config, nested(arrays), origin="a test")


def t5x_arrays(weights: Weights) -> dict[str, np.ndarray]:
    return {
        name: array
        for parameter in parameters(
            weights.config, scanned=weights.config.relative_attention_per_layer
        )
        for name, array in parameter.to_theirs(weights.leaves[parameter.path].read()).items()
    }


@pytest.mark.parametrize("orbax", [False, True])
def test_scanned_is_read(tmp_path: Path, orbax: bool) -> None:
    shape = SHAPES[1]
    batch = batch_of(shape)
    model = t5x_model(config(shape, "v1_1"), scalable=True)
    run = session(model, batch)
    state = random_state(run, shared_bias=True)
    weights = read_t5x(str(save(run, state, tmp_path / "t5x", orbax=orbax)))
    params = jax.tree.map(np.asarray, state.params)
    expected = model.module.apply({"params": params}, *batch.values(), enable_dropout=False)
    tokens = batch["encoder_input_tokens"], batch["decoder_input_tokens"]
    logits = T5(weights.config).apply({"params": weights.tree()}, *tokens)
    real = batch["decoder_target_tokens"] != 0
    assert_close(logits[real], expected[real], "logits")


@pytest.mark.parametrize("version", ["v1_0", "v1_1", "umt5"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("use_orbax", [True, False])
def test_t5x_restores_what_is_written(
    tmp_path: Path, version: str, training: bool, use_orbax: bool
) -> None:
    from t5x import utils

    shape = SHAPES[2]
    weights = random_weights(config(shape, version))
    path = str(tmp_path / "model" / "checkpoint_20")
    write_t5x(weights, path)
    model = t5x_model(weights.config)
    batch = batch_of(shape)
    run = session(model, batch, training=training)
    restore = utils.RestoreCheckpointConfig(path=path, mode="specific", strict=training)
    state, _ = utils.create_checkpoint_manager_and_restore(
        run.initializer, run.partitioner, restore, path, None, use_orbax=use_orbax
    )
    assert int(state.step) == 20
    found = traverse_util.flatten_dict({"target": state.params.unfreeze()}, sep="/")
    expected = t5x_arrays(weights)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, name)
    if training:
        fresh = run.initializer.from_scratch(jax.random.PRNGKey(0))
        jax.tree.map(np.testing.assert_array_equal, state.param_states, fresh.param_states)
        gradients = jax.tree.map(jnp.ones_like, state.params)
        assert int(state.apply_gradient(gradients, learning_rate=1e-3).step) == 21


def test_t5x_finds_the_latest(tmp_path: Path) -> None:
    from t5x import checkpoints

    weights = random_weights(config(SHAPES[0], "v1_1"))
    for step in (5, 20):
        write_t5x(weights, str(tmp_path / f"checkpoint_{step}"))
    assert checkpoints.latest_step(str(tmp_path)) == 20
