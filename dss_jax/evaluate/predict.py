"""Parameters and a store's rows in, predicted texts out.

Shape letters: N rows of the split, B rows of a batch, S input length, L decoded length.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from dss_jax.core import config
from dss_jax.data.batches import eval_batches, pad_rows, rounded_length
from dss_jax.data.store import Ragged
from dss_jax.model.decoding import greedy_decode
from dss_jax.train.sharding import batch_sharding, data_parallelism, on_mesh, put_batch
from dss_jax.train.step import Program


class GreedyPredictor:
    """Greedy decoding of one of a store's input columns, jitted once a shape."""

    def __init__(self, run: config.Run, program: Program, max_decode_length: int) -> None:
        """`max_decode_length` is L, in tokens, EOS included."""
        self._run, self._program = run, program
        self.decode_length = max_decode_length
        decode = partial(greedy_decode, program.model, max_decode_length=max_decode_length)
        params = jax.tree.map(lambda x: x.sharding, program.abstract_params)
        rows = batch_sharding(program.mesh)
        self._decode: Callable[[Any, Any], jax.Array] = jax.jit(
            decode, in_shardings=(params, rows), out_shardings=rows
        )

    def batch_size(self, n: int) -> int:
        """Rows decoded at once: the setting, or fewer where there are fewer rows."""
        parts = data_parallelism(self._program.mesh)
        return -(-min(n, self._run.evaluate.batch_size) // parts) * parts

    def input_length(self, inputs: Ragged, rows: np.ndarray) -> int:
        """S for these rows, cut at Data.input_length."""
        data = self._run.data
        longest = int(inputs.lengths()[rows].max(initial=1))
        return rounded_length(longest, data.input_length, data.length_multiple)

    def __call__(
        self, params: Any, inputs: Ragged, rows: np.ndarray, input_length: int | None = None
    ) -> np.ndarray:
        """Decodes rows of a column.

        Args:
          params: of the plain model, on the mesh.
          inputs: token column.
          rows: int [N], row numbers.
          input_length: S; None: from the rows.

        Returns:
          int32 [N, L], in the order of `rows`, 0 after EOS.
        """
        out = np.zeros((len(rows), self.decode_length), np.int32)
        if not len(rows):
            return out
        length = input_length or self.input_length(inputs, rows)
        # Rows of like length end at about the same step, so that early exit pays.
        order = np.argsort(-inputs.lengths()[rows], kind="stable")
        for places in eval_batches(order, self.batch_size(len(rows))):
            real = places[places >= 0]
            tokens = np.zeros((len(places), length), np.int32)
            tokens[: len(real)] = pad_rows(inputs, rows[real], length)
            with on_mesh(self._program.mesh, self._run.mesh.logical_axis_rules):
                decoded = self._decode(params, put_batch(tokens, self._program.mesh))
            out[real] = np.asarray(decoded)[: len(real)]
        return out
