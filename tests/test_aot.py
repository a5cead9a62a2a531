"""`dss compile` and `dss fit --compile`: names of chips, what is missing, what is counted, and
what is said; by simulated CPUs in a slice's place, and by libtpu where it is installed.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import toy

from dss_jax.cli import main
from dss_jax.core.errors import UsageError
from dss_jax.core.flops import forward_flops, training_flops
from dss_jax.layouts.batches import TrainBatches
from dss_jax.run.session import with_vocab_size
from dss_jax.train import aot
from dss_jax.train.aot import products, slice_named, slice_of
from dss_jax.train.sharding import make_mesh
from dss_jax.train.step import Program

TINY = ["--task", "word_problems", "--model", "t5_1_1_tiny", "--gin.Train.steps=8"]
TINY += ["--gin.T5Config.num_encoder_layers=1", "--gin.T5Config.num_decoder_layers=1"]
TINY += ["--gin.Data.batch_size=8", "--gin.T5Config.dropout_rate=0.0"]


@pytest.mark.parametrize(
    ("name", "kind", "count", "hosts"),
    [
        ("v5e-1", "v5e", 1, 1),
        ("v5e-8", "v5e", 8, 1),
        ("v6e-16", "v6e", 16, 4),
        ("v5p-8", "v5p", 4, 1),
        ("v5p-16", "v5p", 8, 2),
        ("h200-1", "h200", 1, 1),
        ("h100-16", "h100", 16, 2),
    ],
)
def test_names_of_slices(name: str, kind: str, count: int, hosts: int) -> None:
    """Google counts a v5p's cores, two a chip."""
    found = slice_named(name)
    assert (found.kind, found.count, found.hosts) == (kind, count, hosts)
    assert slice_of(kind, count) == found
    assert found.device.memory > 0


@pytest.mark.parametrize("name", ["v5e", "v5e-0", "v5e-3", "v5p-9", "h200-12", "tpu-4", "a100-1"])
def test_what_is_no_slice(name: str) -> None:
    with pytest.raises(UsageError, match=r"no device .* Known: v5e-1, .*v5p-8.* h200"):
        slice_named(name)


@pytest.mark.parametrize(
    ("name", "module", "wheels"),
    [("v5e-4", "libtpu", "'libtpu=="), ("h200-1", "jax_cuda12_plugin", "'jax-cuda12-plugin<=")],
)
def test_a_compiler_that_is_not_here_is_named_with_its_remedy(
    name: str, module: str, wheels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aot, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=f"{module} is not here") as raised:
        aot.slice_devices(slice_named(name))
    assert f"pip install --no-deps --target DIR {wheels}" in str(raised.value)


def test_products_are_counted_in_loops_and_branches() -> None:
    a = jnp.ones((3, 5))

    def both(x: jax.Array) -> jax.Array:
        x, _ = jax.lax.scan(lambda x, _: (x @ a.T @ a, None), x, length=7)
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ a.T, lambda x: x[:, :3], x)

    loop, branch = 7 * 2 * (2 * 2 * 5 * 3), 2 * 2 * 5 * 3
    assert products(jax.make_jaxpr(both)(jnp.ones((2, 5))).jaxpr) == loop + branch

    def unknown(x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ a.T @ a, x)

    assert products(jax.make_jaxpr(unknown)(jnp.ones((2, 5))).jaxpr) is None


@pytest.mark.parametrize("remat", ["none", "full"])
def test_executed_products_of_a_step_are_those_of_its_shape(remat: str, toy_store: Any) -> None:
    """And what full remat computes again: the layers' forward pass, without the logits."""
    from dataclasses import replace

    model = replace(toy.MODEL, remat_policy=remat)
    run = with_vocab_size(toy.make_run(model=model), toy_store)
    program = Program(run, make_mesh(run.mesh, jax.devices()[:1]))
    batches = TrainBatches(toy_store.split("train"), run.task, run.data, run.method, steps=6)
    executed = aot.executed_flops(run, program, batches.shapes[-1])
    work = [shape.work for shape in batches.layout.block_shapes(batches.layout.shapes - 1)]
    expected = sum(training_flops(run.model, x) for x in work)
    if remat == "full":
        expected += sum(forward_flops(run.model, x._replace(logit_tokens=0)) for x in work)
    assert executed == pytest.approx(expected, rel=0.1)


@pytest.fixture
def on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated CPUs take the chips' place."""
    monkeypatch.setattr(aot, "slice_devices", lambda wanted: jax.devices()[: wanted.count])


@pytest.mark.slow
@pytest.mark.usefixtures("on_cpus", "compile_settings")
def test_what_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = tmp_path / "program.txt"
    assert main.main(["compile", *TINY, "--device", "v5e-4", "--program", str(text)]) == 0
    said = capsys.readouterr().out
    assert "4 x TPU v5e 16 GiB, mesh data 4 x fsdp 1 x model 1" in said
    for part in ("arguments", "temporary", "dss fit's formula", "all-reduce", "It fits."):
        assert part in said
    assert "not a measurement" in said
    assert " all-reduce(" in text.read_text()
    planned = ["--device", "v5e", "--count", "4", "--compile"]
    assert main.main(["fit", *TINY, *planned]) == 0
    said = capsys.readouterr().out
    assert said.index("Add to dss train:") < said.index("not a measurement")


def test_what_cannot_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["fit", "--model", "t5_1_1_tiny", "--device", "v5e", "--compile"]) == 2
    assert "--task" in capsys.readouterr().err
    keep = ["--keep", "somewhere", "--device"]
    assert main.main(["compile", *TINY, *keep, "h200-1"]) == 2
    assert main.main(["compile", *TINY, *keep, "v5e-16"]) == 2
    assert "of one host" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.usefixtures("compile_settings")
@pytest.mark.filterwarnings("error:Error reading persistent compilation cache")
@pytest.mark.parametrize("device", ["v5e-4", "v5p-8", "v6e-4"])
def test_a_slice_of_each_kind(
    device: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is kept, in a file whose name is its key, and the next one does not lose it."""
    keep = tmp_path / "kept"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    for _ in range(2 if device == "v5e-4" else 1):
        asked = ["--device", device, "--keep", str(keep), "--gin.T5Config.dtype='bfloat16'"]
        assert main.main(["compile", *TINY, *asked]) == 0
        said = capsys.readouterr().out
        assert "cycles" in said
        assert "It fits." in said
        (file,) = (keep / "steps").iterdir()
        assert len(file.name) == 64


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.usefixtures("compile_settings")
def test_full_remat_with_dropout_compiles_for_a_tpu(capsys: pytest.CaptureFixture[str]) -> None:
    # libtpu 0.0.42.1 ended the process where products were computed inside of others.
    asked = ["--device", "v5e-1", "--task", "word_problems", "--model", "t5_1_1_tiny"]
    asked += ["--gin.T5Config.dtype='bfloat16'", "--gin.T5Config.remat_policy='full'"]
    assert main.main(["compile", *asked, "--gin.Data.batch_size=16"]) == 0
    assert "It fits." in capsys.readouterr().out


def test_the_table_of_sizes_is_that_of_the_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[1]
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    topologies = import_module("topologies")
    page = (root / "docs" / "compiled.md").read_text()
    assert topologies.with_table(page, topologies.RESULTS / "topologies.json") == page
