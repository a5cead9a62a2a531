"""Reads and writes a checkpoint of any format that the package knows.

A format's own module is imported where it is needed: a run that starts from nothing needs none.
"""

from pathlib import Path

from dss_jax.core import storage
from dss_jax.core.checks import among
from dss_jax.core.errors import UsageError
from dss_jax.core.types import CHECKPOINT_FORMATS
from dss_jax.interop.foreign import advice
from dss_jax.interop.hub import local
from dss_jax.interop.model_files import T5_CONFIG
from dss_jax.interop.weights import Weights

LOOKED_FOR = (
    "hf: config.json and model.safetensors or pytorch_model.bin, or the index of their shards; "
    "orbax: t5_config.json and params/ (a model folder) or checkpoints/ (a run folder); "
    "t5x: a folder checkpoint_STEP that T5X wrote"
)


def detect(path: str) -> str:
    """The format of a checkpoint, from what its folder holds. Raises UsageError: no such folder, or
    nothing in it that tells.
    """
    from dss_jax.interop import hf, t5x

    # Of the three only T5X's are read from buckets without an extra.
    if storage.is_remote(path) and (t5x.is_t5x(path) or not storage.has_extra(path)):
        return "t5x"
    folder = storage.place(path)
    with storage.explained(path):
        tests = {"hf": hf.is_hf(folder)}
        # To import Orbax takes longer than to read a small model.
        if not tests["hf"] or (folder / T5_CONFIG).is_file():
            from dss_jax.interop import orbax_folder

            tests["orbax"] = orbax_folder.is_orbax(folder)
    found = [name for name, fits in tests.items() if fits]
    if not found and t5x.is_t5x(path):
        found = ["t5x"]
    if len(found) != 1:
        with storage.explained(path):
            what = advice([file.name for file in folder.iterdir()], path) if not found else ""
        if what:
            raise UsageError(what)
        what = f"is of several formats ({', '.join(found)})" if found else "is of no known format"
        raise UsageError(f"{path} {what}. Looked for: {LOOKED_FOR}.")
    return found[0]


def read_weights(
    path: str, format: str | None = None, checkpoint: int | str | None = None
) -> Weights:
    """Opens a checkpoint, local, remote, or of the Hugging Face hub by its name (see `hub.local`);
    its parameters are read later, one at a time.

    `format`: one of `CHECKPOINT_FORMATS`; None: see `detect`. `checkpoint`: of an Orbax run folder:
    "best", "latest" or a step.

    Raises:
      UsageError: no such checkpoint, or not one of a T5 that the package has.
    """
    from dss_jax.interop import hf

    path = local(path) if format in (None, "hf") else path
    remote = storage.is_remote(path)
    path = path if remote else str(Path(path).expanduser())
    if format != "t5x" and not remote and not Path(path).is_dir():
        raise UsageError(
            f"there is no folder {path}. Names of the Hugging Face hub are OWNER/NAME."
        )
    format = format or detect(path)
    among("format of a checkpoint", format, CHECKPOINT_FORMATS)
    if checkpoint is not None and format != "orbax":
        raise UsageError(f"only the folder of a run has several checkpoints, not {format} {path}.")
    if format == "t5x":
        from dss_jax.interop import t5x

        return t5x.read_t5x(path)
    if format == "hf":
        # Tensors are mapped into memory, so they must be in a local file.
        return hf.read_hf(storage.local_folder(path, skip=hf.OTHER_FRAMEWORKS))
    from dss_jax.interop import orbax_folder

    # Orbax reads gs://, but not s3://.
    folder = storage.local_folder(path) if path.startswith("s3://") else storage.place(path)
    with storage.explained(path):
        return orbax_folder.read_orbax(folder, checkpoint)


def write_weights(
    weights: Weights, path: str, format: str, dtype: str = "float32", readme: str | None = None
) -> None:
    """Writes a checkpoint to a new folder, local or remote; it appears whole or not at all.

    `dtype`: of the tensors, for "hf": "float32" or "bfloat16"; the others keep float32. `readme`:
    the model card, for "hf".

    Raises:
      UsageError: the folder is not empty, or the format has no such model.
    """
    among("format of a checkpoint", format, CHECKPOINT_FORMATS)
    if format != "hf" and dtype != "float32":
        raise UsageError(f"{format} is written in float32, not {dtype}.")
    from dss_jax.interop import hf, orbax_folder, t5x
    from dss_jax.interop.vocabularies import added_to

    if format == "t5x":
        if added := added_to(weights.vocabulary, weights.extra_ids):
            raise UsageError(
                f"{weights.origin} has tokens that were added to its vocabulary, "
                f"{', '.join(map(repr, added))}, and a T5X checkpoint cannot keep them. Convert it "
                "to hf, orbax or ctranslate2."
            )
        t5x.write_t5x(weights, path)
    elif format == "hf":
        hf.write_hf(weights, path, dtype, readme)
    else:
        orbax_folder.write_orbax(weights, path)
