"""Decoding of many inputs, on a mesh: sorted by length, in batches that shrink as rows end.

Shape letters: N inputs, B inputs of a batch, S input length, K sequences an input, T longest
output.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dss_jax.core import config
from dss_jax.core.t5_config import GREEDY
from dss_jax.data.ragged import Slices
from dss_jax.layouts.batches import eval_batches
from dss_jax.layouts.layout import pad_rows, round_up
from dss_jax.model import decoding
from dss_jax.model.decoding import Decoded, Search
from dss_jax.model.sampling import SampleSearch
from dss_jax.model.t5 import T5
from dss_jax.train.compile import Compiled, abstract
from dss_jax.train.sharding import batch_sharding, data_parallelism, put_whole
from dss_jax.train.step import Program

CHUNK = 8
"""Positions between two looks at which rows are done. Each look waits for the device."""

SMALLEST_BATCH = 8
"""A batch does not shrink below this: there is nothing to win."""


def rows_at_once(n: int, batch_size: int, mesh: Mesh) -> int:
    """B: the setting, or fewer where there are fewer inputs, in whole shares for the devices."""
    return int(round_up(min(n, batch_size), data_parallelism(mesh)))


def input_lengths(
    lengths: np.ndarray, batch_size: int, limit: int, multiple: int, shapes: int
) -> tuple[int, ...]:
    """The padded lengths S that waste least when sorted inputs are cut into batches: ascending; the
    last takes the longest input.

    Args:
      lengths: int [N], of the inputs in tokens.
      limit: longer inputs are cut.
      shapes: how many different S at most, and no more than half the batches; each is compiled.
    """
    longest = np.sort(lengths)[::-1][::batch_size]
    needed = [int(round_up(min(max(int(n), 1), limit), multiple)) for n in longest] or [multiple]
    shorter = sorted(set(needed) - {needed[0]})

    def cost(chosen: tuple[int, ...]) -> int:
        return sum(min((c for c in chosen if c >= n), default=needed[0]) for n in needed)

    # Compiling one takes longer than a batch or two.
    others = min(shapes, max(1, len(needed) // 2)) - 1
    best = min(combinations(shorter, min(others, len(shorter))), key=cost)
    return (*best, needed[0])


class Engine:
    """Decodes with one model, one search and one mesh; compiled once a shape, and kept.

    Inputs of like length share a batch. Every 8 positions the host looks which inputs are done;
    where half of a batch is, the rest goes on in one of half the size. Neither changes a result.
    """

    def __init__(
        self,
        model: T5,
        mesh: Mesh,
        rules: config.AxisRules,
        search: Search,
        *,
        max_decode_length: int,
        batch_size: int,
        input_length: int = 1024,
        length_multiple: int = 8,
        shapes: int = 2,
    ) -> None:
        """Nothing is compiled yet. Outputs have T = `max_decode_length` tokens, EOS included.

        Args:
          batch_size: inputs decoded at once, over all devices; cut to `input_length`.
          shapes: how many padded input lengths, and how many smaller batches, at most.
        """
        from dss_jax.evaluate.workers import share_of

        search = replace(search, eos_id=model.config.eos_token_id)
        self.mesh, self.max_decode_length = mesh, max_decode_length
        self.batch_size = share_of(batch_size, mesh)
        self._model, self._rules, self._search, self._shapes = model, rules, search, shapes
        self._limit, self._sizes = input_length, (input_length, length_multiple, shapes)
        self._functions: tuple[Compiled, ...] = ()

    def _made(self, params: Any) -> tuple[Compiled, ...]:
        """To start, advance, take rows and finish; for such parameters, and kept on the disk."""
        mesh, search, longest = self.mesh, self._search, self.max_decode_length
        run = config.Run(model=self._model.config, mesh=config.Mesh(logical_axis_rules=self._rules))
        # Small results are on every device, so that every process can read them.
        everywhere = NamedSharding(mesh, PartitionSpec())

        def kept(name: str, lower: Callable[..., Any], first: Any) -> Compiled:
            return Compiled.kept(f"{name} {search!r} {longest}", run, mesh, lower, first)

        def advance(params: Any, prepared: Any, state: Any, until: Any) -> Any:
            state = decoding.advance(self._model, params, prepared, state, until, search)
            return state, state.rows.done_B

        # What `start` has laid on the mesh stays there.
        def lower_advance(*given: Any) -> Any:
            places = jax.tree.map(lambda x: x.sharding, given[2]), everywhere
            return jax.jit(advance, donate_argnums=2, out_shardings=places).lower(*given)

        def lower_take_rows(_: None, *batch: Any) -> Any:
            places = jax.tree.map(lambda x: x.sharding, batch[:2])
            take_rows = jax.jit(lambda _, *batch: decoding.take_rows(*batch), out_shardings=places)
            return take_rows.lower(None, *batch)

        begin = partial(decoding.start, self._model, search=search, max_decode_length=longest)
        start = jax.jit(begin, in_shardings=(None, *[batch_sharding(mesh)] * 2))
        finish = jax.jit(lambda _, found: search.finish(found), out_shardings=everywhere)
        shapes = jax.tree.map(abstract, params)
        whole = kept("start", start.lower, shapes), kept("advance", lower_advance, shapes)
        return *whole, kept("take rows", lower_take_rows, None), kept("finish", finish.lower, None)

    def lengths_for(self, inputs: Slices, rows: np.ndarray) -> tuple[int, ...]:
        """The padded lengths for these rows: see `input_lengths`."""
        size = max(1, rows_at_once(len(rows), self.batch_size, self.mesh))
        return input_lengths(inputs.lengths()[rows], size, *self._sizes)

    def _smaller_batch(self, size: int, first: int, left: int) -> int:
        """The batch that `left` inputs go on in: of the first size, halved as often as allowed."""
        parts = data_parallelism(self.mesh)
        for _ in range(self._shapes):
            half = first // 2
            if half % parts or half < max(parts, SMALLEST_BATCH) or half < left:
                break
            first = half
        return min(first, size)

    def _decode_batch(
        self, params: Any, tokens_BxS: np.ndarray, ids_B: np.ndarray, longest: int
    ) -> Iterator[tuple[np.ndarray, Decoded]]:
        """Decodes a batch: places in it and their results, the last ones of a place count."""
        start, advance, take_rows, finish = self._functions
        prepared, state = start(params, *put_whole((tokens_BxS, ids_B), self.mesh))
        places, first = np.arange(len(ids_B)), len(ids_B)
        for until in range(CHUNK, longest + CHUNK, CHUNK):
            state, done = advance(params, prepared, state, np.int32(min(until, longest)))
            left = np.flatnonzero(~np.asarray(done))
            size = self._smaller_batch(len(places), first, len(left))
            if not len(left) or until >= longest:
                break
            if size < len(places):
                yield places, finish(None, state.rows.search)
                # Filled up with a row that is done, and so takes no part.
                filled = np.full(size, np.flatnonzero(np.asarray(done))[0], np.int32)
                filled[: len(left)] = left
                prepared, state = take_rows(None, prepared, state, filled)
                places = places[filled]
        yield places, finish(None, state.rows.search)

    def __call__(
        self,
        params: Any,
        inputs: Slices,
        rows: np.ndarray,
        *,
        lengths: Sequence[int] | None = None,
        ids: np.ndarray | None = None,
        longest: int | None = None,
    ) -> Decoded:
        """Decodes rows, int [N], of a token column.

        Args:
          lengths: padded input lengths, ascending; None: chosen from the rows.
          ids: int [N], numbers of the inputs, on which samples depend; None: the row numbers.
          longest: outputs end there, EOS included; None: at `max_decode_length`.

        Returns:
          NumPy arrays in the order of `rows`: tokens [N, K, T], log_probs and scores [N, K].
        """
        n, width = len(rows), self._search.width
        log_probs, scores = np.zeros((2, n, width), np.float32)
        out = Decoded(np.zeros((n, width, self.max_decode_length), np.int32), log_probs, scores)
        if not n:
            return out
        from dss_jax.evaluate.workers import for_each

        self._functions = self._functions or self._made(params)
        numbers = rows if ids is None else ids
        lengths = tuple(lengths or self.lengths_for(inputs, rows))
        row_lengths, last = inputs.lengths()[rows], longest or self.max_decode_length
        order = np.argsort(-row_lengths, kind="stable")

        def decode(at: np.ndarray) -> None:
            needed = int(row_lengths[at[at >= 0]].max())
            length = next((s for s in lengths if s >= needed), lengths[-1])
            chosen, pad = np.where(at < 0, -1, rows[at]), self._model.config.pad_token_id
            tokens = pad_rows(inputs, chosen, length, self._limit, pad)
            ids_B = np.where(at < 0, 0, numbers[at]).astype(np.int32)
            for places, decoded in self._decode_batch(params, tokens, ids_B, last):
                there = at[places] >= 0
                for whole, part in zip(out, decoded, strict=True):
                    whole[at[places][there]] = np.asarray(part)[there]

        batches = eval_batches(order, rows_at_once(n, self.batch_size, self.mesh))
        for_each(decode, batches, self.mesh)
        return out


def make_engine(run: config.Run, program: Program, max_decode_length: int) -> Engine:
    """The decoding engine of a run: as Evaluate.decode says, and greedy where that is "rank"."""
    search: Search = SampleSearch(run.sample if run.evaluate.decode == "sample" else GREEDY)
    if run.evaluate.decode == "beam":
        from dss_jax.model.beam import BeamSearch

        search = BeamSearch(run.beam)
    return Engine(
        program.model,
        program.mesh,
        run.mesh.logical_axis_rules,
        search,
        max_decode_length=max_decode_length,
        batch_size=run.evaluate.batch_size,
        input_length=run.data.input_length,
        length_multiple=run.data.length_multiple,
    )
