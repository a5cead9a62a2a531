"""LoRA (Hu et al. 2021, arXiv 2106.09685): low-rank matrices beside frozen kernels.

A targeted linear map has `lora_a` [.., in, r] and `lora_b` [.., r, out] beside its `kernel`
[.., in, out], in the same tree; `dss_jax.model.layers.Dense` adds their product where it finds
them. A tree without them is the plain model, and every function here leaves it as it is.
Trees are nested dictionaries of parameters, of shapes or of shardings.
"""

import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from dss_jax.core.errors import UsageError
from dss_jax.core.t5_config import LORA_TARGETS, Lora

A, B = "lora_a", "lora_b"


def add(boxed_params: dict, lora: Lora, key: jax.Array) -> dict:
    """Adds `lora_a` and `lora_b`, float32, to the kernels that `lora.targets` names in the plain
    model's boxed parameters; their logical axes are the kernel's and "lora".

    A is drawn from the key, normal with variance 1 / in as the kernels are; B is 0, so the model is
    what it was. Rank 0 adds nothing.

    Raises:
      UsageError: the model has no linear map of a target's name.
    """
    if not lora.rank:
        return boxed_params
    leaves = flatten_dict(boxed_params)
    maps = [path[:-1] for path in leaves if path[-1] == "kernel"]
    found = {path[-1] for path in maps}
    if unknown := [target for target in lora.targets if target not in found]:
        there = ", ".join(name for name in LORA_TARGETS if name in found)
        raise UsageError(
            f"Lora.targets names {', '.join(unknown)}, which this model does not have. It has "
            f"{there}."
        )
    for path in maps:
        if path[-1] in lora.targets:
            kernel = leaves[*path, "kernel"]
            (*stack, size_in, size_out), names = kernel.value.shape, kernel.names
            own_key = jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))
            a = jax.random.normal(own_key, (*stack, size_in, lora.rank)) * size_in**-0.5
            b = jnp.zeros((*stack, lora.rank, size_out))
            leaves[*path, A] = nn.LogicallyPartitioned(a, (*names[:-1], "lora"))
            leaves[*path, B] = nn.LogicallyPartitioned(b, (*names[:-2], "lora", names[-1]))
    return unflatten_dict(leaves)


def merge(tree: dict) -> dict:
    """The plain model with the same outputs: kernel + A B, in float32."""
    leaves = flatten_dict(tree)
    for path in [path[:-1] for path in leaves if path[-1] == A]:
        a, b = leaves.pop((*path, A)), leaves.pop((*path, B))
        product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        leaves[*path, "kernel"] = leaves[*path, "kernel"] + product
    return unflatten_dict(leaves)


def split(tree: dict) -> tuple[dict, dict]:
    """(what is trained, what is frozen): LoRA's leaves and the rest; without LoRA (all, {})."""
    leaves = flatten_dict(tree)
    trained = {path: leaf for path, leaf in leaves.items() if path[-1] in (A, B)}
    if not trained:
        return tree, {}
    frozen = {path: leaf for path, leaf in leaves.items() if path not in trained}
    return unflatten_dict(trained), unflatten_dict(frozen)


def base(tree: dict) -> dict:
    """The plain model's leaves, as they are."""
    return split(tree)[1] or tree


def join(trained: dict, frozen: dict) -> dict:
    """The whole tree again, from the parts that `split` gives."""
    return unflatten_dict(flatten_dict(trained) | flatten_dict(frozen))
