"""Products in bfloat16 and their gradients, against float64 in NumPy."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.mesh import AbstractDevice  # of a mesh that this machine lacks
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from dss_jax.model import matmul as matmul_module
from dss_jax.model.matmul import matmul
from dss_jax.model.sampling import first_argmax
from dss_jax.train.compile import step_options

pytestmark = [pytest.mark.usefixtures("strict"), pytest.mark.filterwarnings("error")]

TOKENS, IN, OUT = 96, 40, 24


def _inputs(transposed: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (TOKENS, IN), jnp.bfloat16)
    weight = jax.random.normal(keys[1], (OUT, IN) if transposed else (IN, OUT), jnp.float32)
    gradient = jax.random.normal(keys[2], (TOKENS, OUT), jnp.bfloat16)
    return x, weight, gradient


def _wide(x: jax.Array) -> np.ndarray:
    """As a product in bfloat16 sees it, in float64."""
    return np.asarray(x.astype(jnp.bfloat16), np.float64)


def _with_gradients(x: jax.Array, weight: jax.Array, gradient: jax.Array, transposed: bool):
    y, back = jax.vjp(lambda x, w: matmul(x, w, jnp.float32, transposed=transposed), x, weight)
    return y, *back(gradient.astype(jnp.float32))


@pytest.mark.parametrize("transposed", [False, True])
def test_sums_are_in_float32_and_so_is_the_gradient_of_the_weight(transposed: bool) -> None:
    x, weight, gradient = _inputs(transposed)
    y, of_x, of_weight = _with_gradients(x, weight, gradient, transposed)
    assert (y.dtype, of_x.dtype, of_weight.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    right = _wide(weight).T if transposed else _wide(weight)
    np.testing.assert_allclose(y, _wide(x) @ right, rtol=1e-5, atol=1e-5)
    expected = _wide(x).T @ _wide(gradient)
    np.testing.assert_allclose(
        of_weight, expected.T if transposed else expected, rtol=1e-5, atol=1e-5
    )
    # Half a unit of bfloat16's last place.
    np.testing.assert_allclose(_wide(of_x), _wide(gradient) @ right.T, rtol=2**-8, atol=1e-5)


def test_results_are_rounded_once() -> None:
    x, weight, _ = _inputs(transposed=False)
    y = matmul(x, weight, jnp.bfloat16)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(_wide(y), _wide(x) @ _wide(weight), rtol=2**-8, atol=1e-5)


def test_float32_is_a_plain_product() -> None:
    x, weight, _ = _inputs(transposed=True)
    x = x.astype(jnp.float32)
    np.testing.assert_array_equal(matmul(x, weight, transposed=True), x @ weight.T)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_mesh_changes_nothing(axis: int) -> None:
    x, weight, gradient = _inputs(transposed=False)
    mesh = Mesh(np.array(jax.devices()[:4]), ("d",))
    rows = NamedSharding(mesh, PartitionSpec("d"))
    kernel = NamedSharding(mesh, PartitionSpec(*(("d", None) if axis == 0 else (None, "d"))))
    apart = jax.jit(
        lambda x, w, g: _with_gradients(x, w, g, False),
        in_shardings=(rows, kernel, rows),
        out_shardings=(rows, rows, kernel),
    )(x, weight, gradient)
    for got, expected in zip(apart, _with_gradients(x, weight, gradient, False), strict=True):
        np.testing.assert_allclose(
            got.astype(jnp.float32), expected.astype(jnp.float32), rtol=2**-7, atol=1e-4
        )


def test_seeds_at_once_are_those_one_by_one() -> None:
    x, weight, gradient = _inputs(transposed=False)
    stacked = jnp.stack([weight, 2 * weight])
    at_once = jax.vmap(lambda w: _with_gradients(x, w, gradient, False))(stacked)
    for i in range(2):
        one = _with_gradients(x, stacked[i], gradient, False)
        for got, expected in zip(at_once, one, strict=True):
            np.testing.assert_allclose(
                got[i].astype(jnp.float32), expected.astype(jnp.float32), rtol=2**-7, atol=1e-4
            )


_COMPILED = """
import jax, jax.numpy as jnp
from dss_jax.model import matmul as matmul_module
from dss_jax.model.matmul import matmul
from dss_jax.model.sampling import first_argmax
x, w = jnp.ones((256, 128), jnp.bfloat16), jnp.ones(SHAPE, jnp.float32)
def step(x, w):
    y, back = jax.vjp(lambda x, w: matmul(x, w, jnp.bfloat16, transposed=TRANSPOSED), x, w)
    return y, back(y), back(y[::-1])[1].T
compiled = jax.jit(step).lower(x, w).compile()
jax.block_until_ready(compiled(x, w))
print(compiled.as_text())
"""


@pytest.mark.parametrize(("shape", "transposed"), [("(128, 64)", False), ("(64, 128)", True)])
def test_a_cpu_multiplies_in_bfloat16(shape: str, transposed: bool) -> None:
    """What the file is for: no product's operands are widened to float32 before.

    The last one's result is transposed: XLA makes that an order in memory if it may, and then
    knows no way to compute it.
    """
    flags = Path("/proc/cpuinfo")
    if not flags.exists() or "avx512_bf16" not in flags.read_text():
        pytest.skip("this processor has no AVX-512 BF16")
    program = _COMPILED.replace("SHAPE", shape).replace("TRANSPOSED", str(transposed))
    # The suite's own flags leave out the passes that this is about.
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    text = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stdout
    products = [line for line in text.splitlines() if " dot(" in line]
    operands = [line.split(" dot(")[1].split(")")[0].split(", ") for line in products]
    assert len(products) == 4
    for name in {name for pair in operands for name in pair}:
        made = next(line for line in text.splitlines() if line.strip().startswith(f"{name} = "))
        assert " = bf16[" in made, made


def test_this_xla_knows_the_options_of_the_step() -> None:
    if jax.default_backend() != "cpu":
        pytest.skip("they are a CPU's")
    assert step_options(jax.devices()[0])


@pytest.mark.parametrize(("platform", "kept"), [("cpu", "uint16"), ("tpu", "bfloat16")])
def test_the_form_is_that_of_the_devices_of_the_mesh(platform: str, kept: str) -> None:
    """Whatever this machine has: what is traced here may be compiled for another."""
    device = AbstractDevice(device_kind="a kind", num_cores=None, platform=platform)
    x, weight, _ = _inputs(transposed=False)
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("data",), abstract_device=device)):
        back = jax.eval_shape(lambda x, w: jax.vjp(matmul, x, w)[1], x, weight)
    assert kept in {leaf.dtype.name for leaf in jax.tree.leaves(back)}


def test_an_accelerator_gathers_no_logits_for_their_argmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """T5's vocabulary, shared out over a mesh: 32,128 is 251 chunks, which two devices cannot."""
    monkeypatch.setattr(matmul_module, "on_cpu", lambda: False)
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    compiled = jax.jit(
        first_argmax,
        in_shardings=NamedSharding(mesh, PartitionSpec("data", "model")),
        out_shardings=NamedSharding(mesh, PartitionSpec("data")),
    ).lower(jax.ShapeDtypeStruct((8, 32128), jnp.float32))
    gathered = [x for x in compiled.compile().as_text().splitlines() if " all-gather(" in x]
    assert gathered, "the test sees no collective at all"
    assert not [line for line in gathered if "32128]" in line]
