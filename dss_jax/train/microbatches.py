"""`Train.microbatches`: the gradient of a batch as the sum of those of its parts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dss_jax.layouts.blocks import Batch


def split(batch: Batch, parts: int) -> Batch:
    """[R, ...] -> [parts, R / parts, ...]. Each part takes rows from every device's share, so
    nothing moves between devices.
    """
    return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def add_up(
    gradient: Callable[..., Any], trained: dict, batch: Batch, key: jax.Array | None, parts: int
) -> Any:
    """The sum of `gradient(trained, part, key of the part)`, a tree of arrays, over all parts."""

    def of_part(index: jax.Array, blocks: Batch) -> Any:
        own = None if key is None else jax.random.fold_in(key, index)
        return gradient(trained, blocks, own)

    def add(total: Any, step: tuple) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, of_part(*step)), None

    steps = (jnp.arange(parts), split(batch, parts))
    like = jax.eval_shape(of_part, *jax.tree.map(lambda x: x[0], steps))
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    return jax.lax.scan(add, start, steps)[0]
