"""LoRA (Hu et al. 2021, arXiv 2106.09685): low-rank matrices beside frozen kernels.

A targeted linear map has `lora_a` [.., in, r] and `lora_b` [.., r, out] beside its `kernel`
[.., in, out], in the same tree; `dss_jax.model.layers.Dense` adds their product where it finds
them. A tree without them is the plain model, and every function here leaves it as it is.
Trees are nested dictionaries of parameters, of shapes or of shardings.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dss_jax.core.errors import UsageError
from dss_jax.core.t5_config import LORA_TARGETS, Lora

A, B = "lora_a", "lora_b"


def _map_nodes(
    tree: Any, change: Callable[[tuple[str, ...], dict], dict], path: tuple[str, ...] = ()
) -> Any:
    """Applies `change` to each dictionary that holds a kernel; its path ends in its name."""
    if not isinstance(tree, Mapping):
        return tree
    if "kernel" in tree:
        return change(path, dict(tree))
    return {name: _map_nodes(node, change, (*path, name)) for name, node in tree.items()}


def add(boxed_params: dict, lora: Lora, key: jax.Array) -> dict:
    """Adds `lora_a` and `lora_b` to the kernels that `lora.targets` names.

    Args:
      boxed_params: of the plain model, in their `nn.LogicallyPartitioned` boxes.
      lora: rank 0 adds nothing.
      key: A is drawn from it, normal with variance 1 / in as the kernels are; B is 0, so the
        model is what it was.

    Returns:
      The tree with more leaves, float32; their logical axes are the kernel's and "lora".

    Raises:
      UsageError: the model has no linear map of a target's name.
    """
    if not lora.rank:
        return boxed_params
    found = set()

    def change(path: tuple[str, ...], node: dict) -> dict:
        found.add(path[-1])
        if path[-1] not in lora.targets:
            return node
        (*stack, size_in, size_out), names = node["kernel"].value.shape, node["kernel"].names
        own_key = jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))
        a = jax.random.normal(own_key, (*stack, size_in, lora.rank)) * size_in**-0.5
        b = jnp.zeros((*stack, lora.rank, size_out))
        return node | {
            A: nn.LogicallyPartitioned(a, (*names[:-1], "lora")),
            B: nn.LogicallyPartitioned(b, (*names[:-2], "lora", names[-1])),
        }

    tree = _map_nodes(boxed_params, change)
    unknown = [target for target in lora.targets if target not in found]
    if unknown:
        there = ", ".join(name for name in LORA_TARGETS if name in found)
        raise UsageError(
            f"Lora.targets names {', '.join(unknown)}, which this model does not have. It has "
            f"{there}."
        )
    return tree


def merge(tree: dict) -> dict:
    """The plain model with the same outputs: kernel + A B, in float32."""

    def change(_: tuple[str, ...], node: dict) -> dict:
        if A not in node:
            return node
        a, b = node.pop(A), node.pop(B)
        product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        return node | {"kernel": node["kernel"] + product}

    return _map_nodes(tree, change)


def split(tree: dict) -> tuple[dict, dict]:
    """(what is trained, what is frozen): LoRA's leaves and the rest; without LoRA (all, {})."""
    trained, frozen = _pick(tree, True), _pick(tree, False)
    return (trained, frozen) if trained else (tree, {})


def base(tree: dict) -> dict:
    """The plain model's leaves, as they are."""
    trained, frozen = split(tree)
    return frozen or trained


def _pick(tree: Mapping, lora: bool) -> dict:
    picked = {
        name: _pick(node, lora) if isinstance(node, Mapping) else node
        for name, node in tree.items()
        if isinstance(node, Mapping) or (name in (A, B)) == lora
    }
    return {name: node for name, node in picked.items() if not isinstance(node, Mapping) or node}


def join(trained: dict, frozen: dict) -> dict:
    """The whole tree again, from the parts that `split` gives."""
    both = trained | frozen
    return {
        name: join(trained[name], frozen[name]) if name in trained and name in frozen else node
        for name, node in both.items()
    }
