"""Token stores under gs:// and s3://, which are copied into the cache: they are memory-mapped."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from dss_jax.core import config, storage
from dss_jax.data.store import MANIFEST, StoreDamaged, TokenStore, open_store

Log = Callable[[str], None]


def remote_folder(data_cfg: config.Data) -> str | None:
    """The remote folder of all stores; None where Data.store_dir and DSS_STORE_DIR name none."""
    folder = data_cfg.store_dir or os.environ.get("DSS_STORE_DIR")
    return folder.rstrip("/") if folder and storage.is_remote(folder) else None


def open_anywhere(path: str, log: Log) -> TokenStore:
    """Opens a store, local or remote; every file of it is checked against the manifest.

    Raises:
      StoreDamaged: see `open_store`.
      UsageError: see `storage.explained`.
    """
    if not storage.is_remote(path):
        return open_store(path)
    folder = storage.local_folder(path, log)
    try:
        return open_store(folder)
    except StoreDamaged:
        # The copy may be what is damaged.
        shutil.rmtree(folder)
        return open_store(storage.local_folder(path, log))


def fetch(path: str, need: Sequence[str], log: Log) -> TokenStore | None:
    """The store that another machine has put there; None where there is none that will do."""
    if not storage.exists(f"{path}/{MANIFEST}"):
        return None
    try:
        store = open_anywhere(path, log)
    except StoreDamaged as error:
        log(f"{error} It is made again.")
        return None
    return None if store.lacking(need) else store


def give(store: TokenStore, path: str, log: Log) -> None:
    """Puts a store where other machines will find it; the manifest goes last."""
    log(f"copying the token store to {path}")
    storage.upload_folder(Path(store.path), path, last=MANIFEST)
