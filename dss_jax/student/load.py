"""Opens the student in a folder, with the engine that the folder is for."""

from importlib import import_module
from pathlib import Path

from dss_jax.core import storage
from dss_jax.core.checks import among, at_least
from dss_jax.core.errors import UsageError
from dss_jax.interop.ct2_files import MODEL
from dss_jax.interop.hub import local
from dss_jax.student import card
from dss_jax.student.student import Student

ENGINES = {"jax": "dss_jax.student.xla", "ctranslate2": "dss_jax.student.ct2"}
"""Name -> its module, which has `open_engine(folder, *, threads, checkpoint)`, and gives an engine
and the vocabulary. Imported when it is taken: neither needs the other's libraries."""


def load(
    folder: str | Path,
    *,
    engine: str | None = None,
    threads: int | None = None,
    checkpoint: str | None = None,
    dtype: str | None = None,
) -> Student:
    """Opens the student in a run's folder, or in one that `dss convert` wrote.

    Args:
      folder: local, gs:// or s3://, or a name of the Hugging Face hub: see `hub.local`.
      engine: "jax", for folders of runs and in Hugging Face's form; "ctranslate2", for those in its
        own. None: by the folder.
      threads: of the processor that are used; None: all.
      checkpoint: of a run's folder: "best" on validation (also None), "latest" or a step.
      dtype: of the engine jax's activations: "float32" or "bfloat16"; None: float32 on a CPU,
        which takes longer for bfloat16, else as in the run.

    Raises:
      UsageError: there is no student in the folder, or none for this engine.
    """
    if engine is not None:
        among("engine", engine, ENGINES)
    if threads is not None:
        at_least("threads", threads, 1)
    folder = local(str(folder))
    place = storage.place(folder)
    if not storage.exists(place):
        raise UsageError(f"there is no folder {folder}. Give the folder of a student.")
    with storage.explained(folder):
        converted = (place / MODEL).is_file()
    if engine == "ctranslate2" and not converted:
        raise UsageError(
            f"{folder} holds no {MODEL}, so it is not in CTranslate2's form. Convert it first: "
            f"dss convert --from FORMAT {folder} --to ctranslate2 NEW_FOLDER."
        )
    if engine == "jax" and converted:
        raise UsageError(
            f"{folder} is in CTranslate2's form ({MODEL}), which the engine jax does not read. "
            "Leave --engine out, or give the folder that it was converted from."
        )
    engine = engine or ("ctranslate2" if converted else "jax")
    if engine == "ctranslate2" and dtype is not None:
        raise UsageError(
            f"dtype (--dtype {dtype}) is of the engine jax. How CTranslate2 computes is chosen by "
            "dss convert --quantization."
        )
    own = card.read(folder)
    opened, vocabulary = import_module(ENGINES[engine]).open_engine(
        place, threads=threads, checkpoint=checkpoint, **({"dtype": dtype} if dtype else {})
    )
    return Student(own, opened, vocabulary, place)
