"""The batch at step k: a pure function of (store, seed, k), and what is in it."""

import dataclasses
import itertools

import numpy as np
import pytest
import toy

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.ids import LABEL, RATIONALE
from dss_jax.layouts import batches
from dss_jax.layouts.batches import TrainBatches
from dss_jax.layouts.blocks import Batch

DATA = config.Data(batch_size=8, layout="padded")
METHODS = {
    "standard": config.Method(name="standard", label="gold", rationale=False),
    "distill": config.Method(name="distill", label="teacher", rationale=False),
    "dss": config.Method(name="dss", label="gold", rationale=True),
    "dss_unlabeled": config.Method(name="dss_unlabeled", label="teacher", rationale=True),
}

PERMUTATION_10_0 = [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
PERMUTATION_10_3_7 = [5, 0, 6, 9, 8, 7, 4, 2, 3, 1]


def _batches(store, method: str = "dss", task=None, data=DATA, **kwargs) -> TrainBatches:
    task = task or config.Task(name="toy")
    return TrainBatches(store.split("train"), task, data, METHODS[method], **kwargs)


def _same(a: Batch, b: Batch) -> bool:
    return all(
        np.array_equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


def test_the_order_is_pinned() -> None:
    # Recorded once; a run of today must be repeatable with tomorrow's NumPy.
    assert batches.permutation(10, 0).tolist() == PERMUTATION_10_0
    assert batches.permutation(10, 3, 7).tolist() == PERMUTATION_10_3_7


def test_the_order_of_equal_draws_is_pinned(monkeypatch) -> None:
    drawn = np.random.default_rng(0).integers(0, 9, 5000, dtype=np.uint64)

    class Philox:
        def __init__(self, key: np.ndarray) -> None:
            pass

        def random_raw(self, n: int) -> np.ndarray:
            return drawn[:n]

    monkeypatch.setattr(np.random, "Philox", Philox)
    expected = sorted(range(5000), key=lambda i: drawn[i])  # Python's sort is stable.
    assert batches.permutation(5000, 0).tolist() == expected


def test_a_batch_depends_on_store_seed_and_step_alone(toy_store) -> None:
    first, second = _batches(toy_store), _batches(toy_store)
    [first(k) for k in range(9)]
    assert _same(first(5), second(5))
    assert not _same(first(5), first(6))
    assert not _same(first(5), _batches(toy_store, data=dataclasses.replace(DATA, seed=1))(5))


def test_each_epoch_holds_every_example_once_and_drops_none(toy_store) -> None:
    make = _batches(toy_store)
    n = toy.SIZES["train"]
    drawn = np.concatenate([make.rows_at(k) for k in range(n)])  # n steps of 8: 8 epochs
    for epoch in range(8):
        assert sorted(drawn[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert drawn[:n].tolist() != drawn[n : 2 * n].tolist()


def test_a_batch_is_shared_out_evenly_over_processes(toy_store) -> None:
    whole = _batches(toy_store)
    part = _batches(toy_store, process_index=2, process_count=4)
    np.testing.assert_array_equal(part.rows_at(5), whole.rows_at(5))
    for block, expected in zip(part(5), whole(5), strict=True):
        np.testing.assert_array_equal(block.decoder_roles, expected.decoder_roles[4:6])
    with pytest.raises(UsageError, match=r"multiple of the number of processes \(3\)"):
        _batches(toy_store, process_count=3)


def test_each_example_is_there_in_both_roles(toy_store) -> None:
    make, split = _batches(toy_store), toy_store.split("train")
    label, rationale = make(3)
    for i, row in enumerate(make.rows_at(3)):
        for block, role, columns in (
            (label, LABEL, ("label_inputs", "label_targets")),
            (rationale, RATIONALE, ("rationale_inputs", "rationale_targets")),
        ):
            inputs, targets = (split.tokens(c)[int(row)] for c in columns)
            inputs = inputs if len(targets) else []  # It would be computed for nothing.
            got = block.encoder_input_tokens[i]
            np.testing.assert_array_equal(got[got > 0], inputs)
            got = block.decoder_target_tokens[i]
            np.testing.assert_array_equal(got[got > 0], targets)
            np.testing.assert_array_equal(block.decoder_roles[i], np.where(got > 0, role, 0))
            assert block.decoder_input_tokens[i, 0] == 0
            np.testing.assert_array_equal(block.decoder_input_tokens[i, 1:], got[:-1])


@pytest.mark.parametrize("method", METHODS)
def test_methods_train_on_their_own_columns(toy_store, method: str) -> None:
    make, split = _batches(toy_store, method), toy_store.split("train")
    blocks = make(0)
    assert len(blocks) == (2 if "dss" in method else 1)
    teacher = method in ("distill", "dss_unlabeled")
    targets = split.tokens("teacher_label_targets" if teacher else "label_targets")
    row = int(make.rows_at(0)[0])
    got = blocks[0].decoder_target_tokens[0]
    np.testing.assert_array_equal(got[got > 0], targets[row])
    assert make.left_out == (5 if teacher else 0)  # every seventh of 37 has no teacher's label


def test_lengths_come_from_the_data_and_are_rounded_up(toy_store) -> None:
    split = toy_store.split("train")
    longest = int(split.tokens("rationale_inputs").lengths().max())
    make = _batches(toy_store, data=dataclasses.replace(DATA, length_multiple=4))
    (inputs, _), (also_inputs, targets) = (part.lengths for part in make.layout.parts)
    assert inputs == also_inputs == -(-longest // 4) * 4
    assert targets == -(-int(split.tokens("rationale_targets").lengths().max()) // 4) * 4


def test_long_rows_are_cut_and_end_in_eos(toy_store) -> None:
    data = dataclasses.replace(DATA, input_length=6, target_length=4, length_multiple=1)
    make, split = _batches(toy_store, data=data), toy_store.split("train")
    _, rationale = make(0)
    assert rationale.encoder_input_tokens.shape == (8, 6)
    for i, row in enumerate(make.rows_at(0)):
        whole = split.tokens("rationale_inputs")[int(row)]
        if not len(split.tokens("rationale_targets")[int(row)]):
            continue
        got = rationale.encoder_input_tokens[i]
        if len(whole) > 6:
            np.testing.assert_array_equal(got, [*whole[:5], 1])
        else:
            np.testing.assert_array_equal(got[: len(whole)], whole)


def test_subsets_are_nested_seeded_and_counted() -> None:
    def rows(**task: object) -> set[int]:
        return set(batches.subset_rows(1000, config.Task(name="toy", **task)).tolist())

    shares = [rows(train_fraction=f) for f in (0.001, 0.125, 0.25, 0.5, 0.8, 1.0)]
    assert [len(s) for s in shares] == [1, 125, 250, 500, 800, 1000]
    assert all(a < b for a, b in itertools.pairwise(shares))
    assert rows(train_count=125) == shares[1]
    assert rows(train_fraction=0.125, subset_seed=1) != shares[1]
    with pytest.raises(UsageError, match="the training split has 1000 examples"):
        rows(train_count=1001)


def test_an_empty_row_of_an_evaluation_batch_weighs_nothing(toy_store) -> None:
    make = _batches(toy_store)
    ((assigned,), _) = make.layout.assign(np.array([[3, -1]]))
    label, rationale = make.layout.build(assigned, 0)
    assert not label.decoder_roles[1].any()
    assert not rationale.encoder_input_tokens[1].any()


def test_evaluation_batches_keep_every_row() -> None:
    parts = batches.eval_batches([4, 2, 7, 1, 9], 2)
    assert [p.tolist() for p in parts] == [[4, 2], [7, 1], [9, -1]]


def test_fresh_subsets_share_their_shapes_each_in_the_order_of_its_seed(
    toy_store, monkeypatch
) -> None:
    tasks = [
        config.Task(name="toy", train_count=n, fresh_subsets=True, subset_seed=seed)
        for seed, n in itertools.product(range(3), (5, 37))
    ]
    planned: list[tuple[int, int]] = []
    items = TrainBatches._items

    def counted(self: TrainBatches, steps: np.ndarray, seed: int, subset: int = 0) -> np.ndarray:
        planned.append((len(self._subsets[subset]), seed))
        return items(self, steps, seed, subset)

    monkeypatch.setattr(TrainBatches, "_items", counted)
    found = []
    for task in tasks:
        planned.clear()
        data = dataclasses.replace(DATA, layout="flat", seed=task.subset_seed)
        made = _batches(toy_store, task=task, data=data, steps=30, plan_subsets=tasks)
        assert sorted(planned) == sorted(itertools.product((5, 37), range(3)))
        found.append([[x.shape for x in batch[0][:2]] for batch in made.shapes])
    assert all(shapes == found[0] for shapes in found)


@pytest.mark.parametrize("layout", ["padded", "flat", "packed"])
def test_runs_on_subsets_can_share_their_shapes(toy_store, layout: str) -> None:
    subsets = [config.Task(name="toy", train_count=n) for n in (5, 12, 37)]
    data = dataclasses.replace(DATA, layout=layout)

    def shapes(made: TrainBatches) -> list[list[tuple[int, ...]]]:
        return [[x.shape for b in batch for x in (b[0], b[1])] for batch in made.shapes]

    apart = [_batches(toy_store, task=t, data=data, steps=30) for t in subsets]
    made = [_batches(toy_store, task=t, data=data, steps=30, plan_subsets=subsets) for t in subsets]
    if layout != "padded":
        assert shapes(apart[0]) != shapes(apart[2])
    assert shapes(made[0]) == shapes(made[1]) == shapes(made[2])
    for one, alone in zip(made, apart, strict=True):
        for step in (0, 7, 29):
            assert one.rows_at(step).tolist() == alone.rows_at(step).tolist(), "the same examples"
            assert one(step)


def test_a_size_that_cannot_be_does_not_stop_the_others(toy_store) -> None:
    """More rows than there are; and a subset none of whose rows has the method's label."""
    task, own = config.Task(name="toy", train_count=12), "distill"
    without = np.flatnonzero(
        toy_store.split("train").tokens("teacher_label_targets").lengths() == 0
    )
    seed = next(s for s in range(99) if batches.subset_rows(37, _one(s))[0] in without)
    planned = [task, config.Task(name="toy", train_count=1000), _one(seed)]
    alone, made = (
        _batches(toy_store, own, task, steps=30, plan_subsets=others) for others in ((), planned)
    )
    assert [x.shape for b in made.shapes for x in b[0][:2]] == [
        x.shape for b in alone.shapes for x in b[0][:2]
    ]
    with pytest.raises(UsageError, match="none of the 1 training examples"):
        _batches(toy_store, own, _one(seed), plan_subsets=planned)


def _one(seed: int) -> config.Task:
    return config.Task(name="toy", train_count=1, subset_seed=seed)
