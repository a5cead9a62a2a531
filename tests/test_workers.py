"""Batches that a CPU works on side by side."""

import threading
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dss_jax.core import config
from dss_jax.evaluate.workers import WORKERS, for_each, share_of, workers
from dss_jax.train.compile import Compiled
from dss_jax.train.sharding import make_mesh

MESH = make_mesh(config.Mesh(), jax.devices()[:1])


@pytest.fixture(autouse=True)
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPROC", "2")


def test_a_core_has_a_batch_of_its_own_on_one_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert workers(MESH) == 2
    assert workers(make_mesh(config.Mesh(), jax.devices()[:2])) == 1
    assert [share_of(rows, MESH) for rows in (256, 5, 1)] == [128, 3, 1], "together as many rows"
    monkeypatch.setenv("NPROC", "64")
    assert workers(MESH) == WORKERS


def test_two_batches_are_worked_on_at_the_same_time() -> None:
    meet, done = threading.Barrier(2, timeout=60), list[int]()

    def work(item: int) -> None:
        meet.wait()
        done.append(item)

    for_each(work, iter(range(6)), MESH)
    assert sorted(done) == [*range(6)]


def test_after_an_error_nothing_more_is_begun_and_what_was_begun_has_ended() -> None:
    begun, ended = list[int](), list[int]()
    failed = threading.Event()

    def work(item: int) -> None:
        begun.append(item)
        if item == 0:
            failed.set()
            raise MemoryError("too large")
        failed.wait(60)
        time.sleep(0.2)  # The error is met meanwhile.
        ended.append(item)

    with pytest.raises(MemoryError, match="too large"):
        for_each(work, range(100), MESH)
    assert len(begun) < 10
    assert sorted(begun) == [0, *sorted(ended)]


def test_batches_of_one_shape_that_begin_together_compile_it_once() -> None:
    met, lowered = threading.Barrier(2, timeout=60), list[tuple[int, ...]]()

    def lower(x: jax.ShapeDtypeStruct) -> jax.stages.Lowered:
        lowered.append(x.shape)
        time.sleep(0.2)  # The other one asks meanwhile.
        return jax.jit(lambda first, x: first + jnp.sum(x)).lower(jnp.float32(0), x)

    call, found = Compiled(lower, MESH), dict[int, float]()

    def work(item: int) -> None:
        met.wait()
        found[item] = float(call(jnp.float32(item), np.ones(4, np.float32)))

    for_each(work, range(4), MESH)
    assert lowered == [(4,)]
    assert found == {0: 4, 1: 5, 2: 6, 3: 7}


def test_what_did_not_compile_is_tried_again() -> None:
    tries: list[int] = []

    class Lowered:
        def compile(self) -> Callable:
            tries.append(len(tries))
            if len(tries) == 1:
                raise MemoryError("too large")
            return lambda *_: "ran"

    call = Compiled(lambda _: Lowered(), MESH)
    with pytest.raises(MemoryError, match="too large"):
        call(None, np.ones(4, np.float32))
    assert call(None, np.ones(4, np.float32)) == "ran"
