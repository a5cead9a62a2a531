"""The tensors of a Hugging Face folder: safetensors or PyTorch's files, whole or in shards."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from dss_jax.core.errors import UsageError
from dss_jax.core.paths import check_name
from dss_jax.interop.hf_config import read_json
from dss_jax.interop.weights import Leaf

SAFETENSORS, PYTORCH = "model.safetensors", "pytorch_model.bin"
WEIGHTS = (SAFETENSORS, f"{SAFETENSORS}.index.json", PYTORCH, f"{PYTORCH}.index.json")
"""What a folder may hold its tensors in; the first that is there is read."""

FLOATS = ("F64", "F32", "F16", "BF16")


def weights_file(folder: Path) -> Path | None:
    """The file, or the index of the shards, that a folder's tensors are read from."""
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)


def open_tensors(folder: Path) -> dict[str, Leaf]:
    """Name -> tensor, read from the disk when it is asked for, in its own floating type.

    Raises:
      UsageError: no such file, a damaged one, one that lacks a tensor that the index promises, a
        tensor that holds no floating-point numbers, or PyTorch's files without torch.
    """
    main = weights_file(folder)
    if main is None:
        raise UsageError(f"{folder} has no weights. Looked for: {', '.join(WEIGHTS)}.")
    if main.suffix != ".json":
        return _open_file(main)
    index = read_json(main).get("weight_map")
    if not isinstance(index, dict):
        raise UsageError(f"{main} has no weight_map, so it is no index of shards.")
    tensors: dict[str, Leaf] = {}
    for shard in sorted(set(map(str, index.values()))):
        check_name(shard, main)  # By its name alone: in the hub's cache each file is a link.
        found = _open_file(folder / shard)
        promised = {name for name, file in index.items() if file == shard}
        if found.keys() != promised:
            raise UsageError(
                f"{folder / shard} does not hold what {main.name} says. Only in the one or the "
                f"other: {', '.join(sorted(found.keys() ^ promised))}."
            )
        tensors |= found
    return tensors


def _open_file(file: Path) -> dict[str, Leaf]:
    if not file.is_file():
        raise UsageError(f"{file} is missing, and its folder's index needs it.")
    return _open_safetensors(file) if file.suffix == ".safetensors" else _open_pytorch(file)


def _open_safetensors(file: Path) -> dict[str, Leaf]:
    try:
        handle: Any = safe_open(file, framework="np")
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{file} cannot be read as safetensors: {error}.") from error
    tensors = {}
    for name in handle.keys():  # noqa: SIM118 - it is no mapping
        view = handle.get_slice(name)
        _check_floats(file, name, view.get_dtype(), view.get_dtype() in FLOATS)
        tensors[name] = Leaf(tuple(view.get_shape()), partial(handle.get_tensor, name))
    return tensors


def _open_pytorch(file: Path) -> dict[str, Leaf]:
    try:
        import torch
    except ImportError:
        raise UsageError(
            f"{file} is in PyTorch's own format, which needs torch: pip install torch. Or convert "
            "the folder to safetensors where torch is installed."
        ) from None
    try:
        # Without weights_only, opening a file could run any code that is in it.
        try:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # The format before torch 1.6 cannot be mapped.
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsageError(f"{file} cannot be read as PyTorch weights only: {error}") from error
    tensors = {}
    for name, tensor in state.items():
        _check_floats(file, name, str(tensor.dtype), tensor.is_floating_point())
        tensors[name] = Leaf(tuple(tensor.shape), partial(_torch_to_numpy, tensor))
    return tensors


def _torch_to_numpy(tensor: Any) -> np.ndarray:
    return tensor.detach().float().numpy()


def _check_floats(file: Path, name: str, dtype: str, right: bool) -> None:
    if not right:
        raise UsageError(
            f"{file}: {name} is of type {dtype}. Only float32, float64, float16 and bfloat16 are "
            "read; a quantised checkpoint must be dequantised first."
        )
