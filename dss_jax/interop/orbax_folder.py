"""Our own checkpoints, written by Orbax: a model folder, or the folder of a run.

A model folder, as `dss convert --to orbax` writes it:

t5_config.json, spiece.model   see `dss_jax.interop.model_files`
student.json                   where the student has a card
params/                        Orbax, float32
sums.json                      of all but student.json, see `dss_jax.core.sums`
"""

from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from dss_jax.core import storage, student_card, sums
from dss_jax.core.config import T5Config
from dss_jax.core.errors import UsageError
from dss_jax.interop import model_files
from dss_jax.interop.model_files import CHECKPOINTS
from dss_jax.interop.weights import (
    Leaf,
    Weights,
    check_names,
    expected_shapes,
    flat,
    nested,
    whole_place,
)
from dss_jax.model import lora
from dss_jax.train.checkpoint import PARAMS, Checkpoints, damage_of, readable


def is_orbax(path: Path) -> bool:
    """Whether `path` is a model folder, a run folder or one checkpoint of a run."""
    root = _root(path)
    return (root / model_files.T5_CONFIG).is_file() and (
        (root / CHECKPOINTS).is_dir() or (path / PARAMS).is_dir()
    )


def read_orbax(path: Path, step: int | str | None = None) -> Weights:
    """Opens a model folder, a run folder (at `step`: "best" on validation, also None; "latest", or
    a step), or `RUN/checkpoints/STEP`. Raises UsageError: not such a folder, no such step, or
    parameters of another model.
    """
    root, params = _places(path, step)
    files = model_files.read_model_files(root)
    return Weights(
        config=files.config,
        leaves=_leaves(params, files.config),
        vocabulary=files.vocabulary,
        extra_ids=files.extra_ids,
        card=student_card.read(root),
        step=int(params.parent.name) if params.parent.parent.name == CHECKPOINTS else None,
        origin=f"the Orbax checkpoint {params}",
    )


def write_orbax(weights: Weights, path: str | Path) -> None:
    """Writes a model folder, which appears whole or not at all. Raises UsageError: `path` is there
    and not empty.
    """
    with whole_place(path, model_files.T5_CONFIG) as folder:
        files = model_files.ModelFiles(weights.config, weights.vocabulary, weights.extra_ids)
        model_files.write_model_files(folder, files)
        if weights.card is not None:
            student_card.write(folder, weights.card)
        tree = ocp.args.StandardSave(weights.tree())
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            checkpointer.save(folder.absolute() / PARAMS, args=tree)
        sums.write_sums(folder, (student_card.FILE,))


def _root(path: Path) -> Path:
    """The folder with the model's files: the run's, for one checkpoint of a run."""
    in_run = path.parent.name == CHECKPOINTS and path.name.isdigit()
    return path.parents[1] if in_run else path


def _places(path: Path, step: int | str | None) -> tuple[Path, Path]:
    """The folder with the model's files, and the one with the parameters."""
    root, chosen = _root(path), path
    if not is_orbax(path):
        config = model_files.T5_CONFIG
        raise UsageError(
            f"{path} is no Orbax checkpoint of dss-jax: a model folder holds {config} and "
            f"{PARAMS}/, a run folder {config} and {CHECKPOINTS}/."
        )
    if root == path and (root / CHECKPOINTS).is_dir():
        with closing(Checkpoints(root / CHECKPOINTS)) as checkpoints:
            chosen = root / CHECKPOINTS / str(checkpoints.find("best" if step is None else step))
    elif step is not None:
        raise UsageError(
            f"{path} holds one checkpoint, so there is no {step!r} to choose. Give the folder of "
            "a run, or leave --checkpoint out."
        )
    if wrong := damage_of(chosen):
        raise UsageError(
            f"there is no checkpoint {chosen} that is whole: {wrong}. Copy or convert it again."
        )
    return root, chosen / PARAMS


def _leaves(params: Path, config: T5Config) -> Mapping[str, Leaf]:
    """The checked parameters, each read from the disk when it is asked for; LoRA is merged."""
    with readable(params), ocp.PyTreeCheckpointer() as checkpointer:
        found = flat(checkpointer.metadata(storage.absolute(params)).item_metadata.tree)
    shapes = {path: tuple(leaf.shape) for path, leaf in found.items()}
    beside = {path: [path] for path in shapes if path.rpartition("/")[2] not in (lora.A, lora.B)}
    for path in shapes.keys() - beside:
        beside[f"{path.rpartition('/')[0]}/kernel"].append(path)
    plain = {path: shapes[path] for path in beside}
    check_names(expected_shapes(config), plain, f"the Orbax checkpoint {params}")
    return {path: Leaf(shapes[path], partial(_read, params, beside[path])) for path in beside}


def _read(params: Path, paths: list[str]) -> np.ndarray:
    """The first of `paths`, with the LoRA leaves that follow merged in."""
    wanted = nested({path: np.zeros((), np.float32) for path in paths})
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    with readable(params), ocp.PyTreeCheckpointer() as checkpointer:
        args = ocp.args.PyTreeRestore(wanted, restore_args=as_numpy, partial_restore=True)
        tree = checkpointer.restore(storage.absolute(params), args=args)
    return np.asarray(flat(lora.merge(tree))[paths[0]], np.float32)
