"""Hugging Face folders of T5: `config.json`, the SentencePiece file or the tokenizer's files, and
tensors: safetensors or PyTorch's files, whole or in shards.

Parameters are compared under Hugging Face's names. Nothing is left out silently or made up: what
a reader had to decide is in `Weights.notes`.
"""

import dataclasses
import json
import logging
import math
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dss_jax.core import student_card, sums
from dss_jax.core.config import T5Config
from dss_jax.core.errors import UsageError
from dss_jax.core.lfs import refuse_pointer
from dss_jax.core.paths import check_name, write_whole
from dss_jax.data import tokenizer_files
from dss_jax.data.vocabulary import files_of, is_tokenizer
from dss_jax.interop import hf_config
from dss_jax.interop.hf_config import EMBEDDING, HEAD, written_by_transformers_5
from dss_jax.interop.model_files import README
from dss_jax.interop.older_tokenizers import readable_vocabulary
from dss_jax.interop.pieces import token_names
from dss_jax.interop.tokenizer_json import tokenizer_json
from dss_jax.interop.weights import (
    Leaf,
    Shape,
    StoredParameter,
    Weights,
    checked_leaves,
    expected_shapes,
    their_shapes,
    whole_place,
)

log = logging.getLogger(__name__)

SAFETENSORS, PYTORCH = "model.safetensors", "pytorch_model.bin"
WEIGHTS = (SAFETENSORS, f"{SAFETENSORS}.index.json", PYTORCH, f"{PYTORCH}.index.json")
"""What a folder may hold its tensors in; the first that is there is read."""

FLOATS = ("F64", "F32", "F16", "BF16")

EMBEDDING_ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
ONE_TENSOR = "In T5 they are one tensor, so this is another model, or a damaged file."
UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
"""In checkpoints of v1.0 from 2019 and 2020; no implementation of T5 has ever read it."""

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module")
"""Parts of names: of torch.compile, FSDP, activation checkpointing, (Distributed)DataParallel."""

DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
"""Types that tensors can be written in."""

OTHER_FRAMEWORKS = (".h5", ".msgpack", ".ot", ".onnx", ".tflite")
"""Endings of files in such folders that are never read."""

SHARD_BYTES = 5_000_000_000
"""Largest file of tensors, as `transformers` writes them."""


def _family(is_gemma: bool) -> Any:
    """The module that knows the names and the configuration of a T5, or of a T5Gemma."""
    if not is_gemma:
        return hf_config
    from dss_jax.interop import hf_t5gemma

    return hf_t5gemma


def parameters(config: T5Config) -> list[StoredParameter]:
    """All of the model, in the order in which files have them; aliases (embed_tokens) left out."""
    shapes, found = expected_shapes(config), []
    for path, name in _family(config.gemma is not None).names().items():
        if path not in shapes:
            continue
        shape, by_layer = shapes[path], "/layers/" in path
        names = [name.format(i=i) for i in range(shape[0] if by_layer else 1)]
        theirs = shape[1:] if by_layer else shape
        # `nn.Linear` keeps [out, in].
        if path.endswith(("/kernel", "/rel_embedding")):
            found.append(StoredParameter(path, shape, names, theirs[::-1], np.transpose))
        else:
            found.append(StoredParameter(path, shape, names, theirs))
    assert len(found) == len(shapes)
    return found


def is_hf(path: Path) -> bool:
    """Whether a folder has Hugging Face's configuration and tensors."""
    return (path / hf_config.CONFIG).is_file() and weights_file(path) is not None


def read_hf(path: Path) -> Weights:
    """Opens a folder of a T5 of `hf_config.MODEL_TYPES`, or of a T5Gemma. UsageError: another
    architecture; missing, unexpected or misshapen tensors; an alias that differs from what it
    stands for; configuration and tensors that disagree on the head.
    """
    origin = f"the Hugging Face folder {path}"
    tensors, notes = _unwrapped(open_tensors(path), origin)
    fields = tokenizer_files.read(path / hf_config.CONFIG)
    family = _family(fields.get("model_type") == "t5gemma")
    config = family.shape_of(fields, origin)
    if tensors.pop(UNUSED, None) is not None:
        notes.append(f"left out: {UNUSED}, which no implementation of T5 uses")
    for alias in EMBEDDING_ALIASES:
        _drop_alias(tensors, alias, EMBEDDING, origin)
    both = {HEAD, EMBEDDING} <= tensors.keys()
    unsure = fields["model_type"] == "umt5" and written_by_transformers_5(fields)
    # The configuration says "tied" of every umT5.
    if both and unsure and not _same(tensors[HEAD], tensors[EMBEDDING]):
        config = dataclasses.replace(config, logits_via_embedding=False)
        notes.append(
            f"{HEAD} is read as umT5's own, unscaled, as in T5X and transformers 4; transformers 5 "
            "scales by d_model^-0.5 before it, so what was trained there is too sure here"
        )
    if config.logits_via_embedding:
        said = f"{hf_config.CONFIG} says that the logits come from the embedding "
        fix = (
            'If the head is its own, as in T5 v1.1, set "tie_word_embeddings": false in '
            f"{hf_config.CONFIG}; if not, remove {family.HEAD}."
        )
        said += "(tie_word_embeddings), but "
        _drop_alias(tensors, family.HEAD, family.EMBEDDING, origin, said, fix)
    elif HEAD not in tensors and EMBEDDING in tensors and written_by_transformers_5(fields):
        tensors[HEAD] = tensors[EMBEDDING]
        notes.append(
            f"{HEAD} is {EMBEDDING} in this checkpoint, unscaled: it becomes a tensor of its own, "
            "with the same values, and training will part the two"
        )
    found = {name: tensor.shape for name, tensor in tensors.items()}
    extra_ids = _extra_ids(path, fields)
    return Weights(
        config=config,
        leaves=checked_leaves(
            parameters(config), found, lambda names: (tensors[n].read() for n in names), origin
        ),
        vocabulary=readable_vocabulary(path, extra_ids),
        extra_ids=extra_ids,
        origin=origin,
        card=student_card.read(path),
        notes=tuple(notes),
    )


def _unwrapped(tensors: Mapping[str, Leaf], origin: str) -> tuple[dict[str, Leaf], list[str]]:
    """The tensors without what PyTorch's wrappers of a model put before and between the names."""
    found = {
        ".".join(part for part in name.split(".") if part not in WRAPPERS): tensor
        for name, tensor in tensors.items()
    }
    if len(found) < len(tensors):
        raise UsageError(f"{origin} has tensors both with and without the names of {WRAPPERS}.")
    wrapped = sorted({part for name in tensors for part in name.split(".")} & {*WRAPPERS})
    return found, [f"names were read without {', '.join(wrapped)}"] if wrapped else []


def _drop_alias(
    tensors: dict[str, Leaf],
    alias: str,
    name: str,
    origin: str,
    before: str = "",
    after: str = ONE_TENSOR,
) -> None:
    """Takes out a tensor that stands for the embedding `name`, if it is there and equal to it."""
    tensor = tensors.pop(alias, None)
    if tensor is None:
        return
    embedding = tensors.setdefault(name, tensor)
    if not _same(tensor, embedding):
        raise UsageError(
            f"{origin}: {before}{alias} {list(tensor.shape)} differs from {name} "
            f"{list(embedding.shape)}. {after}"
        )


def _same(one: Leaf, other: Leaf) -> bool:
    return one.shape == other.shape and np.array_equal(one.read(), other.read())


def _extra_ids(path: Path, fields: Mapping[str, Any]) -> int:
    """Sentinels above the SentencePiece model's pieces; those of mT5 are inside the model."""
    default = {"mt5": 0, "umt5": 300}.get(fields["model_type"], 100)
    return int(tokenizer_files.settings_of(files_of(path)).get("extra_ids", default))


def write_hf(
    weights: Weights, path: str | Path, dtype: str = "float32", readme: str | None = None
) -> None:
    """Writes a folder that `transformers` loads, with tensors of one of `DTYPES`, and the model
    card `readme`; it appears whole or not at all. Raises UsageError: `path` is there and not empty,
    or `transformers` has no such model.
    """
    card, vocabulary = weights.card, weights.vocabulary
    family = _family(weights.config.gemma is not None)
    files = {
        hf_config.CONFIG: family.config_json(weights.config, dtype, card),
        "generation_config.json": family.generation_json(weights.config, card),
    }
    own = files_of(vocabulary) if vocabulary is not None else {}
    if vocabulary is not None and not is_tokenizer(vocabulary):
        fast = tokenizer_json(vocabulary, weights.extra_ids)
        if fast is None:
            log.info("no tokenizer.json: %s is not of T5's kind; transformers needs it", vocabulary)
        else:
            files["tokenizer.json"] = fast
        names = token_names(vocabulary, weights.extra_ids, 0)
        settings = hf_config.tokenizer_config_json(names, weights.extra_ids, fast=fast is not None)
        files["tokenizer_config.json"] = settings
    with whole_place(path, hf_config.CONFIG) as folder:
        for name, content in files.items():
            _write_json(folder / name, content)
        for name, file in own.items():
            shutil.copyfile(file, folder / name)
        if card is not None:
            student_card.write(folder, card)
        if readme is not None:
            write_whole(folder / README, readme)
        _write_tensors(weights, folder, np.dtype(DTYPES[dtype]))
        for file in folder.glob(f"*.{SAFETENSORS.split('.')[1]}"):
            # safetensors gives its files mode 0600, whatever the umask.
            file.chmod((folder / hf_config.CONFIG).stat().st_mode)
        # For `dss doctor` alone: whoever has the folder may save into it again.
        sums.write_sums(folder, (README,))


def _write_json(file: Path, value: dict[str, Any]) -> None:
    write_whole(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _shards(shapes: Mapping[str, Shape], itemsize: int) -> list[list[str]]:
    """Names of tensors, in their order, cut into files of at most `SHARD_BYTES`; a larger tensor is
    a file of its own.
    """
    shards: list[list[str]] = []
    filled = SHARD_BYTES
    for name, shape in shapes.items():
        size = math.prod(shape) * itemsize
        if filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _write_tensors(weights: Weights, folder: Path, dtype: np.dtype) -> None:
    needed = parameters(weights.config)
    shapes = their_shapes(needed)
    shards = _shards(shapes, dtype.itemsize)
    stem, suffix = SAFETENSORS.split(".")
    files = [f"{stem}-{i:05}-of-{len(shards):05}.{suffix}" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = [SAFETENSORS]
    # One of our parameters is held at a time.
    tensors = (
        (name, np.ascontiguousarray(tensor, dtype=dtype))
        for parameter in needed
        for name, tensor in parameter.to_theirs(weights.leaves[parameter.path].read()).items()
    )
    for file, names in zip(files, shards, strict=True):
        shard = dict(next(tensors) for _ in names)
        assert list(shard) == names
        # transformers refuses a file without this mark.
        save_file(shard, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {n: file for file, names in zip(files, shards, strict=True) for n in names}
        total = {"total_size": sum(map(math.prod, shapes.values())) * dtype.itemsize}
        index = {"metadata": total, "weight_map": weight_map}
        _write_json(folder / f"{SAFETENSORS}.index.json", index)


def weights_file(folder: Path) -> Path | None:
    """The file, or the index of the shards, that a folder's tensors are read from."""
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)


def open_tensors(folder: Path) -> dict[str, Leaf]:
    """Name -> tensor, read from the disk when it is asked for, in its own floating type. Raises
    UsageError: no such file, a damaged one, one that lacks a tensor that the index promises, a
    tensor that holds no floating-point numbers, or PyTorch's files without torch.
    """
    main = weights_file(folder)
    if main is None:
        raise UsageError(f"{folder} has no weights. Looked for: {', '.join(WEIGHTS)}.")
    if main.suffix != ".json":
        return _open_file(main)
    index = tokenizer_files.read(main).get("weight_map")
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
    tensors = {}
    opened = _safetensors_in if file.suffix == ".safetensors" else _pytorch_in
    for name, dtype, is_float, tensor in opened(file):
        if not is_float:
            raise UsageError(
                f"{file}: {name} is of type {dtype}. Only float32, float64, float16 and bfloat16 "
                "are read; a quantised checkpoint must be dequantised first."
            )
        tensors[name] = tensor
    return tensors


def _safetensors_in(file: Path) -> Iterator[tuple[str, str, bool, Leaf]]:
    """(name, dtype, whether it is floating-point, tensor) of each."""
    try:
        handle: Any = safe_open(file, framework="np")
    except (OSError, SafetensorError) as error:
        refuse_pointer(file)
        raise UsageError(f"{file} cannot be read as safetensors: {error}.") from error
    for name in handle.keys():  # noqa: SIM118 - it is no mapping
        view = handle.get_slice(name)
        dtype, shape = view.get_dtype(), tuple(view.get_shape())
        yield name, dtype, dtype in FLOATS, Leaf(shape, partial(handle.get_tensor, name))


def _pytorch_in(file: Path) -> Iterator[tuple[str, str, bool, Leaf]]:
    """As `_safetensors_in`."""
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
        refuse_pointer(file)
        raise UsageError(f"{file} cannot be read as PyTorch weights only: {error}") from error
    for name, x in state.items():
        read = partial(lambda tensor: tensor.detach().float().numpy(), x)
        yield name, str(x.dtype), x.is_floating_point(), Leaf(tuple(x.shape), read)
