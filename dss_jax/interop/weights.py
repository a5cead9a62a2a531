"""What every checkpoint format is read into, and the check that no tensor is missing.

A reader opens a checkpoint, compares the names and shapes that it finds with those that the
model needs, and gives `Weights`: our parameter tree whose leaves are read one at a time, so that
reading 11B parameters never holds more than the model and one leaf.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import meta

from dss_jax.core.config import T5Config
from dss_jax.core.errors import UsageError
from dss_jax.model.t5 import T5

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Leaf:
    """A parameter that is read when it is asked for.

    Attributes:
      shape: of our array (stacked over layers on axis 0 below `layers`).
      read: () -> float32 array of that shape.
    """

    shape: Shape
    read: Callable[[], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A checkpoint's parameters under our names.

    Attributes:
      config: shape of the model.
      leaves: path in our tree ("encoder/layers/mlp/wo/kernel") -> leaf; all of the model's.
      vocabulary: the SentencePiece file that lies beside the checkpoint, if there is one.
      extra_ids: sentinel ids above the SentencePiece model's pieces.
      origin: format and place, for messages.
      notes: what the reader decided or left out, for people.
    """

    config: T5Config
    leaves: Mapping[str, Leaf]
    vocabulary: Path | None = None
    extra_ids: int = 100
    origin: str
    notes: tuple[str, ...] = ()

    def tree(self) -> dict[str, Any]:
        """All parameters as a nested dictionary of float32 arrays."""
        return nested({path: leaf.read() for path, leaf in self.leaves.items()})


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": x} -> {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return tree


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """{"a": {"b": x}} -> {"a/b": x}, in the order of the names."""
    return {
        "/".join(str(key.key) for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def expected_shapes(config: T5Config) -> dict[str, Shape]:
    """Path in our tree -> shape, of every parameter of the model. Takes no memory."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    boxed = jax.eval_shape(T5(config).init, jax.random.key(0), tokens, tokens)
    return {path: leaf.shape for path, leaf in flat(meta.unbox(boxed)["params"]).items()}


def from_tree(
    config: T5Config,
    params: Mapping[str, Any],
    *,
    origin: str,
    vocabulary: Path | None = None,
    extra_ids: int = 100,
) -> Weights:
    """Parameters in memory, as `Weights`.

    Raises:
      UsageError: see `check_names`.
    """
    arrays = flat(params)
    check_names(expected_shapes(config), {p: a.shape for p, a in arrays.items()}, origin)
    return Weights(
        config=config,
        leaves={
            p: Leaf(a.shape, partial(np.asarray, a, dtype=np.float32)) for p, a in arrays.items()
        },
        vocabulary=vocabulary,
        extra_ids=extra_ids,
        origin=origin,
    )


def check_names(expected: Mapping[str, Shape], found: Mapping[str, Shape], origin: str) -> None:
    """Compares what a model needs with what a checkpoint has.

    Args:
      expected: name of a tensor in the checkpoint's own terms -> shape that the model needs.
      found: the same, of the checkpoint.
      origin: of the checkpoint, for the message.

    Raises:
      UsageError: with every missing, unexpected and misshapen tensor by name, with both shapes.
    """
    lines = [
        f"  missing: {name}, needed as {list(expected[name])}" for name in expected.keys() - found
    ]
    lines += [f"  unexpected: {name} {list(found[name])}" for name in found.keys() - expected]
    lines += [
        f"  misshapen: {name} is {list(found[name])}, needed as {list(expected[name])}"
        for name in expected.keys() & found
        if tuple(expected[name]) != tuple(found[name])
    ]
    if lines:
        raise UsageError(
            f"{origin} does not hold the parameters of this T5:\n"
            + "\n".join(sorted(lines))
            + "\nEither the configuration beside it is of another model, or the checkpoint is of "
            "another architecture. Nothing was read."
        )
