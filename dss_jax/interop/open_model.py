"""A checkpoint of any format as a model that can be run: its parameters on the devices."""

import dataclasses
import zlib
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from dss_jax.core import config
from dss_jax.core.errors import UsageError
from dss_jax.core.ids import T5_PUBLIC
from dss_jax.data.tokenizer import Tokenizer
from dss_jax.data.vocabulary import open_vocabulary, resolve
from dss_jax.interop.formats import read_weights
from dss_jax.interop.vocabularies import vocabulary_size
from dss_jax.interop.weights import boxed_parameters, flat, nested
from dss_jax.model.build import model_of
from dss_jax.model.t5 import T5
from dss_jax.train.compile import keep_compiled_code
from dss_jax.train.sharding import make_mesh, param_shardings


class OpenedModel(NamedTuple):
    """A model, its parameters on a mesh, its vocabulary, and where it comes from, for people: with
    the dtype, and a sum of some numbers of each parameter, by which another student of that place
    is known.
    """

    model: T5
    params: Any
    mesh: Mesh
    vocabulary: Tokenizer
    origin: str


def open_model(
    path: str,
    *,
    dtype: str = "float32",
    mesh: config.Mesh = config.Mesh(),  # noqa: B008
    vocabulary: str | None = None,
    checkpoint: str | None = None,
) -> OpenedModel:
    """Opens a checkpoint of Hugging Face, Orbax or T5X, and puts it on the devices; what is
    compiled for it is kept.

    Args:
      dtype: of the activations.
      vocabulary: where the checkpoint has none; None: the checkpoint's.
      checkpoint: of a run's folder: "best", "latest" or a step.

    Raises:
      UsageError: no such checkpoint; no vocabulary, or one that does not fit.
    """
    weights = read_weights(path, checkpoint=checkpoint)
    file = vocabulary or weights.vocabulary
    if file is None:
        raise UsageError(
            f"{weights.origin} has no SentencePiece file beside it (spiece.model) and no "
            f"tokenizer. Give it with --vocabulary FILE; T5's public one is {T5_PUBLIC}, ByT5's is "
            "bytes."
        )
    model_file = resolve(str(file))
    vocabulary_size(model_file, weights.extra_ids, weights.config, weights.origin)
    keep_compiled_code()
    model = model_of(dataclasses.replace(weights.config, dtype=dtype))
    devices = make_mesh(mesh)
    boxed = boxed_parameters(weights.config)
    places = flat(param_shardings(boxed, devices, mesh.logical_axis_rules))
    params, known = {}, 0
    for name, leaf in weights.leaves.items():
        # Onto the devices as it is read, so that the host holds one at a time.
        value = leaf.read()
        known = zlib.crc32(value.flat[:64].tobytes(), known)
        params[name] = jax.make_array_from_callback(leaf.shape, places[name], value.__getitem__)
    pieces = open_vocabulary(model_file, weights.extra_ids)
    origin = f"{weights.origin} ({dtype}, {known:08x})"
    return OpenedModel(model, nested(params), devices, pieces, origin)
