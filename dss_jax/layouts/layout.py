"""What the layouts `padded`, `flat` and `packed` have in common. One loss serves all of them.

Shape letters are those of `dss_jax.layouts.blocks`; K roles, N examples of a batch, M = K * N pairs
of an input and a target, those of the first role first.
"""

from dataclasses import replace

import numpy as np

from dss_jax.core import config
from dss_jax.data.columns import Examples, shift_joined
from dss_jax.layouts.blocks import Batch, BlockShape
from dss_jax.layouts.shapes import WORTH, LayoutPlan, first_that_fits


class Layout:
    """Turns examples into batches of few static shapes.

    A subclass says where examples go (`_placed`), which shape that needs (`_needed`), and what the
    blocks then hold (`build`).

    Attributes:
      shapes: how many shapes are compiled.
    """

    def __init__(self, examples: Examples, plan: LayoutPlan) -> None:
        self._examples, self._plan = examples, plan

    def _choose_shapes(self, plan: LayoutPlan, worth: float = WORTH) -> None:
        self._shapes = plan.block_shapes(lambda rows: self._needed(self._placed(rows)), worth)
        self.shapes = len(self._shapes)

    def block_shapes(self, shape: int) -> tuple[BlockShape, ...]:
        """What is executed of a whole batch, block by block."""
        return self._shapes[shape]

    def assign(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Batches' row numbers, int [n, N] -> something a batch for `build`; shape numbers [n],
        `shapes` where none has room.
        """
        placed = self._placed(rows)
        return placed, first_that_fits(self._shapes, self._needed(placed))

    def _placed(self, rows: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _needed(self, placed: np.ndarray) -> tuple[BlockShape, ...]:
        raise NotImplementedError

    def build(self, assigned: np.ndarray, shape: int) -> Batch:
        """One batch: this process's part of it."""
        raise NotImplementedError

    def _tokens(self, items: np.ndarray, first: int) -> dict[str, dict[str, np.ndarray]]:
        """What the blocks of items, int [N], have of each token, pair after pair: "encoder" and
        "decoder" -> field -> int [sum of lengths]. `first` is the number of the first item in the
        whole batch.
        """
        roles, n = np.array(self._examples.roles), len(items)
        targets = self._examples.targets(items)
        lengths = self._examples.lengths(items)[1].ravel()
        decoder = {
            "decoder_input_tokens": shift_joined(targets, lengths),
            "decoder_target_tokens": targets,
            "decoder_roles": np.repeat(np.repeat(roles, n), lengths),
        }
        if self._plan.numbered:
            numbers = np.tile(first + np.arange(n), len(roles))
            decoder["decoder_examples"] = np.repeat(numbers, lengths)
        inputs = self._examples.inputs(items)
        return {"encoder": {"encoder_input_tokens": inputs}, "decoder": decoder}


def token_places(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The place of each token of pieces that begin at int [M] and have int [M] tokens: int [sum of
    lengths], piece after piece.
    """
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


def filled(tokens: np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
    """int32 [size] with tokens at their places, else 0."""
    line = np.zeros(size, np.int32)
    line[places] = tokens
    return line


def with_layout(data: config.Data, platform: str) -> config.Data:
    """Turns "auto" into the layout of a platform ("cpu", "gpu" or "tpu")."""
    if data.layout != "auto":
        return data
    # A TPU has no quick gather, and its matrix unit wants whole tiles of rows.
    return replace(data, layout="packed" if platform == "tpu" else "flat")
