"""Products of activations and float32 parameters, and their gradients.

In bfloat16 all sums run in float32, and so does the gradient of a parameter: it is never rounded to
bfloat16, as it is where autodiff goes back through the parameter's cast (T5X, and Flax's `Dense`).

On processors with AVX-512 BF16 a bfloat16 product takes half the time of a float32 one, but XLA's
CPU backend finds that way (YNNPACK) only for float32 results of operands that lie in memory in the
order of the product; it converts all others to float32 first. So on CPU a result is rounded
afterwards, and operands are brought into order. See benchmarks/README.md, "Levers".
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint

PRODUCT, MIXED, SUM = "product", "mixed", "sum"
"""Names for what a remat policy keeps: of a product with a kernel (policies that look at primitives
see none inside a `custom_vjp`), of what attention mixes, of a sum on the residual stream."""

_ROW_BY_ROW = Layout((0, 1))


def matmul(
    x_NxI: jax.Array,
    weight: jax.Array,
    out_dtype: jnp.dtype | type = jnp.float32,
    *,
    transposed: bool = False,
) -> jax.Array:
    """`x @ weight`, computed in the dtype of `x`, float32 or bfloat16, and summed in float32:
    [N, O] in `out_dtype`. The weight is float32 [I, O]; [O, I] if `transposed`.
    """
    if x_NxI.dtype == weight.dtype:
        right = weight.T if transposed else weight
        product = jnp.matmul(x_NxI, right, preferred_element_type=jnp.dtype(out_dtype))
    else:
        product = _narrow(x_NxI, weight, jnp.dtype(out_dtype), transposed)
    return checkpoint_name(product, PRODUCT)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _narrow(
    x_NxI: jax.Array, weight: jax.Array, out_dtype: jnp.dtype, transposed: bool
) -> jax.Array:
    return _dot(x_NxI, weight.astype(x_NxI.dtype), out_dtype, transposed)


def _forward(
    x: jax.Array, weight: jax.Array, out_dtype: jnp.dtype, transposed: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # As plain bits: XLA's CPU backend would keep a bfloat16 array in float32 until it is used.
    kept = jax.lax.bitcast_convert_type(x, jnp.uint16) if on_cpu() else x
    return _narrow(x, weight, out_dtype, transposed), (kept, weight)


def _backward(
    out_dtype: jnp.dtype,
    transposed: bool,
    saved: tuple[jax.Array, jax.Array],
    gradient_NxO: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    kept, weight = saved
    x = jax.lax.bitcast_convert_type(kept, jnp.bfloat16) if on_cpu() else kept
    gradient = gradient_NxO.astype(x.dtype)
    of_x = _dot(gradient, weight.astype(x.dtype), x.dtype, not transposed)
    first, second = (gradient, x) if transposed else (x, gradient)
    return of_x, _dot(_in_rows(first.T), second, weight.dtype, False)


_narrow.defvjp(_forward, _backward)


def _dot(a: jax.Array, b: jax.Array, out_dtype: jnp.dtype, transposed: bool) -> jax.Array:
    """`a @ b`, or `a @ b.T`; in float32 on the way."""
    contract = (((1,), (1 if transposed else 0,)), ((), ()))
    wide = jnp.float32 if on_cpu() else out_dtype
    # A result of another order in memory XLA's CPU backend could not compute at all.
    result = _in_rows(jax.lax.dot_general(a, b, contract, preferred_element_type=wide))
    return result.astype(out_dtype)


def _in_rows(x: jax.Array) -> jax.Array:
    """`x`; a CPU has it row by row in memory. A mere view of a transpose is slow to multiply."""
    return with_layout_constraint(x, _ROW_BY_ROW) if on_cpu() else x


def platform() -> str:
    """ "cpu", "gpu" or "tpu", whichever is traced for: the mesh of `jax.set_mesh`, else JAX's."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def on_cpu() -> bool:
    """Whether it is for a CPU, whose XLA wants other forms than accelerators."""
    return platform() == "cpu"
