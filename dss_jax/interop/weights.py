"""What every checkpoint format is read into, and the check that no tensor is missing.

A reader opens a checkpoint, compares the names and shapes that it finds with those that the
model needs, and gives `Weights`: our parameter tree whose leaves are read one at a time, so that
reading 11B parameters never holds more than the model and one leaf.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.linen import meta

from dss_jax.core.config import T5Config
from dss_jax.core.errors import UsageError
from dss_jax.model.t5 import T5

Shape = tuple[int, ...]

flat = partial(traverse_util.flatten_dict, sep="/")
"""{"a": {"b": x}} -> {"a/b": x}."""
nested = partial(traverse_util.unflatten_dict, sep="/")
"""{"a/b": x} -> {"a": {"b": x}}."""


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


class StoredParameter(NamedTuple):
    """One of our parameters, and how another format keeps it.

    Attributes:
      path, shape: of ours; below `layers` stacked over the layers on axis 0.
      names: theirs: one a layer where `by_layer`, else one.
      their_shape: of each of those.
      view: one of their arrays -> ours, or ours of one layer. Its own inverse where `to_theirs` is
        needed.
      by_layer: whether each layer's array has a name of its own.
    """

    path: str
    shape: Shape
    names: list[str]
    their_shape: Shape
    view: Callable[[np.ndarray], np.ndarray]
    by_layer: bool

    def to_ours(self, arrays: Iterable[np.ndarray]) -> np.ndarray:
        """float32 array of `shape` from theirs, in the order of `names`, taken one at a time."""
        value = np.empty(self.shape, np.float32)
        for slot, array in zip(value if self.by_layer else [value], arrays, strict=True):
            slot[...] = self.view(array)
        return value

    def to_theirs(self, value: np.ndarray) -> dict[str, np.ndarray]:
        """Their arrays by name, views of ours."""
        layers = value if self.by_layer else [value]
        return dict(zip(self.names, map(self.view, layers), strict=True))


def unchanged(array: np.ndarray) -> np.ndarray:
    """A `view` of what is kept as ours is."""
    return array


def their_shapes(parameters: Iterable[StoredParameter]) -> dict[str, Shape]:
    """Their name -> shape, of every array that a model needs."""
    return {name: p.their_shape for p in parameters for name in p.names}


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
