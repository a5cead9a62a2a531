"""What devices send each other in a training step: nothing is gathered that should not be.

The toy is compiled for four simulated CPUs, and a larger one by libtpu, where it is installed, for
a slice of four chips.
"""

import dataclasses
from importlib.util import find_spec
from typing import Any

import flax.linen as nn
import jax
import pytest
import toy

from dss_jax.core import config
from dss_jax.layouts.batches import TrainBatches
from dss_jax.model import t5
from dss_jax.run.session import with_vocab_size
from dss_jax.train import hlo
from dss_jax.train.aot import slice_devices, slice_named
from dss_jax.train.sharding import data_parallelism, make_mesh
from dss_jax.train.step import Program

SIZE = 4
MESHES = {
    "data": config.Mesh(data=SIZE),
    "fsdp": config.Mesh(data=1, fsdp=SIZE),
    "model": config.Mesh(data=1, model=SIZE),
    "fsdp and model": config.Mesh(data=1, fsdp=2, model=2),
}
BOTH = MESHES["fsdp and model"]
MODEL = dataclasses.replace(toy.MODEL, emb_dim=64, mlp_dim=96, head_dim=24, dropout_rate=0.0)
"""Of sizes that tell its arrays apart: no length and no number of rows is one of them."""


def _step(
    store: Any, mesh: config.Mesh, devices: list | None = None, model: config.T5Config = MODEL
) -> tuple[str, config.T5Config]:
    """The compiled step's text, and the model with its vocabulary's size."""
    data = config.Data(batch_size=16, layout="packed")
    run = with_vocab_size(toy.make_run(model=model, data=data, mesh=mesh), store)
    program = Program(run, make_mesh(mesh, devices or jax.devices()[:SIZE]))
    shares = data_parallelism(program.mesh)
    split = store.split("train")
    batches = TrainBatches(split, run.task, run.data, run.method, steps=6, shares=shares)
    text = program.train_step.lower(batches.shapes[-1]).compile().as_text()
    assert text is not None
    return text, run.model


def _sizes(array: str) -> list[int]:
    """ "f32[1,64,96]" -> [64, 96]."""
    return [int(n) for n in array.partition("[")[2].rstrip("]").split(",") if n not in ("", "1")]


def _wrong(text: str, mesh: config.Mesh, model: config.T5Config) -> list[str]:
    """What should not be sent.

    Of the vocabulary, logits [..., V] stay where they are and so does the embedding [V, E]; FSDP
    gathers the kernel that makes the logits, [E, V], to multiply with it. What layers hand to each
    other is summed over the model axis and moves nowhere else; in them FSDP gathers kernels and
    norms, and nothing else is gathered.
    """
    assert model.vocab_size is not None
    vocab, wrong = model.vocab_size // mesh.model, []
    parts = [model.emb_dim, *(n // mesh.model for n in (model.num_heads, model.mlp_dim))]
    parts += [model.head_dim, model.num_heads * model.head_dim // mesh.model]
    for found in hlo.collectives(text):
        if found.kind in ("all-reduce", "reduce-scatter"):
            continue
        for array in found.arrays:
            sizes = _sizes(array)
            gathered = found.kind == "all-gather" and mesh.fsdp > 1
            of_vocabulary = {vocab, model.vocab_size} & {*sizes}
            if of_vocabulary and not (gathered and sizes == [model.emb_dim, vocab]):
                wrong.append(f"of the vocabulary: {found.kind} {array} {found.name}")
            if "/layers/" in found.name and not (gathered and {*sizes} <= {*parts}):
                wrong.append(f"between layers: {found.kind} {array} {found.name}")
    return wrong


def test_nothing_is_gathered_that_should_not_be(toy_store: Any) -> None:
    text, model = _step(toy_store, BOTH)
    # FSDP gathers, the model axis sums, and the embedding is looked up where it is.
    assert {"all-gather", "all-reduce", "all-to-all"} <= hlo.sent(text).keys()
    assert _wrong(text, BOTH, model) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["data", "fsdp", "model"])
def test_nor_on_meshes_of_one_axis(name: str, toy_store: Any) -> None:
    text, model = _step(toy_store, MESHES[name])
    assert _wrong(text, MESHES[name], model) == []
    kinds = hlo.sent(text).keys()
    assert ("all-gather" in kinds) == (name == "fsdp")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axes", "instead", "said"),
    [
        (("batch", "length", "vocab"), ("batch", "length", None), "of the vocabulary"),
        (t5._HIDDEN, ("batch", "length", "mlp"), "between layers"),
    ],
)
def test_what_is_gathered_is_seen(
    axes: tuple, instead: tuple, said: str, toy_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits on every device; a layer's output cut over the model axis."""
    real = nn.with_logical_constraint

    def planted(x: jax.Array, names: tuple) -> jax.Array:
        return real(x, instead if names == axes else names)

    monkeypatch.setattr(t5.nn, "with_logical_constraint", planted)
    text, model = _step(toy_store, BOTH)
    assert any(said in wrong for wrong in _wrong(text, BOTH, model))


TPU_MODEL = dataclasses.replace(
    MODEL, vocab_size=1536, emb_dim=512, num_heads=4, head_dim=64, mlp_dim=1024
)
"""Whose kernels are cut into whole tiles of 128, or a TPU would not scatter their gradients."""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("name", ["fsdp", "fsdp and model"])
def test_a_tpu_gathers_nothing_else_and_scatters_gradients(name: str, toy_store: Any) -> None:
    """A CPU's gradients under FSDP are summed whole and cut; a TPU's are not."""
    mesh = MESHES[name]
    text, model = _step(toy_store, mesh, slice_devices(slice_named("v5e-4")), TPU_MODEL)
    assert _wrong(text, mesh, model) == []
    assert sum(hlo.cycles(text).values()) > 0
    joined = model.num_heads * model.head_dim
    kernels = {(model.emb_dim, n // mesh.model) for n in (model.mlp_dim, joined)}
    kernels |= {(n, size) for size, n in kernels}
    whole = [
        array
        for found in hlo.collectives(text)
        for array in found.arrays
        if found.kind == "all-reduce" and found.loop and tuple(_sizes(array)) in kernels
    ]
    assert whole == []
    assert "reduce-scatter" in hlo.sent(text)
