"""The layouts of a batch, by name: `padded`, `flat`, `packed`. One loss serves all of them."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.data.blocks import Batch, Extent
from dss_jax.data.flat import FlatStreams
from dss_jax.data.packed import PackedRows
from dss_jax.data.padded import PaddedBlocks
from dss_jax.data.shapes import MAX_SHAPES, Cost
from dss_jax.data.store import StoreSplit


class Layout(Protocol):
    """Turns examples into batches of few static shapes."""

    shapes: int

    def extents(self, shape: int) -> tuple[Extent, ...]:
        """What is executed of a whole batch, block by block."""

    def assign(self, rows: np.ndarray) -> tuple[Any, np.ndarray]:
        """Batches' row numbers, int [n, N] -> something a batch for `build`; shape numbers [n],
        `shapes` where none has room.
        """

    def build(self, assigned: Any, shape: int) -> Batch:
        """One batch: this process's part of it."""


@dataclass(frozen=True)
class Share:
    """How a batch is shared out.

    Attributes:
      count: data-parallel devices times microbatches, over all processes.
      process_index, process_count: this process, and how many there are.
    """

    count: int = 1
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        if self.count % self.process_count:
            raise UsageError(
                f"{self.count} data-parallel devices x microbatches cannot be shared out evenly "
                f"over {self.process_count} processes. Give a larger Mesh.data or Mesh.fsdp."
            )

    @property
    def own(self) -> slice:
        """The shares that this process builds."""
        each = self.count // self.process_count
        return slice(self.process_index * each, (self.process_index + 1) * each)


def with_layout(data: config.Data, platform: str) -> config.Data:
    """Turns "auto" into the layout of a platform ("cpu", "gpu" or "tpu")."""
    if data.layout != "auto":
        return data
    # A TPU has no quick gather, and its matrix unit wants whole tiles of rows.
    return replace(data, layout="packed" if platform == "tpu" else "flat")


def make_layout(
    split: StoreSplit,
    data: config.Data,
    method: config.Method,
    share: Share,
    rows: np.ndarray,
    batches: Iterable[np.ndarray],
    cost: Cost,
    max_shapes: int = MAX_SHAPES,
) -> Layout:
    """The layout that `data.layout` names.

    Args:
      split, data, method: what is trained on.
      share: what this process builds.
      rows: all rows that will be asked for: int [m].
      batches: the same rows as they will be asked for, in arrays int [n, N].
      cost: FLOPs of an extent.
      max_shapes: how many shapes at most.
    """
    if data.layout == "padded":
        where = share.process_index, share.process_count
        return PaddedBlocks(split, rows, data, method, share=where)
    if data.layout == "packed":
        return PackedRows(
            split, data, method, shares=share.count, own=share.own,
            batches=batches, cost=cost, max_shapes=max_shapes,
        )  # fmt: skip
    assert data.layout == "flat", "auto is resolved before: see with_layout"
    return FlatStreams(
        split, data, method, streams=share.count, own=share.own,
        batches=batches, cost=cost, max_shapes=max_shapes,
    )  # fmt: skip
