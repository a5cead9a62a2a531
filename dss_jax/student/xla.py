"""A student's arithmetic by JAX, on whatever device there is."""

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from dss_jax.core import config, storage, student_card
from dss_jax.core.checks import among
from dss_jax.core.t5_config import GREEDY
from dss_jax.data.ragged import Ragged
from dss_jax.data.tokenizer import Tokenizer
from dss_jax.evaluate.engine import Engine
from dss_jax.evaluate.ranking import TrieRanker
from dss_jax.evaluate.workers import workers
from dss_jax.interop.open_model import OpenedModel, open_model
from dss_jax.model.matmul import on_cpu
from dss_jax.model.sampling import SampleSearch
from dss_jax.run.run_folder import CONFIG
from dss_jax.student.student import WARM_UP, GeneratedIds, Ids

BATCH_SIZE, CPU_BATCH_SIZE, CPU_BATCHES = 256, 64, 2
"""Inputs at once; on a CPU so many in a batch at most, and the memory of so many such batches."""

DTYPES = ("float32", "bfloat16")


def open_engine(
    folder: Path,
    *,
    threads: int | None = None,
    checkpoint: str | None = None,
    dtype: str | None = None,
) -> tuple["XlaEngine", Tokenizer]:
    """The student in a run's folder, or in one of another format that `dss convert` knows.

    `threads` has an effect before JAX has begun its work in this process. `dtype`: of the
    activations; None: float32 on a CPU, else as in the run. Raises UsageError: see `open_model`.
    """
    if threads is not None:
        os.environ["NPROC"] = str(threads)  # XLA's, for its own threads.
    with storage.explained(folder):
        file = folder / CONFIG
        run = config.from_gin(file.read_text()) if file.is_file() else config.Run()
        if (card := student_card.read(folder)) is not None:  # A converted student has it alone.
            data = dataclasses.replace(run.data, input_length=card.input_length)
            run = dataclasses.replace(run, data=data)
    if dtype is not None:
        among("dtype", dtype, DTYPES)
    # On a CPU a product in bfloat16 takes longer: docs/predict.md.
    dtype = dtype or ("float32" if on_cpu() else run.model.dtype)
    run = dataclasses.replace(run, mesh=_mesh_for(run.mesh, jax.device_count()))
    opened = open_model(str(folder), dtype=dtype, mesh=run.mesh, checkpoint=checkpoint)
    return XlaEngine(run, opened), opened.vocabulary


def _mesh_for(mesh: config.Mesh, devices: int) -> config.Mesh:
    """A run's mesh on so many devices: parameters are cut as in the run, and what devices are left
    have other rows. Where the number does not allow that, each device has all parameters.
    """
    if -1 not in (mesh.fsdp, mesh.model):
        mesh = dataclasses.replace(mesh, data=-1)
    sizes = mesh.data, mesh.fsdp, mesh.model
    parts = math.prod(size for size in sizes if size != -1)
    return mesh if devices % parts == 0 else config.Mesh()


class XlaEngine:
    """See `StudentEngine`. Shapes are few whatever is asked, and what is compiled is kept."""

    name = "jax"

    def __init__(self, run: config.Run, opened: OpenedModel) -> None:
        """`run`: that trained the student, or any; lengths are taken from it, and what axes of the
        mesh mean.
        """
        self.origin, self._params, mesh = opened.origin, opened.params, opened.mesh
        batch_size = BATCH_SIZE
        if mesh.devices.flat[0].platform == "cpu":
            batch_size = CPU_BATCH_SIZE * min(CPU_BATCHES, workers(mesh))
        evaluate = dataclasses.replace(run.evaluate, batch_size=batch_size, decode="greedy")
        run = dataclasses.replace(run, model=opened.model.config, evaluate=evaluate)
        self._run, self._model, self._mesh = run, opened.model, mesh
        self._lengths = padded_lengths(run.data.input_length)
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), opened.params
        )
        self._ranker = TrieRanker(run, opened.model, mesh, abstract)
        self._engine = functools.cache(self._make_engine)

    def _make_engine(self, max_decode_length: int) -> Engine:
        return Engine(
            self._model,
            self._mesh,
            self._run.mesh.logical_axis_rules,
            SampleSearch(GREEDY),
            max_decode_length=max_decode_length,
            batch_size=self._run.evaluate.batch_size,
            input_length=self._run.data.input_length,
        )

    def generate(self, inputs: Sequence[Ids], longest: int) -> list[GeneratedIds]:
        # An empty row is done at once.
        count = len(inputs)
        at_once = next((n for n in WARM_UP if n >= count), count)
        many = [*inputs, *([[]] * (at_once - count))]
        engine = self._engine(max(8, _power_of_two(longest)))
        decoded = engine(
            self._params,
            _column(many),
            np.arange(len(many)),
            lengths=self._lengths,
            longest=longest,
        )
        found = []
        for tokens_T, log_prob in zip(decoded.tokens, decoded.log_probs, strict=True):
            written = tokens_T[0, :longest]
            ends = np.flatnonzero(written == self._run.model.eos_token_id)
            ids = written[: ends[0]] if len(ends) else written
            found.append(GeneratedIds(ids.tolist(), float(log_prob[0]), bool(len(ends))))
        return found[:count]

    def rank(self, inputs: Sequence[Ids], labels: Sequence[Sequence[Ids]]) -> list[np.ndarray]:
        rows = np.arange(len(inputs))
        return self._ranker(self._params, _column(inputs), rows, labels)


def padded_lengths(longest: int) -> tuple[int, ...]:
    """Input lengths that are compiled: steps of 8, from 64 on of an eighth to a quarter."""
    lengths = [*range(8, 65, 8)]
    while lengths[-1] < longest:
        lengths.append(lengths[-1] + _power_of_two(lengths[-1] + 1) // 8)
    return (*[s for s in lengths if s < longest], -(-longest // 8) * 8)


def _power_of_two(least: int) -> int:
    return 1 << max(0, least - 1).bit_length()


def _column(rows: Sequence[Ids]) -> Ragged:
    values = np.fromiter(itertools.chain.from_iterable(rows), np.int32)
    return Ragged(values, np.cumsum([0, *map(len, rows)], dtype=np.int64))
