"""Checkpoints in T5X's layouts, made by hand: nothing here comes from `dss_jax.interop`."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tensorstore as ts
from flax import serialization, traverse_util

from dss_jax.core.config import T5Config

V, E, H, D, F, ENCODER, DECODER, BUCKETS = 32, 6, 2, 5, 14, 2, 3, 32

BIASES = ("encoder/relpos_bias/rel_embedding", "decoder/relpos_bias/rel_embedding")


def config(*, gated: bool = True, tied: bool = False) -> T5Config:
    """Of the arrays that `unscanned` makes."""
    return T5Config(
        vocab_size=V,
        emb_dim=E,
        num_heads=H,
        head_dim=D,
        mlp_dim=F,
        num_encoder_layers=ENCODER,
        num_decoder_layers=DECODER,
        mlp_activations=("gelu", "linear") if gated else ("relu",),
        logits_via_embedding=tied,
    )


def unscanned(*, gated: bool = True, tied: bool = False) -> dict[str, np.ndarray]:
    """Random parameters by T5X's names, float32 with values that bfloat16 holds exactly."""
    shapes: dict[str, tuple[int, ...]] = {"token_embedder/embedding": (V, E)}
    if not tied:
        shapes["decoder/logits_dense/kernel"] = (E, V)
    for stack, layers, norms, attentions in (
        ("encoder", ENCODER, ["pre_attention"], ["attention"]),
        (
            "decoder",
            DECODER,
            ["pre_self_attention", "pre_cross_attention"],
            ["self_attention", "encoder_decoder_attention"],
        ),
    ):
        shapes[f"{stack}/relpos_bias/rel_embedding"] = (H, BUCKETS)
        shapes[f"{stack}/{stack}_norm/scale"] = (E,)
        for i in range(layers):
            layer = f"{stack}/layers_{i}"
            for norm in [*norms, "pre_mlp"]:
                shapes[f"{layer}/{norm}_layer_norm/scale"] = (E,)
            for attention in attentions:
                for name in ("query", "key", "value"):
                    shapes[f"{layer}/{attention}/{name}/kernel"] = (E, H * D)
                shapes[f"{layer}/{attention}/out/kernel"] = (H * D, E)
            for name in ("wi_0", "wi_1") if gated else ("wi",):
                shapes[f"{layer}/mlp/{name}/kernel"] = (E, F)
            shapes[f"{layer}/mlp/wo/kernel"] = (F, E)
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=shape).astype(ml_dtypes.bfloat16).astype(np.float32)
        for name, shape in shapes.items()
    }


def scanned(arrays: Mapping[str, np.ndarray], *, own_bias: bool = False) -> dict[str, np.ndarray]:
    """The same parameters as `scalable_t5` keeps them, the position bias repeated, or, as in umT5,
    another one in each layer.
    """
    found = {}
    for name, array in arrays.items():
        stack, *rest = name.split("/")
        layers = ENCODER if stack == "encoder" else DECODER
        if "relpos_bias" in name:
            each = [array + own_bias * i for i in range(layers)]
            found[f"{stack}/{stack}/{'/'.join(rest)}"] = np.stack(each, 1)
        elif rest[0] == "layers_0":
            tail = "/".join(rest[1:])
            each = [arrays[f"{stack}/layers_{i}/{tail}"] for i in range(layers)]
            if tail.endswith(("query/kernel", "key/kernel", "value/kernel")):
                each = [a.reshape(E, H, D) for a in each]
            elif tail.endswith("out/kernel"):
                each = [a.reshape(H, D, E) for a in each]
            found[f"{stack}/{stack}/{tail}"] = np.stack(each, 1)
        elif not rest[0].startswith("layers_"):
            found[name] = array
    return found


def write_legacy(
    folder: Path,
    arrays: Mapping[str, np.ndarray],
    *,
    inline: Collection[str] = (),
    kvstore: Mapping[str, str] | None = None,
    path_outside: bool = False,
    version: int = 3,
) -> Path:
    """A checkpoint of T5X's legacy form, with optimizer state.

    Args:
      folder: to make.
      arrays: T5X's name without "target/" -> array; an empty mapping leaves out `target`.
      inline: names of those kept in the msgpack file.
      kvstore: what the msgpack file says of where the arrays are; None: as T5X, a local path.
      path_outside: as tensorstore before 0.1.14 wrote it.
      version: of the msgpack file.
    """
    folder.mkdir(parents=True)
    target = {n: a if n in inline else _write(folder, n, a) for n, a in arrays.items()}
    for spec in target.values():
        if isinstance(spec, dict) and kvstore:
            spec["kvstore"] = {**kvstore, "path": kvstore["path"] + spec["kvstore"]["path"]}
        if isinstance(spec, dict) and path_outside:
            spec["path"] = spec["kvstore"].pop("path")
    state = {"step": np.int32(7), "param_states": {"x": {"v": np.zeros(1, np.float32)}}}
    optimizer: dict[str, Any] = {"state": state}
    if target:
        optimizer["target"] = traverse_util.unflatten_dict(target, sep="/")
    content = {"version": version, "optimizer": optimizer}
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(content))
    return folder


def _write(folder: Path, name: str, array: np.ndarray) -> dict[str, Any]:
    file = f"target.{name.replace('/', '.')}"
    metadata = {
        "shape": list(array.shape),
        "chunks": list(array.shape),
        "compressor": {"id": "gzip", "level": 1},
    }
    spec = {"driver": "zarr", "dtype": array.dtype.name, "metadata": metadata}
    store = {"driver": "file", "path": f"{folder}/{file}/"}
    ts.open({**spec, "kvstore": store}, create=True).result().write(array).result()
    return {**spec, "kvstore": {"driver": "file", "path": f"{file}/"}}
