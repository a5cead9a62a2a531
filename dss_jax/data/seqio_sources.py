"""Rows from TFDS and other SeqIO data sources. Imports TensorFlow."""

import logging
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import seqio
import tensorflow_datasets as tfds

from dss_jax.core.paths import cache_folder
from dss_jax.core.types import Row, SplitUnavailable, Tfds

log = logging.getLogger(__name__)

REACHABLE_SECONDS = 20.0
"""How long the server of a data set may take to answer before it counts as unreachable."""


def rows(source: seqio.DataSource, split: str) -> Iterator[Row]:
    """The rows of any SeqIO data source, unshuffled; bytes become text."""
    for row in source.get_dataset(split=split, shuffle=False).as_numpy_iterator():
        yield {name: _plain(value) for name, value in row.items()}


def tfds_rows(source: Tfds, split: str, *, in_order: bool) -> list[Row]:
    """The rows of a TFDS split; SplitUnavailable: it can be neither found nor downloaded.

    TFDS shuffles rows when it prepares a data set (by a hash of their keys), so a completion joined
    by position to what `tfds.load` gives would belong to another row. With `in_order`, for rows in
    the order of the original files, the data set is therefore prepared a second time, unshuffled,
    in this package's cache folder.
    """
    folder = str(cache_folder() / "tfds_in_order") if in_order else None
    try:
        builder = tfds.builder(source.name, data_dir=folder)
        if not builder.data_path.exists():
            _check_reachable(builder)
            if in_order:
                builder.info.as_proto.disable_shuffling = True
                downloads = Path(tfds.core.constants.DATA_DIR).expanduser() / "downloads"
                builder.download_and_prepare(download_dir=str(downloads))
        if in_order and not builder.info.disable_shuffling:
            raise RuntimeError(f"{builder.data_path} was prepared shuffled; delete it")
        data = seqio.TfdsDataSource(source.name, tfds_data_dir=folder, splits=dict(source.splits))
        return list(rows(data, split))
    except Exception as error:
        # TFDS has no error type of its own: no network, no space and a wrong name all differ.
        log.debug("TFDS %s", source.name, exc_info=True)
        raise SplitUnavailable(_help(source, split, folder, error)) from error


def _check_reachable(builder: tfds.core.DatasetBuilder) -> None:
    """Raises `OSError` at once where TFDS would retry for minutes before it does."""
    hosts = {urllib.parse.urlsplit(url).hostname for url in builder.url_infos}
    if not urllib.request.getproxies():
        for host in sorted(h for h in hosts if h):
            socket.create_connection((host, 443), timeout=REACHABLE_SECONDS).close()


def _help(source: Tfds, split: str, folder: str | None, error: Exception) -> str:
    reason = str(error).strip().splitlines()
    where = f" into {folder}" if folder else ""
    return (
        f"the {split} split is to come from TensorFlow Datasets ({source.name}){where}, but it "
        f"could not be read or downloaded: {type(error).__name__}: {reason[0] if reason else ''}. "
        "Run once where there is a network, copy the prepared folder here, or put the authors' "
        "release, which has the split, below --data_dir (DSS_DATA_DIR)."
    )


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if getattr(value, "shape", None) == ():
        return value.item()
    if getattr(getattr(value, "dtype", None), "kind", "") == "O":
        return [*map(_plain, value.tolist())]
    return value
