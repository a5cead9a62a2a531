"""LoRA: the base model at step 0, right gradients, a frozen base, and the same on every mesh."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.scoring import TEXT_ACCURACY
from dss_jax.layouts.batches import TrainBatches
from dss_jax.model import lora
from dss_jax.model.t5 import T5
from dss_jax.run import single
from dss_jax.run.session import with_vocab_size
from dss_jax.train.checkpoint import Checkpoints
from dss_jax.train.sharding import make_mesh, put_batch
from dss_jax.train.step import Program, TrainState

LORA = config.Lora(rank=2, targets=("query", "value", "wo"), learning_rate=0.03)
SMALL = config.T5Config(
    vocab_size=32,
    emb_dim=8,
    num_heads=2,
    head_dim=4,
    mlp_dim=16,
    num_encoder_layers=2,
    num_decoder_layers=1,
    mlp_activations=("relu",),
)
INPUTS = jnp.array([[5, 6, 7, 1], [8, 1, 0, 0]], jnp.int32)
TARGETS = jnp.array([[0, 9, 10], [0, 11, 12]], jnp.int32)


def _program(store: Any, devices: int = 1, **sections: object) -> tuple[Program, TrainBatches]:
    run = with_vocab_size(toy.make_run(**({"lora": LORA} | sections)), store)
    program = Program(run, make_mesh(run.mesh, jax.devices()[:devices]))
    return program, TrainBatches(store.split("train"), run.task, run.data, run.method)


def _train(
    program: Program, batches: TrainBatches, state: TrainState, steps: range
) -> tuple[TrainState, list[dict]]:
    metrics = []
    for k in steps:
        state, numbers = program.train_step(state, put_batch(batches(k), program.mesh))
        metrics.append({name: float(value) for name, value in numbers.items()})
    return state, metrics


@pytest.fixture(scope="module")
def small() -> tuple[dict, dict]:
    """Parameters of the plain model, and with LoRA whose B is not 0."""
    boxed = jax.jit(T5(SMALL).init)(jax.random.key(0), INPUTS, TARGETS)["params"]
    with_lora = nn.meta.unbox(lora.add(boxed, LORA, jax.random.key(1)))
    return nn.meta.unbox(boxed), with_lora


def _nudged(params: dict) -> dict:
    """B is 0 at first, which would hide A."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: (
            x + 0.3 * jnp.cos(jnp.arange(x.size)).reshape(x.shape) if path[-1].key == lora.B else x
        ),
        params,
    )


@jax.jit
def _logits(params: dict) -> jax.Array:
    return T5(SMALL).apply({"params": params}, INPUTS, TARGETS)


def test_a_fresh_lora_changes_no_output(small: tuple[dict, dict]) -> None:
    plain, with_lora = small
    np.testing.assert_array_equal(_logits(with_lora), _logits(plain))
    node = with_lora["decoder"]["layers"]["encoder_decoder_attention"]["value"]
    assert {k: v.shape for k, v in node.items()} == {
        "kernel": (1, 8, 8),
        "lora_a": (1, 8, 2),
        "lora_b": (1, 2, 8),
    }
    assert set(with_lora["decoder"]["layers"]["self_attention"]["key"]) == {"kernel"}
    layers = with_lora["encoder"]["layers"]
    assert set(layers["mlp"]["wi"]) == {"kernel"}
    a = [layers["attention"][n][lora.A] for n in ("query", "value")]
    assert not np.allclose(a[0], a[1])
    assert not np.allclose(a[0][0], a[0][1])
    assert float(np.std(np.concatenate(a))) == pytest.approx(8**-0.5, rel=0.3)


def test_logits_and_gradients_are_those_of_the_merged_weights(small: tuple[dict, dict]) -> None:
    """With W' = W + A B: dA = dW' B^T and dB = A^T dW'."""
    params = _nudged(small[1])
    merged = lora.merge(params)
    assert jax.tree.structure(merged) == jax.tree.structure(small[0])
    np.testing.assert_allclose(_logits(params), _logits(merged), rtol=1e-4, atol=1e-5)
    assert np.abs(_logits(params) - _logits(small[0])).max() > 1e-2

    grad = jax.jit(jax.grad(lambda p: jnp.mean(jnp.square(_logits(p)))))
    trained, frozen = lora.split(params)
    got = jax.jit(jax.grad(lambda t: jnp.mean(jnp.square(_logits(lora.join(t, frozen))))))(trained)
    plain = grad(merged)
    for stack, module, name in (
        ("encoder", "attention", "query"),
        ("encoder", "mlp", "wo"),
        ("decoder", "encoder_decoder_attention", "value"),
    ):
        node, d_kernel = (t[stack]["layers"][module][name] for t in (params, plain))
        d_kernel, d = d_kernel["kernel"], got[stack]["layers"][module][name]
        d_a = np.einsum("lio,lro->lir", d_kernel, node[lora.B])
        d_b = np.einsum("lir,lio->lro", node[lora.A], d_kernel)
        np.testing.assert_allclose(d[lora.A], d_a, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(d[lora.B], d_b, rtol=1e-3, atol=1e-6)
        assert np.abs(d_a).max() > 1e-5


def test_split_and_join(small: tuple[dict, dict]) -> None:
    plain, params = small
    trained, frozen = lora.split(params)
    assert {p[-1].key for p, _ in jax.tree_util.tree_leaves_with_path(trained)} == {lora.A, lora.B}
    assert jax.tree.structure(frozen) == jax.tree.structure(plain)
    joined = lora.join(trained, frozen)
    assert jax.tree.structure(joined) == jax.tree.structure(params)
    assert all(map(lambda x, y: x is y, jax.tree.leaves(joined), jax.tree.leaves(params)))
    assert lora.split(plain) == (plain, {})
    assert lora.base(params) == frozen
    assert lora.base(plain) is plain
    assert jax.tree.leaves(lora.merge(plain))[0] is jax.tree.leaves(plain)[0]


def test_unknown_targets_are_refused() -> None:
    with pytest.raises(UsageError, match=r"Lora\.targets.*'querry'.*query"):
        config.Lora(targets=("querry",))
    with pytest.raises(UsageError, match=r"must be a list such as \('query',\)"):
        config.Lora(targets="query")  # type: ignore[arg-type]
    init = partial(T5(SMALL).init, jax.random.key(0), INPUTS, TARGETS)
    boxed = jax.eval_shape(init)["params"]
    add = partial(lora.add, lora=config.Lora(rank=1, targets=("wi_0",)), key=jax.random.key(0))
    with pytest.raises(UsageError, match=r"names wi_0, which this model does not have.*wi, wo"):
        jax.eval_shape(lambda p: add(p), boxed)


@pytest.fixture(scope="module")
def trained(toy_store):
    """Four steps on one device."""
    program, batches = _program(toy_store)
    start = program.init()
    before = jax.tree.map(np.array, start.params)
    state, metrics = _train(program, batches, start, range(4))
    return program, batches, before, state, metrics


@pytest.mark.slow
def test_only_lora_is_trained_and_the_loss_falls(trained) -> None:
    program, batches, before, state, metrics = trained
    was, frozen_was = lora.split(before)
    now, frozen_now = lora.split(state.params)
    jax.tree.map(np.testing.assert_array_equal, frozen_now, frozen_was)
    assert all(
        np.any(x != y) for x, y in zip(jax.tree.leaves(now), jax.tree.leaves(was), strict=True)
    )
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sum(x.size for x in moments) == 2 * sum(x.size for x in jax.tree.leaves(now))
    batch = put_batch(batches(0), program.mesh)
    score = program.eval_step.lower(batch).compile()
    losses = [
        float(jnp.sum(score(program.merge(p), batch).loss))
        for p in (jax.tree.map(jnp.asarray, before), state.params)
    ]
    assert losses[1] < 0.99 * losses[0], losses
    assert metrics[0]["learning_rate"] == pytest.approx(0.03)


@pytest.mark.slow
def test_evaluation_takes_merged_weights_and_copies_no_other(trained) -> None:
    program, *_, state, _ = trained
    merged = program.merge(state.params)
    assert jax.tree.structure(merged) == jax.tree.structure(program.abstract_params)
    plain = lora.base(state.params)
    same = jax.tree.map(
        lambda x, y: x.unsafe_buffer_pointer() == y.unsafe_buffer_pointer(), merged, plain
    )
    attention = same["encoder"]["layers"]["attention"]
    assert attention["key"]["kernel"]
    assert not attention["query"]["kernel"]
    assert same["token_embedder"]["embedding"]


@pytest.mark.slow
def test_a_restored_state_goes_on_bit_for_bit(trained, toy_store, tmp_path: Path) -> None:
    program, batches, _, state, _ = trained
    half, _ = _train(program, batches, program.init(), range(2))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(half, 2, None)
    checkpoints.wait()
    restored = program.seeded(checkpoints.restore(2, program.abstract_state))
    checkpoints.close()
    again, _ = _train(program, batches, restored, range(2, 4))
    jax.tree.map(np.testing.assert_array_equal, again, state)


@pytest.mark.slow
def test_a_mesh_and_parts_of_a_batch_give_the_same(toy_store) -> None:
    model = dataclasses.replace(toy.MODEL, dropout_rate=0.0)
    optimizer = config.Optimizer(eps=1e-3)
    expected = _train(
        *(p := _program(toy_store, model=model, optimizer=optimizer)), p[0].init(), range(2)
    )
    program, batches = _program(
        toy_store,
        4,
        model=model,
        optimizer=optimizer,
        mesh=config.Mesh(data=1, fsdp=2, model=2),
        train=config.Train(steps=6, microbatches=2),
    )
    state, metrics = _train(program, batches, program.init(), range(2))
    for x, y in zip(metrics, expected[1], strict=True):
        assert x == pytest.approx(y, rel=1e-4)
    for x, y in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(expected[0].params), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)
    a = state.params["encoder"]["layers"]["attention"]["query"]
    assert a[lora.A].addressable_shards[0].data.shape == (2, 8, 2)
    assert a[lora.B].addressable_shards[0].data.shape == (2, 2, 8)


@pytest.mark.slow
def test_adafactor_trains_lora(toy_store) -> None:
    optimizer = config.Optimizer(name="adafactor", schedule="constant", clip_norm=0.0)
    program, batches = _program(toy_store, optimizer=optimizer)
    start = program.init()
    before = jax.tree.map(np.array, start.params)
    state, metrics = _train(program, batches, start, range(2))
    assert all(np.isfinite(m["loss"]) for m in metrics)
    was, now = lora.split(before)[0], lora.split(state.params)[0]
    b = [t["decoder"]["layers"]["self_attention"]["query"][lora.B] for t in (was, now)]
    assert np.any(b[0] != b[1])


@pytest.mark.slow
def test_a_whole_run_with_lora(toy_store, tmp_path: Path) -> None:
    run = toy.make_run(lora=LORA, train=config.Train(steps=4, output_dir=str(tmp_path / "run")))
    results = single.train(run, toy_store, TEXT_ACCURACY)
    assert results["test"]["examples"] == toy.SIZES["test"]
