"""The step: the same losses on 1 and 4 devices, and from parts of a batch as from the whole."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.layouts.batches import TrainBatches
from dss_jax.run.session import with_vocab_size
from dss_jax.train.sharding import make_mesh, put_batch
from dss_jax.train.step import Program, TrainState

NO_DROPOUT = dataclasses.replace(toy.MODEL, dropout_rate=0.0)


def _steps(run: config.Run, store, devices: int, n: int = 3) -> tuple[list[dict], TrainState]:
    run = with_vocab_size(run, store)
    program = Program(run, make_mesh(run.mesh, jax.devices()[:devices]))
    numbered = bool(run.loss.mutual_information)
    batches = TrainBatches(
        store.split("train"),
        run.task,
        run.data,
        run.method,
        shares=devices * run.train.microbatches,
        numbered=numbered,
    )
    state, metrics = program.init(), []
    for k in range(n):
        state, step_metrics = program.train_step(state, put_batch(batches(k), program.mesh))
        metrics.append({name: float(value) for name, value in step_metrics.items()})
    return metrics, state


def _assert_same(a: tuple[list[dict], TrainState], b: tuple[list[dict], TrainState]) -> None:
    for x, y in zip(a[0], b[0], strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_allclose(x[name], y[name], rtol=2e-5, err_msg=name)
    for x, y in zip(jax.tree.leaves(a[1].params), jax.tree.leaves(b[1].params), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def one_device(toy_store):
    # A large epsilon, because Adam turns rounding of a tiny gradient into a whole step.
    optimizer = config.Optimizer(learning_rate=1e-2, eps=1e-3)
    run = toy.make_run(optimizer=optimizer)
    return run, _steps(run, toy_store, 1)


MESHES = {
    "data": config.Mesh(data=4),
    "fsdp": config.Mesh(data=1, fsdp=4),
    "model": config.Mesh(data=1, model=4),
    "fsdp and model": config.Mesh(data=1, fsdp=2, model=2),
}


@pytest.mark.parametrize(
    "name",
    # Each mesh compiles for many seconds; the mixed one covers the ways of the others.
    [pytest.param(m, marks=[pytest.mark.slow] if " and " not in m else []) for m in MESHES],
)
def test_a_mesh_of_four_gives_the_losses_of_one_device(name: str, one_device, toy_store) -> None:
    run, expected = one_device
    assert run.model.dropout_rate > 0, "dropout masks must not depend on the mesh either"
    got = _steps(dataclasses.replace(run, mesh=MESHES[name]), toy_store, 4)
    _assert_same(got, expected)
    if name != "data":
        kernels = [x for x in jax.tree.leaves(got[1].params) if x.ndim == 3]
        assert all(x.addressable_shards[0].data.size < x.size for x in kernels)
        moments = [x for x in jax.tree.leaves(got[1].opt_state) if x.ndim == 3]
        assert len(moments) == 2 * len(kernels)
        assert all(x.addressable_shards[0].data.size < x.size for x in moments)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_parts_of_a_batch_add_up_to_the_whole(devices: int, toy_store) -> None:
    run = toy.make_run(model=NO_DROPOUT, optimizer=config.Optimizer(learning_rate=1e-2, eps=1e-3))
    mesh = config.Mesh(data=2, fsdp=2) if devices == 4 else config.Mesh()
    run = dataclasses.replace(run, mesh=mesh)
    train = dataclasses.replace(run.train, microbatches=2 if devices == 4 else 4)
    parts = _steps(dataclasses.replace(run, train=train), toy_store, devices)
    _assert_same(parts, _steps(run, toy_store, devices))


@pytest.mark.slow
def test_adafactor_trains_on_a_mesh_as_on_one_device(toy_store) -> None:
    optimizer = config.Optimizer(
        name="adafactor", learning_rate=1e-2, schedule="constant", clip_norm=0.0
    )
    run = toy.make_run(optimizer=optimizer, model=NO_DROPOUT)
    expected = _steps(run, toy_store, 1)
    meshed = dataclasses.replace(run, mesh=config.Mesh(data=2, fsdp=2))
    got = _steps(meshed, toy_store, 4)
    for x, y in zip(got[0], expected[0], strict=True):
        np.testing.assert_allclose(x["loss"], y["loss"], rtol=1e-4)


@pytest.mark.slow
def test_bfloat16_keeps_parameters_and_losses_in_float32(toy_store) -> None:
    model = dataclasses.replace(NO_DROPOUT, dtype="bfloat16")
    half, state = _steps(toy.make_run(model=model), toy_store, 1)
    full, _ = _steps(toy.make_run(model=NO_DROPOUT), toy_store, 1)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    for x, y in zip(half, full, strict=True):
        np.testing.assert_allclose(x["loss"], y["loss"], rtol=2e-2)
        assert x["loss"] != y["loss"]


def test_the_weighted_loss_and_the_learning_rate_are_reported(toy_store) -> None:
    run = toy.make_run(loss=config.Loss(alpha=0.3), model=NO_DROPOUT)
    metrics, _ = _steps(run, toy_store, 1)
    for k, m in enumerate(metrics):
        expected = 0.3 * m["label/loss"] + 0.7 * m["rationale/loss"]
        np.testing.assert_allclose(m["loss"], expected, rtol=1e-5)
        np.testing.assert_allclose(m["learning_rate"], 1e-2 * (1 - k / 6), rtol=1e-5)


def test_what_does_not_fit_the_mesh_is_refused_by_name(toy_store) -> None:
    with pytest.raises(UsageError, match="does not fit 4 devices"):
        make_mesh(config.Mesh(data=3), jax.devices()[:4])
    run = toy.make_run(data=config.Data(batch_size=6), mesh=config.Mesh(data=4))
    with pytest.raises(UsageError, match=r"Data\.batch_size is 6.*multiple of 4"):
        _steps(run, toy_store, 4)
    model = dataclasses.replace(toy.MODEL, num_heads=3, head_dim=3)
    run = toy.make_run(model=model, mesh=config.Mesh(data=1, model=4))
    with pytest.raises(UsageError, match=r"cannot be cut into 4 along mesh axis model"):
        _steps(run, toy_store, 4)


def _with_term(layout: str = "padded", microbatches: int = 1) -> config.Run:
    optimizer = config.Optimizer(learning_rate=1e-2, eps=1e-3)
    return toy.make_run(
        model=NO_DROPOUT,
        optimizer=optimizer,
        data=config.Data(batch_size=8, layout=layout),
        loss=config.Loss(mutual_information=0.5, alpha_schedule="linear", alpha=0.9),
        train=config.Train(steps=6, microbatches=microbatches),
    )


@pytest.mark.slow
def test_the_mutual_information_term_does_not_depend_on_layout_devices_or_parts(toy_store) -> None:
    expected = _steps(_with_term(), toy_store, 1)
    metrics = expected[0]
    assert all(m["disagreement"] > 0 for m in metrics)
    np.testing.assert_allclose([m["alpha"] for m in metrics], [0.9, 0.82, 0.74], rtol=1e-6)
    for m in metrics:
        both = m["alpha"] * m["label/loss"] + (1 - m["alpha"]) * m["rationale/loss"]
        np.testing.assert_allclose(m["loss"], both + 0.5 * m["disagreement"], rtol=1e-5)
    _assert_same(expected, _steps(_with_term("flat", microbatches=2), toy_store, 1))
    _assert_same(expected, _steps(_with_term("packed"), toy_store, 4))
