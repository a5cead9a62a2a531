"""What every checkpoint format is read into, and the check that no tensor is missing.

A reader opens a checkpoint, compares the names and shapes that it finds with those that the
model needs, and gives `Weights`: our parameter tree whose leaves are read one at a time, so that
reading 11B parameters never holds more than the model and one leaf.
"""

import functools
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.linen import meta

from dss_jax.core import paths, storage
from dss_jax.core.config import T5Config
from dss_jax.core.errors import UsageError
from dss_jax.core.partial import whole_folder
from dss_jax.core.student_card import StudentCard
from dss_jax.model.build import model_of

Shape = tuple[int, ...]

flat = functools.partial(traverse_util.flatten_dict, sep="/")
"""{"a": {"b": x}} -> {"a/b": x}."""
nested = functools.partial(traverse_util.unflatten_dict, sep="/")
"""{"a/b": x} -> {"a": {"b": x}}."""


@dataclass(frozen=True)
class Leaf:
    """A parameter that is read when it is asked for, as a float32 array of its shape."""

    shape: Shape
    read: Callable[[], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A checkpoint's parameters under our names.

    Attributes:
      leaves: path in our tree ("encoder/layers/mlp/wo/kernel") -> leaf; all of the model's, stacked
        over layers on axis 0 below `layers`.
      vocabulary: the SentencePiece file beside the checkpoint, if there is one.
      extra_ids: sentinel ids above its pieces.
      card: of the student, if it has one; it goes where the parameters go.
      step: of the checkpoint of a run; None: it is none of a run.
      origin, notes: for people: format and place, what the reader decided or left out.
    """

    config: T5Config
    leaves: Mapping[str, Leaf]
    vocabulary: Path | None = None
    extra_ids: int = 100
    card: StudentCard | None = None
    step: int | None = None
    origin: str
    notes: tuple[str, ...] = ()

    def tree(self) -> dict[str, Any]:
        """All parameters as a nested dictionary of float32 arrays."""
        return nested({path: leaf.read() for path, leaf in self.leaves.items()})


class StoredParameter(NamedTuple):
    """One of our parameters, and how another format keeps it.

    Attributes:
      path, shape: of ours; below `layers` stacked over the layers on axis 0.
      names: theirs: one a layer, or one.
      their_shape: of each of those; of one layer's it has an axis less.
      view: one of their arrays -> ours, or ours of one layer; its own inverse, for `to_theirs`.
    """

    path: str
    shape: Shape
    names: list[str]
    their_shape: Shape
    view: Callable[[np.ndarray], np.ndarray] = np.asarray

    def _parts(self, value: np.ndarray) -> Iterable[np.ndarray]:
        return value if len(self.their_shape) < len(self.shape) else [value]

    def to_ours(self, arrays: Iterable[np.ndarray]) -> np.ndarray:
        """float32 array of `shape` from theirs, in the order of `names`, taken one at a time."""
        value = np.empty(self.shape, np.float32)
        for part, array in zip(self._parts(value), arrays, strict=True):
            part[...] = self.view(array)
        return value

    def to_theirs(self, value: np.ndarray) -> dict[str, np.ndarray]:
        """Their arrays by name, views of ours."""
        return dict(zip(self.names, map(self.view, self._parts(value)), strict=True))


def their_shapes(parameters: Iterable[StoredParameter]) -> dict[str, Shape]:
    """Their name -> shape, of every array that a model needs."""
    return {name: p.their_shape for p in parameters for name in p.names}


def checked_leaves(
    needed: Iterable[StoredParameter],
    found: Mapping[str, Shape],
    read: Callable[[list[str]], Iterable[np.ndarray]],
    origin: str,
) -> dict[str, Leaf]:
    """The leaves of a model whose parameters are `needed`, in a checkpoint that has `found`, by its
    own names; `read` gives arrays of some names, in their order. Raises UsageError: see
    `check_names`.
    """

    def leaf(parameter: StoredParameter) -> Leaf:
        return Leaf(parameter.shape, lambda: parameter.to_ours(read(parameter.names)))

    check_names(their_shapes(needed), found, origin)
    return {parameter.path: leaf(parameter) for parameter in needed}


@functools.cache
def boxed_parameters(config: T5Config) -> dict[str, Any]:
    """Shapes of the model's parameters, in their logical-axis boxes. Takes no memory."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return dict(jax.eval_shape(model_of(config).init, jax.random.key(0), tokens, tokens)["params"])


def expected_shapes(config: T5Config) -> dict[str, Shape]:
    """Path in our tree -> shape, of every parameter of the model."""
    return {path: leaf.shape for path, leaf in flat(meta.unbox(boxed_parameters(config))).items()}


def from_tree(config: T5Config, params: Mapping[str, Any], *, origin: str, **files: Any) -> Weights:
    """Parameters in memory, as `Weights`; `files`: `vocabulary` and `extra_ids` of it. Raises
    UsageError: see `check_names`.
    """
    arrays = flat(params)
    check_names(expected_shapes(config), {p: a.shape for p, a in arrays.items()}, origin)
    read = {p: functools.partial(np.asarray, a, dtype=np.float32) for p, a in arrays.items()}
    leaves = {p: Leaf(a.shape, read[p]) for p, a in arrays.items()}
    return Weights(config=config, leaves=leaves, origin=origin, **files)


def check_names(expected: Mapping[str, Shape], found: Mapping[str, Shape], origin: str) -> None:
    """Compares what a model needs with what a checkpoint has, by the checkpoint's own names. Raises
    UsageError: with every missing, unexpected and misshapen tensor by name, with both shapes.
    """
    needed, has = ({n: list(shape) for n, shape in side.items()} for side in (expected, found))
    lines = [f"  missing: {n}, needed as {needed[n]}" for n in needed.keys() - has]
    lines += [f"  unexpected: {n} {has[n]}" for n in has.keys() - needed]
    both = [n for n in needed.keys() & has if needed[n] != has[n]]
    lines += [f"  misshapen: {n} is {has[n]}, needed as {needed[n]}" for n in both]
    if lines:
        raise UsageError(
            f"{origin} does not hold the parameters of this T5:\n"
            + "\n".join(sorted(lines))
            + "\nEither the configuration beside it is of another model, or the checkpoint is of "
            "another architecture. Nothing was read."
        )


def count_parameters(params: Any) -> int:
    """Numbers in a tree of arrays or of shapes (as from `jax.eval_shape`)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@contextmanager
def whole_place(path: str | Path, last: str) -> Iterator[Path]:
    """A local folder to write into that becomes the new folder `path`, remote or local; `last` says
    that a remote one is whole, and is written last. UsageError: `path` is there and not empty.
    """
    if not storage.is_remote(path):
        with whole_folder(Path(path).expanduser()) as folder:
            yield folder
        return
    with storage.explained(path):
        paths.check_new_folder(storage.place(path))
    with tempfile.TemporaryDirectory(prefix="dss-") as temporary:
        yield Path(temporary)
        storage.upload_folder(Path(temporary), path, last)
