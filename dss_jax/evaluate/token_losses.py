"""Losses of a split's rows by teacher forcing, without dropout."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dss_jax.core import config
from dss_jax.data.store import StoreSplit
from dss_jax.evaluate.engine import rows_at_once
from dss_jax.layouts.batches import eval_batches, make_examples, make_layout
from dss_jax.layouts.blocks import Batch
from dss_jax.layouts.layout import Layout, LayoutPlan, cost_of
from dss_jax.train.compile import Compiled
from dss_jax.train.sharding import data_parallelism, put_whole
from dss_jax.train.step import Program

if TYPE_CHECKING:
    from dss_jax.data.spans import Pieces


class TokenLosses:
    """Losses and token accuracies of a method's tasks."""

    def __init__(self, run: config.Run, program: Program, method: config.Method) -> None:
        """`method`: whose inputs and targets."""
        self._run, self._program, self._method = run, program, method
        self._step = Compiled.kept("losses", run, program.eval_step)
        self._laid_out: dict[tuple[str, int], tuple[Layout, Any]] = {}

    def _batches(self, split: "StoreSplit | Pieces", rows: np.ndarray) -> Iterator[Batch]:
        """Batches of one shape that hold these rows."""
        key = split.name, len(rows)
        if key not in self._laid_out:
            self._laid_out[key] = self._lay_out(split, rows)
        layout, assigned = self._laid_out[key]
        return (layout.build(part, 0) for part in assigned)

    def _lay_out(self, split: "StoreSplit | Pieces", rows: np.ndarray) -> tuple[Layout, Any]:
        """The layout of these rows, and what it builds each batch from."""
        mesh = self._program.mesh
        size = rows_at_once(len(rows), self._run.evaluate.batch_size, mesh)
        data = replace(self._run.data, batch_size=size)
        parts = np.stack(eval_batches(rows, size))
        # One shape, because each is compiled.
        cost = cost_of(self._run.model)
        plan = LayoutPlan([parts], data_parallelism(mesh), cost=cost, max_shapes=1)
        layout = make_layout(data, rows, make_examples(split, data, self._method), plan)
        return layout, layout.assign(parts)[0]

    def compile_ahead(
        self, split: "StoreSplit | Pieces", rows: np.ndarray, pool: ThreadPoolExecutor
    ) -> None:
        """Begins to compile what these rows need, in the pool."""
        if len(rows):
            self._step.ahead([next(self._batches(split, rows))], pool)

    def __call__(
        self, params: Any, split: "StoreSplit | Pieces", rows: np.ndarray
    ) -> dict[str, float]:
        """`<task>/loss` and `<task>/token_accuracy` (per cent) of rows: int [N].

        A task without a token in them is left out.
        """
        if not len(rows):
            return {}
        totals = [
            self._step(params, put_whole(batch, self._program.mesh))
            for batch in self._batches(split, rows)
        ]
        loss, correct, tokens = (np.sum([np.asarray(t[i]) for t in totals], 0) for i in range(3))
        numbers = {}
        for k, name in enumerate(self._method.tasks):
            if tokens[k]:
                numbers[f"{name}/loss"] = float(loss[k] / tokens[k])
                numbers[f"{name}/token_accuracy"] = float(100.0 * correct[k] / tokens[k])
        return numbers
