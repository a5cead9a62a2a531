"""The layouts of a batch, by name: `padded`, `flat`, `packed`. One loss serves all of them."""

from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from dss_jax.core import config
from dss_jax.data.columns import Examples
from dss_jax.layouts.blocks import Batch, BlockShape
from dss_jax.layouts.flat import FlatStreams
from dss_jax.layouts.packed import PackedRows
from dss_jax.layouts.padded import PaddedBlocks
from dss_jax.layouts.shapes import Plan


class Layout(Protocol):
    """Turns examples into batches of few static shapes."""

    shapes: int

    def block_shapes(self, shape: int) -> tuple[BlockShape, ...]:
        """What is executed of a whole batch, block by block."""

    def assign(self, rows: np.ndarray) -> tuple[Any, np.ndarray]:
        """Batches' row numbers, int [n, N] -> something a batch for `build`; shape numbers [n],
        `shapes` where none has room.
        """

    def build(self, assigned: Any, shape: int) -> Batch:
        """One batch: this process's part of it."""


def with_layout(data: config.Data, platform: str) -> config.Data:
    """Turns "auto" into the layout of a platform ("cpu", "gpu" or "tpu")."""
    if data.layout != "auto":
        return data
    # A TPU has no quick gather, and its matrix unit wants whole tiles of rows.
    return replace(data, layout="packed" if platform == "tpu" else "flat")


def make_layout(data: config.Data, rows: np.ndarray, examples: Examples, plan: Plan) -> Layout:
    """The layout that `data.layout` names.

    Args:
      data, examples: what is trained on.
      rows: all rows that will be asked for: int [m].
      plan: the batches, how they are shared out, and by what shapes are chosen.
    """
    if data.layout == "padded":
        return PaddedBlocks(examples, rows, data, plan)
    if data.layout == "packed":
        return PackedRows(examples, data, plan)
    assert data.layout == "flat", "auto is resolved before: see with_layout"
    return FlatStreams(examples, data, plan)
