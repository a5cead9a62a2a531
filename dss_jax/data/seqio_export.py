"""Writes rationale records as a TensorFlow Datasets folder. Run as a child process.

The folder is what a TFDS builder of that name and version prepares, so SeqIO's `TfdsDataSource`,
`tfds.load` and `tfds.builder_from_directory` read it without this package.
"""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dss_jax.core.errors import UsageError
from dss_jax.core.texts import well_formed
from dss_jax.records.files import read_records
from dss_jax.records.records import Header, Record

log = logging.getLogger(__name__)

TEXTS = ("id", "input", "label", "teacher_label", "rationale", "status")
"""Text features; `agreement` is a float32 beside them."""


def export_records(
    files: Sequence[str | Path], folder: str | Path, name: str | None = None, version: str = "1.0.0"
) -> Path:
    """Writes record files, one a split, as the data set `folder/name/version`, and gives that
    folder.

    All records go in, in their order, whatever their status. Features: `id`, `input`, `label` (the
    gold one, "" without), `teacher_label`, `rationale`, `status` (text) and `agreement` (float32).
    The description holds the headers, as JSON lines. `name`: in snake case; None:
    `<task>_rationales`.

    Raises:
      UsageError: ill-formed or empty files, files of several tasks, two of one split, a name or
        version that TFDS does not allow, a folder that is there already.
    """
    opened = [(Path(f), *read_records(Path(f))) for f in files]
    headers = [header for _, header, _ in opened]
    _check(headers, version)
    name = name or f"{headers[0].task}_rationales"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UsageError(f"the name {name!r} is none for TFDS: small letters, digits and _ only.")
    path = Path(folder).expanduser().resolve() / name / version
    if path.exists():
        raise UsageError(f"{path} is there already. Give another --version, or remove it first.")
    # Before TensorFlow is imported, so that a mistake in a file shows at once.
    splits = {header.split: [*enumerate(map(_row, own))] for _, header, own in opened}
    for file, header, _ in opened:
        if not splits[header.split]:
            raise UsageError(f"{file} has no records. Leave it out.")

    import numpy as np
    import tensorflow_datasets as tfds

    features: dict[str, Any] = {text: tfds.features.Text() for text in TEXTS}
    features["agreement"] = tfds.features.Scalar(np.float32)
    builder = tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version=version,
        features=tfds.features.FeaturesDict(features),
        split_datasets=splits,
        data_dir=str(path.parents[1]),
        description=well_formed(
            "\n".join(json.dumps(asdict(h), ensure_ascii=False) for h in headers)
        ),
        disable_shuffling=True,
    )
    for split, info in builder.info.splits.items():
        log.info(f"{split}: {info.num_examples:,} records in {info.num_shards} shards")
    return path


def _check(headers: Sequence[Header], version: str) -> None:
    if not headers:
        raise UsageError("no record file. Give at least one.")
    tasks, splits = {h.task for h in headers}, [h.split for h in headers]
    if len(tasks) > 1:
        raise UsageError(f"the files are of several tasks: {', '.join(sorted(tasks))}.")
    if len(set(splits)) < len(splits):
        raise UsageError(
            f"two files are of one split: {', '.join(splits)}. `dss records merge` makes one of "
            "them."
        )
    # TFDS makes names of files of them.
    if odd := [split for split in splits if not re.fullmatch(r"\w+", split)]:
        raise UsageError(f"the split {odd[0]!r} of a record file is none for TFDS: letters only.")
    if not re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}", version):
        raise UsageError(f"the version must be MAJOR.MINOR.PATCH, as 1.0.0, not {version!r}.")


def _row(record: Record) -> dict[str, Any]:
    own = {text: "gold" if text == "label" else text for text in TEXTS}
    texts = {text: well_formed(getattr(record, name)) for text, name in own.items()}
    return {**texts, "agreement": record.agreement}


def answer(request: dict[str, Any]) -> str:
    """`export_records` for the parent process: its arguments in, the path out."""
    return str(export_records(**request))
