"""Batches that a CPU works on side by side.

A core with a batch of its own wastes less than all cores in the products of one
(benchmarks/README.md, "Predictions").
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from jax.sharding import Mesh

from dss_jax.core.machine import processors

WORKERS = 4
"""Batches side by side at most. More than two cores were not at hand."""

Item = TypeVar("Item")


def workers(mesh: Mesh) -> int:
    """How many batches are worked on at once: a core each where one CPU is all of the mesh.

    Elsewhere one: a GPU or TPU takes one after another anyway, and devices that have to meet in a
    program must all begin the same one first.
    """
    if mesh.size > 1 or mesh.devices.flat[0].platform != "cpu":
        return 1
    return max(1, min(WORKERS, int(os.environ.get("NPROC") or processors())))


def share_of(batch_size: int, mesh: Mesh) -> int:
    """Rows of each of the batches that are worked on at once, of so many rows together: memory is
    that of one whole batch.
    """
    return -(-batch_size // workers(mesh))


def for_each(work: Callable[[Item], None], items: Iterable[Item], mesh: Mesh) -> None:
    """Does the work for all items, for several at once where that pays: see `workers`. Raises what
    it raises; nothing is begun after that, and what was begun has ended.
    """
    items = [*items]
    if (count := min(workers(mesh), len(items))) <= 1:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(count, thread_name_prefix="batch") as pool:
        begun = [pool.submit(work, item) for item in items]
        try:
            for one in begun:
                one.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
