"""Layouts: the same losses and gradients from each; what is in them; how shapes are chosen."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.data.prepare import ensure_store
from dss_jax.data.store import TokenStore
from dss_jax.layouts import rows as layout_rows
from dss_jax.layouts.batches import TrainBatches
from dss_jax.layouts.blocks import Batch, BlockShape
from dss_jax.layouts.flat import deal, stream_rows
from dss_jax.layouts.layout import base_cost, choose_block_shapes, first_that_fits, with_layout
from dss_jax.layouts.rows import packed_rows
from dss_jax.model.t5 import T5
from dss_jax.run.session import with_vocab_size
from dss_jax.train import loss as losses
from dss_jax.train.sharding import make_mesh, on_mesh, put_batch

pytestmark = [pytest.mark.usefixtures("strict"), pytest.mark.filterwarnings("error")]

LAYOUTS = ("padded", "flat", "packed")
NO_DROPOUT = dataclasses.replace(toy.MODEL, dropout_rate=0.0)
METHODS = {
    "standard": config.Method(name="standard", label="gold", rationale=False),
    "dss": config.Method(name="dss", label="gold", rationale=True),
}


def _batches(
    store, layout: str, method="dss", size=8, lengths=(1024, 256), max_shapes=3, **kwargs
) -> TrainBatches:
    data = config.Data(
        batch_size=size,
        layout=layout,
        input_length=lengths[0],
        target_length=lengths[1],
        max_shapes=max_shapes,
    )
    return TrainBatches(
        store.split("train"), config.Task(name="toy"), data, METHODS[method], **kwargs
    )


def _targets(batch: Batch) -> list[tuple[int, ...]]:
    """(role, tokens ...) of each target, found by its first decoder input, 0."""
    found = []
    for block in batch:
        for inputs, targets, roles in zip(
            block.decoder_input_tokens,
            block.decoder_target_tokens,
            block.decoder_roles,
            strict=True,
        ):
            real = np.flatnonzero(roles)
            starts = [i for i in real if inputs[i] == 0]
            ends = [*starts[1:], *(real[-1:] + 1)]
            for start, end in zip(starts, ends, strict=True):
                span = targets[start:end]
                found.append((int(roles[start]), *span[span > 0].tolist()))
                np.testing.assert_array_equal(inputs[start + 1 : end], targets[start : end - 1])
    return sorted(found)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", ["flat", "packed"])
def test_a_layout_holds_the_targets_of_the_padded_one(toy_store, layout: str, method: str) -> None:
    make, reference = (_batches(toy_store, name, method) for name in (layout, "padded"))
    for step in range(6):
        assert _targets(make(step)) == _targets(reference(step))
        inputs = np.concatenate([b.encoder_input_tokens.ravel() for b in make(step)])
        # Beside the inputs of examples that have no rationale, which nobody learns from.
        assert np.count_nonzero(inputs) <= sum(
            np.count_nonzero(b.encoder_input_tokens) for b in reference(step)
        )


@pytest.mark.parametrize("layout", ["flat", "packed"])
def test_long_rows_are_cut_and_end_in_eos(toy_store, layout: str) -> None:
    cut = (6, 4)
    make, reference = (_batches(toy_store, name, lengths=cut) for name in (layout, "padded"))
    assert _targets(make(0)) == _targets(reference(0))

    def ends(batch: Batch) -> int:
        return sum(int((b.encoder_input_tokens == 1).sum()) for b in batch)

    targets = [b.decoder_roles.any(axis=1).sum() for b in reference(0)]
    assert ends(make(0)) == sum(targets), "each input that is trained on has its EOS"


@pytest.fixture(scope="module", params=["t5", pytest.param("umt5", marks=pytest.mark.slow)])
def model_and_params(request: pytest.FixtureRequest, toy_store):
    own_bias = request.param == "umt5"
    config = dataclasses.replace(NO_DROPOUT, relative_attention_per_layer=own_bias)
    run = with_vocab_size(toy.make_run(model=config), toy_store)
    model = T5(run.model)
    tokens = jnp.ones((1, 2), jnp.int32)
    return run, model, model.init(jax.random.key(0), tokens, tokens)["params"]


def _loss_and_gradients(run: config.Run, model: T5, params, batch: Batch, devices: int = 1):
    mesh = make_mesh(config.Mesh(data=devices), jax.devices()[:devices])

    def loss(params, batch):
        sums = losses.task_sums(model, params, batch, run.loss, None)
        return losses.weighted_loss(
            sums.loss, sums.tokens, losses.task_weights(run.loss, run.method)
        )

    with on_mesh(mesh, run.mesh.logical_axis_rules):
        return jax.jit(jax.value_and_grad(loss))(params, put_batch(batch, mesh))


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=[pytest.mark.slow] * (m == "standard")) for m in METHODS]
)
def test_losses_and_gradients_are_those_of_the_padded_layout(
    toy_store, model_and_params, method: str
) -> None:
    run, model, params = model_and_params
    run = dataclasses.replace(run, method=METHODS[method])
    expected = _loss_and_gradients(run, model, params, _batches(toy_store, "padded", method)(3))
    for layout in ("flat", "packed"):
        for devices in (1, 4):
            batch = _batches(toy_store, layout, method, shares=devices)(3)
            got = _loss_and_gradients(run, model, params, batch, devices)
            for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(
                    x, y, rtol=2e-5, atol=2e-6, err_msg=f"{layout} {devices}"
                )


@pytest.mark.slow
def test_roles_may_have_packed_rows_of_their_own(
    toy_store, model_and_params, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, model, params = model_and_params
    monkeypatch.setattr(layout_rows, "WORTH_A_BLOCK", -9.0)
    reference = _batches(toy_store, "padded")
    expected = _loss_and_gradients(run, model, params, reference(3))
    for devices in (1, 4):
        make = _batches(toy_store, "packed", shares=devices)
        label, rationale = make(3)
        assert set(np.unique(label.decoder_roles)) == {0, 1}
        assert set(np.unique(rationale.decoder_roles)) == {0, 2}
        assert label.decoder_target_tokens.shape[1] < rationale.decoder_target_tokens.shape[1]
        assert _targets(make(3)) == _targets(reference(3))
        got = _loss_and_gradients(run, model, params, make(3), devices)
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6, err_msg=f"{devices}")
    whole = _batches(toy_store, "packed", shares=4)
    parts = [
        _batches(toy_store, "packed", shares=4, process_index=i, process_count=2) for i in range(2)
    ]
    joined = jax.tree.map(lambda *xs: np.concatenate(xs), *(p(5) for p in parts))
    jax.tree.map(np.testing.assert_array_equal, joined, whole(5))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_processes_build_parts_of_the_one_global_batch(toy_store, layout: str) -> None:
    whole = _batches(toy_store, layout, shares=4)
    parts = [
        _batches(toy_store, layout, shares=4, process_index=i, process_count=4) for i in range(4)
    ]
    for step in (0, 5, 11):
        joined = jax.tree.map(lambda *xs: np.concatenate(xs), *(p(step) for p in parts))
        jax.tree.map(np.testing.assert_array_equal, joined, whole(step))
    with pytest.raises(UsageError, match="cannot be shared out evenly"):
        _batches(toy_store, layout, shares=2, process_count=4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_can_be_built_in_any_shape_with_room(toy_store, layout: str) -> None:
    make = _batches(toy_store, layout, steps=40)
    assert 1 <= make.layout.shapes <= 3
    seen = {make.shape_at(step) for step in range(40)}
    assert seen == set(range(make.layout.shapes))
    last = make.layout.shapes - 1
    expected = jax.tree.map(np.shape, make.empty(last))
    for step in range(40):
        assert jax.tree.map(np.shape, make(step, shape=last)) == expected
        assert _targets(make(step, shape=last)) == _targets(make(step))
    one = _batches(toy_store, layout, steps=40, max_shapes=1)
    assert one.layout.shapes == 1
    assert {one.shape_at(step) for step in range(40)} == {0}
    assert not any(b.decoder_roles.any() for b in make.empty(last))


@pytest.mark.parametrize("layout", ["flat", "packed"])
def test_what_is_executed_beyond_real_tokens_is_counted(toy_store, layout: str) -> None:
    make, padded = (_batches(toy_store, n, size=32, steps=64) for n in (layout, "padded"))
    assert 1.0 < make.padding_overhead(64) < padded.padding_overhead(64)
    tokens = sum(b.encoder_input_tokens.size for b in make(0))
    assert tokens == sum(e.encoder_tokens for e in make.layout.block_shapes(make.shape_at(0)))


def test_examples_are_dealt_so_that_streams_are_alike() -> None:
    weights = np.random.default_rng(0).integers(1, 100, (50, 64))
    places = deal(weights, 8)
    assert (np.sort(places.reshape(50, 64), axis=1) == np.arange(64)).all()
    sums = np.take_along_axis(weights[:, None], places, axis=2).sum(axis=2)
    assert (sums.max(axis=1) / sums.mean(axis=1)).max() < 1.1


def test_one_stream_keeps_the_order(toy_store) -> None:
    rows = np.arange(32)[None, ::-1]
    placed, _ = _batches(toy_store, "flat", size=32, steps=4).layout.assign(rows)
    assert placed.tolist() == [rows.tolist()]


def test_rows_and_streams_are_each_others_inverse() -> None:
    rows = stream_rows(np.array([3, 0, 5]), 12, 6)
    assert rows.take.tolist() == [[0, 1, 2, 11, 11, 11], [11] * 6, [3, 4, 5, 6, 7, 11]]
    assert rows.back.tolist() == [0, 1, 2, 12, 13, 14, 15, 16, 5, 5, 5, 5]


def _filled_rows(sizes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Inputs and targets in each row of a batch: sizes [2, M], rows [M] -> [2, R]."""
    used = np.zeros((2, rows.max() + 1), int)
    for pair in np.flatnonzero(rows >= 0):
        used[:, rows[pair]] += sizes[:, pair]
    return used


def test_packing_puts_every_pair_into_a_row_that_has_room() -> None:
    rng = np.random.default_rng(1)
    sizes = np.stack([rng.integers(1, 60, (20, 40)), rng.integers(1, 30, (20, 40))])
    sizes[:, :, -3:] = 0
    sizes[:, 5] = 0
    sizes[:, 6, :37] = [[33], [17]]  # No two of them fit into a row.
    rows = packed_rows(sizes, (64, 32))
    assert (rows[:, -3:] == -1).all()
    assert (rows[5] == -1).all()
    assert sorted(rows[6, :37]) == list(range(37))
    for b in set(range(20)) - {5}:
        assert (rows[b, :37] >= 0).all()
        used = _filled_rows(sizes[:, b], rows[b])
        assert (used[0] <= 64).all()
        assert (used[1] <= 32).all()
        assert (used[0] > 0).all()


@pytest.mark.parametrize("examples", [64, 150])
def test_packing_fills_inputs_and_targets_alike(examples: int) -> None:
    # Half of the pairs have long targets, as a rationale; half have short ones, as a label.
    rng = np.random.default_rng(2)
    inputs = rng.integers(30, 70, (50, 2 * examples))
    targets = np.concatenate(
        [rng.integers(2, 5, (50, examples)), rng.integers(15, 45, (50, examples))], axis=1
    )
    sizes, capacities = np.stack([inputs, targets]), (224, 72)
    rows = packed_rows(sizes, capacities)
    assert (_filled_rows(sizes[:, 3], rows[3]) <= np.array(capacities)[:, None]).all()
    assert (rows >= 0).all()
    # What no packing can be below.
    least = np.ceil(np.maximum(*(sizes[k].sum(axis=1) / capacities[k] for k in (0, 1))))
    assert ((rows.max(axis=1) + 1) / least).mean() < 1.12  # First fit: 1.30.
    # What a batch needs does not depend on which others are packed with it.
    np.testing.assert_array_equal(packed_rows(sizes[:, 7:8], capacities)[0], rows[7])


def test_few_shapes_are_chosen_and_the_last_has_room_for_all() -> None:
    rng = np.random.default_rng(2)
    tokens = rng.integers(10, 100, 1000) * 32
    needed = BlockShape(np.full(1000, 8), tokens, np.full(1000, 64), tokens // 2, np.full(1000, 32))
    chosen = choose_block_shapes((needed,), base_cost)
    assert len(chosen) == 3
    assert chosen[-1][0].encoder_tokens == tokens.max()
    at = first_that_fits(chosen, (needed,))
    assert set(at) == {0, 1, 2}
    cost = sum(float(base_cost(chosen[i][0])) for i in at)
    one = choose_block_shapes((needed,), base_cost, max_shapes=1)
    assert one == (chosen[-1],)
    assert cost < 0.8 * 1000 * float(base_cost(one[0][0]))
    # Where all batches are alike, one shape is enough.
    alike = BlockShape(*(np.full(5, n) for n in (8, 640, 64, 320, 32)))
    assert len(choose_block_shapes((alike,), base_cost)) == 1


def test_a_shape_has_room_for_all_blocks_of_a_batch() -> None:
    rows = np.array([[4, 4, 4, 4, 8], [2, 2, 2, 6, 2]])
    needed = tuple(BlockShape(r, 64 * r, np.full(5, 64), 32 * r, np.full(5, 32)) for r in rows)
    chosen = choose_block_shapes(needed, base_cost)
    assert [block.rows for block in chosen[-1]] == [8, 6]
    assert [block.rows for block in chosen[0]] == [4, 2]
    assert first_that_fits(chosen, needed).tolist()[:3] == [0, 0, 0]
    assert min(first_that_fits(chosen, needed)[3:]) > 0


def test_a_batch_that_no_planned_shape_takes_is_refused(toy_store) -> None:
    make = _batches(toy_store, "flat", steps=1)
    with pytest.raises(UsageError, match="needs a larger shape"):
        [make(step) for step in range(200)]


def test_auto_is_packed_on_a_tpu_and_flat_elsewhere() -> None:
    auto = config.Data()
    assert [with_layout(auto, p).layout for p in ("cpu", "gpu", "tpu")] == [
        "flat",
        "flat",
        "packed",
    ]
    assert with_layout(config.Data(layout="padded"), "tpu").layout == "padded"


RELEASE = Path(__file__).parents[2] / "shared" / "data" / "release"
VOCABULARY = RELEASE.parent / "vocab" / "t5_sentencepiece_32000.model"


def _release_store(task: str, folder: Path) -> tuple[config.Run, TokenStore]:
    run = config.Run(
        task=config.Task(name=task, data_dir=str(RELEASE)),
        vocabulary=config.Vocabulary(path=str(VOCABULARY)),
        data=config.Data(store_dir=str(folder)),
        model=dataclasses.replace(NO_DROPOUT, vocab_size=32128),
    )
    return run, ensure_store(run.task, run.vocabulary, run.data)


needs_release = pytest.mark.skipif(
    not RELEASE.exists(), reason="needs the authors' release and T5's vocabulary"
)


@pytest.mark.slow
@needs_release
@pytest.mark.parametrize("layout", ["flat", "packed"])
@pytest.mark.parametrize(
    ("task", "split", "limit"),
    [
        ("cqa", "train", 1.20),
        ("svamp", "train", 1.20),
        ("anli1", "validation", 1.20),
        ("esnli", "validation", 1.30),
    ],
)
def test_little_is_executed_in_vain(
    task: str, split: str, limit: float, layout: str, tmp_path: Path
) -> None:
    run, store = _release_store(task, tmp_path)
    data = config.Data(layout=layout)
    make = TrainBatches(store.split(split), run.task, data, run.method, steps=1000)
    assert make.padding_overhead() <= limit
    assert make.layout.shapes <= 3


@pytest.mark.slow
@needs_release
@pytest.mark.parametrize("task", ["cqa", "svamp", "anli1"])
def test_real_batches_give_the_losses_and_gradients_of_the_padded_layout(
    task: str, tmp_path: Path
) -> None:
    run, store = _release_store(task, tmp_path)
    model, tokens = T5(run.model), jnp.ones((1, 2), jnp.int32)
    params = model.init(jax.random.key(0), tokens, tokens)["params"]

    def batches(layout: str, devices: int) -> TrainBatches:
        data = config.Data(layout=layout)
        split = store.split("train" if "train" in store.splits else "validation")
        return TrainBatches(split, run.task, data, run.method, steps=500, shares=devices)

    expected = _loss_and_gradients(run, model, params, batches("padded", 1)(7))
    for layout, devices in (("flat", 1), ("flat", 4), ("packed", 1), ("packed", 4)):
        got = _loss_and_gradients(run, model, params, batches(layout, devices)(7), devices)
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-6, err_msg=f"{layout} {devices}")
