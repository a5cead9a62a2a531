"""A token store and runs that are small enough to train in a test."""

import dataclasses
import functools
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dss_jax.core import config
from dss_jax.core.ids import EOS_ID
from dss_jax.core.log import shown
from dss_jax.core.paths import shipped
from dss_jax.core.t5_config import GREEDY
from dss_jax.core.t5gemma import Gemma
from dss_jax.data.ragged import Slices
from dss_jax.data.store import TEXT_COLUMNS, TOKEN_COLUMNS, StoreSplit, TokenStore
from dss_jax.data.store_writer import SplitBuilder, write_store
from dss_jax.data.tokenizer import SEPARATOR, SentencePiece
from dss_jax.evaluate import evaluator
from dss_jax.layouts.blocks import Block
from dss_jax.model.decoding import Decoded, Search, decode
from dss_jax.model.sampling import SampleSearch
from dss_jax.model.t5 import T5
from dss_jax.train import step as steps
from dss_jax.train.compile import Compiled
from dss_jax.train.step import TrainState

VOCABULARY = shipped("tasks") / "vocabularies" / "word_problems.model"
SIZES = {"train": 37, "validation": 9, "test": 7}
"""Rows."""

MODEL = config.T5Config(
    vocab_size=None,
    emb_dim=16,
    num_heads=4,
    head_dim=4,
    mlp_dim=32,
    num_encoder_layers=2,
    num_decoder_layers=1,
    dropout_rate=0.1,
)


GEMMA = dataclasses.replace(
    MODEL,
    num_encoder_layers=3,
    num_decoder_layers=2,
    gemma=Gemma(
        num_kv_heads=2,
        encoder_num_kv_heads=1,
        encoder_emb_dim=24,
        encoder_num_heads=3,
        encoder_head_dim=6,
        encoder_mlp_dim=20,
        query_pre_attn_scalar=4,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
        sliding_window=3,
    ).values,
)
"""The toy as a T5Gemma."""


def input_ids(vocabulary: SentencePiece, text: str) -> list[int]:
    """Ids of an input: `</s>` inside is the end-of-sequence id; one more at the end."""
    return [i for part in text.split(SEPARATOR) for i in (*vocabulary.encode(part), EOS_ID)]


def _ids(rng: np.random.Generator, low: int, high: int) -> list[int]:
    return [*map(int, rng.integers(10, 300, rng.integers(low, high))), 1]


def make_store(path: Path, rng: np.random.Generator) -> TokenStore:
    """Random tokens; every fifth row lacks a rationale, every seventh a teacher's label."""
    splits = {}
    for name, size in SIZES.items():
        split = SplitBuilder(TOKEN_COLUMNS, TEXT_COLUMNS)
        for row in range(size):
            inputs = _ids(rng, 3, 12)
            rationale = [] if row % 5 == 4 else _ids(rng, 4, 15)
            teacher = [] if row % 7 == 6 else _ids(rng, 1, 4)
            tokens = {
                "label_inputs": inputs,
                "label_targets": _ids(rng, 1, 4),
                "teacher_label_targets": teacher,
                "rationale_inputs": [5, *inputs],
                "rationale_targets": rationale,
            }
            texts = {
                "id": f"{name}-{row}",
                "input": f"input {row}",
                "label": f"label {row % 3}",
                "teacher_label": f"label {row % 2}" if teacher else "",
                "rationale": f"because {row}" if rationale else "",
                "allowed_labels": '["label 0", "label 1", "label 2"]',
            }
            split.append(tokens, texts)
        splits[name] = split
    description = {"name": "toy", "kind": "task", "key": "toy", "prefixes": "paper"}
    return write_store(path, splits, VOCABULARY, 0, description)


@contextmanager
def heard() -> Iterator[list[str]]:
    """What the package says while it is open."""
    handler = logging.Handler()
    said: list[str] = []
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    with shown(handler):
        yield said


def copied(split: StoreSplit) -> SplitBuilder:
    """The rows of a split, to be written again."""
    builder = SplitBuilder(TOKEN_COLUMNS, TEXT_COLUMNS)
    for row in range(len(split)):
        builder.append(
            {c: split.tokens(c)[row].tolist() for c in TOKEN_COLUMNS},
            {c: split.text(c)[row] for c in TEXT_COLUMNS},
        )
    return builder


def make_run(**sections: object) -> config.Run:
    """A run of 6 steps at batch 8 over the toy store."""
    defaults = {
        "task": config.Task(name="toy"),
        "model": MODEL,
        "data": config.Data(batch_size=8, layout="padded"),
        "optimizer": config.Optimizer(learning_rate=1e-2),
        "evaluate": config.Evaluate(every=2, batch_size=4, max_decode_length=5),
        "train": config.Train(steps=6, log_every=1),
    }
    return config.Run(**(defaults | sections))


def interrupt_before(monkeypatch: pytest.MonkeyPatch, done: int) -> None:
    """Sends Ctrl-C's signal just before the step that follows on `done` steps; the batches after it
    are made already.
    """
    real = Compiled.__call__

    def call(self: Compiled, state: object, batch: object) -> object:
        if isinstance(state, TrainState) and int(state.step) == done:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, state, batch)

    monkeypatch.setattr(Compiled, "__call__", call)


class Linear(nn.Module):
    """A program of three arrays, for tests of what is around it: it compiles in no time. Its
    logits are linear in the mean of a row's inputs plus the token before.
    """

    config: config.T5Config

    def setup(self) -> None:
        size, width = self.config.vocab_size, self.config.emb_dim
        boxed, normal = nn.with_logical_partitioning, nn.initializers.normal(1.0)
        self.embedding = self.param("embedding", boxed(normal, ("vocab", "embed")), (size, width))
        self.kernel = self.param("kernel", boxed(normal, ("embed", "vocab")), (width, size))
        self.bias = self.param("bias", boxed(nn.initializers.zeros, ("vocab",)), (size,))
        self.dropout = nn.Dropout(self.config.dropout_rate)

    def __call__(self, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        return self.block_logits(Block(inputs, targets, None, None))

    def block_logits(self, block: Block, *, deterministic: bool = True) -> jax.Array:
        """As T5's; in the padded layout."""
        inputs_Bx1xE = jnp.mean(self.look_up(block.encoder_input_tokens), axis=1, keepdims=True)
        x_BxTxE = self.look_up(block.decoder_input_tokens) + inputs_Bx1xE
        x_BxTxE = self.dropout(x_BxTxE, deterministic=deterministic)
        return x_BxTxE @ self.kernel / self.config.emb_dim + self.bias

    def look_up(self, tokens: jax.Array) -> jax.Array:
        return jnp.take(self.embedding, tokens, axis=0)


class Guess:
    """Decodes for `Linear`, in NumPy: the best token for each of the first inputs."""

    def __init__(self, run: config.Run, program: steps.Program, max_decode_length: int) -> None:
        self._length = max_decode_length

    def lengths_for(self, inputs: Slices, rows: np.ndarray) -> tuple[int, ...]:
        return (self._length,)

    def __call__(
        self, params: dict, inputs: Slices, rows: np.ndarray, *, lengths: tuple[int, ...]
    ) -> Decoded:
        embedding, kernel, bias = (_on_host(params[k]) for k in ("embedding", "kernel", "bias"))
        tokens = np.zeros((len(rows), 1, self._length), np.int32)
        for n, row in enumerate(rows):
            best = np.argmax(embedding[inputs[int(row)][: self._length]] @ kernel + bias, axis=1)
            tokens[n, 0, : len(best)] = best
        none = np.zeros((len(rows), 1), np.float32)
        return Decoded(tokens, none, none)


def _on_host(array: jax.Array) -> np.ndarray:
    """Also of what several processes share out among them."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        from jax.experimental.multihost_utils import process_allgather

        return np.asarray(process_allgather(array, tiled=True))
    return np.asarray(array)


@contextmanager
def linear_programs() -> Iterator[None]:
    """`Linear` is trained and scored in place of T5."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "model_of", Linear)
        patch.setattr(evaluator, "make_engine", Guess)
        yield


@functools.partial(jax.jit, static_argnames=("model", "max_decode_length", "search"))
def tokens_of(
    model: T5, params: dict, inputs: jax.Array, max_decode_length: int, search: Search | None = None
) -> jax.Array:
    """The best sequence of each input: int32 [B, max_decode_length]; greedy by default."""
    search = search or SampleSearch(GREEDY, model.config.eos_token_id)
    decoded = decode(model, params, inputs, search, max_decode_length=max_decode_length)
    return decoded.tokens[:, 0]
