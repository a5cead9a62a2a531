"""The batch at step k: a pure function of (store, seed, k). NumPy only.

Shape letters: N examples of the global batch, R rows of a block; those of `dss_jax.layouts.blocks`.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.flops import Work
from dss_jax.data.columns import Examples, permutation
from dss_jax.data.store import StoreSplit
from dss_jax.data.views import examples_of
from dss_jax.layouts.blocks import Batch, BlockShape, map_arrays
from dss_jax.layouts.flat import FlatStreams
from dss_jax.layouts.layout import Cost, Layout, LayoutPlan, base_cost

if TYPE_CHECKING:
    from dss_jax.data.spans import Pieces

CHUNK = 256
"""Steps whose examples are assigned to streams or rows at once."""


def subset_rows(n: int, task: config.Task) -> np.ndarray:
    """The rows of the training split that are used, ascending: int64 [m], m = task.train_count, or
    the rounded share of n, at least 1. Subsets of one seed are nested: those of 12.5 % are among
    those of 25 %. Raises UsageError: more rows are asked for than there are.
    """
    wanted = task.train_count or max(1, round(n * task.train_fraction))
    if wanted > n:
        raise UsageError(
            f"Task.train_count is {wanted}, but the training split has {n} examples. "
            f"Give at most {n}."
        )
    return np.sort(permutation(n, task.subset_seed)[:wanted])


def make_examples(
    split: "StoreSplit | Pieces",
    data: config.Data,
    method: config.Method,
    right: np.ndarray | None = None,
) -> Examples:
    """What a method trains on of a split; see `columns.examples_of`."""
    if isinstance(split, StoreSplit):
        return examples_of(split, data, method, right)
    from dss_jax.data.spans import SpanExamples

    return SpanExamples(split, data)


def make_layout(
    data: config.Data, rows: np.ndarray, examples: Examples, plan: LayoutPlan
) -> Layout:
    """The layout that `data.layout` names; `rows`, int [m], are all that will be asked for."""
    if data.layout == "flat":
        return FlatStreams(examples, data, plan)
    # Here, because only TPUs take one of them by themselves.
    from dss_jax.layouts.rows import PackedRows, PaddedRows

    if data.layout == "packed":
        return PackedRows(examples, data, plan)
    assert data.layout == "padded", "auto is resolved before: see with_layout"
    return PaddedRows(examples, rows, data, plan)


def _usable_rows(
    examples: Examples, own: int, task: config.Task, method: config.Method
) -> tuple[np.ndarray, int]:
    """The rows that have what the method trains on, and how many have not: of the subset of the
    task's `own` rows, and of all rows of other tasks, which follow them.
    """
    subset = np.concatenate([subset_rows(own, task), np.arange(own, examples.count)])
    rows = examples.usable(subset)
    if not len(rows):
        correct = " that is right" if method.only_correct and method.label == "teacher" else ""
        raise UsageError(
            f"none of the {len(subset)} training examples has a {method.label} label{correct}, "
            f"which --method {method.name} trains on."
        )
    return rows, len(subset) - len(rows)


def _orders(tasks: Sequence[config.Task], seeds: set[int], own: int) -> list[tuple[int, int]]:
    """The orders that are planned for: (number of a task, seed)."""
    if tasks[0].fresh_subsets and tasks[0].subset_seed == own:  # Each seed has its own subset.
        return [(i, one.subset_seed) for i, one in enumerate(tasks)]
    return [*itertools.product(range(len(tasks)), seeds)]


class TrainBatches:
    """Paired training batches: N examples a step, each in every role of the method.

    Attributes:
      rows: the training examples that are used.
      left_out: how many lack the label that the method trains on.
      layout: builds the batches.
      longest: the longest input and target of the split, in tokens.
    """

    def __init__(
        self,
        split: "StoreSplit | Pieces",
        task: config.Task,
        data: config.Data,
        method: config.Method,
        *,
        right: np.ndarray | None = None,
        steps: int = CHUNK,
        shares: int | None = None,
        process_index: int = 0,
        process_count: int = 1,
        cost: Cost = base_cost,
        plan_seeds: Sequence[int] = (),
        plan_subsets: Sequence[config.Task] = (),
        numbered: bool = False,
        ids: tuple[int, int] = (0, 0),
    ) -> None:
        """Chooses the examples, and the shapes that the batches of the run need.

        Args:
          task: which subset of the split.
          right: bool [n], rows where the teacher's label is not known to be wrong; None: all.
          steps: of the run; the shapes have room for all their batches.
          shares: data-parallel devices times microbatches; None: one a process.
          process_index, process_count: this host and how many there are; each builds its part.
          plan_seeds: orders (values of `data.seed`) for whose batches the shapes have room, too;
            with the same ones, batches of different orders have the same shapes.
          plan_subsets: subsets for whose batches there is room, too; in the same way. Where the
            task's own is its seed's (`fresh_subsets`), each in the order of its own seed.
          numbered: whether target tokens tell their example, as `Loss.mutual_information` needs.
          ids: of padding, and of what the decoder begins with.

        Raises:
          UsageError: no example has the method's label, or the batch cannot be shared out evenly.
        """
        self._split, self._examples = split, make_examples(split, data, method, right)
        self.longest = self._examples.longest()
        self.rows, self.left_out = _usable_rows(self._examples, split.own, task, method)
        if data.batch_size % process_count:
            raise UsageError(
                f"Data.batch_size ({data.batch_size}) must be a multiple of the number of "
                f"processes ({process_count})."
            )
        self._seed, self._size, self._parts = data.seed, data.batch_size, process_count
        self._steps, self._cost = steps, cost
        tasks, self._subsets = [task], [self.rows]
        for other in (one for one in plan_subsets if one != task):
            with suppress(UsageError):  # Nobody trains on one that cannot be.
                self._subsets.append(_usable_rows(self._examples, split.own, other, method)[0])
                tasks.append(other)
        self._order = lru_cache(maxsize=2)(self._epoch)
        batches = self._all_items(steps, _orders(tasks, {*plan_seeds, data.seed}, data.seed))
        share = shares or process_count, process_index, process_count
        plan = LayoutPlan(batches, *share, cost, data.max_shapes, numbered, *ids)
        rows = np.unique(np.concatenate(self._subsets))
        self.layout: Layout = make_layout(data, rows, self._examples, plan)
        self._chunk = lru_cache(maxsize=2)(self._assigned)

    def _assigned(self, chunk: int) -> tuple[Any, np.ndarray]:
        return self.layout.assign(self._items(np.arange(CHUNK) + CHUNK * chunk, self._seed))

    def _epoch(self, seed: int, epoch: int, subset: int) -> np.ndarray:
        rows = self._subsets[subset]
        return self._examples.items(rows[permutation(len(rows), seed, epoch)], seed, epoch)

    def _items(self, steps: np.ndarray, seed: int, subset: int = 0) -> np.ndarray:
        """Items (see `dss_jax.data.columns`) at some steps of an order: int [n] -> int64 [n, N].

        Epochs follow one another without a gap: no example is dropped, and a batch may hold
        the end of one epoch and the start of the next.
        """
        at = steps[:, None] * self._size + np.arange(self._size)
        count = len(self._subsets[subset])
        epochs, places = at // count, at % count
        found = np.empty(at.shape, np.int64)
        for epoch in range(int(epochs[0, 0]), int(epochs[-1, -1]) + 1):
            own = epochs == epoch
            found[own] = self._order(seed, epoch, subset)[places[own]]
        return found

    def _all_items(self, steps: int, orders: list[tuple[int, int]]) -> Iterator[np.ndarray]:
        """Items of all steps of each (number of a subset, seed)."""
        # In the same order in all runs that share the shapes: a layout may look at the first ones.
        rows = self._subsets
        orders.sort(key=lambda one: (len(rows[one[0]]), rows[one[0]].tobytes(), one[1]))
        for subset, seed in orders:
            for first in range(0, steps, CHUNK):
                yield self._items(np.arange(first, min(first + CHUNK, steps)), seed, subset)

    def rows_at(self, step: int) -> np.ndarray:
        """Row numbers of the whole batch at a step, in the order of the epoch: int64 [N]."""
        return self._items_at(step) % self._examples.count

    def ids_at(self, step: int) -> list[str]:
        """Ids of the rows of the whole batch at a step."""
        rows = map(int, self.rows_at(step))
        if isinstance(self._split, StoreSplit):
            return [self._split.text("id")[row] for row in rows]
        return [f"piece {row}" for row in rows]

    def alone(self, step: int, place: int) -> Batch:
        """The batch of a step in the shape that it has, of which one example is left."""
        items = np.full(self._size, -1, np.int64)
        items[place] = self._items_at(step)[place]
        return self.layout.build(self.layout.assign(items[None])[0][0], self.shape_at(step))

    def _items_at(self, step: int) -> np.ndarray:
        return self._items(np.array([step]), self._seed)[0]

    def shape_at(self, step: int) -> int:
        """The number of the shape that the batch of a step takes by itself."""
        return int(self._chunk(step // CHUNK)[1][step % CHUNK])

    def __call__(self, step: int, shape: int | None = None) -> Batch:
        """This process's part of the batch at a step (0 is the first), in a shape that has room
        for it; None: `shape_at(step)`.
        """
        shape = self.shape_at(step) if shape is None else shape
        if shape >= self.layout.shapes:
            raise UsageError(
                f"the batch of step {step} needs a larger shape than any that was planned. "
                "Give TrainBatches the number of steps that will be asked for."
            )
        return self.layout.build(self._chunk(step // CHUNK)[0][step % CHUNK], shape)

    def padding_overhead(self, steps: int = CHUNK) -> float:
        """Executed over useful FLOPs of the run's first steps: 1.0 would be no padding at all."""
        items = self._items(np.arange(min(steps, self._steps)), self._seed)
        _, shapes = self.layout.assign(items)
        executed = sum(float(self._cost(e)) for s in shapes for e in self.layout.block_shapes(s))
        inputs, targets = (x.ravel().astype(float) for x in self._examples.lengths(items))
        useful = BlockShape((inputs > 0).astype(float), inputs, inputs, targets, targets)
        return executed / float(np.sum(self._cost(useful)))

    def work_at(self, step: int) -> Work:
        """The useful work of the whole batch at a step, whatever the layout."""
        return self._examples.work(self._items_at(step))

    @property
    def shapes(self) -> tuple[Batch, ...]:
        """What a step may be given, on all processes together: shapes and dtypes only. Each is
        compiled before the first step.
        """

        def whole(x: np.ndarray) -> np.ndarray:
            # Takes no memory: each stride is 0.
            return np.broadcast_to(np.zeros((), x.dtype), (self._parts * len(x), *x.shape[1:]))

        empty = map(self.empty, range(self.layout.shapes))
        return tuple(tuple(map_arrays(whole, block) for block in batch) for batch in empty)

    def empty(self, shape: int) -> Batch:
        """This process's part of a batch without examples, in a shape: all zeros."""
        none = self.layout.assign(np.full((1, self._size), -1))[0][0]
        return self.layout.build(none, shape)


def eval_batches(rows: Sequence[int] | np.ndarray, size: int) -> list[np.ndarray]:
    """Cuts row numbers into batches of `size`; the last is filled up with -1."""
    filled = np.pad(np.asarray(rows, np.int64), (0, -len(rows) % size), constant_values=-1)
    return list(filled.reshape(-1, size))
