"""Files and arrays of a T5X checkpoint, local, under gs:// or s3://, through tensorstore.

T5X stores each large array as a zarr array of its own. Their names are, in the legacy form, in a
msgpack file `checkpoint` (`t5x.checkpoints.Checkpointer`), which also holds the small arrays; in
the Orbax form, in `state/_METADATA`.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from flax import serialization, traverse_util

from dss_jax.core import storage
from dss_jax.core.errors import UsageError
from dss_jax.core.paths import check_name
from dss_jax.interop.weights import Shape

LEGACY_INDEX = "checkpoint"
ORBAX_INDEX = "state/_METADATA"

_CHUNK_BYTES = 64 * 1024 * 1024
"""Aim for a zarr chunk, as in T5X."""

_EXACT_IN_FLOAT32 = ("float32", "bfloat16", "float16")

# The driver's default, 32 retries, is half an hour on a machine without a network.
_CONTEXT = ts.Context({"gcs_request_retries": {"max_retries": 4}})


@dataclass(frozen=True)
class Array:
    """An array of a checkpoint as stored, not read yet. `source`: tensorstore's JSON spec, or the
    array itself where it lies in the msgpack file.
    """

    shape: Shape
    dtype: str
    source: dict[str, Any] | np.ndarray


def kvstore(folder: str) -> dict[str, Any]:
    """Tensorstore's JSON for the keys below a local folder, gs://bucket/folder or s3://.

    Public buckets need nothing. For others tensorstore takes the credentials that
    GOOGLE_APPLICATION_CREDENTIALS or `gcloud auth application-default login` gives, and AWS's
    from its usual places. AWS_ENDPOINT_URL names another server that speaks S3.
    """
    if scheme := storage.scheme_of(folder):
        bucket, _, path = folder.partition("://")[2].strip("/").partition("/")
        where = {"bucket": bucket, "path": f"{path}/" if path else ""}
        if scheme == "gs":
            return {"driver": "gcs", **where}
        if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
            # Elsewhere the region is asked of the bucket.
            region = os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
            where |= {"endpoint": endpoint, "aws_region": region}
        return {"driver": "s3", **where}
    return {"driver": "file", "path": f"{Path(folder).expanduser().resolve()}/"}


def read_file(folder: str, name: str) -> bytes | None:
    """A file's content; None: there is none. Raises UsageError where the bucket does not answer, or
    the permission is missing.
    """
    if not storage.is_remote(folder):
        file = Path(folder).expanduser() / name
        return file.read_bytes() if file.is_file() else None
    try:
        found = ts.KvStore.open(kvstore(folder), context=_CONTEXT).result().read(name).result()
    except ValueError as error:
        raise UsageError(
            f"cannot read {folder}/{name}: {_first_line(error)}. A public bucket needs a network "
            f"only, any other one credentials: {storage.CREDENTIALS[folder[:2]]}."
        ) from error
    return found.value if found.state == "value" else None


def legacy_arrays(folder: str, index: bytes) -> dict[str, Array]:
    """The parameters that a legacy checkpoint's msgpack file `index` names, by T5X's names
    ("target/encoder/layers_0/mlp/wo/kernel"). Arrays are taken to be beside that file, whatever
    bucket or folder they were first written to. Raises UsageError: the file is broken, or from
    before version 2, which T5X refuses as well.
    """
    try:
        content = serialization.msgpack_restore(index)
    except ValueError as error:
        raise UsageError(f"{folder}/{LEGACY_INDEX} is broken or cut short: {error}") from error
    version = content.get("version", 0)
    if version < 2:
        raise UsageError(
            f"{folder} is a checkpoint of version {version}; T5X reads and writes version 2 and "
            "later, and so does this."
        )
    target = content["optimizer"].get("target", {})
    leaves = traverse_util.flatten_dict(
        {"target": target}, is_leaf=lambda _, x: "driver" in x, sep="/"
    )
    arrays = {}
    for name, value in leaves.items():
        if not isinstance(value, Mapping):
            arrays[name] = Array(value.shape, value.dtype.name, value)
            continue
        # tensorstore before 0.1.14 kept the path outside "kvstore".
        path = value["kvstore"].get("path") or value["path"]
        store = _below(kvstore(folder), path.rstrip("/").rsplit("/", 1)[-1])
        spec = {"driver": value["driver"], "kvstore": store}
        arrays[name] = Array(tuple(value["metadata"]["shape"]), value["dtype"], spec)
    return arrays


def orbax_arrays(folder: str, index: bytes) -> dict[str, Array]:
    """The same of a checkpoint that T5X wrote with Orbax, whose `state/_METADATA` is `index`."""
    metadata = json.loads(index)
    driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
    base, specs = kvstore(f"{folder}/state"), {}
    for entry in metadata["tree_metadata"].values():
        path = [str(key["key"]) for key in entry["key_metadata"]]
        if path[0] != "target":
            continue
        name = ".".join(path)
        store = _below(base, name)
        if metadata.get("use_ocdbt"):
            store = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
        specs["/".join(path)] = {"driver": driver, "kvstore": store}
    opened = _open(specs)
    return {n: Array(tuple(a.shape), a.dtype.name, specs[n]) for n, a in opened.items()}


def _below(store: dict[str, Any], name: str) -> dict[str, Any]:
    check_name(name, f"the index of {store['path']}")
    return {**store, "path": f"{store['path']}{name}/"}


def _open(specs: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Opens arrays side by side."""
    futures = {
        # A chunk that is not there would read as zeros: a copy that was cut short lacks some.
        name: ts.open({**spec, "fill_missing_data_reads": False}, open=True, context=_CONTEXT)
        for name, spec in specs.items()
    }
    return {name: _result(name, future) for name, future in futures.items()}


def _result(name: str, future: Any) -> Any:
    try:
        return future.result()
    except ValueError as error:
        raise UsageError(f"cannot read or write {name}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).split(" [", 1)[0].splitlines()[0]


def check_readable(arrays: Mapping[str, Array], origin: str) -> None:
    """Raises UsageError with the names of arrays that float32 does not hold exactly."""
    dtypes = {name: array.dtype for name, array in sorted(arrays.items())}
    wrong = [f"\n  {n} is {dtype}" for n, dtype in dtypes.items() if dtype not in _EXACT_IN_FLOAT32]
    if wrong:
        known = ", ".join(_EXACT_IN_FLOAT32)
        raise UsageError(f"{origin} holds parameters that are none of {known}:{''.join(wrong)}")


def read_arrays(arrays: Mapping[str, Array]) -> list[np.ndarray]:
    """Reads arrays side by side, in their order, as float32. Raises UsageError where one is not
    there, broken, or not of the shape that the index says.
    """
    opened = _open({n: a.source for n, a in arrays.items() if isinstance(a.source, dict)})
    for name, store in opened.items():
        found, wanted = list(store.shape), list(arrays[name].shape)
        if found != wanted:
            raise UsageError(
                f"cannot read {name}: it is {found}, and {wanted} by the file {LEGACY_INDEX}."
            )
    futures = {name: store.read() for name, store in opened.items()}
    return [
        np.asarray(_result(name, futures[name]) if name in futures else array.source, np.float32)
        for name, array in arrays.items()
    ]


def write_arrays(folder: str, arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Writes float32 arrays, given by T5X's names, as its legacy form does, side by side: name ->
    what the msgpack file keeps for it. The paths are relative, so that the folder can be moved.
    """
    specs, futures = {}, {}
    for name, array in arrays.items():
        file = name.replace("/", ".")
        rows = min(len(array), max(1, _CHUNK_BYTES // array[:1].nbytes))
        metadata = {
            "chunks": [rows, *array.shape[1:]],
            "compressor": {"id": "gzip", "level": 1},
            "shape": list(array.shape),
        }
        spec = {"driver": "zarr", "dtype": "float32", "metadata": metadata}
        specs[name] = {**spec, "kvstore": {"driver": "file", "path": f"{file}/"}}
        spec["kvstore"] = _below(kvstore(folder), file)
        futures[name] = ts.open(spec, create=True, context=_CONTEXT)
    opened = {name: _result(name, future) for name, future in futures.items()}
    writes = {name: store.write(arrays[name]) for name, store in opened.items()}
    for name, future in writes.items():
        _result(name, future)
    return specs


def write_index(folder: str, content: dict[str, Any]) -> None:
    """Writes the msgpack file `checkpoint`, which makes a legacy checkpoint whole."""
    store = _result(LEGACY_INDEX, ts.KvStore.open(kvstore(folder), context=_CONTEXT))
    data = serialization.msgpack_serialize(content)
    _result(LEGACY_INDEX, store.write(LEGACY_INDEX, data))
